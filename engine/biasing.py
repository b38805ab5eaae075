"""Words to expect: a prefix tree over their tokens raises what begins or goes on with one of them.

The tree only decides between spellings of what was heard. It never looks at the audio, so it may not be strong: a word
is raised only where the model itself half expects it, and nothing where the model would end, be inside of another
word, or does not know what it hears. The bounds were measured on the demo model's sound-alikes, see
docs/decisions/012-keywords.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp

import numpy as np

# Nats that a token is raised by. On the demo model the rare spelling of a sound is 1.2 to 2.4 below the common one.
BOOST = 2.5
# Nats below the likeliest token within which one is raised: 5 % of its probability. At temperature 0 BOOST alone does
# not reach that far; at others it keeps what nobody said from being drawn.
MARGIN = 3.0
# Probability of the likeliest token and the raised one together. Less: there are third words in play, so the doubt is
# about what was said and not about how it is spelled. 0.79 is the least of the demo model's sound-alikes.
ONLY_SPELLING = 0.75
NOTHING = np.empty(0, np.int64)


@dataclass
class Node:
    """A place in the tree; `ids` are the tokens that lead on, as an array (children,)."""

    children: dict[int, Node] = field(default_factory=dict)
    ids: np.ndarray = field(default_factory=lambda: NOTHING)

    def add(self, tokens: tuple[int, ...]) -> None:
        node = self
        for token in tokens:
            node = node.children.setdefault(token, Node())

    def freeze(self) -> None:
        self.ids = np.fromiter(self.children, np.int64)
        for child in self.children.values():
            child.freeze()


@dataclass(frozen=True)
class Borders:
    """Which tokens stand at the borders of words: bool arrays (vocabulary,)."""

    spaced: np.ndarray  # begins with a space, and so a word
    bare: np.ndarray  # is text that begins with anything else
    gap: np.ndarray  # ends with white space, so that a word may follow without a space of its own


class KeywordTree:
    """All words of a request. Never changes, so all chunks of a recording share one."""

    def __init__(self, spaced: Iterable[tuple[int, ...]], bare: Iterable[tuple[int, ...]], borders: Borders) -> None:
        """Each word in tokens: `spaced` as it follows another word, `bare` as it begins a text or a line."""
        self.spaced, self.bare, self.borders = Node(), Node(), borders
        for root, words in ((self.spaced, spaced), (self.bare, bare)):
            for tokens in words:
                root.add(tokens)
            root.freeze()


class KeywordBias:
    """Where one text stands in the tree."""

    def __init__(self, tree: KeywordTree) -> None:
        self._tree = tree
        self._begun: list[Node] = []  # after each word's beginning that the text ends with
        self._gap = True

    def candidates(self, best: int) -> np.ndarray:
        """Ids of tokens of expected words that could stand in the place of the likeliest one. May name one twice."""
        places = [node.ids for node in self._begun]
        if self._tree.borders.spaced[best]:
            places.append(self._tree.spaced.ids)
        elif self._gap and self._tree.borders.bare[best]:
            places.append(self._tree.bare.ids)
        return np.concatenate(places) if places else NOTHING

    @staticmethod
    def raised(best: int, near: Mapping[int, float], highest: float, total: float) -> list[int]:
        """Which candidates get BOOST, of those that are `near`: within MARGIN, with their logits. `highest` is the
        logit of the likeliest token, `total` the logsumexp of all."""
        sure = exp(highest - total)
        found = [token for token, logit in near.items() if token == best or exp(logit - total) + sure >= ONLY_SPELLING]
        return found if found != [best] else []

    def spelled(self, best: int, near: Mapping[int, float], highest: float, total: float) -> int:
        """The token that is the likeliest when the candidates have been raised; arguments as of `raised`."""
        raised = self.raised(best, near, highest, total)
        if not raised or best in raised:
            return best
        first = max(raised, key=near.__getitem__)
        return first if near[first] + BOOST > highest else best

    def accept(self, token: int) -> None:
        """The text went on with `token`."""
        roots = [self._tree.spaced, self._tree.bare] if self._gap else [self._tree.spaced]
        nodes = [node.children.get(token) for node in (*self._begun, *roots)]
        self._begun = [node for node in nodes if node and node.children]
        self._gap = bool(self._tree.borders.gap[token])
