"""A text in the letters of a CTC model, and back: from where its letters were spoken to where its tokens were. Pure.

Signs that are spoken but that the model cannot spell, such as "42" and "€", become one unit that any sound fits.
Other punctuation is not spoken and becomes none; it stands where the letter before it ends.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

ANY_SOUND = -1  # in place of a class
SPOKEN_PUNCTUATION = "%&@#"
LEAST_SPELLED = 0.5  # of what is spoken in a text; of less, the model is not one for its language
EDGE = 1e-6  # where a unit ends and the next begins there are two times


@dataclass(frozen=True)
class Spelling:
    """units: classes of the model, or ANY_SOUND. places: of each letter of the text its beginning and end among the
    units, where 2.5 is the midst of the third."""

    units: tuple[int, ...]
    places: tuple[tuple[float, float], ...]

    def times(self, unit_spans: np.ndarray) -> np.ndarray:
        """Beginning and end (letters, 2) of each letter, from those of each unit (units, 2)."""
        edges = np.arange(len(unit_spans))[:, None] + (EDGE, 1 - EDGE)
        return np.interp(self.places, edges.ravel(), unit_spans.ravel())


class Alphabet:
    def __init__(self, classes: Mapping[str, int]) -> None:
        """`classes`: those of single letters."""
        self._classes = classes
        self._seen: dict[str, tuple[int, ...]] = {}

    def covers(self, text: str) -> bool:
        """Whether most of what is spoken can be spelled."""
        spoken = [self._units(letter) for letter in text if self._units(letter)]
        spelled = sum(units != (ANY_SOUND,) for units in spoken)
        return spelled > 0 and spelled >= LEAST_SPELLED * len(spoken)

    def spell(self, text: str) -> Spelling:
        units: list[int] = []
        places: list[tuple[float, float]] = []
        word = 0  # the unit with which it begins
        for unknown, run in groupby(text, lambda letter: self._units(letter) == (ANY_SOUND,)):
            letters, first = [*run], len(units)
            if unknown:
                shares = np.linspace(first, first + 1, len(letters) + 1).clip(first + EDGE, first + 1 - EDGE)
                places += pairwise(shares.tolist())
                units.append(ANY_SOUND)
                continue
            for letter in letters:
                first, spelled = len(units), self._units(letter)
                word = first if letter.isspace() else word
                silent = first + (EDGE if first == word else -EDGE)  # before a word, or behind what was spoken
                places.append((first + EDGE, first + len(spelled) - EDGE) if spelled else (silent, silent))
                units += spelled
        return Spelling(tuple(units), tuple(places))

    def _units(self, letter: str) -> tuple[int, ...]:
        """None for what is not spoken."""
        if letter not in self._seen:
            self._seen[letter] = self._find_units(letter)
        return self._seen[letter]

    def _find_units(self, letter: str) -> tuple[int, ...]:
        plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
        for form in (letter, letter.lower(), letter.upper(), letter.casefold(), plain.lower(), plain.upper()):
            if form and all(c in self._classes for c in form):
                return tuple(self._classes[c] for c in form)
        if letter == "’":
            return self._units("'")
        spoken = unicodedata.category(letter)[0] in "LNS" or letter in SPOKEN_PUNCTUATION
        return (ANY_SOUND,) if spoken else ()


def token_times(tokens: Sequence[bytes], times: np.ndarray) -> np.ndarray:
    """Beginning and end (tokens, 2) of each token, from those of each letter (letters, 2); a letter may be in several.
    White space at the beginning of a token takes no time."""
    letters = text_of(tokens)
    ends = np.cumsum([len(letter.encode(errors="surrogateescape")) for letter in letters])
    token_ends = np.cumsum([len(token) for token in tokens])
    token_starts = token_ends - [len(token.lstrip()) for token in tokens]
    first = np.searchsorted(ends, token_starts, side="right").clip(max=len(letters) - 1)
    last = np.searchsorted(ends, token_ends)
    found = np.stack([times[first, 0], times[last, 1]], axis=1)
    return np.minimum(found, found[:, 1:])


def text_of(tokens: Sequence[bytes]) -> str:
    """Bytes that make no letter become one each, so that none is lost."""
    return b"".join(tokens).decode(errors="surrogateescape")
