"""Raw audio as it comes over a socket, in pieces of any length, to what models hear: float32, mono, 16 kHz."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np
import soxr

from audio_processor import SAMPLE_RATE

Encoding = Literal["pcm_s16le", "pcm_s32le", "pcm_f16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
RATES = range(8_000, 48_001)  # Hz
TYPES = {"pcm_s16le": "<i2", "pcm_s32le": "<i4", "pcm_f16le": "<f2", "pcm_f32le": "<f4"}


class PcmError(Exception):
    """Bytes that are no audio; the message is for people."""


class PcmDecoder:
    """One stream of `encoding` at `rate` Hz. A sample may be divided among two pieces."""

    def __init__(self, encoding: Encoding, rate: int) -> None:
        self._encoding, self._rate = encoding, rate
        self._width = np.dtype(TYPES.get(encoding, "u1")).itemsize
        self._rest = b""  # of a sample that is not whole yet
        self._resampler = self._new_resampler()

    def _new_resampler(self) -> soxr.ResampleStream | None:
        return None if self._rate == SAMPLE_RATE else soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="float32")

    def decode(self, data: bytes) -> np.ndarray:
        """float32 (n,) at 16 kHz, what the resampler holds back excepted. Raises PcmError, and nothing was taken."""
        data = self._rest + data
        whole = len(data) - len(data) % self._width
        samples = self._samples(data[:whole])
        self._rest = data[whole:]
        return self._resampler.resample_chunk(samples) if self._resampler else samples

    def end(self) -> np.ndarray:
        """What the resampler held back; what is decoded afterwards is resampled anew. The bytes are still one stream: a
        sample that is not whole yet may become so, since who cuts at a time cuts at any byte."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        last = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self._resampler = self._new_resampler()
        return last

    def _samples(self, data: bytes) -> np.ndarray:
        """float32 (n,) from -1 to 1 at the stream's rate."""
        if self._encoding in ("pcm_mulaw", "pcm_alaw"):
            return _g711(self._encoding)[np.frombuffer(data, np.uint8)]
        values = np.frombuffer(data, TYPES[self._encoding])
        if values.dtype.kind == "i":
            return values.astype(np.float32) / np.float32(-float(np.iinfo(values.dtype).min))
        if not np.isfinite(values).all():
            raise PcmError(f"There are samples that are no numbers. Send {self._encoding} with values from -1 to 1.")
        return np.clip(values.astype(np.float32), -1, 1)  # as a sound card does


@cache
def _g711(encoding: Encoding) -> np.ndarray:
    """The value of each byte, float32 (256,): ITU-T G.711's companding, in 14 bits for µ-law and 13 for A-law, both
    written as 16."""
    byte = np.arange(256) ^ (0xFF if encoding == "pcm_mulaw" else 0x55)
    segment, step = byte >> 4 & 7, byte & 15
    if encoding == "pcm_mulaw":
        size = ((2 * step + 33 << segment) - 33) * 4
        negative = byte & 0x80 > 0
    else:
        size = np.where(segment == 0, 2 * step + 1, (2 * step + 33) << np.maximum(segment - 1, 0)) * 8
        negative = byte & 0x80 == 0
    return (np.where(negative, -size, size) / 32_768).astype(np.float32)
