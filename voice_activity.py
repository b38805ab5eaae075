"""Where somebody speaks: silero-vad judges every 32 ms of a recording as it is decoded; the judgements become spans.

The network comes from the wheel of `silero-vad`, in the variant that takes many frames in one call, and onnxruntime
runs it on one thread without the interpreter's lock. The package itself is never imported, because that brings torch.
State is carried from call to call, so that memory does not grow with the recording.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audio_processor import SAMPLE_RATE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FRAME = 512  # samples, 32 ms: what the network judges at once
CONTEXT = 64  # samples before a frame that the network hears with it
BATCH = 32 * FRAME  # samples of one call for a recording, about a second
LIVE_BATCH = 2 * FRAME  # likewise while somebody speaks: 64 ms, which cost 0.5 ms of processor time
STATE = (1, 1, 128)  # of each of the LSTM's two memories

# Below a peak of about 0.02 the network grows deaf, so quiet recordings are made louder for it. Noise it knows at any
# level. The gain falls at once when it grows loud and rises slowly, lest pauses be pumped up.
HEARD_PEAK = 0.5
MOST_GAIN = 50.0
LEVEL_KEPT = 0.8 ** (1 / 32)  # of the loudest peak so far, from one frame to the next: 2 dB a second

HYSTERESIS = 0.15  # speech goes on until its probability has fallen this far below the threshold
LEAST_RELEASE = 0.01  # but not so far that nothing ends it

# Frames of speech that there must be, 0.2 s; or 0.13, if one of them is surely speech. The blips that music makes are
# short and not that sure, words are one or the other (docs/decisions/013-voice-activity.md).
LEAST_FRAMES, LEAST_SURE_FRAMES = 6, 4
SURE = 0.98
LONG = 2 * SAMPLE_RATE  # samples of a span that is believed however unsure it is
TOGETHER = SAMPLE_RATE // 2  # samples of silence up to which spans are judged as one, however short a pause ends them


@dataclass(frozen=True)
class Detection:
    """What counts as speech. Names and defaults are OpenAI's."""

    threshold: float = 0.5  # probability from which on a frame is speech
    prefix_padding_ms: float = 300  # kept before speech
    silence_duration_ms: float = 200  # without speech end a span, and are kept behind it


AUTO = Detection(silence_duration_ms=400)  # for clients that do not say: a lost word is worse than a pause heard


@dataclass(frozen=True)
class Span:
    """Samples `start` to `end` of a recording: speech from `first` to `last`, and what is kept around it."""

    start: int
    end: int
    first: int
    last: int

    def split(self, at: int) -> tuple[Span, Span]:
        before = Span(self.start, at, min(self.first, at), min(self.last, at))
        return before, Span(at, self.end, max(self.first, at), max(self.last, at))


@cache
def _session() -> InferenceSession:
    import onnxruntime  # takes a quarter of a second, which the start of the server does not wait for

    package = importlib.util.find_spec("silero_vad")
    assert package
    assert package.origin
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    network = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])


class Listener:
    """The network at work on one recording."""

    def __init__(self, batch: int = BATCH) -> None:
        """`batch`: samples of one call, in whole frames; with fewer, speech is known sooner and costs more."""
        self._session = _session()
        self._batch = batch
        self._level_kept = LEVEL_KEPT ** (batch // FRAME)
        self._waiting = np.zeros(0, np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._hidden = self._cell = np.zeros(STATE, np.float32)
        self._level = 0.0

    def hear(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Probabilities of speech (frames,), in batches whose bounds do not depend on how the samples arrive."""
        samples = np.concatenate([self._waiting, samples])
        whole = len(samples) // self._batch * self._batch
        self._waiting = samples[whole:]
        for start in range(0, whole, self._batch):
            yield self._judge(samples[start : start + self._batch])

    def finish(self) -> np.ndarray:
        """Probabilities of what is left, the last frame filled up with silence."""
        return self._judge(np.pad(self._waiting, (0, -len(self._waiting) % FRAME)))

    def _judge(self, samples: np.ndarray) -> np.ndarray:
        if not len(samples):
            return samples
        self._level = max(float(np.abs(samples).max()), self._level * self._level_kept)
        frames = (samples * self._gain()).reshape(-1, FRAME)
        tails = np.concatenate([self._context[None], frames[:, -CONTEXT:]])
        self._context = tails[-1]
        inputs = {"input": np.concatenate([tails[:-1], frames], axis=1), "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
        return probabilities

    def _gain(self) -> np.float32:
        return np.float32(min(max(HEARD_PEAK / max(self._level, 1e-9), 1.0), MOST_GAIN))


class Tracker:
    """Probabilities of frames to spans, which lie in order and never overlap. Pure."""

    def __init__(self, detection: Detection, position: int = 0) -> None:
        """`position`: of the first sample of the first frame."""
        self._threshold = detection.threshold
        self._release = max(detection.threshold - HYSTERESIS, min(detection.threshold, LEAST_RELEASE))
        self._prefix = int(detection.prefix_padding_ms * SAMPLE_RATE / 1000)
        self._silence = int(detection.silence_duration_ms * SAMPLE_RATE / 1000)
        self.position = position  # up to where samples are judged
        self.open: Span | None = None  # the span that goes on; its `end` is how far it has come
        # What is judged together: spans that have ended and may be no speech, where speech was last, how many frames
        # reach the threshold, and the highest probability.
        self._unsure: list[Span] = []
        self._spoken, self._frames, self._surest = position, 0, 0.0
        self._told = self._ended = position  # where the last span ended that is known to be speech, and the last of all

    @property
    def earliest(self) -> int:
        """No sample before this one can be part of a span to come."""
        if self._unsure:
            return self._unsure[0].start
        return self.open.start if self.open else max(self.position - self._prefix, self._ended)

    def add(self, probabilities: np.ndarray) -> Iterator[Span]:
        """Spans that have ended."""
        for probability in probabilities.tolist():
            begins, self.position = self.position, self.position + FRAME
            if probability >= (self._release if self.open else self._threshold):
                self._speak(begins, probability)
            elif self.open and self.position - self.open.last >= self._silence:
                self._close(self.open.last + self._silence)
            elif self.open:
                self.open = Span(self.open.start, self.position, self.open.first, self.open.last)
            if self._unsure and self._is_speech:
                yield from self._tell()
            if not self.open and self.position - self._spoken > TOGETHER:
                self._drop()

    def finish(self, probabilities: np.ndarray, total: int) -> Iterator[Span]:
        """The last spans of a recording of `total` samples, of which the last frame may have fewer."""
        spans = [*self.add(probabilities)]
        if self.open:
            self._close(self.open.last + self._silence)
            spans += self._tell() if self._is_speech else []
        for span in spans:
            yield replace(span, end=min(span.end, total), last=min(span.last, total))

    def cut(self, at: int) -> Iterator[Span]:
        """The span that goes on ends at `at`, which was not judged yet; none begins before. It may be short: whoever
        cuts says that there is something."""
        if self.open:
            self._close(at)
        yield from self._tell()
        self._told = self._ended = at

    def _speak(self, begins: int, probability: float) -> None:
        span = self.open or Span(max(begins - self._prefix, self._ended), 0, begins, 0)
        self.open = Span(span.start, self.position, span.first, self.position)
        self._spoken = self.position
        self._frames += probability >= self._threshold
        self._surest = max(self._surest, probability)

    @property
    def _is_speech(self) -> bool:
        spans = [*self._unsure, *([self.open] if self.open else [])]
        long = any(span.last - span.first >= LONG for span in spans)
        return long or self._frames >= (LEAST_SURE_FRAMES if self._surest >= SURE else LEAST_FRAMES)

    def _close(self, end: int) -> None:
        assert self.open
        self._unsure.append(replace(self.open, end=end))
        self.open, self._ended = None, end

    def _tell(self) -> Iterator[Span]:
        spans, self._unsure, self._told = self._unsure, [], self._ended
        yield from spans

    def _drop(self) -> None:
        self._unsure, self._ended = [], self._told
        self._frames, self._surest = 0, 0.0
