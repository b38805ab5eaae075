"""The likeliest path through the states of CTC, against all paths that there are."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import viterbi
from engine.spelling import ANY_SOUND
from engine.viterbi import SILENCE, best_path, unit_spans

CLASSES = 5  # 0 and 1 say nothing


def states_of(units: list[int]) -> np.ndarray:
    return np.array([SILENCE, *(state for unit in units for state in (unit, SILENCE))])


def logprobs_of(seed: int, frames: int) -> np.ndarray:
    """Of classes, silence and any sound."""
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(CLASSES + 2), frames)).astype(np.float32)


def is_path(path: tuple[int, ...], states: np.ndarray) -> bool:
    """By the rules of CTC: one state further, or two where that leaves out silence between different units."""

    def follows(a: int, b: int) -> bool:
        return b - a in (0, 1) or (b - a == 2 and states[b] != SILENCE and states[a] != states[b])

    return path[0] < 2 and path[-1] >= len(states) - 2 and all(follows(a, b) for a, b in pairwise(path))


@settings(max_examples=60)
@given(
    units=st.lists(st.sampled_from([2, 3, ANY_SOUND]), min_size=1, max_size=3),
    frames=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_no_other_path_is_likelier(units: list[int], frames: int, seed: int) -> None:
    logprobs, states = logprobs_of(seed, frames), states_of(units)

    def score(path: tuple[int, ...]) -> float:
        return float(logprobs[np.arange(frames), states[[*path]]].sum())

    paths = [path for path in product(range(len(states)), repeat=frames) if is_path(path, states)]
    found = best_path(logprobs, states)
    if found is None:
        assert not paths
    else:
        assert is_path(tuple(found.tolist()), states)
        assert score(tuple(found)) == pytest.approx(max(map(score, paths)), abs=1e-4)


@given(st.lists(st.tuples(st.integers(2, CLASSES - 1), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=20))
def test_frames_go_to_the_units_that_they_say(spoken: list[tuple[int, int, int]]) -> None:
    """(class, frames, frames of silence behind it)"""
    said, expected = [0], []
    for unit, length, silence in spoken:
        expected.append([len(said), len(said) + length])
        said += [unit] * length + [len(said) % 2] * silence
    spans = unit_spans(saying(said), [unit for unit, *_ in spoken], (0, 1))
    assert spans is not None
    assert spans.tolist() == expected


def saying(classes: list[int]) -> np.ndarray:
    """What a model that is rather sure would give."""
    logits = np.full((len(classes), CLASSES), 0.0, np.float32)
    logits[np.arange(len(classes)), classes] = 6
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_a_unit_of_any_sound_has_what_no_other_unit_says() -> None:
    spans = unit_spans(saying([0, 2, 2, 0, 4, 1, 3, 4, 0, 3, 3]), [2, ANY_SOUND, 3], (0, 1))
    assert spans is not None
    assert spans.tolist() == [[1, 3], [4, 8], [9, 11]]


def test_another_text_than_was_said_has_no_spans() -> None:
    said = [0, 2, 2, 3, 0, 2, 4, 4, 0, 3]
    assert unit_spans(saying(said), [2, 3, 2, 4, 3], (0, 1)) is not None
    assert unit_spans(saying(said), [4, 2, 3], (0, 1)) is None
    assert unit_spans(saying(said), [2, 3] * 6, (0, 1)) is None  # more units than frames


def test_the_path_is_the_same_when_few_moves_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs, states = logprobs_of(0, 300), states_of(np.random.default_rng(1).integers(2, CLASSES, 40).tolist())
    whole = best_path(logprobs, states)
    assert whole is not None
    monkeypatch.setattr(viterbi, "BLOCK", 7 * len(states))
    assert (best_path(logprobs, states) == whole).all()
