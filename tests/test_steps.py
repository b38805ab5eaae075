from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.steps import rounded


@given(st.integers(1, 40_000))
def test_rounded_sizes_are_few_and_at_most_half_more(count: int) -> None:
    assert count <= rounded(count) <= 1.5 * count
    assert rounded(rounded(count)) == rounded(count)
    assert rounded(count).bit_count() <= 2  # a power of two, or half more
