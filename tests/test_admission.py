from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission import Admission, RequestRate, TooManyRequests

PAUSES = st.lists(st.floats(0, 40), max_size=60)


@given(st.integers(1, 20), PAUSES)
def test_no_minute_holds_more_than_a_bucket_and_what_flows_into_it(per_minute: int, pauses: list[float]) -> None:
    now, taken = 1000.0, []
    rate = RequestRate(per_minute, lambda: now)
    for pause in pauses:
        now += pause
        if rate.enter("a") == 0:
            taken.append(now)
    for at in taken:
        assert sum(at <= other < at + 60 for other in taken) <= 2 * per_minute


@given(st.integers(1, 20), PAUSES)
def test_whoever_waits_as_long_as_told_is_let_in_and_not_before(per_minute: int, pauses: list[float]) -> None:
    now = 1000.0
    rate = RequestRate(per_minute, lambda: now)
    for pause in pauses:
        now += pause
        wait = rate.enter("a")
        assert 0 <= wait <= 60 / per_minute + 0.001
        if wait > 0.1:
            now += wait / 2
            assert rate.enter("a") > 0
            now += wait / 2 + 0.001
            assert rate.enter("a") == 0


def test_a_place_is_given_back_however_its_request_ends() -> None:
    admission = Admission(1)
    with suppress(ValueError), admission.place():
        with pytest.raises(TooManyRequests), admission.place():
            pass
        assert admission.active == 1
        raise ValueError
    assert admission.active == 0


def test_clients_do_not_take_from_each_other_and_are_forgotten() -> None:
    now = 1000.0
    rate = RequestRate(2, lambda: now)
    assert [rate.enter(client) > 0 for client in "aaabba"] == [False, False, True, False, False, True]
    now += 61
    rate.enter("c")
    assert list(rate._full_at) == ["c"]
