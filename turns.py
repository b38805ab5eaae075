"""When somebody begins to speak and when they have done: turns, found frame by frame while they go on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from voice_activity import FRAME, HYSTERESIS, LEAST_RELEASE, SAMPLE_RATE

Eagerness = Literal["low", "medium", "high", "auto"]
# Milliseconds of silence that end a turn: behind the end of a sentence, as soon as there is text to tell, and anywhere
# else. OpenAI tells of the second only that it is at most 8, 4 and 2 seconds.
PAUSES_MS: dict[Eagerness, tuple[float, float]] = {
    "low": (800, 4000),
    "medium": (500, 2000),
    "auto": (500, 2000),
    "high": (300, 1000),
}


@dataclass(frozen=True)
class TurnDetection:
    """What ends a turn. Names and defaults are OpenAI's; those of the last three fields are Mistral's.

    `server_vad`: `silence_duration_ms` without speech. `semantic_vad`: a pause whose length goes by `eagerness`, and
    which is shorter where the text so far ends a sentence; its `threshold` and `prefix_padding_ms` count as well.
    """

    kind: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5  # probability of speech from which on a frame is speech, 0 to 1
    prefix_padding_ms: float = 300  # kept before speech
    silence_duration_ms: float = 500
    eagerness: Eagerness = "auto"  # auto is medium
    end_threshold: float | None = None  # below which a frame is silence; None: 0.15 below `threshold`
    eager_end_threshold: float | None = None  # below which it may be; None: as `end_threshold`
    end_timeout_ms: float | None = None  # of what may be silence, after which a turn ends too; None: nothing does

    def silence_ms(self, sentence_ended: bool) -> float:
        """Silence that ends a turn."""
        if self.kind == "server_vad":
            return self.silence_duration_ms
        after_sentence, elsewhere = PAUSES_MS[self.eagerness]
        return after_sentence if sentence_ended else elsewhere

    @property
    def pause_ms(self) -> float:
        """Silence after which a turn may be over."""
        return self.silence_ms(sentence_ended=True) / 2

    @property
    def release(self) -> float:
        """`end_threshold`, or what stands for it; never so low that nothing ends a turn."""
        if self.end_threshold is not None:
            return self.end_threshold
        return max(self.threshold - HYSTERESIS, min(self.threshold, LEAST_RELEASE))

    @property
    def eager_release(self) -> float:
        return self.release if self.eager_end_threshold is None else self.eager_end_threshold


@dataclass(frozen=True)
class TurnStarted:
    """`start`: the first sample of its audio, padding included."""

    start: int


@dataclass(frozen=True)
class TurnPaused:
    """`last`: the sample after the last of speech, as it seems."""

    last: int


@dataclass(frozen=True)
class TurnResumed:
    first: int


@dataclass(frozen=True)
class TurnEnded:
    """`end`: the sample after the last of its audio, of silence that is. `last`: the one after the last of speech, by
    the lower bar."""

    end: int
    last: int
    reason: Literal["threshold", "timeout"]


TurnEvent = TurnStarted | TurnPaused | TurnResumed | TurnEnded


class TurnTracker:
    """Probabilities of speech, one for each FRAME from sample `position` on, to events. A turn that ends has paused."""

    def __init__(self, detection: TurnDetection, position: int = 0) -> None:
        self.open = self.paused = False
        self.sentence_ended = False  # whether the text of the turn does; whoever knows the text says so
        self._detection = detection
        self._prefix = _samples(detection.prefix_padding_ms)
        self._early = _samples(detection.pause_ms)
        self._position = position  # samples judged
        self._ended = position  # no turn to come begins before
        self._spoken = self._surely_spoken = 0  # where speech was last, by the lower and by the higher bar

    @property
    def earliest(self) -> int:
        """Where a turn that is not open yet may begin at the earliest."""
        return max(self._position - self._prefix, self._ended)

    def add(self, probability: float) -> Iterator[TurnEvent]:
        """What the next frame brings about."""
        begins, self._position = self._position, self._position + FRAME
        detection = self._detection
        if probability >= (detection.release if self.open else detection.threshold):
            self._spoken = self._position
        if probability >= (detection.eager_release if self.open else detection.threshold):
            self._surely_spoken = self._position
            yield from self._speak(begins)
        elif self.open:
            yield from self._pause()

    def _speak(self, begins: int) -> Iterator[TurnEvent]:
        if self.paused:
            self.paused = self.sentence_ended = False
            yield TurnResumed(begins)
        elif not self.open:
            self.open = True
            yield TurnStarted(max(begins - self._prefix, self._ended))

    def _pause(self) -> Iterator[TurnEvent]:
        maybe_silent, silent = self._position - self._surely_spoken, self._position - self._spoken
        if maybe_silent >= self._early and not self.paused:
            self.paused = True
            yield TurnPaused(self._surely_spoken)
        timeout = self._detection.end_timeout_ms
        if silent and silent >= _samples(self._detection.silence_ms(self.sentence_ended)):
            yield self._end("threshold")
        elif timeout is not None and maybe_silent >= _samples(timeout):
            yield self._end("timeout")

    def _end(self, reason: Literal["threshold", "timeout"]) -> TurnEnded:
        self.cut(self._position)
        return TurnEnded(self._position, self._spoken, reason)

    def cut(self, at: int) -> None:
        """There is no turn, and none to come begins before `at`."""
        self.open = self.paused = self.sentence_ended = False
        self._ended = at


def _samples(milliseconds: float) -> int:
    return int(milliseconds * SAMPLE_RATE / 1000)
