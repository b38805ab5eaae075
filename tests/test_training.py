"""What the realtime demo model is told to write, by when words were spoken."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tools.demo_speech import Recording, spell_by_what_follows
from tools.realtime_checkpoint import STREAMING_PAD as PAD
from tools.realtime_checkpoint import STREAMING_WORD as WORD
from tools.train_realtime import SAMPLES_PER_TOKEN, written_tokens


@pytest.mark.parametrize(("late", "expected"), [
    ([0, 0], [PAD, WORD, 5, 6, WORD, 7, PAD, PAD]),
    ([-1, 2], [WORD, 5, 6, PAD, WORD, 7, PAD, PAD]),
    ([2, 0], [PAD, PAD, PAD, WORD, 5, 6, WORD, 7]),
])  # fmt: skip
def test_a_word_is_written_when_it_has_ended_or_right_behind_the_one_before(
    late: list[int], expected: list[int]
) -> None:
    spans = tuple((start * SAMPLES_PER_TOKEN, end * SAMPLES_PER_TOKEN) for start, end in ((0, 2), (2, 3)))
    recording = Recording(np.zeros(8 * SAMPLES_PER_TOKEN, np.float32), ("one", "two"), spans)
    assert written_tokens(recording, [[5, 6], [7]], late, 8) == expected


def test_a_sound_is_something_done_where_a_function_word_or_a_time_follows() -> None:
    words = ("red", "table", "red", "the", "blue", "monday", "one", "two", "blue", "may", "red")
    spans = [*pairwise(range(0, 120, 10))]
    assert spelled(words, spans) == "red table read the blew monday one two blew may red".split()
    spans[4] = (40, 45)  # a pause behind it
    assert spelled(words, spans)[4] == "blue"
    assert spelled((), []) == []


def spelled(words: tuple[str, ...], spans: list[tuple[int, int]]) -> list[str]:
    return spell_by_what_follows(Recording(np.zeros(120, np.float32), words, tuple(spans)))
