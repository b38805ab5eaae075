from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.formats import FORMATS, Shape, clock, written
from api.times import Granularity
from api.transcription_wire import language_name
from subtitles import SubtitleLimits
from transcript import Gap, Segment, TextToken, Transcript, Usage, Word

TIME = re.compile(r"(\d\d+):(\d\d):(\d\d)[.,](\d\d\d)")


def segment(start_ms: int, end_ms: int, text: str) -> Segment:
    tokens = (TextToken(1000, b" one", -0.1), TextToken(1001, b" two", -0.3))
    texts = text.split()
    step = (end_ms - start_ms) // max(len(texts), 1)
    words = tuple(Word(start_ms + i * step, start_ms + (i + 1) * step, word) for i, word in enumerate(texts))
    return Segment(start_ms, end_ms, text, tokens, 0.01, 0.0, Usage(5, 375, 3, end_ms), words=words)


TALK = Transcript(
    "one two three",
    "en",
    (segment(1001, 2500, "one two"), segment(3000, 4000, ""), segment(61_000, 3_661_002, "three")),
    Usage(15, 1125, 9, 3_662_500),
)


def body(name: str, **shape: Any) -> str:
    return FORMATS[name](TALK, Shape("voxtral", **shape)).body.decode()


@given(st.integers(0, 10**9), st.sampled_from(",."))
def test_clock_round_trips_every_millisecond(ms: int, mark: str) -> None:
    hours, minutes, seconds, rest = map(int, TIME.fullmatch(clock(ms, mark)).groups())
    assert ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest == ms
    assert minutes < 60
    assert seconds < 60


def test_srt_numbers_its_cues_and_leaves_silence_out() -> None:
    assert body("srt") == ("1\n00:00:01,001 --> 00:00:02,499\none two\n\n2\n00:01:01,000 --> 00:01:08,000\nthree\n\n")


def test_vtt_has_its_header_and_points_for_commas() -> None:
    assert body("vtt") == (
        "WEBVTT\n\n00:00:01.001 --> 00:00:02.499\none two\n\n00:01:01.000 --> 00:01:08.000\nthree\n\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    talk = Transcript("", "en", (segment(0, 3000, "if a<b & c --> d"),), Usage(1, 1, 1, 3000))
    text = FORMATS["vtt"](talk, Shape("voxtral")).body.decode()
    assert text == "WEBVTT\n\n00:00:00.000 --> 00:00:03.000\nif a&lt;b &amp; c --&gt; d\n\n"


def test_subtitles_obey_the_limits_that_are_set() -> None:
    assert body("srt", subtitles=SubtitleLimits(3, 2, 0, 7000)).splitlines()[1:4] == [
        "00:00:01,001 --> 00:00:02,499", "one", "two",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_each_word_is_a_cue_where_words_were_asked_for(name: str) -> None:
    cues = body(name, granularities=frozenset({"word"}))
    assert re.findall("one|two|three|-->", cues) == ["-->", "one", "-->", "two", "-->", "three"]


UNTIMED = replace(TALK, segments=(*TALK.segments[:2], replace(TALK.segments[2], words=(), lapses=("loop", "untimed"))))


@pytest.mark.parametrize("granularities", [(), ("word",)])
@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_what_has_no_times_is_shown_evenly_over_its_segment(name: str, granularities: tuple[Granularity, ...]) -> None:
    words = replace(UNTIMED.segments[2], text="three four-teen", start_ms=3000, end_ms=6000)
    talk = replace(UNTIMED, segments=(*UNTIMED.segments[:2], words))
    cues = FORMATS[name](talk, Shape("voxtral", granularities=frozenset(granularities))).body.decode()
    times = [(match[0].replace(",", "."), match.end()) for match in TIME.finditer(cues)]
    assert re.findall(r"one|two|three|four-teen", cues) == ["one", "two", "three", "four-teen"]
    shown = ["00:00:03.000", "00:00:04.071", "00:00:04.071", "00:00:06.000"]
    assert [time for time, _ in times][-len(shown) :] == shown if granularities else times[-1][0] == "00:00:06.000"


def test_mistral_has_the_segment_where_its_words_have_no_times() -> None:
    answer = json.loads(FORMATS["json"](UNTIMED, Shape("voxtral", granularities=frozenset({"word"}))).body)
    assert [segment["text"] for segment in answer["segments"]] == ["one", "two", "three"]
    assert (answer["segments"][2]["start"], answer["segments"][2]["end"]) == (61.0, 3661.002)
    assert [word["word"] for word in answer["words"]] == ["one", "two"]  # no times are made up
    assert [warning["code"] for warning in answer["warnings"]] == ["loop", "untimed"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_header_says_in_every_format_what_may_not_be_whole(name: str) -> None:
    assert "x-voxtral-warnings" not in written(TALK, name, Shape("voxtral")).headers
    doubtful = replace(UNTIMED, gaps=(Gap(500, 1001),))
    answer = written(doubtful, name, Shape("voxtral"))
    assert answer.body == FORMATS[name](doubtful, Shape("voxtral")).body
    told = json.loads(answer.headers["x-voxtral-warnings"])
    assert [warning["code"] for warning in told] == ["audio_incomplete", "loop", "untimed"]
    assert told == json.loads(written(doubtful, "json", Shape("voxtral")).body)["warnings"]


def test_the_header_stays_short_and_says_how_much_it_leaves_out() -> None:
    gaps = tuple(Gap(i * 10_000_000, i * 10_000_000 + 5_000) for i in range(500))
    header = written(replace(TALK, gaps=gaps), "srt", Shape("voxtral")).headers["x-voxtral-warnings"]
    assert len(header) < 2048
    *told, rest = json.loads(header)
    assert [warning["start"] for warning in told] == [i * 10_000 for i in range(len(told))]
    assert (rest["code"], rest["start"], rest["end"]) == ("more", len(told) * 10_000, 4_990_005)
    assert rest["message"].startswith(f"{500 - len(told)} more")


def test_text_ends_with_one_newline() -> None:
    assert body("text") == "one two three\n"


def test_json_pleases_the_sdks_of_openai_and_mistral() -> None:
    assert json.loads(body("json")) == {
        "text": "one two three",
        "model": "voxtral",
        "language": "en",
        "languages": [{"code": "en"}],
        "finish_reason": "stop",
        "warnings": [],
        "usage": {
            "type": "tokens",
            "input_tokens": 1140,
            "input_token_details": {"text_tokens": 15, "audio_tokens": 1125},
            "output_tokens": 9,
            "total_tokens": 1149,
            "prompt_tokens": 1140,
            "completion_tokens": 9,
            "prompt_audio_seconds": 3663,
        },
    }


def test_json_has_segments_and_logprobs_where_they_were_asked_for() -> None:
    answer = json.loads(body("json", granularities=frozenset({"segment"}), logprobs=True))
    first = answer["segments"][0]
    assert (first["type"], first["start"], first["end"]) == ("transcription_segment", 1.001, 2.5)
    assert first["speaker_id"] is None
    assert first["tokens"] == [1000, 1001]
    assert answer["logprobs"][1] == {"token": " two", "logprob": -0.3, "bytes": list(b" two")}


WORDS = [
    {"word": "one", "start": 1.001, "end": 1.75},
    {"word": "two", "start": 1.75, "end": 2.499},
    {"word": "three", "start": 61.0, "end": 3661.002},
]


def test_verbose_json_has_words_segments_or_both_as_they_were_asked_for() -> None:
    words, both, segments = (
        json.loads(body("verbose_json", granularities=frozenset(wanted)))
        for wanted in (["word"], ["word", "segment"], ["segment"])
    )
    assert words["words"] == both["words"] == WORDS
    assert both["segments"] == segments["segments"]
    assert ("segments" in words, "words" in segments) == (False, False)


def test_json_has_words_as_openai_and_in_the_place_of_segments_as_mistral() -> None:
    answer = json.loads(body("json", granularities=frozenset({"word"})))
    assert answer["words"] == WORDS
    assert answer["segments"] == [
        {"type": "transcription_segment", "text": word["word"], "start": word["start"], "end": word["end"],
         "speaker_id": None} for word in WORDS
    ]  # fmt: skip
    both = json.loads(body("json", granularities=frozenset({"word", "segment"})))
    assert both["words"] == WORDS
    assert [segment["text"] for segment in both["segments"]] == ["one two", "three"]


def test_a_translation_says_that_it_is_one() -> None:
    assert json.loads(body("verbose_json", task="translate"))["task"] == "translate"


def test_verbose_json_has_all_of_whispers_keys_with_real_values() -> None:
    verbose = json.loads(body("verbose_json", granularities=frozenset({"segment"})))
    assert verbose["language"] == "english"
    assert verbose["duration"] == 3662.5
    assert verbose["usage"] == {"type": "duration", "seconds": 3663}
    assert [s["id"] for s in verbose["segments"]] == [0, 1]
    first = verbose["segments"][0]
    assert (first["seek"], first["start"], first["end"], first["text"]) == (100, 1.001, 2.5, "one two")
    assert first["tokens"] == [1000, 1001]
    assert first["avg_logprob"] == pytest.approx(-0.2)
    assert first["no_speech_prob"] == 0.01
    assert set(first) == {
        "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
        "no_speech_prob",
    }  # fmt: skip


def test_repetition_shows_in_the_compression_ratio() -> None:
    assert segment(0, 1, "go " * 200).compression_ratio > 10 > 2 > segment(0, 1, "plain words").compression_ratio


@pytest.mark.parametrize(("code", "name"), [("de", "german"), ("el", "greek"), (None, "unknown")])
def test_languages_are_named_in_lower_case_english(code: str | None, name: str) -> None:
    assert language_name(code) == name


@pytest.mark.parametrize("name", ["json", "verbose_json"])
def test_warnings_name_the_seconds_whose_text_may_not_be_whole(name: str) -> None:
    assert json.loads(body(name))["warnings"] == []
    doubtful = replace(TALK, segments=(TALK.segments[0], replace(TALK.segments[2], lapses=("loop",))))
    told = json.loads(FORMATS[name](doubtful, Shape("voxtral")).body)
    (warning,) = told["warnings"]
    assert (warning["code"], warning["start"], warning["end"]) == ("loop", 61, 3661.002)
    assert "words may be missing" in warning["message"]
    assert told.get("finish_reason", "length") == "length"
    untimed = replace(TALK, segments=(replace(TALK.segments[0], lapses=("untimed",)),))
    told = json.loads(FORMATS[name](untimed, Shape("voxtral")).body)
    assert ([warning["code"] for warning in told["warnings"]], told.get("finish_reason", "stop")) == (
        ["untimed"],
        "stop",
    )
