from __future__ import annotations

import unicodedata
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError
from replacements import Replacements, Replacer, read_replacements, replaced
from subtitles import TRADE_LIMITS, shown_words, subtitles
from transcript import Segment, SegmentDone, TextDelta, TextToken, Usage, Word

ENTRIES = {
    "lot ee": "Lotti", "lot": "lots", "new york": "NYC", "new york city": "New York City", "gonna": "going to",
    "straße": "street", "i phone": "iPhone", "c plus plus": "C++", "lotti": "never", "कि": "ki", "e. g.": "for example",
}  # fmt: skip


def made(entries: dict[str, str]) -> Replacements:
    replacements = Replacements()
    for heard, written in entries.items():
        replacements.add(heard, written)
    return replacements


def applied(replacements: Replacements, text: str) -> str:
    replacer = Replacer(replacements)
    return replacer.add(text) + replacer.finish()


@pytest.mark.parametrize(
    ("heard", "written"),
    [
        ("the lot ee app", "the Lotti app"),
        ("a lot of it", "a lots of it"),
        ("the lottery, a slot, lots", "the lottery, a slot, lots"),
        ("new york city and New York.", "New York City and NYC."),
        ("new  york\ncity", "New York City"),
        ("Gonna go, GONNA go, gonna go", "Going to go, Going to go, going to go"),
        ("I phone you, i phone", "iPhone you, iPhone"),
        ("STRASSE Straße strasse", "Street Street street"),
        ("so e. g. this", "so for example this"),
        ("कि किताब", "ki किताब"),
        ("lot ee's lot-ee", "Lotti's lots-ee"),
        ("new york cityscape", "NYC cityscape"),
        ("lot e", "lots e"),
        ("", ""),
    ],
)
def test_words_are_written_as_the_file_says(heard: str, written: str) -> None:
    assert applied(made(ENTRIES), heard) == written


PIECES = st.lists(
    st.sampled_from([*"lote wyrkcia.'\nI", "lot ee", "new york", " city", "gonna", "straß", "e", " ", "कि"])
    | st.text(max_size=3),
    max_size=25,
)


@given(pieces=PIECES)
def test_a_text_in_any_pieces_is_written_as_the_whole(pieces: list[str]) -> None:
    replacements = made(ENTRIES)
    replacer = Replacer(replacements)
    assert "".join([*map(replacer.add, pieces), replacer.finish()]) == applied(replacements, "".join(pieces))


@given(text=st.text(), words=st.lists(st.text("abc", min_size=1, max_size=3), max_size=5))
def test_a_text_without_the_words_of_the_file_is_left_as_it_is(text: str, words: list[str]) -> None:
    if not any(word in text.casefold() for word in words):
        assert applied(made(dict.fromkeys(set(words), "never")), text) == text


@given(words=st.lists(st.sampled_from(["new", "york", "city", "lot", "ee", "yorks"]), max_size=12))
def test_at_each_word_the_longest_entry_wins_and_what_was_written_is_not_read_again(words: list[str]) -> None:
    """Against the same rule in terms of words."""
    entries = {tuple(heard.split()): written for heard, written in ENTRIES.items()}
    expected, at = [], 0
    while at < len(words):
        length = max((n for n in (1, 2, 3) if tuple(words[at : at + n]) in entries), default=0)
        expected.append(entries[tuple(words[at : at + length])] if length else words[at])
        at += max(length, 1)
    assert applied(made(ENTRIES), " ".join(words)) == " ".join(expected)


def test_only_what_may_begin_an_entry_is_held_back() -> None:
    replacer = Replacer(made(ENTRIES))
    steps = ["we", " ha", "ve ", "new", " shoes", " from new", " york ", "today", " lot"]
    assert [replacer.add(step) for step in steps] == [
        "we", " ha", "ve ", "", "new shoes", " from ", "", "NYC today", " ",
    ]  # fmt: skip
    assert replacer.finish() == "lots"


@pytest.mark.anyio
async def test_deltas_and_segments_tell_the_same_and_no_token_is_lost() -> None:
    tokens = [TextToken(i, piece.encode(), -0.1) for i, piece in enumerate(["we", " use", " lot", " ee", " a", " lot"])]
    segment = Segment(0, 1000, "we use lot ee a lot", tuple(tokens), 0.0, 0.0, Usage())

    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        for token in tokens:
            yield TextDelta(token.text, (token,))
        yield SegmentDone(segment)

    *deltas, done = [event async for event in replaced(events(), made(ENTRIES))]
    assert "".join(delta.text for delta in deltas) == done.segment.text == "we use Lotti a lots"
    assert [token for delta in deltas for token in delta.tokens] == tokens
    assert done.segment.tokens == tuple(tokens)


@pytest.mark.anyio
async def test_what_is_written_for_several_words_has_their_time() -> None:
    heard = "new shoes from new york city, gonna go, new york"
    words = tuple(Word(i * 100, i * 100 + 90, word) for i, word in enumerate(heard.split()))

    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        yield SegmentDone(Segment(0, 1000, heard, (), 0.0, 0.0, Usage(), words=words))

    (done,) = [event async for event in replaced(events(), made(ENTRIES))]
    assert [(word.text, word.start_ms, word.end_ms) for word in done.segment.words] == [
        ("new", 0, 90), ("shoes", 100, 190), ("from", 200, 290), ("New", 300, 390), ("York", 400, 490),
        ("City,", 500, 590), ("going", 600, 664), ("to", 664, 690), ("go,", 700, 790), ("NYC", 800, 990),
    ]  # fmt: skip
    assert " ".join(word.text for word in done.segment.words) == done.segment.text


async def whole(heard: Sequence[Segment], entries: dict[str, str]) -> tuple[list[TextDelta], list[Segment]]:
    """What is written for the segments of one text, which is told before them."""

    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        yield TextDelta(" ".join(segment.text for segment in heard))
        for segment in heard:
            yield SegmentDone(segment)

    told = [event async for event in replaced(events(), made(entries))]
    deltas = [event for event in told if isinstance(event, TextDelta)]
    return deltas, [event.segment for event in told if isinstance(event, SegmentDone)]


def spoken(*words: tuple[int, int, str]) -> Segment:
    timed = tuple(Word(*word) for word in words)
    text = " ".join(word.text for word in timed)
    return Segment(timed[0].start_ms, timed[-1].end_ms, text, (), 0.0, 0.0, Usage(), words=timed)


@st.composite
def utterances(draw: st.DrawFn) -> Segment:
    words, at = [], 0
    for text in draw(st.lists(st.sampled_from("lot ee new york city Gonna go, w h o lottery".split()), min_size=1)):
        at += draw(st.integers(0, 500))
        words.append((at, at + draw(st.integers(1, 500)), text))
        at = words[-1][1]
    return spoken(*words)


LONG = {"w h o": "World Health Organization of the United Nations", "new york city": "the big one there"}


@pytest.mark.anyio
@given(heard=utterances())
async def test_each_written_word_has_a_time_of_its_own_within_that_of_what_was_heard(heard: Segment) -> None:
    _, (written,) = await whole([heard], ENTRIES | LONG)
    assert " ".join(word.text for word in written.words) == written.text == applied(made(ENTRIES | LONG), heard.text)
    assert not any(" " in word.text for word in written.words)
    times = [time for word in written.words for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (heard.start_ms, heard.end_ms)
    left_alone = {word for word in heard.words if word.text in ("go,", "lottery")}
    assert left_alone <= {*written.words}


@pytest.mark.anyio
async def test_a_word_that_may_begin_an_entry_and_does_not_keeps_its_time() -> None:
    heard = spoken((0, 100, "ah"), (200, 300, "ah"), (400, 500, "ee"))
    _, (written,) = await whole([heard], {"ah ee": "Ahrie"})
    assert written.words == (Word(0, 100, "ah"), Word(200, 500, "Ahrie"))


@pytest.mark.anyio
async def test_subtitles_cut_no_word_of_what_is_written_for_several() -> None:
    heard = [(i * 300, i * 300 + 250, word) for i, word in enumerate("we asked the w h o about the flood".split())]
    _, segments = await whole([spoken(*heard)], LONG)
    cues = subtitles(shown_words(segments), 3000, TRADE_LIMITS)
    lines = [line for cue in cues for line in cue.lines]
    assert " ".join(lines).split() == segments[0].text.split()
    assert max(map(len, lines)) <= TRADE_LIMITS.line_length


@pytest.mark.anyio
async def test_segments_that_an_entry_joins_are_one() -> None:
    heard = ["we go to new", "york", "city by lot", "ee.", "Gonna"]
    segments = [
        Segment(i * 100, i * 100 + 90, text, (TextToken(i, text.encode(), -0.1),), 0.0, 0.0, Usage(output_tokens=1),
                words=tuple(Word(i * 100 + j, i * 100 + j + 1, word) for j, word in enumerate(text.split())))
        for i, text in enumerate(heard)
    ]  # fmt: skip

    async def events() -> AsyncGenerator[TextDelta | SegmentDone]:
        yield TextDelta(" ".join(heard))
        for segment in segments:
            yield SegmentDone(segment)

    *deltas, first, last = [event async for event in replaced(events(), made(ENTRIES))]
    texts = [first.segment.text, last.segment.text]
    assert texts == ["we go to New York City by Lotti.", "Going to"]
    assert "".join(delta.text for delta in deltas) == " ".join(texts)
    assert (first.segment.start_ms, first.segment.end_ms, last.segment.start_ms) == (0, 390, 400)
    assert first.segment.tokens == tuple(token for segment in segments[:4] for token in segment.tokens)
    assert first.segment.usage.output_tokens == 4
    assert " ".join(word.text for word in first.segment.words) == texts[0]


def in_chunks(*chunks: str) -> list[TextDelta | SegmentDone]:
    """The events of chunks whose segments are the lines of each; words are tokens and have times."""
    events, number = [], 0
    for chunk in chunks:
        segments = []
        for line in chunk.split("\n"):
            words = line.split()
            tokens = tuple(TextToken(number + i, f" {word}".encode(), -0.1) for i, word in enumerate(words))
            timed = tuple(Word((number + i) * 100, (number + i) * 100 + 90, word) for i, word in enumerate(words))
            begin, number = number * 100, number + len(words)
            usage = Usage(output_tokens=len(words))
            segments.append(Segment(begin, number * 100, line, tokens, 0.0, 0.0, usage, words=timed))
        pieces = [TextDelta(token.text, (token,)) for segment in segments for token in segment.tokens]
        if pieces and not any(isinstance(event, TextDelta) for event in events):
            pieces[0] = replace(pieces[0], text=pieces[0].text.lstrip())
        events += [*pieces, *map(SegmentDone, segments)]
    return events


async def written(events: list[TextDelta | SegmentDone], entries: dict[str, str]) -> list[TextDelta | SegmentDone]:
    async def given() -> AsyncGenerator[TextDelta | SegmentDone]:
        for event in events:
            yield event

    return [event async for event in replaced(given(), made(entries))]


def text_of(events: list[TextDelta | SegmentDone]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def segments_of(events: list[TextDelta | SegmentDone]) -> list[Segment]:
    return [event.segment for event in events if isinstance(event, SegmentDone)]


WORDS = st.lists(st.sampled_from(["lot", "ee", "new", "york", "city", "l", "so,", "gonna"]), max_size=5).map(" ".join)
LINES = st.lists(WORDS.filter(bool), min_size=1, max_size=3).map("\n".join)


@pytest.mark.anyio
@given(chunks=st.lists(LINES | st.just(""), max_size=6))
async def test_a_text_in_any_chunks_is_written_as_the_whole(chunks: list[str]) -> None:
    heard = in_chunks(*chunks)
    told = await written(heard, ENTRIES)
    assert text_of(told) == applied(made(ENTRIES), " ".join(" ".join(chunks).split()))
    segments = segments_of(told)
    assert " ".join(segment.text for segment in segments if segment.text) == text_of(told)
    assert " ".join(word.text for segment in segments for word in segment.words) == text_of(told)
    for i, event in enumerate(told):
        if isinstance(event, SegmentDone):
            before = " ".join(segment.text for segment in segments_of(told[: i + 1]) if segment.text)
            assert text_of(told[:i]).startswith(before)
    tokens = [token for event in heard if isinstance(event, TextDelta) for token in event.tokens]
    assert [token for event in told if isinstance(event, TextDelta) for token in event.tokens] == tokens
    assert [token for segment in segments for token in segment.tokens] == tokens
    assert sum(segment.usage.output_tokens for segment in segments) == len(tokens)


@pytest.mark.anyio
async def test_a_chunk_is_told_before_the_next_one_comes_but_for_what_may_begin_an_entry() -> None:
    told = await written(in_chunks("so lo", "we go to new", "york, then"), ENTRIES)
    assert [event.text if isinstance(event, TextDelta) else event.segment.text for event in told] == [
        "so", " ", "lo", "so lo", " we", " ", "go to", " ", "NYC,", " then", "we go to NYC, then",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_segment_of_two_chunks_tells_what_was_wrong_with_either() -> None:
    first, second = segments_of(in_chunks("we go to new york", "city"))
    first = replace(first, no_speech_prob=0.25, temperature=0.5, lapses=("loop", "untimed"), words=())
    second = replace(second, no_speech_prob=0.5, temperature=0.0, lapses=("loop", "length"))
    (one,) = segments_of(await written([SegmentDone(first), SegmentDone(second)], ENTRIES))
    assert (one.text, one.start_ms, one.end_ms) == ("we go to New York City", 0, 600)
    assert (one.no_speech_prob, one.temperature, one.lapses) == (0.25, 0.5, ("loop", "untimed", "length"))
    assert [word.text for word in shown_words([one])] == one.text.split()


def test_a_file_has_two_columns_quotes_where_needed_and_any_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text('\ufefflot ee,Lotti\n\n"e, g", "for ""example"""\r\nnaïve,naive\n', encoding="utf-8")
    replacements = read_replacements(file)
    assert applied(replacements, "Lot Ee, e, g naïve") == 'Lotti, for "example" naive'
    assert applied(replacements, unicodedata.normalize("NFD", "naïve")) == "naive"


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("a,b\nc\n", 2, "1 columns"),
        ("a,b\n\nc,d,e\n", 3, "3 columns"),
        ("a,b\nc,\n", 2, "must be given"),
        ("a,b\n ,c\n", 2, "must be given"),
        ('a,"b\n', 1, "unexpected end"),
        ("New York,b\nx,y\nnew  york,c\n", 3, "is there already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: str, line: int, problem: str) -> None:
    file = tmp_path / "words.csv"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"VOXTRAL_REPLACEMENTS=.*, line {line}: .*{problem}"):
        read_replacements(file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe,x\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "words.csv"
    if content:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_replacements(file)
