from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_processor import SAMPLE_RATE
from chunking import FRAME, LONGEST_PAUSE, Chunk, Packer, Region, Tape, chunks, pieces, quietest_cut, speech_chunks
from tests.speech import clip
from voice_activity import Detection, Listener, Span, Tracker


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


def region(start: int, length: int) -> Region:
    return Region(
        Span(start, start + length, start, start + length), np.arange(start, start + length, dtype=np.float32)
    )


@given(
    lengths=st.lists(st.tuples(st.integers(0, 10 * SAMPLE_RATE), st.integers(1, 3000)), max_size=40),
    longest=st.integers(3000, 9000),
)
def test_whole_regions_are_packed_in_order_as_long_as_they_fit(lengths: list[tuple[int, int]], longest: int) -> None:
    regions, at = [], 0
    for pause, length in lengths:
        regions.append(region(at + pause, length))
        at += pause + length
    packer = Packer(longest)
    packed = [*(chunk for each in regions for chunk in packer.add(each)), *packer.release()]
    assert [span for chunk in packed for span in chunk.regions] == [each.span for each in regions]
    assert [chunk.index for chunk in packed] == list(range(len(packed)))
    heard = [sample for chunk in packed for sample in chunk.samples.tolist()]
    assert heard == [sample for each in regions for sample in each.samples.tolist()]
    assert all(0 < len(chunk.samples) <= longest for chunk in packed)
    for before, after in pairwise(packed):
        pause, first = after.start - before.regions[-1].end, after.regions[0]
        assert len(before.samples) + first.end - first.start > longest or pause > LONGEST_PAUSE
    for chunk in packed:
        assert all(b.start - a.end <= LONGEST_PAUSE for a, b in pairwise(chunk.regions))


@given(length=st.integers(1, 40 * FRAME), longest=st.integers(FRAME, 20 * FRAME), data=st.data())
def test_only_a_span_that_is_too_long_is_cut_and_its_pieces_touch(
    length: int, longest: int, data: st.DataObject
) -> None:
    first, last = sorted((data.draw(st.integers(0, length)), data.draw(st.integers(0, length))))
    tape, span = Tape(), Span(100, 100 + length, 100 + first, 100 + last)
    tape.add(np.random.default_rng(length).standard_normal(length + 200).astype(np.float32))
    cut = pieces(span, tape, longest)
    assert (len(cut) == 1) == (length <= longest)
    assert (cut[0].start, cut[-1].end) == (span.start, span.end)
    assert all(a.end == b.start for a, b in pairwise(cut))
    assert all(0 < piece.end - piece.start <= longest for piece in cut)
    assert sum(piece.last - piece.first for piece in cut) == span.last - span.first


@settings(max_examples=25)
@given(
    blocks=st.lists(st.integers(1, 4 * SAMPLE_RATE), max_size=20),
    longest=st.sampled_from([1.5, 5, 15, 60]),
    pauses=st.lists(st.floats(0.05, 8), min_size=4, max_size=4),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_no_speech_is_lost_or_doubled_in_real_recordings(
    blocks: list[int], longest: float, pauses: list[float], threshold: float
) -> None:
    """What the chunks hold is, sample for sample, what a look at the whole recording at once calls speech."""
    names = ("short_0", "voice_en-us", "gain-30", "unheard_en-gb+f1_2")
    spoken = [part for name, pause in zip(names, pauses, strict=True)
              for part in (clip(name).samples(), np.zeros(int(pause * SAMPLE_RATE), np.float32))]  # fmt: skip
    samples = np.concatenate(spoken)
    samples += np.random.default_rng(0).uniform(1e-5, 2e-5, len(samples)).astype(np.float32)  # tells samples apart
    detection, listener = Detection(threshold), Listener()
    tracker = Tracker(detection)
    spans = [span for heard in listener.hear(samples) for span in tracker.add(heard)]
    spans += tracker.finish(listener.finish(), len(samples))
    searched, chunks = [0], []
    for chunk in speech_chunks(blocks_of(samples, blocks), longest, detection, searched.append):
        assert searched == sorted(searched)
        assert searched[-1] <= chunk.start_ms
        chunks.append(chunk)
    heard = np.concatenate([chunk.samples for chunk in chunks])
    speech = np.concatenate([samples[span.first : span.last] for span in spans])
    kept = np.concatenate([samples[span.start : span.end] for span in spans])
    assert len(speech) <= len(heard) <= len(kept)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(len(chunk.samples) <= longest * SAMPLE_RATE for chunk in chunks)
    assert all(a.speech_ms()[1] <= b.speech_ms()[0] for a, b in pairwise(chunks))
    assert (chunks[0].spans()[0].first, chunks[-1].spans()[-1].last) == (spans[0].first, spans[-1].last)
    if len(heard) == len(kept):
        assert np.array_equal(heard, kept)


def test_whole_utterances_are_packed_and_times_are_those_of_the_recording() -> None:
    spoken = clip("short_0").samples()
    pause = np.zeros(7 * SAMPLE_RATE, np.float32)
    short = np.zeros(SAMPLE_RATE, np.float32)
    samples = np.concatenate([pause, spoken, short, spoken, pause, spoken])
    first, second = speech_chunks(np.array_split(samples, 20), 15, Detection())
    words = len(spoken) / SAMPLE_RATE
    assert 7_000 < first.speech_ms()[0] < 8_000
    assert 8_000 + 1000 * words < first.speech_ms()[1] < 8_000 + 2000 * words
    assert 15_000 + 2000 * words < second.speech_ms()[0] < second.speech_ms()[1] < 15_000 + 3000 * words
    assert len(first.samples) < 2 * len(spoken)


def test_how_far_it_was_searched_is_told_where_nobody_speaks_and_not_past_what_is_spoken() -> None:
    silence = np.zeros(30 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([silence, clip("voice_en-us").samples(), silence])
    searched: list[int] = []
    (chunk,) = speech_chunks(np.array_split(samples, 60), 60, Detection(), searched.append)
    before, after = ([ms for ms in searched if (ms <= chunk.start_ms) == early] for early in (True, False))
    assert before[-1] == chunk.start_ms
    assert len({ms // 1000 for ms in before}) > 25
    assert after[0] >= chunk.end_ms
    assert after[-1] > len(samples) / 16 - 1500  # prefix padding, and less than a batch


def test_hours_of_silence_are_not_kept() -> None:
    tape, most = Tape(), 0
    for second in range(100):
        tape.add(np.zeros(SAMPLE_RATE, np.float32))
        tape.forget(second * SAMPLE_RATE)
        most = max(most, len(tape.read(second * SAMPLE_RATE, tape.end)))
    assert (most, tape.end, len(tape._blocks)) == (SAMPLE_RATE, 100 * SAMPLE_RATE, 1)
