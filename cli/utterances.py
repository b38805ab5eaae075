"""Where one stops to speak: samples of a microphone to utterances, as they come.

Frames are told apart by their level alone. That is enough to know when somebody pauses, and what is sent for nothing
the server's own detection leaves out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

FRAME_MS = 30
PADDING_MS = 300  # kept before and behind what is loud: words begin and end softly
PAUSE_MS = 700  # that end an utterance
CUT_MS = 2000  # at the end of an utterance that has grown too long, where the quietest place is looked for
FLOOR_MS = 10_000  # over which the level of the room is followed

SILENCE_DB = -96.0  # of 16 bits
QUIET_ROOM_DB = -60.0  # until it is known better
MARGIN_DB = 10.0  # of speech over the room
LOUD_DB = -30.0  # speech in any room


def level_of(samples: np.ndarray) -> float:
    """Root mean square of int16 samples, in dB of full scale."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) / 2**30
    return max(10 * math.log10(power), SILENCE_DB) if power else SILENCE_DB


class Utterances:
    """Cuts int16 samples, mono at `rate`, into utterances of at most `longest` seconds; silence between is dropped."""

    def __init__(self, rate: int, longest: float) -> None:
        self.level, self.speaking = SILENCE_DB, False
        self._frame = rate * FRAME_MS // 1000
        self._longest = max(int(longest * 1000 / FRAME_MS), 1)
        self._room = deque([QUIET_ROOM_DB] * (FLOOR_MS // FRAME_MS), maxlen=FLOOR_MS // FRAME_MS)
        self._rest = np.zeros(0, np.int16)  # less than a frame
        self._frames: list[np.ndarray] = []  # of the utterance at hand, or what may have to be kept before the next
        self._levels: list[float] = []
        self._silent = 0  # frames since it was loud

    def feed(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Utterances that have ended with `samples`."""
        self._rest = np.concatenate([self._rest, samples])
        while len(self._rest) >= self._frame:
            frame, self._rest = self._rest[: self._frame], self._rest[self._frame :]
            yield from self._add(frame)

    def finish(self) -> Iterator[np.ndarray]:
        """The utterance that nobody has ended."""
        if self.speaking:
            self._frames.append(self._rest)
            yield self._taken(len(self._frames))

    def _add(self, frame: np.ndarray) -> Iterator[np.ndarray]:
        self.level = level_of(frame)
        self._frames.append(frame)
        self._levels.append(self.level)
        if self._loud():
            self.speaking, self._silent = True, 0
        else:
            self._silent += 1
        if not self.speaking:
            self._forget(len(self._frames) - PADDING_MS // FRAME_MS)
        elif self._silent >= PAUSE_MS // FRAME_MS:
            self.speaking = False
            yield self._taken(len(self._frames) - (PAUSE_MS - PADDING_MS) // FRAME_MS)
        elif len(self._frames) >= self._longest:
            utterance = self._taken(self._quietest() + 1)
            self.speaking = self._silent < len(self._frames)  # something loud is left
            yield utterance

    def _loud(self) -> bool:
        """Whether this frame stands out of the room, whose level is the one that a tenth of the last frames stay
        under: even who speaks without a pause leaves that much between words."""
        self._room.append(self.level)
        floor = sorted(self._room)[len(self._room) // 10]
        return self.level > min(max(floor, QUIET_ROOM_DB) + MARGIN_DB, LOUD_DB)

    def _quietest(self) -> int:
        begin = max(len(self._levels) - CUT_MS // FRAME_MS, len(self._levels) // 2)
        return begin + int(np.argmin(self._levels[begin:]))

    def _taken(self, count: int) -> np.ndarray:
        taken = np.concatenate(self._frames[:count])
        self._forget(count)
        return taken

    def _forget(self, count: int) -> None:
        if count > 0:
            del self._frames[:count], self._levels[:count]
