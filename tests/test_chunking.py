from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_processor import SAMPLE_RATE
from chunking import FRAME, Chunk, chunks, quietest_cut
from tests.speech import clip


def blocks_of(samples: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(samples, np.cumsum(sizes)[np.cumsum(sizes) < len(samples)])


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.01, 40),
    longest=st.floats(1, 12),
    sizes=st.lists(st.integers(1, 3 * SAMPLE_RATE), max_size=12),
    seed=st.integers(0, 9),
)
def test_chunks_tile_the_audio_whatever_the_blocks(seconds: float, longest: float, sizes: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(max(1, int(seconds * SAMPLE_RATE))).astype(np.float32)
    pieces = list(chunks(blocks_of(samples, sizes), longest))
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), samples)
    assert [piece.start for piece in pieces] == [0, *np.cumsum([len(p.samples) for p in pieces])[:-1]]
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert all(0 < len(piece.samples) <= longest * SAMPLE_RATE for piece in pieces)
    assert sum(piece.duration_ms for piece in pieces) == len(samples) * 1000 // SAMPLE_RATE


@settings(max_examples=40, deadline=None)
@given(pause_at=st.floats(7.8, 9.5), pause=st.floats(0.3, 0.5), seed=st.integers(0, 99))
def test_a_pause_within_reach_is_where_the_cut_falls(pause_at: float, pause: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(10 * SAMPLE_RATE).astype(np.float32)
    start, end = int(pause_at * SAMPLE_RATE), int((pause_at + pause) * SAMPLE_RATE)
    samples[start:end] *= 0.001
    assert start <= quietest_cut(samples) <= end


def test_no_word_of_dense_speech_is_cut() -> None:
    """The minute of speech is cut into chunks of 10 s; each cut lies in a pause between utterances."""
    samples = clip("minute").samples()
    pieces = list(chunks([samples], 10))
    assert len(pieces) >= 6
    loud = np.abs(samples).max()
    for piece in pieces[1:]:
        around = samples[piece.start - FRAME * 2 : piece.start + FRAME * 2]
        assert np.abs(around).max() < 0.05 * loud


def test_speech_is_found_within_a_chunk() -> None:
    samples = np.zeros(5 * SAMPLE_RATE, np.float32)
    samples[SAMPLE_RATE : 3 * SAMPLE_RATE] = 0.1
    assert Chunk(1, 10 * SAMPLE_RATE, samples).speech_ms() == (11_000, 13_000)


@pytest.mark.parametrize("n", [100, SAMPLE_RATE])
def test_silence_is_a_segment_as_long_as_its_chunk(n: int) -> None:
    assert Chunk(0, 0, np.zeros(n, np.float32)).speech_ms() == (0, n * 1000 // SAMPLE_RATE)
