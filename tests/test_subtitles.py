from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from subtitles import TRADE_LIMITS, SubtitleLimits, filled, shown_words, subtitles, wrapped
from transcript import Segment, Usage, Word

SPELLING = st.text("abcdefgh", min_size=1, max_size=14)
TEXTS = st.tuples(SPELLING, st.sampled_from(["", "", "", ",", ".", "?"])).map("".join)
LIMITS = st.builds(
    SubtitleLimits, st.integers(10, 60), st.integers(1, 3), st.integers(0, 2000), st.integers(2000, 9000)
)


@st.composite
def spoken(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> list[Word]:
    words, at = [], 0
    for text in draw(st.lists(texts, max_size=60)):
        at += draw(st.sampled_from([0, 0, 0, 20, 400, 2500]))
        duration = draw(st.integers(40, 900))
        words.append(Word(at, at + duration, text))
        at += duration
    return words


def evenly(text: str, each_ms: int = 400) -> list[Word]:
    return [Word(i * each_ms, (i + 1) * each_ms, word) for i, word in enumerate(text.split())]


@given(words=spoken(), limits=LIMITS, after=st.integers(0, 3000))
def test_every_word_stands_once_in_order_and_no_cue_is_over_a_limit(
    words: list[Word], limits: SubtitleLimits, after: int
) -> None:
    audio_ms = (words[-1].end_ms if words else 0) + after
    cues = subtitles(words, audio_ms, limits)
    shown = "".join(line for cue in cues for line in cue.lines).replace(" ", "")
    assert shown == "".join(word.text for word in words)
    for cue in cues:
        assert 1 <= len(cue.lines) <= limits.lines
        assert all(0 < len(line) <= limits.line_length for line in cue.lines)
        assert 0 < cue.end_ms - cue.start_ms <= limits.longest_ms
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(cues))
    assert not cues or cues[-1].end_ms <= audio_ms


@given(words=spoken(), after=st.integers(0, 3000))
def test_a_cue_is_short_only_where_the_next_one_does_not_let_it(words: list[Word], after: int) -> None:
    audio_ms = (words[-1].end_ms if words else 0) + after
    cues = subtitles(words, audio_ms, TRADE_LIMITS)
    ends = [*(cue.start_ms for cue in cues[1:]), audio_ms]
    for cue, next_ms in zip(cues, ends, strict=False):
        assert cue.end_ms - cue.start_ms >= TRADE_LIMITS.shortest_ms or cue.end_ms == next_ms


@given(words=spoken(st.text("世界你好", min_size=1, max_size=150)))
def test_a_text_without_spaces_is_cut_into_lines_too(words: list[Word]) -> None:
    cues = subtitles(words, words[-1].end_ms if words else 0, TRADE_LIMITS)
    assert "".join("".join(cue.lines) for cue in cues).replace(" ", "") == "".join(word.text for word in words)
    assert all(len(cue.lines) <= 2 and max(map(len, cue.lines)) <= 42 for cue in cues)


def test_cues_end_where_sentences_and_clauses_do() -> None:
    words = evenly(
        "When the rain had stopped at last, we went down to the river and looked for the boat. "
        "It was gone. Nobody had seen it, or so they said, since the evening before the storm."
    )
    texts = [" ".join(cue.lines) for cue in subtitles(words, 14_000, TRADE_LIMITS)]
    assert texts[0] == "When the rain had stopped at last,"
    assert texts[1] == "we went down to the river and looked for the boat. It was gone."
    assert all(text[-1] in ",." for text in texts)


def test_a_pause_ends_a_cue() -> None:
    words = [Word(0, 500, "one"), Word(600, 900, "two"), Word(4000, 4400, "three")]
    assert [cue.lines for cue in subtitles(words, 9000, TRADE_LIMITS)] == [("one two",), ("three",)]


def test_a_cue_stays_long_enough_to_be_read_but_not_past_the_end() -> None:
    words = [Word(0, 200, "one"), Word(4000, 4100, "two")]
    cues = subtitles(words, 4500, TRADE_LIMITS)
    assert [(cue.start_ms, cue.end_ms) for cue in cues] == [(0, 1000), (4000, 4500)]


def test_two_lines_are_of_about_the_same_length() -> None:
    words = "the boat had been gone since the evening before the storm".split()
    lines = wrapped(words, TRADE_LIMITS)
    assert len(filled(words, 42)) == len(lines) == 2
    assert abs(len(lines[0]) - len(lines[1])) < 10


@given(st.lists(TEXTS, max_size=60), st.integers(0, 10_000), st.integers(0, 60_000), LIMITS)
def test_a_segment_without_times_of_words_is_shown_whole_within_the_limits(
    texts: list[str], start_ms: int, duration_ms: int, limits: SubtitleLimits
) -> None:
    text, end_ms = " ".join(texts), start_ms + duration_ms
    words = shown_words([Segment(start_ms, end_ms, text, (), 0.0, 0.0, Usage(), ("untimed",))])
    assert [word.text for word in words] == texts
    assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
    cues = subtitles(words, end_ms, limits)
    assert " ".join(" ".join(cue.lines) for cue in cues).replace(" ", "") == text.replace(" ", "")
    assert all(start_ms <= cue.start_ms <= cue.end_ms <= end_ms for cue in cues)
    assert all(len(cue.lines) <= limits.lines and cue.end_ms - cue.start_ms <= limits.longest_ms for cue in cues)
