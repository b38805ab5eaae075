"""The committed clips, and how far a transcript is from their words."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile as sf

CLIPS = Path(__file__).parent / "clips"
SAMPLE_RATE = 16_000
# Pairs that no listener can tell apart; either spelling is right where one was spoken.
SOUND_ALIKES = {"grey": "gray", "to": "two", "for": "four", "ate": "eight", "write": "right"}
# What follows tells these apart (tools/demo_speech.py), for the realtime demo model; the other one does not know them.
TOLD_BY_WHAT_FOLLOWS = {"won": "one", "read": "red", "blew": "blue"}
SPELLINGS = SOUND_ALIKES | TOLD_BY_WHAT_FOLLOWS


@dataclass(frozen=True)
class Clip:
    file: str
    kind: str
    seconds: float
    words: str
    starts_ms: list[int]  # of each word

    @property
    def path(self) -> Path:
        return CLIPS / self.file

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    def samples(self) -> np.ndarray:
        """float32 (n,) at 16 kHz."""
        return sf.read(io.BytesIO(self.data), dtype="float32")[0]


ALL_CLIPS = tuple(Clip(**row) for row in json.loads((CLIPS / "clips.json").read_text()))


def clip(name: str) -> Clip:
    return next(c for c in ALL_CLIPS if c.file.startswith(f"{name}."))


def clips_of(*kinds: str) -> list[Clip]:
    return [c for c in ALL_CLIPS if c.kind in kinds]


def normal(text: str, alike: Mapping[str, str] = SPELLINGS) -> list[str]:
    return [alike.get(word, word) for word in text.split()]


def word_errors(expected: str, heard: str, alike: Mapping[str, str] = SPELLINGS) -> int:
    """Substituted, inserted and deleted words: Levenshtein's distance over words. `alike`: other spellings that are no
    errors."""
    reference, hypothesis = normal(expected, alike), normal(heard, alike)
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            previous, row[j] = row[j], min(previous + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_error_rate(pairs: list[tuple[str, str]], alike: Mapping[str, str] = SPELLINGS) -> float:
    """Of (expected, heard) pairs together."""
    return sum(word_errors(*pair, alike) for pair in pairs) / sum(len(expected.split()) for expected, _ in pairs)


def assert_heard(expected: str, heard: str, share: float = 0.15) -> None:
    """One transcript is right: at most `share` of its words differ, so that no single near-tie decides a test."""
    errors = word_errors(expected, heard)
    assert errors <= share * len(expected.split()), f"{errors} words differ\nexpected: {expected}\nheard:    {heard}"


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


class Pipe(io.RawIOBase):
    """A file that can only be written forwards, as a browser's recorder has it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def browser_recording(samples: np.ndarray) -> bytes:
    """WebM as MediaRecorder writes it: no duration, no index, cluster sizes unknown."""
    pipe = Pipe()
    _encode_into(pipe, samples, "webm", "libopus", 48_000, {"live": "1"})
    return bytes(pipe.data)


def encode(samples: np.ndarray, container: str, codec: str, rate: int = 48_000) -> bytes:
    """`samples` (n,) at 16 kHz in any container and codec that PyAV can write."""
    file = io.BytesIO()
    _encode_into(file, samples, container, codec, rate, {})
    return file.getvalue()


def _encode_into(
    file: io.IOBase, samples: np.ndarray, container: str, codec: str, rate: int, options: dict[str, str]
) -> None:
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
