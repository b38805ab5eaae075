from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loops import FAR_SUSPECT, LONG_REPEAT, LOOP_TOKENS, NEAR, WINDOW, LoopDetector
from tests.scripted import tokenizer
from tests.speech import ALL_CLIPS

TOKENS = st.integers(0, 10_000)
DIGITS = "zero one two three four five six seven eight nine".split()


def fed(tokens: list[int]) -> LoopDetector:
    """After the first loop, or at the end. Tokens of which no two share a letter, so that only repeats count."""
    detector = LoopDetector()
    for token in tokens:
        detector.add(token, chr(0x4E00 + token).encode())
        if detector.looping:
            break
    return detector


def heard(text: str) -> LoopDetector:
    """`text` as the demo model would write it."""
    detector = LoopDetector()
    for token in tokenizer()._tekken.encode(text, bos=False, eos=False):
        detector.add(token, tokenizer().token_bytes(token))
        if detector.looping:
            break
    return detector


@given(before=st.lists(TOKENS, max_size=60), phrase=st.lists(TOKENS, min_size=1, max_size=60))
def test_a_loop_of_any_phrase_is_found_within_a_few_repeats(before: list[int], phrase: list[int]) -> None:
    detector = fed(before + phrase * (LOOP_TOKENS + 3))
    assert detector.looping
    assert detector.count <= len(before) + 3 * len(phrase) + LOOP_TOKENS


@given(before=st.lists(TOKENS, max_size=40), phrase=st.lists(TOKENS, min_size=1, max_size=40, unique=True))
def test_what_stands_before_a_loop_and_its_first_round_are_sound(before: list[int], phrase: list[int]) -> None:
    before = [token + 20_000 for token in before]  # no part of the loop
    tokens = before + phrase * (LOOP_TOKENS + 3)
    assert fed(tokens).sound == len(before) + len(phrase)


@given(
    before=st.lists(TOKENS, max_size=60),
    word=st.lists(TOKENS, min_size=1, max_size=4, unique=True),
    after=st.lists(TOKENS, max_size=60),
)
def test_a_word_that_is_said_eight_times_is_no_loop(before: list[int], word: list[int], after: list[int]) -> None:
    apart = [token + 20_000 for token in before], [token + 40_000 for token in after]
    assert not fed(apart[0] + word * 8 + apart[1]).looping


@given(
    stretch=st.lists(TOKENS, min_size=3, max_size=40, unique=True),
    between=st.lists(TOKENS, max_size=60, unique=True),
)
def test_a_long_stretch_that_stands_twice_is_noticed(stretch: list[int], between: list[int]) -> None:
    tokens = [*stretch, *(token + 20_000 for token in between), *stretch]
    assert fed(tokens).went_back == (len(stretch) >= LONG_REPEAT)
    assert not fed([1, 2] * 12).went_back


@given(phrase=st.lists(TOKENS, min_size=8, max_size=40, unique=True))
def test_a_refrain_that_is_sung_three_times_is_no_loop(phrase: list[int]) -> None:
    assert not fed(phrase * 3).looping


@pytest.mark.parametrize(("period", "first"), [(2, 0), (NEAR, 0), (NEAR + 1, FAR_SUSPECT - 1), (60, FAR_SUSPECT - 1)])
def test_a_repeat_is_suspect_as_long_as_it_lasts(period: int, first: int) -> None:
    """At once where it follows close behind; a word that comes again later is none."""
    detector, suspect = LoopDetector(), []
    for token in [*range(period), *range(period), 99, 98]:
        detector.add(token, b"word")
        suspect.append(detector.suspect)
    assert suspect == [False] * (period + first) + [True] * (period - first) + [False] * 2


def test_a_loop_that_counts_is_found_by_its_compression() -> None:
    told = "monday the garden " + "".join(f"and then he said number {i} is the one " for i in range(60))
    detector = heard(told)
    assert detector.looping
    assert detector.count <= 2 * WINDOW
    assert 0 <= detector.sound <= detector.count - WINDOW


@pytest.mark.parametrize(
    "text",
    [
        " ".join(clip.words for clip in ALL_CLIPS),
        "one one one " * 4 + "two",
        " ".join(random.Random(1).choices(DIGITS, k=600)),
        " ".join(map(str, range(1, 300))),
        "no no no no no no no no I said no",
    ],
    ids=["clips", "one one one", "digits read aloud", "counting", "no"],
)
def test_speech_that_repeats_itself_is_no_loop(text: str) -> None:
    assert not heard(text).looping
