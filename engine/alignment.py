"""Where in the audio each token was spoken, from the attention that the decoder's heads pay to it.

Some heads look at the audio of the token that is being written. Which ones differs from model to model and a little
from voice to voice, so nothing is calibrated beforehand: heads are judged on the very utterance, by how much of their
attention moves on through the audio from token to token. Then the audio is divided among the tokens, in their order, by
the mean of the best heads. This module is pure; `engine/attention.py` reads the attention.
"""

from __future__ import annotations

from bisect import insort
from itertools import pairwise

import numpy as np

MOST_HEADS = 8
GOOD_SHARE = 0.7  # of the best head's score that another one must have
PAUSE_SHARE = 0.2  # of the attention that audio usually gets, under which nobody speaks there
UNSEEN_SHARE = 0.02  # of the attention that any audio gets, under which it does not count as usual
LONGEST_STEP = 50  # audio tokens, 4 s: a head that jumps farther follows nobody


def follow_scores(peaks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How well each head follows the speech (heads,), from 0 to 1.

    peaks (heads, tokens): the attention paid to the surroundings of the place that gets most.
    places (heads, tokens): that place, in audio tokens.
    """
    steps = np.diff(places, axis=1)
    return (peaks[:, 1:] * ((steps > 0) & (steps <= LONGEST_STEP))).mean(axis=1)


class BestHeads:
    """The heads that score best, of all that are offered; only their attention is kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, np.ndarray]] = []  # best first; minus the score, a number that breaks ties
        self._offered = 0

    def wants(self, score: float) -> bool:
        return len(self._kept) < MOST_HEADS or -score < self._kept[-1][0]

    def add(self, score: float, weights: np.ndarray) -> None:
        """weights (tokens, audio): the attention of one head."""
        self._offered += 1
        insort(self._kept, (-score, self._offered, weights))
        del self._kept[MOST_HEADS:]

    def mean(self) -> np.ndarray:
        """Attention (tokens, audio) of those heads together that are nearly as good as the best."""
        enough = GOOD_SHARE * self._kept[0][0]
        good = [weights for score, _, weights in self._kept if score <= enough]
        return sum(good[1:], good[0].astype(np.float32)) / len(good)


def token_spans(attention: np.ndarray) -> np.ndarray:
    """Where each token was spoken (tokens, 2): the first audio token and the one after the last.

    attention (tokens, audio). What each audio token gets is shared out among the tokens that look at it, or they would
    fight for the one that gets most. One that nobody looks at is a pause: it counts little, and at the border between
    tokens it belongs to none.
    """
    looked_at = attention.sum(axis=0)
    usual = np.median(looked_at[looked_at >= UNSEEN_SHARE * looked_at.max()])
    spoken = np.flatnonzero(looked_at >= PAUSE_SHARE * usual)
    spans = []
    for start, end in pairwise(borders(attention / np.maximum(looked_at, PAUSE_SHARE * usual + 1e-9))):
        inside = spoken[np.searchsorted(spoken, start) : np.searchsorted(spoken, end)]
        spans.append((inside[0], inside[-1] + 1) if len(inside) else (start, end))
    return np.array(spans)


def borders(shares: np.ndarray) -> np.ndarray:
    """Divide the audio among the tokens, in their order: borders (tokens + 1,), token i from border i to border i + 1.

    shares (tokens, audio). Dynamic time warping in which each audio token belongs to one text token, so that the shares
    that they have in what is theirs are the most; a text token may be left without any.
    """
    tokens, frames = shares.shape
    sums = np.concatenate([np.zeros((tokens, 1)), np.cumsum(shares, axis=1)], axis=1)  # (tokens, frames + 1)
    best = np.where(np.arange(frames + 1) == 0, 0.0, -np.inf)  # of the tokens so far, if they end before frame i
    begins = np.zeros((tokens, frames + 1), np.int32)
    for token in range(tokens):
        gains = best - sums[token]
        highest = np.maximum.accumulate(gains)
        begins[token] = np.maximum.accumulate(np.where(gains == highest, np.arange(frames + 1), 0))
        best = highest + sums[token]
    found = [frames]
    for token in reversed(range(tokens)):
        found.append(begins[token, found[-1]])
    return np.array(found[::-1])
