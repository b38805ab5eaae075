from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from continuation import goes_on, word_ends, words_told
from transcript import TextToken

WORDS = st.lists(st.sampled_from("alpha bravo charlie delta echo golf kilo lima mike papa".split()), max_size=20)


def tokens(*pieces: str) -> list[TextToken]:
    return [TextToken(i, piece.encode(), -0.1) for i, piece in enumerate(pieces)]


@given(text=WORDS, told=st.integers(0, 20))
def test_what_was_sent_word_for_word_is_not_told_again(text: list[str], told: int) -> None:
    assert words_told(text[:told], text) == len(text[:told])


@given(text=WORDS, told=st.integers(0, 20), wrong=st.dictionaries(st.integers(0, 19), WORDS.map(lambda w: w[:2])))
def test_each_wrong_word_of_what_was_sent_costs_two_words_at_most(
    text: list[str], told: int, wrong: dict[int, list[str]]
) -> None:
    """A word that was left out, replaced, or said as two: the place is off by what that changed, and no more."""
    right = text[:told]
    sent = [word for i, original in enumerate(right) for word in wrong.get(i, [original])]
    edits = sum(1 + len(words) for i, words in wrong.items() if i < len(right))
    assert abs(words_told(sent, text) - len(right)) <= 2 * edits


def test_repeats_of_a_loop_that_were_sent_tell_nothing_of_the_second_text() -> None:
    text = "open the window in the garden at seven".split()
    assert words_told("open the window the window".split(), text) == 3


def test_a_misheard_last_word_is_not_said_again() -> None:
    assert words_told(["gray", "wendsday"], ["gray", "wednesday", "four"]) == 2


def test_a_sent_text_that_has_nothing_of_the_second_hides_nothing() -> None:
    assert words_told(["xray", "zulu"], ["open", "golf", "kilo"]) == 0


def test_the_second_text_goes_on_behind_a_whole_word_whatever_its_tokens() -> None:
    sent = tokens("Wed", "nes", "day", ",", " four")
    second = tokens(" wednes", "day", " four", " o'", "clock")
    assert word_ends(second) == [2, 3, 5]
    assert goes_on(sent, second) == 3
    assert goes_on([], second) == 0
    assert goes_on(sent, []) == 0


def test_where_no_spaces_are_written_each_character_is_a_word() -> None:
    sent, second = tokens("今天", "天", "气"), tokens("今天", "天", "气", "很", "好")
    assert word_ends(second) == [1, 2, 3, 4, 5]
    assert goes_on(sent, second) == 3
