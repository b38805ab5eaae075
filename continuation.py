"""Where a second text of the same audio goes on after what was already sent of a first one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from operator import ne
from unicodedata import east_asian_width

from transcript import TextToken


def goes_on(sent: Sequence[TextToken], second: Sequence[TextToken]) -> int:
    """How many tokens of `second` tell what `sent` has told: up to the end of one of its words."""
    ends = word_ends(second)
    told = words_told(_words(sent, word_ends(sent)), _words(second, ends))
    return ends[told - 1] if told else 0


def word_ends(tokens: Sequence[TextToken]) -> list[int]:
    """For each word, how many tokens there are up to its end."""
    begins = [i for i, token in enumerate(tokens) if i and begins_word(token.bytes)]
    return [*begins, len(tokens)] if tokens else []


def begins_word(token: bytes) -> bool:
    """With a space, or with a character of Chinese or Japanese, which have none between words."""
    first = token.decode(errors="ignore")[:1]
    return first.isspace() or (first != "" and east_asian_width(first) == "W")


def words_told(sent: Sequence[str], second: Sequence[str]) -> int:
    """Length of the beginning of `second` that is nearest to `sent`; of equally near ones the shortest, because a word
    that stands twice does less harm than one that is lost.

    Edit distance over words that are put in or left out (Wagner and Fischer, 1974). Only the last of `sent` may also
    be another hearing of a word: where it belongs decides what is said twice.
    """
    row = [float(j) for j in range(len(second) + 1)]  # distance of what came of `sent` to each beginning of `second`
    for i, word in enumerate(sent, start=1):
        difference = _difference if i == len(sent) else ne
        before, row[0] = row[0], row[0] + 1
        for j, other in enumerate(second, start=1):
            replaced = before + 2 * difference(word, other)
            before, row[j] = row[j], min(replaced, row[j] + 1, row[j - 1] + 1)
    return row.index(min(row))


def _words(tokens: Sequence[TextToken], ends: list[int]) -> list[str]:
    spelled = [b"".join(token.bytes for token in tokens[a:b]) for a, b in pairwise([0, *ends])]
    return ["".join(filter(str.isalnum, word.decode(errors="replace").casefold())) for word in spelled]


def _difference(word: str, other: str) -> float:
    """0 for the same word to 1 for those that share no letter."""
    return 1 - SequenceMatcher(None, word, other).ratio()
