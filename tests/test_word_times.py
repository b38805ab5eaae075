"""Words out of tokens and their places: the pure part, and what the server says of speech whose times are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.transcriptions import parse
from audio_processor import SAMPLE_RATE
from chunking import Chunk
from tests.serving import Server
from tests.speech import Clip, clip
from tests.word_starts import start_errors, timed
from transcript import Segment, TextToken, Usage
from voice_activity import Span
from word_times import apart, begins_sentence, is_crowded, leaves_gap, needs_places, timed_segments, word_pieces

URL = "/v1/audio/transcriptions"
Spoken = tuple[Segment, list[tuple[int, int]], Chunk]


def whole(text_tokens: list[str]) -> Segment:
    tokens = tuple(TextToken(1000 + i, text.encode(), -0.1 * i) for i, text in enumerate(text_tokens))
    return Segment(0, 0, "".join(text_tokens), tokens, 0.01, 0.0, Usage(1, 2, 3, 4))


def chunk_of(*spans: Span) -> Chunk:
    samples = np.zeros(sum(span.end - span.start for span in spans), np.float32)
    return Chunk(0, spans[0].start, samples, spans)


def padded(start_ms: int, end_ms: int, before_ms: int = 0, after_ms: int = 0) -> Span:
    per_ms = SAMPLE_RATE // 1000
    return Span((start_ms - before_ms) * per_ms, (end_ms + after_ms) * per_ms, start_ms * per_ms, end_ms * per_ms)


def one_after_another(*ms: int) -> list[tuple[int, int]]:
    """Spans of tokens from each of these milliseconds to the next."""
    return [*pairwise(each * SAMPLE_RATE // 1000 for each in ms)]


def test_words_are_missing_where_much_is_spoken_between_two_and_not_where_a_pause_is_kept() -> None:
    speech = chunk_of(padded(0, 4000, after_ms=2000), padded(9000, 13_000, before_ms=2000))
    assert not leaves_gap(one_after_another(1000, 3000, 9000, 11_000, 12_000), speech)  # 2 s of speech and 4 of pauses
    assert leaves_gap(one_after_another(1000, 3000, 11_000, 12_000), speech)  # before the last but one
    assert leaves_gap(one_after_another(2600, 4000, 8000, 10_000, 12_000), speech)  # at the beginning
    assert leaves_gap(one_after_another(0, 2000, 4000, 8000, 9300, 9400), speech)
    assert leaves_gap(one_after_another(0, 2000, 4000, 8000, 9300, 9400), speech, at_end=True)
    assert not leaves_gap(one_after_another(1000, 3000, 11_000, 12_000), speech, at_end=True)
    assert not leaves_gap(one_after_another(0, 9000), Chunk(0, 0, speech.samples))  # nobody has looked for speech
    assert not leaves_gap((), speech)


def test_words_that_have_no_time_were_not_said() -> None:
    def crowded(*ms: int, texts: str = " one two three four") -> bool:
        tokens = tuple(TextToken(0, text.encode(), 0.0) for text in re.findall(r"\s?\S+", texts))
        return is_crowded(tokens, one_after_another(*ms))

    assert not crowded(0, 80, 160, 240, 320)
    assert crowded(0, 80, 160, 160, 240)
    assert crowded(0, 800, 880, 900, 980, texts=" one two three four")
    assert not crowded(0, 800, 880, 900, 980, texts=" one two three,four")  # a word may have many tokens
    assert not crowded(0, 0, 0, texts=" one two")
    assert not is_crowded([TextToken(0, each.encode(), 0.0) for each in "你好世界"], [(0, 9000)] * 4)
    assert not is_crowded((), ())


@st.composite
def spoken(draw: st.DrawFn) -> Spoken:
    """Any tokens, at any places in order, in a chunk of any spans."""
    texts = draw(st.lists(st.text(" abc.?\né世", min_size=1, max_size=6), min_size=1, max_size=40))
    spans, at = [], 0
    for _ in range(draw(st.integers(1, 4))):
        start = at + draw(st.integers(0, 30_000))
        first = start + draw(st.integers(0, 4800))
        last = first + draw(st.integers(16, 60_000))
        at = last + draw(st.integers(0, 6400))
        spans.append(Span(start, at, first, last))
    chunk = chunk_of(*spans)
    edge = st.integers(0, len(chunk.samples))
    edges = sorted(draw(st.lists(edge, min_size=2 * len(texts), max_size=2 * len(texts))))
    return whole(texts), [*zip(edges[::2], edges[1::2], strict=True)], chunk


@given(spoken())
def test_words_have_length_and_order_and_lie_in_the_recording(case: Spoken) -> None:
    segment, spans, chunk = case
    parts = timed_segments(segment, spans, chunk)
    words = [word for part in parts for word in part.words]
    assert " ".join(word.text for word in words).split() == segment.text.split()
    assert all(word.start_ms < word.end_ms for word in words)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(words))
    if words:
        assert words[0].start_ms >= chunk.spans()[0].start // 16
        assert words[-1].end_ms <= chunk.spans()[-1].end // 16
        assert [(part.start_ms, part.end_ms) for part in parts] == [
            (part.words[0].start_ms, part.words[-1].end_ms) for part in parts
        ]


@given(spoken())
def test_parts_hold_all_that_the_whole_held(case: Spoken) -> None:
    segment, spans, chunk = case
    parts = timed_segments(segment, spans, chunk)
    assert " ".join(part.text for part in parts).split() == segment.text.split()
    assert tuple(token for part in parts for token in part.tokens) == segment.tokens
    assert sum((part.usage for part in parts), Usage()) == segment.usage


@given(
    times=st.lists(st.integers(0, 5000), min_size=2, max_size=80).map(sorted),
    bounds=st.tuples(st.integers(0, 2000), st.integers(100, 4000)),
)
def test_times_are_moved_apart_within_bounds(times: list[int], bounds: tuple[int, int]) -> None:
    first, last = bounds[0], sum(bounds)
    moved = apart([*zip(times[::2], times[1::2], strict=False)], first, last)
    assert first <= moved[0][0]
    assert moved[-1][1] <= last
    assert all(start < end for start, end in moved)
    assert all(a[1] <= b[0] for a, b in pairwise(moved))


def test_times_that_are_apart_already_stay() -> None:
    assert apart([(100, 300), (300, 340), (900, 1000)], 0, 2000) == [(100, 300), (300, 340), (900, 1000)]


def test_a_word_is_all_its_tokens_and_the_punctuation_behind_it() -> None:
    raw = "- Bonjour ! C'est  moi, « le chat ».".encode()
    assert [raw[start:end].decode() for start, end in word_pieces(raw)] == [
        "- Bonjour !", "C'est", "moi, «", "le", "chat ».",
    ]  # fmt: skip


def test_words_of_several_tokens_and_tokens_of_several_words_have_their_share() -> None:
    segment = whole(["mon", "day", " red blue"])
    (part,) = timed_segments(segment, one_after_another(0, 300, 500, 1300), chunk_of(padded(0, 2000)))
    assert [(word.text, word.start_ms, word.end_ms) for word in part.words] == [
        ("monday", 0, 500), ("red", 500, 800), ("blue", 900, 1300),
    ]  # fmt: skip


def test_words_are_found_again_in_the_recording_and_kept_out_of_its_pauses() -> None:
    """Two regions with 100 ms before and 200 ms behind, from which a pause of 8.7 s was left out."""
    chunk = chunk_of(padded(1000, 2000, 100, 200), padded(11_000, 12_000, 100, 200))
    segment = whole(["one", " two", " three"])
    first, second = timed_segments(segment, one_after_another(0, 700, 1400, 2600), chunk)
    assert [(word.start_ms, word.end_ms) for word in first.words] == [(1000, 1600), (1600, 2000)]
    assert [(word.start_ms, word.end_ms) for word in second.words] == [(11_000, 12_000)]
    assert (first.text, second.text) == ("one two", "three")
    assert [token.id for token in second.tokens] == [1002]


def test_segments_end_with_sentences() -> None:
    segment = whole(["Who?", " I", ".", " We", " went", " etc.", " home", " at", " last."])
    parts = timed_segments(segment, one_after_another(*range(0, 1000, 100)), chunk_of(padded(0, 900)))
    assert [part.text for part in parts] == ["Who?", "I.", "We went etc. home at last."]


def test_a_segment_that_may_lack_words_stays_whole() -> None:
    segment = replace(whole(["One.", " Two."]), lapses=("loop",))
    (part,) = timed_segments(segment, one_after_another(0, 300, 900), chunk_of(padded(0, 900)))
    assert ([word.text for word in part.words], part.lapses) == (["One.", "Two."], ("loop",))


def test_more_words_than_milliseconds_are_one() -> None:
    segment = whole([" a"] * 50)
    (part,) = timed_segments(segment, [(0, 0)] * 50, chunk_of(Span(0, 320, 0, 320)))
    assert [(word.start_ms, word.end_ms) for word in part.words] == [(0, 20)]


@pytest.mark.parametrize(("before", "word", "begins"), [
    ("end.", "Then", True), ("really?!", "Then", True), ('"so."', "Then", True), ("etc.", "and", False),
    ("red", "Then", False), ("3.5", "Then", False), ("好。", "你", True),
])  # fmt: skip
def test_sentences_begin_where_one_ended(before: str, word: str, begins: bool) -> None:
    assert begins_sentence(word, before) is begins


def test_places_are_only_looked_for_where_they_change_something() -> None:
    one, two = chunk_of(padded(0, 900)), chunk_of(padded(0, 900), padded(1500, 1900))
    assert not needs_places("chunks", two, b"One. Two.")
    assert not needs_places("segments", one, b"One two.")
    assert needs_places("segments", one, b"One. Two.")
    assert needs_places("segments", two, b"One two.")
    assert needs_places("words", one, b"one")


def test_words_begin_where_they_were_spoken(server: Server) -> None:
    errors = start_errors(
        server, "trained voice", "unheard voice", "loudness", "short", "long pauses", "half a minute"
    )  # fmt: skip
    assert len(errors) > 350
    assert np.median(errors) <= 80
    assert np.quantile(errors, 0.95) <= 240


def test_segments_are_what_is_said_between_pauses(server: Server) -> None:
    spoken = clip("sparse_0")
    body = timed(server, spoken, "segment")
    words = timed(server, spoken, "word")["words"]
    starts = [segment["start"] for segment in body["segments"]]
    assert len(starts) > 3
    assert set(starts) <= {word["start"] for word in words}
    for segment in body["segments"]:
        inside = [word for word in words if segment["start"] <= word["start"] < segment["end"]]
        assert " ".join(word["word"] for word in inside) == segment["text"]
        assert inside[-1]["end"] == segment["end"]
        assert segment["avg_logprob"] < 0


def last_event(server: Server, spoken: Clip, **asked: Any) -> dict[str, Any]:
    form = {"model": "whisper-1", "language": "en", "stream": "true", **asked}
    lines = server.client.post(URL, files={"file": spoken.data}, data=form).text.splitlines()
    return json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))


@pytest.mark.parametrize(("name", "done"), [
    ("timestamp_granularities[]", "transcript.text.done"), ("timestamp_granularities", "transcription.done"),
])  # fmt: skip
def test_a_stream_ends_with_the_segments_and_the_words_where_both_were_asked_for(
    server: Server, name: str, done: str
) -> None:
    spoken = clip("sparse_0")
    event = last_event(server, spoken, **{name: ["segment", "word"]})
    assert event["type"] == done
    assert event["words"] == timed(server, spoken, "word")["words"]
    segments = timed(server, spoken, "segment")["segments"]
    assert [(part["start"], part["end"]) for part in event["segments"]] == [
        (segment["start"], segment["end"]) for segment in segments
    ]


def test_a_stream_of_verbose_json_ends_with_all_that_it_has_at_once(server: Server) -> None:
    spoken = clip("sparse_0")
    event = last_event(server, spoken, response_format="verbose_json")
    body = timed(server, spoken, "segment")
    assert len(body["segments"]) > 3
    assert event["usage"]["type"] == "tokens"  # the only usage that OpenAI has in a stream
    del body["usage"]
    assert event | body == event


@pytest.mark.parametrize(("asked", "timing"), [
    ({}, "chunks"), ({"response_format": "text"}, "chunks"), ({"stream": "true"}, "chunks"),
    ({"stream": "true", "response_format": "verbose_json"}, "segments"),
    ({"response_format": "text", "timestamp_granularities[]": "segment"}, "chunks"),
    ({"response_format": "verbose_json"}, "segments"), ({"timestamp_granularities[]": "segment"}, "segments"),
    ({"timestamp_granularities": "segment", "stream": "true"}, "segments"),
    ({"response_format": "srt"}, "words"), ({"response_format": "vtt"}, "words"),
    ({"timestamp_granularities[]": ["segment", "word"]}, "words"),
])  # fmt: skip
def test_times_are_only_found_where_the_answer_shows_them(asked: dict[str, Any], timing: str) -> None:
    assert parse({"model": "voxtral", **asked}, "transcribe").request.timing == timing
