"""Times of words from the steps at which they are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.word_clock import LONGEST_STEPS, WordClock

STEP, OFFSET = 1280, 38


def test_a_word_ends_a_delay_before_its_mark_and_begins_where_the_last_one_ended() -> None:
    clock = WordClock(STEP, OFFSET)
    clock.mark(OFFSET + 10)
    assert clock.span(OFFSET + 11, begins_word=True) == ((10 - LONGEST_STEPS) * STEP, 10 * STEP)
    assert clock.span(OFFSET + 12, begins_word=False) == ((10 - LONGEST_STEPS) * STEP, 10 * STEP)
    clock.mark(OFFSET + 13)
    assert clock.span(OFFSET + 14, begins_word=True) == (10 * STEP, 13 * STEP)


def test_a_word_without_a_mark_ends_where_it_is_written() -> None:
    clock = WordClock(STEP, OFFSET)
    clock.mark(OFFSET + 10)
    clock.span(OFFSET + 11, begins_word=True)
    assert clock.span(OFFSET + 12, begins_word=True) == (10 * STEP, 12 * STEP)


@given(
    marks=st.lists(st.integers(1, 20), min_size=1, max_size=20),
    silences=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 60_000)), max_size=5),
)
def test_what_was_never_fed_has_no_time(marks: list[int], silences: list[tuple[int, int]]) -> None:
    clock, fed, whole = WordClock(STEP, OFFSET), [], 0
    for speech, silence in silences:
        fed += [True] * speech
        clock.insert(len(fed), silence)
        fed += [False] * silence
    fed += [True] * 40_000
    before, written = 0, OFFSET
    for steps in marks:
        written += steps
        clock.mark(written)
        start, end = clock.span(written + 1, begins_word=True)
        whole = sum(fed[: (written - OFFSET) * STEP]) + max(0, (written - OFFSET) * STEP - len(fed))
        assert before <= start <= end == whole
        before = end


@given(
    turns=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 60_000), st.integers(0, 40)), max_size=30),
    marks=st.sets(st.integers(0, 1000)),
)
def test_silence_that_no_word_follows_is_forgotten_and_counted_all_the_same(
    turns: list[tuple[int, int, int]], marks: set[int]
) -> None:
    clock, silences, end, written = WordClock(STEP, OFFSET), [], 0, OFFSET
    for speech, silence, steps in turns:
        silences.append((end + speech, silence))
        clock.insert(*silences[-1])
        end += speech + silence
        for _ in range(steps):
            written += 1
            clock.reach(written)
            if written in marks:
                clock.mark(written)
            at = (written - OFFSET) * STEP
            for heard in (at, at + STEP * OFFSET):
                assert clock.fed(heard) == heard - sum(min(n, max(0, heard - first)) for first, n in silences)
            assert len(clock._inserted) == sum(first + count > at for first, count in silences)
