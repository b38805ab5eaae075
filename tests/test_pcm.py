"""Raw audio over a socket: every encoding, rate and division into pieces, against libsndfile and libsoxr at once."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given
from hypothesis import strategies as st

from pcm import ENCODINGS, PcmDecoder, PcmError
from tests.speech import clip

SUBTYPES = {"pcm_s16le": "PCM_16", "pcm_s32le": "PCM_32", "pcm_f32le": "FLOAT", "pcm_mulaw": "ULAW", "pcm_alaw": "ALAW"}


def encoded(samples: np.ndarray, encoding: str) -> bytes:
    """By libsndfile, which knows no half floats."""
    if encoding == "pcm_f16le":
        return samples.astype("<f2").tobytes()
    file = io.BytesIO()
    sf.write(file, samples, 16_000, format="RAW", subtype=SUBTYPES[encoding], endian="LITTLE")
    return file.getvalue()


@pytest.mark.parametrize(("encoding", "subtype"), SUBTYPES.items())
def test_every_encoding_means_what_libsndfile_reads(encoding: str, subtype: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
    if encoding == "pcm_f32le":
        data = np.linspace(-1, 1, 1024, dtype="<f4").tobytes()
    if encoding in ("pcm_mulaw", "pcm_alaw"):
        data = bytes(range(256))
    raw = {"samplerate": 16_000, "channels": 1, "format": "RAW", "subtype": subtype, "endian": "LITTLE"}
    expected, _ = sf.read(io.BytesIO(data), dtype="float32", **raw)
    np.testing.assert_array_equal(PcmDecoder(encoding, 16_000).decode(data), expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_speech_survives_every_encoding(encoding: str) -> None:
    samples = clip("short_0").samples()
    np.testing.assert_allclose(PcmDecoder(encoding, 16_000).decode(encoded(samples, encoding)), samples, atol=0.02)


@given(
    encoding=st.sampled_from(ENCODINGS),
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]),
    cuts=st.lists(st.integers(0, 8_000), max_size=12),
)
def test_however_a_stream_is_divided_it_is_the_same_audio(encoding: str, rate: int, cuts: list[int]) -> None:
    samples = np.sin(np.arange(2_001) / 9, dtype=np.float32) / 2
    data = encoded(samples, encoding)
    edges = [0, *sorted(cuts), len(data)]
    decoder = PcmDecoder(encoding, rate)
    pieces = [decoder.decode(data[a:b]) for a, b in pairwise(edges)]
    heard = np.concatenate([*pieces, decoder.end()])
    whole = PcmDecoder(encoding, 16_000).decode(data)
    expected = soxr.resample(whole, rate, 16_000) if rate != 16_000 else whole
    assert abs(len(heard) - len(samples) * 16_000 / rate) <= 1
    np.testing.assert_allclose(heard[: len(expected)], expected[: len(heard)], atol=1e-3)


@given(encoding=st.sampled_from(ENCODINGS), rate=st.sampled_from([8_000, 16_000, 24_000]), cut=st.integers(0, 2_000))
def test_behind_an_end_at_any_byte_the_next_whole_sample_comes_first(encoding: str, rate: int, cut: int) -> None:
    def heard(decoder: PcmDecoder, piece: bytes) -> np.ndarray:
        return np.concatenate([decoder.decode(piece), decoder.end()])

    data = encoded(np.sin(np.arange(2_001) / 9, dtype=np.float32) / 2, encoding)
    decoder, begins = PcmDecoder(encoding, rate), cut - cut % (len(data) // 2_001)
    np.testing.assert_array_equal(heard(decoder, data[:cut]), heard(PcmDecoder(encoding, rate), data[:begins]))
    np.testing.assert_array_equal(heard(decoder, data[cut:]), heard(PcmDecoder(encoding, rate), data[begins:]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ["pcm_f32le", "pcm_f16le"])
def test_what_is_no_number_is_refused_and_the_stream_goes_on(encoding: str, value: float) -> None:
    decoder, kind = PcmDecoder(encoding, 16_000), "<f4" if encoding == "pcm_f32le" else "<f2"
    with pytest.raises(PcmError, match="no numbers"):
        decoder.decode(np.array([0.5, value], kind).tobytes())
    np.testing.assert_array_equal(decoder.decode(np.array([0.5, 2], kind).tobytes()), [0.5, 1])
