"""Cut audio into chunks that the model hears one at a time, where nobody speaks.

Chunks tile the audio: no gap, no overlap, nothing decoded twice. This module sees samples only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audio_processor import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50  # 20 ms, the grain in which loudness is looked at
PAUSE_FRAMES = 10  # a pause is judged over 200 ms: a closed "t" lasts 100 ms and is no pause
SEARCH_SHARE = 0.25  # the last quarter of a chunk is where a cut may lie ...
LONGEST_SEARCH_SECONDS = 15  # ... but not more than this
SPEECH_BELOW_PEAK = 10 ** (-40 / 20)  # frames 40 dB below the loudest one are not speech


@dataclass(frozen=True)
class Chunk:
    """Samples `start` to `start + len(samples)` of the audio, float32 mono at 16 kHz."""

    index: int
    start: int
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def duration_ms(self) -> int:
        return milliseconds(self.start + len(self.samples)) - milliseconds(self.start)

    def speech_ms(self) -> tuple[int, int]:
        """Start and end, in the whole audio, of what is loud enough to be speech; the whole chunk where nothing is."""
        loudness = frame_rms(self.samples)
        peak = loudness.max(initial=0.0)
        loud = np.flatnonzero(loudness > peak * SPEECH_BELOW_PEAK)
        if peak == 0 or not len(loud):
            return milliseconds(self.start), milliseconds(self.start + len(self.samples))
        end = min((loud[-1] + 1) * FRAME, len(self.samples))
        return milliseconds(self.start + loud[0] * FRAME), milliseconds(self.start + end)


def milliseconds(samples: int) -> int:
    return int(samples) * 1000 // SAMPLE_RATE


def frame_rms(samples: np.ndarray) -> np.ndarray:
    """Root mean square (frames,) of each whole 20-ms frame, and of the rest as a last one."""
    whole = len(samples) // FRAME * FRAME
    rms = np.sqrt(np.mean(np.square(samples[:whole].reshape(-1, FRAME)), axis=1))
    rest = samples[whole:]
    return np.append(rms, np.sqrt(np.mean(np.square(rest)))) if len(rest) else rms


def chunks(blocks: Iterable[np.ndarray], longest_seconds: float) -> Iterator[Chunk]:
    """Gather `blocks` into chunks of at most `longest_seconds`; memory holds one chunk and one block."""
    longest = int(longest_seconds * SAMPLE_RATE)
    held: list[np.ndarray] = []
    held_samples = start = index = 0
    for block in blocks:
        held.append(block)
        held_samples += len(block)
        while held_samples > longest:
            samples = np.concatenate(held)
            cut = quietest_cut(samples[:longest])
            yield Chunk(index, start, samples[:cut].copy())
            held, held_samples = [samples[cut:]], held_samples - cut
            start, index = start + cut, index + 1
    if held_samples:
        yield Chunk(index, start, np.concatenate(held))


def quietest_cut(samples: np.ndarray) -> int:
    """Where to cut a full chunk: the middle of the quietest 200 ms near its end, of equally quiet ones the last."""
    search = min(int(len(samples) * SEARCH_SHARE), LONGEST_SEARCH_SECONDS * SAMPLE_RATE) // FRAME * FRAME
    first = len(samples) - search
    energy = np.square(frame_rms(samples[first : first + search]), dtype=np.float64)
    if len(energy) < PAUSE_FRAMES:
        return len(samples)
    windows = np.convolve(energy, np.ones(PAUSE_FRAMES), mode="valid")
    # Rounding of the running sums must not decide between stretches of silence.
    quiet = np.flatnonzero(windows <= windows.min() + 1e-9)
    return first + int(quiet[-1] + PAUSE_FRAMES // 2) * FRAME
