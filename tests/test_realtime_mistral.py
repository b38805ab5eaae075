"""Mistral's realtime dialect, without a socket; what it says is read with Mistral's own types."""

from __future__ import annotations

from typing import Any

import pytest
from mistralai.extra.realtime.connection import UnknownRealtimeEvent, parse_realtime_event

from api.errors import ApiError
from api.realtime_dialect import Close
from api.realtime_mistral import MOST_BYTES, MistralDialect
from engine.core import JobFailed
from live import (
    Committed,
    LiveEvent,
    LiveText,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
    UtteranceDone,
    UtteranceFailed,
)
from tests.dialects import TERMS, TOKEN, audio, fed_seconds, kinds, looped, said, transcript, undo
from turns import TurnDetection

APPEND = {"type": "input_audio.append", "audio": audio(0.5, 16_000)}
END = {"type": "input_audio.end"}
TURNS = {
    "start_threshold": 0.6, "eager_end_threshold": 0.4, "end_threshold": 0.3, "min_silence_ms": 700,
    "end_timeout_ms": 3000,
}  # fmt: skip


def dialect(name: str | None = None) -> MistralDialect:
    speaker = MistralDialect(TERMS, name)
    speaker.hello()
    return speaker


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def told(speaker: MistralDialect, *events: LiveEvent) -> list[dict[str, Any]]:
    found = [event for heard in events for event in said(speaker.heard(heard))]
    for event in found:
        assert not isinstance(parse_realtime_event(event), UnknownRealtimeEvent), event
    return found


def test_hello_names_the_model_the_format_and_the_delay() -> None:
    for name, delay in ((None, None), ("live", 480)):
        (hello,) = said(MistralDialect(TERMS, name).hello())
        session = parse_realtime_event(hello).session
        assert (session.request_id, session.model) == ("sess_1", name or "whisper-1")
        assert session.audio_format.model_dump() == {"encoding": "pcm_s16le", "sample_rate": 16_000}
        assert hello["session"]["target_streaming_delay_ms"] == delay
    with pytest.raises(ApiError, match="not on this machine"):
        MistralDialect(TERMS, "gpt-7").hello()


def test_an_update_merges_and_is_told() -> None:
    speaker = dialect("live")
    speaker.receive(update(target_streaming_delay_ms=960, language="de", context_bias=["Lotti"]))
    (answer,) = said(speaker.receive(update(turn_detection=TURNS, diarize=False)))
    session = parse_realtime_event(answer).session
    assert (session.target_streaming_delay_ms, session.context_bias) == (960, ["Lotti"])
    assert session.turn_detection.model_dump() == TURNS
    request = speaker.request
    assert (request.delay_ms, request.language, request.keywords) == (960, "de", ("Lotti",))
    assert request.turn_detection == TurnDetection(
        threshold=0.6, silence_duration_ms=700, end_threshold=0.3, eager_end_threshold=0.4, end_timeout_ms=3000
    )
    speaker.receive(update(turn_detection=None, language=None))
    assert (speaker.request.turn_detection, speaker.request.language) == (None, None)


def test_an_update_of_a_part_of_the_format_or_of_the_turns_leaves_the_other_parts() -> None:
    speaker = dialect()
    speaker.receive(update(audio_format={"encoding": "pcm_mulaw", "sample_rate": 44_100}, turn_detection=TURNS))
    changes = {"audio_format": {"sample_rate": 8_000}, "turn_detection": {"min_silence_ms": 900}}
    (answer,) = said(speaker.receive(update(**changes)))
    assert answer["session"]["audio_format"] == {"encoding": "pcm_mulaw", "sample_rate": 8_000}
    assert answer["session"]["turn_detection"] == TURNS | {"min_silence_ms": 900}
    assert fed_seconds([*speaker.receive(APPEND | {"audio": audio(0.5, 8_000, "u1")}), *speaker.receive(END)]) == 0.5


def test_a_session_may_be_sent_back_as_it_was_told() -> None:
    (hello,) = said(MistralDialect(TERMS, "whisper-1").hello())
    (answer,) = said(dialect().receive(update(**hello["session"])))
    assert answer["session"] == hello["session"]


def test_an_update_that_the_session_refuses_leaves_nothing_behind() -> None:
    speaker = dialect()
    (before,) = said(speaker.receive(update(language="en")))
    undo(speaker.receive(update(context_bias=["Lotti"], language="de")))
    assert (speaker.request.keywords, speaker.request.language) == ((), "en")
    assert said(speaker.receive(update())) == [before]


def test_interval_and_likeliest_tokens_are_done_and_told() -> None:
    speaker = dialect("live")
    (answer,) = said(speaker.receive(update(interval_ms=960, top_logprobs=2)))
    assert answer["session"].items() >= {"interval_ms": 960, "top_logprobs": 2}.items()
    assert (speaker.request.interval_ms, speaker.request.top_logprobs) == (960, 2)
    (delta,) = told(speaker, LiveText(0, " red", (TOKEN,)))
    assert [other["token"] for other in delta["logprobs"][0]["top_logprobs"]] == [" red", " read"]
    assert "logprobs" not in told(dialect(), LiveText(0, " red", (TOKEN,)))[0]


@pytest.mark.parametrize(("encoding", "rate", "kind"), [
    ("pcm_s16le", 44_100, "<i2"), ("pcm_s32le", 48_000, "<i4"), ("pcm_f16le", 16_000, "<f2"),
    ("pcm_f32le", 24_000, "<f4"), ("pcm_mulaw", 8_000, "u1"), ("pcm_alaw", 8_000, "u1"),
])  # fmt: skip
def test_audio_of_every_format_is_fed_at_its_own_rate(encoding: str, rate: int, kind: str) -> None:
    speaker = dialect()
    speaker.receive(update(audio_format={"encoding": encoding, "sample_rate": rate}))
    actions = [*speaker.receive(APPEND | {"audio": audio(0.5, rate, kind)}), *speaker.receive(END)]
    assert fed_seconds(actions) == pytest.approx(0.5, abs=0.001)
    assert kinds(actions)[-1] == "Finish"


@pytest.mark.parametrize(("session", "param"), [
    ({"diarize": True}, "session.diarize"), ({"speaker_references": {"Ada": "AAAA"}}, "session.speaker_references"),
    ({"language": "klingon"}, "session.language"), ({"context_bias": ["x" * 101]}, "session.context_bias"),
    ({"audio_format": {"encoding": "opus"}}, "session.audio_format.encoding"),
    ({"audio_format": {"sample_rate": 4_000}}, "session.audio_format.sample_rate"),
    ({"target_streaming_delay_ms": 500}, "session.target_streaming_delay_ms"),
    ({"turn_detection": {"end_threshold": 7}}, "session.turn_detection.end_threshold"), ("no", "session"),
    ({"turn_detection": {"silence_ms": 7}}, "session.turn_detection.silence_ms"),
    ({"audio_format": {"rate": 8_000}}, "session.audio_format.rate"), ({"delay_ms": 240}, "session.delay_ms"),
    ({"interval_ms": 10}, "session.interval_ms"), ({"top_logprobs": 6}, "session.top_logprobs"),
    ({"model": "live"}, "session.model"),
], ids=str)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name_with_a_number(session: Any, param: str) -> None:
    speaker = dialect()
    with pytest.raises(ApiError) as caught:
        speaker.receive({"type": "session.update", "session": session})
    (error,) = said([speaker.error(caught.value)])
    assert parse_realtime_event(error).error.code == 400
    assert error["error"]["param"] == param


def test_format_delay_and_turns_stay_once_there_was_audio_and_words_may_change() -> None:
    speaker = dialect("live")
    speaker.receive(APPEND)
    changes = {
        "audio_format": {"sample_rate": 8_000}, "target_streaming_delay_ms": 240, "turn_detection": TURNS,
        "interval_ms": 960, "top_logprobs": 1,
    }  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(ApiError, match="cannot change"):
            speaker.receive(update(**{name: value}))
    same = {"audio_format": {"encoding": "pcm_s16le", "sample_rate": 16_000}, "target_streaming_delay_ms": 480}
    speaker.receive(update(context_bias=["Lotti"], **same))
    assert speaker.request.keywords == ("Lotti",)
    assert fed_seconds(speaker.receive(APPEND)) == 0.5


def test_audio_is_taken_in_pieces_of_a_quarter_of_a_megabyte() -> None:
    speaker = dialect()
    assert fed_seconds(speaker.receive(APPEND | {"audio": audio(MOST_BYTES / 32_000, 16_000)})) == MOST_BYTES / 32_000
    with pytest.raises(ApiError, match=f"{MOST_BYTES} are taken"):
        speaker.receive(APPEND | {"audio": audio(MOST_BYTES / 32_000 + 0.001, 16_000)})


@pytest.mark.parametrize("event", [{}, {"type": "input_audio_buffer.append"}, APPEND | {"audio": 3}], ids=str)
def test_events_that_mean_nothing_here_are_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        dialect().receive(event)


def test_nothing_comes_after_the_end() -> None:
    speaker = dialect()
    speaker.receive(END)
    for event in (APPEND, END, update()):
        with pytest.raises(ApiError, match="Open another session"):
            speaker.receive(event)


def test_flush_is_passed_on() -> None:
    speaker = dialect()
    speaker.receive(APPEND)
    assert kinds(speaker.receive({"type": "input_audio.flush"})) == ["Flush"]


def test_all_turns_are_one_text_with_a_segment_for_each() -> None:
    speaker = dialect()
    speaker.receive(update(turn_detection=TURNS))
    events = told(
        speaker, SpeechStarted(0, 300), LiveText(0, "red", (TOKEN,)), SpeechPaused(0, 900), SpeechResumed(0, 1000),
        SpeechStopped(0, 2000, "timeout"), Committed(0, 300, 2000), UtteranceDone(0, transcript("red")),
        LiveText(1, "blue", (TOKEN,)), LiveText(1, " sky", (TOKEN,)), UtteranceDone(1, transcript("blue sky", 2000)),
    )  # fmt: skip
    assert [event["type"] for event in events] == [
        "turn.start", "transcription.text.delta", "turn.eager_end", "turn.resume", "turn.end", "transcription.language",
        "transcription.segment", "transcription.text.delta", "transcription.text.delta", "transcription.segment",
    ]  # fmt: skip
    assert (events[0]["time_s"], events[4]["end_reason"]) == (0.3, "timeout")
    done, close = speaker.finished()
    assert close == Close(1000)
    text = "".join(event["text"] for event in events if event["type"] == "transcription.text.delta")
    assert done.event["text"] == text == "red blue sky"
    parsed = parse_realtime_event(done.event)
    assert (parsed.model, parsed.language, parsed.usage.total_tokens) == ("whisper-1", "en", 40)
    assert [(segment.text, segment.start) for segment in parsed.segments] == [("red", 0), ("blue sky", 2)]


def test_turns_are_told_of_only_where_that_was_asked_for() -> None:
    assert told(dialect(), SpeechStarted(0, 0), SpeechStopped(0, 900, "threshold")) == []


def test_words_that_may_be_missing_are_told_at_the_end() -> None:
    speaker = dialect()
    told(speaker, UtteranceDone(0, transcript("red")), UtteranceDone(1, looped("blue", 2000)))
    (warning,) = speaker.finished()[0].event["warnings"]
    assert (warning["code"], warning["start"], warning["end"]) == ("loop", 2.0, 3.0)
    assert not isinstance(parse_realtime_event(speaker.finished()[0].event), UnknownRealtimeEvent)
    assert "warnings" not in dialect().finished()[0].event


def test_the_end_of_nothing_is_an_empty_text() -> None:
    done, _ = dialect().finished()
    parsed = parse_realtime_event(done.event)
    assert (parsed.text, parsed.language, parsed.usage.prompt_audio_seconds) == ("", None, 0)


def test_a_failure_is_an_error_with_a_number() -> None:
    (error,) = told(dialect(), UtteranceFailed(0, JobFailed("no memory")))
    assert (error["error"]["message"], error["error"]["code"]) == ("no memory", 500)
