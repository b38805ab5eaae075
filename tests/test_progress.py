"""How far a transcription is: figures that are true at every moment, and who may see them for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progress import KEPT_SECONDS, MOST_KEPT, Caller, Progress, ProgressBoard


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(clock: Clock, duration_ms: int | None = 100_000) -> Progress:
    return Progress(duration_ms, clock)


def test_a_request_is_queued_until_the_model_is_there_and_then_tells_how_far_it_is() -> None:
    clock = Clock()
    progress = started(clock)
    assert progress.state == "queued"
    progress.run()
    progress.take(0, 10_000, stored=False)
    progress.take(10_000, 20_000, stored=False)
    assert (progress.state, progress.share, progress.remaining_seconds) == ("running", 0, None)
    clock.now += 5
    progress.finish_chunk(stored=False)
    assert (progress.state, progress.share, progress.chunks_done) == ("running", 0.1, 1)
    assert progress.elapsed_seconds == 5
    # 10 s of audio done and half of another 10 s, in 5 s
    assert progress.remaining_seconds == pytest.approx((100 - 15) * 5 / 15)


def test_what_was_found_in_the_store_does_not_make_the_rest_look_quick() -> None:
    clock = Clock()
    progress = started(clock)
    progress.take(0, 80_000, stored=True)
    progress.take(80_000, 90_000, stored=False)
    progress.finish_chunk(stored=True)
    assert (progress.share, progress.chunks_stored, progress.remaining_seconds) == (0.8, 1, None)
    clock.now += 30
    progress.take(90_000, 100_000, stored=False)
    progress.finish_chunk(stored=False)
    assert progress.remaining_seconds == pytest.approx(5 * 30 / 15)


def test_silence_behind_the_last_chunk_takes_no_time() -> None:
    clock = Clock()
    progress = started(clock)
    progress.take(0, 10_000, stored=False)
    progress.take_all(100_000)
    clock.now += 1
    assert progress.share == 0  # until the chunk before it is done
    progress.finish_chunk(stored=False)
    assert (progress.share, progress.remaining_seconds) == (1, 0)
    progress.end("finished")
    assert (progress.share, progress.remaining_seconds) == (1, 0)


def test_silence_that_is_found_before_any_speech_is_done_at_the_pace_of_the_search() -> None:
    clock = Clock()
    progress = started(clock)
    progress.search(10_000)
    clock.now += 60  # of waiting for the model, which are no part of the pace
    progress.run()
    assert (progress.state, progress.share, progress.remaining_seconds) == ("running", 0.1, None)
    clock.now += 2
    progress.search(50_000)
    assert (progress.share, progress.remaining_seconds) == (0.5, 2 * 50 / 40)
    progress.take(55_000, 60_000, stored=False)
    assert (progress.share, progress.remaining_seconds) == (0.55, None)


def test_silence_behind_speech_is_done_as_it_is_found_and_leaves_less_and_less() -> None:
    clock = Clock()
    progress = started(clock, 1_000_000)
    progress.run()
    progress.take(0, 50_000, stored=False)
    progress.search(90_000)
    clock.now += 5
    assert progress.share == 0
    progress.finish_chunk(stored=False)
    assert (progress.share, progress.remaining_seconds) == (0.09, pytest.approx(5 * 910 / 90))
    left = []
    for found in range(100_000, 1_000_000, 50_000):
        clock.now += 1
        progress.search(found)
        assert progress.share == found / 1_000_000
        left.append(progress.remaining_seconds)
    assert left == sorted(left, reverse=True)
    progress.take_all(1_000_000)
    assert (progress.share, progress.remaining_seconds) == (1, 0)


def test_chunks_at_work_count_as_half_done_whatever_silence_was_found_behind_them() -> None:
    clock = Clock()
    progress = started(clock, 200_000)
    progress.run()
    for start_ms in range(20_000, 60_000, 10_000):
        progress.take(start_ms, start_ms + 10_000, stored=False)
    progress.search(100_000)
    clock.now += 5
    progress.finish_chunk(stored=False)
    # 10 s and half of 30 s in 5 s; of the rest half is speech, as it was of what was searched
    assert (progress.done_ms, progress.remaining_seconds) == (30_000, pytest.approx((15 + 100 / 2) * 5 / 25))


def test_a_length_that_nobody_knows_is_not_invented() -> None:
    clock = Clock()
    progress = started(clock, None)
    progress.take(0, 10_000, stored=False)
    clock.now += 1
    progress.finish_chunk(stored=False)
    assert (progress.duration_ms, progress.share, progress.remaining_seconds) == (None, None, None)
    progress.take_all(12_000)
    assert (progress.duration_ms, progress.share) == (12_000, 1)


def test_the_first_end_counts_and_stops_the_clock() -> None:
    clock = Clock()
    progress = started(clock)
    clock.now += 2
    progress.end("failed")
    clock.now += 2
    progress.end("cancelled")
    assert (progress.state, progress.elapsed_seconds, progress.remaining_seconds) == ("failed", 2, None)


@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000), st.booleans(), st.floats(0, 100)), min_size=1),
    st.one_of(st.none(), st.integers(1, 600_000)),
    st.integers(1, 4),
)
def test_no_share_is_above_one_or_falls_and_no_rest_negative(
    chunks: list[tuple[int, int, bool, float]], declared_ms: int | None, at_once: int
) -> None:
    """Also where the container says too little of its length. `chunks`: silence before and length of each."""
    clock, end_ms, shown_ms = Clock(), 0, 0
    progress = started(clock, declared_ms)
    waiting: list[bool] = []

    def check() -> None:
        nonlocal shown_ms
        assert progress.done_ms >= shown_ms
        assert 0 <= (progress.share or 0) <= 1
        assert (progress.remaining_seconds or 0) >= 0
        shown_ms = progress.done_ms

    progress.run()
    for silence, length, stored, seconds in chunks:
        start_ms, end_ms = end_ms + silence, end_ms + silence + length
        progress.search(start_ms)
        check()
        progress.take(start_ms, end_ms, stored)
        waiting.append(stored)
        clock.now += seconds
        if len(waiting) == at_once:
            progress.finish_chunk(waiting.pop(0))
        check()
    progress.take_all(end_ms + 1)
    for stored in waiting:
        progress.finish_chunk(stored)
        check()
    progress.end("finished")
    assert progress.share == 1
    assert progress.chunks_done == len(chunks)


ANN, BOB = Caller("request", "Ann"), Caller("request", "Bob")


def test_a_request_is_shown_to_its_own_key_only() -> None:
    board = ProgressBoard()
    of_ann = board.begin(ANN, None)
    assert board.find(Caller("request", "Ann", keep=False)) is of_ann
    assert board.find(BOB) is None
    of_bob = board.begin(BOB, None)
    assert (board.find(ANN), board.find(BOB)) == (of_ann, of_bob)


def test_an_id_that_is_used_again_means_the_newer_request() -> None:
    board = ProgressBoard()
    first, second = board.begin(ANN, None), board.begin(ANN, None)
    first.end("cancelled")
    assert board.find(ANN) is second


def test_ended_requests_are_forgotten_after_a_while_and_those_at_work_never() -> None:
    clock = Clock()
    board = ProgressBoard(clock)
    board.begin(ANN, None).end("finished")
    board.begin(BOB, None)
    clock.now += KEPT_SECONDS
    assert board.find(ANN)
    clock.now += 1
    assert board.find(ANN) is None
    assert board.find(BOB)


def test_of_very_many_ended_requests_the_latest_are_remembered() -> None:
    board = ProgressBoard()
    for number in range(MOST_KEPT + 5):
        board.begin(Caller(str(number)), None).end("finished")
    found = [number for number in range(MOST_KEPT + 5) if board.find(Caller(str(number)))]
    assert found == [*range(5, MOST_KEPT + 5)]
