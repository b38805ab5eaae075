"""Cut audio into chunks that the model hears one at a time, where nobody speaks.

`SpeechCutter` packs whole spans of speech and leaves the rest out; `chunks` knows nothing of speech, cuts where it is
quietest, and its chunks tile the audio. Neither drops or doubles a sample of speech. This module sees samples only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audio_processor import SAMPLE_RATE
from voice_activity import Detection, Listener, Span, Tracker

FRAME = SAMPLE_RATE // 50  # 20 ms, the grain in which loudness is looked at
PAUSE_FRAMES = 10  # a pause is judged over 200 ms: a closed "t" lasts 100 ms and is no pause
SEARCH_SHARE = 0.25  # the last quarter of a chunk is where a cut may lie ...
LONGEST_SEARCH_SECONDS = 15  # ... but not more than this
SPEECH_BELOW_PEAK = 10 ** (-40 / 20)  # frames 40 dB below the loudest one are not speech
# A longer pause ends a chunk: the times of a segment shall not stand over it, nor its text wait for what comes after.
LONGEST_PAUSE = 5 * SAMPLE_RATE


@dataclass(frozen=True)
class Chunk:
    """What the model hears at once, float32 mono at 16 kHz, from sample `start` of the audio on.

    `regions`: the spans of speech that it was packed from, between which pauses are left out; none where nobody looked
    for speech, and nothing is left out.
    """

    index: int
    start: int
    samples: np.ndarray
    regions: tuple[Span, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def duration_ms(self) -> int:
        return milliseconds(self.start + len(self.samples)) - milliseconds(self.start)

    @property
    def start_ms(self) -> int:
        return milliseconds(self.start)

    @property
    def end_ms(self) -> int:
        """Up to where the recording is heard when this chunk is."""
        return milliseconds(self.regions[-1].last if self.regions else self.start + len(self.samples))

    def spans(self) -> tuple[Span, ...]:
        """What the samples are of the whole audio. Where nobody looked for speech, it is what is loud enough to be
        speech, or all where nothing is."""
        return self.regions or (self._loud_span(),)

    def _loud_span(self) -> Span:
        end = self.start + len(self.samples)
        loudness = frame_rms(self.samples)
        peak = loudness.max(initial=0.0)
        loud = np.flatnonzero(loudness > peak * SPEECH_BELOW_PEAK)
        if peak == 0 or not len(loud):
            return Span(self.start, end, self.start, end)
        first, last = (self.start + int(frame) * FRAME for frame in (loud[0], loud[-1] + 1))
        return Span(self.start, end, first, min(last, end))

    def speech_ms(self) -> tuple[int, int]:
        """Start and end of speech in the whole audio."""
        spans = self.spans()
        return milliseconds(spans[0].first), milliseconds(spans[-1].last)


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
    """Where to cut a full chunk: at the quietest place near its end, of equally quiet ones the last."""
    search = min(int(len(samples) * SEARCH_SHARE), LONGEST_SEARCH_SECONDS * SAMPLE_RATE) // FRAME * FRAME
    first = len(samples) - search
    return int(quietest(samples, first, search)[-1]) if search >= PAUSE_FRAMES * FRAME else len(samples)


def halves(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A second of audio or more, cut at the quietest place of its middle half; of equals, the nearest to the middle."""
    quarter = len(samples) // 4
    places = quietest(samples, quarter, 2 * quarter // FRAME * FRAME)
    cut = places[np.abs(places - len(samples) // 2).argmin()]
    return samples[:cut], samples[cut:]


def quietest(samples: np.ndarray, first: int, search: int) -> np.ndarray:
    """Samples (places,) in the midst of the quietest 200 ms of the `search` samples, whole frames, from `first` on."""
    energy = np.square(frame_rms(samples[first : first + search]), dtype=np.float64)
    windows = np.convolve(energy, np.ones(PAUSE_FRAMES), mode="valid")
    # Rounding of the running sums must not decide between stretches of silence.
    quiet = np.flatnonzero(windows <= windows.min() + 1e-9)
    return first + (quiet + PAUSE_FRAMES // 2) * FRAME


@dataclass(frozen=True)
class Region:
    """A span of speech and its samples."""

    span: Span
    samples: np.ndarray


class Tape:
    """The latest samples of a recording, by their places in it."""

    def __init__(self) -> None:
        self._blocks: deque[np.ndarray] = deque()
        self.start = self.end = 0

    def add(self, block: np.ndarray) -> None:
        self._blocks.append(block)
        self.end += len(block)

    def read(self, start: int, end: int) -> np.ndarray:
        return np.concatenate(self._blocks)[start - self.start : end - self.start].copy()

    def forget(self, before: int) -> None:
        """Drop the blocks that end before this sample."""
        while self._blocks and self.start + len(self._blocks[0]) <= before:
            self.start += len(self._blocks.popleft())


class Packer:
    """Regions to chunks: together as long as they fit into `longest` samples and no long pause is between them."""

    def __init__(self, longest: int, longest_pause: int = LONGEST_PAUSE) -> None:
        self.longest_pause = longest_pause
        self._longest = longest
        self._packed: list[Region] = []
        self._index = 0

    def add(self, region: Region) -> Iterator[Chunk]:
        samples = sum(len(other.samples) for other in self._packed) + len(region.samples)
        if samples > self._longest or self.is_over(region.span.start):
            yield from self.release()
        self._packed.append(region)

    def is_over(self, next_start: int) -> bool:
        """Whether a chunk ends here, because no region to come begins before `next_start`."""
        return bool(self._packed) and next_start - self._packed[-1].span.end > self.longest_pause

    @property
    def is_empty(self) -> bool:
        return not self._packed

    @property
    def start(self) -> int | None:
        """Of the chunk that is being packed."""
        return self._packed[0].span.start if self._packed else None

    def release(self) -> Iterator[Chunk]:
        """What is there, if anything is, as a chunk."""
        packed, self._packed = self._packed, []
        if packed:
            samples = np.concatenate([region.samples for region in packed])
            yield Chunk(self._index, packed[0].span.start, samples, tuple(region.span for region in packed))
            self._index += 1


class SpeechCutter:
    """Speech to chunks as it comes; memory holds about two of them."""

    def __init__(self, longest: int, detection: Detection, longest_pause: int = LONGEST_PAUSE) -> None:
        self.packer = Packer(longest, longest_pause)
        self._longest, self._tracker, self._tape = longest, Tracker(detection), Tape()

    def add(self, samples: np.ndarray) -> None:
        """Audio, which must be here before it is judged."""
        self._tape.add(samples)

    def judge(self, probabilities: np.ndarray) -> Iterator[Chunk]:
        """Chunks that are complete, now that the next frames are speech with these probabilities."""
        yield from self._pack(self._tracker.add(probabilities))
        if self._tracker.open:  # speech may go on for hours, and is not held until it ends
            *done, self._tracker.open = pieces(self._tracker.open, self._tape, self._longest)
            yield from self._pack(done)
        elif self.packer.is_over(self._tracker.earliest):
            yield from self.packer.release()
        self._tape.forget(self._tracker.earliest)

    def finish(self, probabilities: np.ndarray) -> Iterator[Chunk]:
        """The last chunks of a recording, whose last frame may have fewer samples."""
        yield from self._pack(self._tracker.finish(probabilities, self._tape.end))
        yield from self.packer.release()

    def cut(self, at: int) -> Iterator[Chunk]:
        """All speech before `at`, up to where it was judged or further; another chunk begins there."""
        yield from self._pack(self._tracker.cut(at))
        yield from self.packer.release()

    def detect(self, detection: Detection) -> None:
        """What counts as speech from here on. There must be none at hand."""
        self._tracker = Tracker(detection, self._tracker.position)

    @property
    def searched(self) -> int:
        """No chunk to come begins before this sample."""
        return self._tracker.earliest if self.packer.start is None else self.packer.start

    @property
    def is_empty(self) -> bool:
        """Whether all speech so far is in chunks."""
        return self._tracker.open is None and self.packer.is_empty

    def _pack(self, spans: Iterable[Span]) -> Iterator[Chunk]:
        for span in spans:
            for piece in pieces(span, self._tape, self._longest):
                if piece.first < piece.last:  # else it holds padding only
                    yield from self.packer.add(Region(piece, self._tape.read(piece.start, piece.end)))


def speech_chunks(
    blocks: Iterable[np.ndarray],
    longest_seconds: float,
    detection: Detection,
    searched: Callable[[int], None] = lambda ms: None,
) -> Iterator[Chunk]:
    """The speech in `blocks`, in chunks of at most `longest_seconds`.

    `searched` is told the milliseconds before which no chunk to come begins.
    """
    listener, cutter = Listener(), SpeechCutter(int(longest_seconds * SAMPLE_RATE), detection)
    for block in blocks:
        cutter.add(block)
        for probabilities in listener.hear(block):
            yield from cutter.judge(probabilities)
            searched(milliseconds(cutter.searched))
    yield from cutter.finish(listener.finish())


def pieces(span: Span, tape: Tape, longest: int) -> list[Span]:
    """`span` cut at its quietest places into pieces of at most `longest` samples."""
    cut = []
    while span.end - span.start > longest:
        at = span.start + quietest_cut(tape.read(span.start, span.start + longest))
        before, span = span.split(at)
        cut.append(before)
    return [*cut, span]
