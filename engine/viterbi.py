"""Which frames of the audio each unit of a text was spoken in: the likeliest path through the states of CTC. Pure.

The states are those of connectionist temporal classification (Graves et al., 2006): the units in their order, and
before, between and behind them silence, which may be passed over except between two equal units. The path is Viterbi's
(1967). Units that any sound fits cost a little in each frame, so that known ones keep the sounds that are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.spelling import ANY_SOUND

SILENCE = -2  # in place of a class
ANY_SOUND_COST = 0.5  # nats for a frame
MOST_DOUBT = 4.0  # nats for a unit, by which a text may be less likely than what the model would have written
BLOCK = 2**25  # moves that are kept at once, 32 MB


def unit_spans(logprobs: np.ndarray, units: Sequence[int], silences: Sequence[int]) -> np.ndarray | None:
    """First frame of each unit and the one after its last (units, 2). None where there are too few frames for the
    units, or what was said is another text.

    logprobs (frames, classes): natural logarithms. units: classes or ANY_SOUND. silences: the classes that say nothing.
    """
    likeliest = logprobs.max(axis=1)
    # Behind the classes, so that SILENCE and ANY_SOUND are the columns of these names.
    columns = np.column_stack([logprobs, logprobs[:, silences].max(axis=1), likeliest - ANY_SOUND_COST])
    states = np.full(2 * len(units) + 1, SILENCE)
    states[1::2] = units
    path = best_path(columns, states)
    if path is None:
        return None
    classes = states[path]
    doubt = np.where(classes == ANY_SOUND, 0, likeliest - columns[np.arange(len(path)), classes]).sum()
    if doubt > MOST_DOUBT * len(units):
        return None
    spoken = np.arange(1, len(states), 2)
    return np.stack([np.searchsorted(path, spoken), np.searchsorted(path, spoken, side="right")], axis=1)


def best_path(logprobs: np.ndarray, states: np.ndarray) -> np.ndarray | None:
    """The state (frames,) of each frame, from the first or second to the last or last but one; None if no path is short
    enough. `states` (n,): the class of each, silence at even places and at the last.

    The moves of a block of frames are kept at once; those of earlier blocks are found again from the scores before
    them, so that memory is bounded.
    """
    block = max(BLOCK // len(states), 1)
    scores = np.full(len(states), -np.inf, logprobs.dtype)
    scores[0] = 0  # before the first frame
    before = []
    for first in range(0, len(logprobs), block):
        before.append(scores)
        scores, moves = _advance(scores, logprobs[first : first + block], states)
    state = len(states) - 2 + int(scores[-2:].argmax())
    if scores[state] == -np.inf:
        return None
    path = np.empty(len(logprobs), np.int64)
    for number in reversed(range(len(before))):
        first = number * block
        if number < len(before) - 1:
            _, moves = _advance(before[number], logprobs[first : first + block], states)
        for frame in reversed(range(len(moves))):
            path[first + frame] = state
            state -= int(moves[frame, state])
    return path


def _advance(scores: np.ndarray, logprobs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores after some frames, and by how many states the best path to each moved in each (frames, n)."""
    jumps = np.where((states[2:] != states[:-2]) & (states[2:] != SILENCE), 0, -np.inf).astype(scores.dtype)
    moves = np.zeros((len(logprobs), len(states)), np.uint8)
    for row, move in zip(logprobs, moves, strict=True):
        move[1:] = scores[:-1] > scores[1:]
        best = scores.copy()
        np.maximum(scores[1:], scores[:-1], out=best[1:])
        jumped = scores[:-2] + jumps
        np.putmask(move[2:], jumped > best[2:], 2)
        np.maximum(best[2:], jumped, out=best[2:])
        scores = best + row.take(states, mode="wrap")
    return scores, moves
