"""Texts in the letters of a model, and the times of tokens from those of units."""

from __future__ import annotations

import string
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spelling import ANY_SOUND, Alphabet, text_of, token_times

LOWER = Alphabet({letter: i for i, letter in enumerate("'" + string.ascii_lowercase)})
UPPER = Alphabet({letter: i for i, letter in enumerate("'" + string.ascii_uppercase)})


def spelled(text: str, alphabet: Alphabet = LOWER) -> str:
    return "".join("*" if unit == ANY_SOUND else ("'" + string.ascii_lowercase)[unit] for unit in units(text, alphabet))


def units(text: str, alphabet: Alphabet) -> tuple[int, ...]:
    return alphabet.spell(text).units


@pytest.mark.parametrize(("text", "expected"), [
    ("Monday, two!", "mondaytwo"), ("It's “fine”", "it'sfine"), ("It’s", "it's"), ("Café Straße", "cafestrasse"),
    ("e-mail", "email"), ("42 and 17", "*and*"), ("€5", "*"), ("AT&T", "at*t"), ("3D", "*d"), ("łódź", "*odz"),
    ("-", ""), ("fi", "fi"), ("½ of 9²", "*of*"),
])  # fmt: skip
def test_texts_are_spelled_with_the_letters_that_there_are(text: str, expected: str) -> None:
    assert spelled(text) == expected
    assert units(text, UPPER) == units(text, LOWER)


@pytest.mark.parametrize(("text", "covered"), [
    ("Monday, 2 p.m.", True), ("über", True), ("понедельник", False), ("42", False), ("…", False), ("", False),
])  # fmt: skip
def test_a_text_is_covered_if_half_of_it_can_be_spelled(text: str, covered: bool) -> None:
    assert LOWER.covers(text) is covered


texts = st.text("abЖ4€ ,.'é\n世", min_size=1, max_size=30).filter(lambda text: LOWER.spell(text).units)


@given(text=texts, seed=st.integers(0, 99), data=st.data())
def test_tokens_stand_in_order_within_the_units(text: str, seed: int, data: st.DataObject) -> None:
    """Tokens that are cut anywhere, also within letters."""
    raw, spelling = text.encode(), LOWER.spell(text)
    cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw))))})
    tokens = [raw[a:b] for a, b in pairwise(cuts)]
    edges = np.random.default_rng(seed).integers(0, 1000, (len(spelling.units), 2)).ravel()
    edges.sort()
    spans = token_times(tokens, spelling.times(edges.reshape(-1, 2)))
    assert text_of(tokens) == text
    assert (spans[:, 0] <= spans[:, 1] + 1e-6).all()
    assert spans.min() >= edges[0] - 1e-6
    assert spans.max() <= edges[-1] + 1e-6
    assert (np.diff(spans[:, 1]) >= -1e-2).all()


def test_a_token_is_spoken_where_its_letters_are() -> None:
    tokens = [b"mon", b"day", b",", b" \xe2\x82", b"\xac42", b" (x", b")"]
    spelling = LOWER.spell(text_of(tokens))
    starts = np.array([0, 10, 20, 30, 40, 50, 100, 200])
    spans = token_times(tokens, spelling.times(np.stack([starts, starts + 8], axis=1)))
    found = np.round(spans).astype(int).tolist()
    assert found[:3] == [[0, 28], [30, 58], [58, 58]]
    assert (found[3][0], found[4][1]) == (100, 108)
    assert found[5:] == [[200, 208], [208, 208]]
