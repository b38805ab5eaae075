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


def test_a_request_is_queued_until_there_is_text_and_then_tells_how_far_it_is() -> None:
    clock = Clock()
    progress = started(clock)
    progress.take(10_000, stored=False)
    progress.take(20_000, stored=False)
    assert (progress.state, progress.share, progress.remaining_seconds) == ("queued", 0, None)
    progress.run()
    clock.now += 5
    progress.finish_chunk(10_000, stored=False)
    assert (progress.state, progress.share, progress.chunks_done) == ("running", 0.1, 1)
    assert progress.elapsed_seconds == 5
    # 10 s of audio done and half of another 10 s, in 5 s
    assert progress.remaining_seconds == pytest.approx((100 - 15) * 5 / 15)


def test_what_was_found_in_the_store_does_not_make_the_rest_look_quick() -> None:
    clock = Clock()
    progress = started(clock)
    progress.take(80_000, stored=True)
    progress.take(90_000, stored=False)
    progress.finish_chunk(80_000, stored=True)
    assert (progress.share, progress.chunks_stored, progress.remaining_seconds) == (0.8, 1, None)
    clock.now += 30
    progress.take(100_000, stored=False)
    progress.finish_chunk(90_000, stored=False)
    assert progress.remaining_seconds == pytest.approx(5 * 30 / 15)


def test_silence_behind_the_last_chunk_takes_no_time() -> None:
    clock = Clock()
    progress = started(clock)
    progress.take(10_000, stored=False)
    progress.take_all(100_000)
    clock.now += 1
    progress.finish_chunk(10_000, stored=False)
    assert progress.remaining_seconds == 0
    progress.end("finished")
    assert (progress.share, progress.remaining_seconds) == (1, 0)


def test_a_length_that_nobody_knows_is_not_invented() -> None:
    clock = Clock()
    progress = started(clock, None)
    progress.take(10_000, stored=False)
    clock.now += 1
    progress.finish_chunk(10_000, stored=False)
    assert (progress.duration_ms, progress.share, progress.remaining_seconds) == (None, None, None)
    progress.take_all(12_000)
    assert (progress.duration_ms, progress.share) == (12_000, 10 / 12)


def test_the_first_end_counts_and_stops_the_clock() -> None:
    clock = Clock()
    progress = started(clock)
    clock.now += 2
    progress.end("failed")
    clock.now += 2
    progress.end("cancelled")
    assert (progress.state, progress.elapsed_seconds, progress.remaining_seconds) == ("failed", 2, None)


@given(
    st.lists(st.tuples(st.integers(1, 60_000), st.booleans(), st.floats(0, 100)), min_size=1),
    st.one_of(st.none(), st.integers(1, 600_000)),
)
def test_no_share_is_above_one_and_no_rest_negative(
    chunks: list[tuple[int, bool, float]], declared_ms: int | None
) -> None:
    """Also where the container says too little of its length."""
    clock, end_ms = Clock(), 0
    progress = started(clock, declared_ms)
    for length, stored, seconds in chunks:
        end_ms += length
        progress.take(end_ms, stored)
        clock.now += seconds
        progress.finish_chunk(end_ms, stored)
        assert 0 <= (progress.share or 0) <= 1
        assert (progress.remaining_seconds or 0) >= 0
    progress.take_all(end_ms + 1)
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
