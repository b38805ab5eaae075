"""vLLM's realtime dialect, without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from api.errors import ApiError
from api.realtime_vllm import VLLMDialect
from engine.core import JobFailed
from live import Committed, LiveText, UtteranceDone, UtteranceFailed
from tests.dialects import TERMS, TOKEN, audio, fed_seconds, kinds, looped, said, transcript, undo

UPDATE = {"type": "session.update", "model": "whisper-1"}
APPEND = {"type": "input_audio_buffer.append", "audio": audio(0.5, 16_000)}
START = {"type": "input_audio_buffer.commit"}
END = START | {"final": True}


def dialect(**update: Any) -> VLLMDialect:
    speaker = VLLMDialect(TERMS)
    speaker.receive(UPDATE | update)
    return speaker


def test_commit_opens_an_utterance_and_only_the_final_one_ends_it() -> None:
    speaker = dialect()
    assert speaker.receive(START) == []
    assert fed_seconds(speaker.receive(APPEND)) == 0.5
    assert kinds(speaker.receive(END)) == ["Commit"]
    heard = [Committed(0, 0, 500), LiveText(0, " red", (TOKEN,)), UtteranceDone(0, transcript("red"))]
    delta, done = [event for told in heard for event in said(speaker.heard(told))]
    assert delta == {"type": "transcription.delta", "delta": " red", "logprobs": None}
    usage = {"prompt_tokens": 16, "completion_tokens": 4, "total_tokens": 20}
    assert done == {"type": "transcription.done", "text": "red", "usage": usage}
    assert kinds([*speaker.receive(START), *speaker.receive(APPEND), *speaker.receive(END)])[-1] == "Commit"


def test_an_utterance_of_nothing_is_done_at_once() -> None:
    speaker = dialect()
    for events in ([START], [START, APPEND | {"audio": audio(0.05, 16_000)}]):
        for event in events:
            speaker.receive(event)
        actions = speaker.receive(END)
        assert kinds(actions)[-2:] == ["Clear", "transcription.done"]
        assert said(actions)[0]["text"] == ""


def test_an_utterance_of_nothing_is_answered_behind_those_before_it_and_before_those_after_it() -> None:
    speaker = dialect()
    told = []
    for event in (APPEND, END, START, END, END, APPEND, END, START, END):
        told += said(speaker.receive(event))
    assert told == []
    answers = [said(speaker.heard(UtteranceDone(0, transcript("red")))), said(speaker.heard(Committed(1, 500, 1000)))]
    answers.append(said(speaker.heard(UtteranceFailed(1, JobFailed("no memory")))))
    assert [[answer.get("text", answer["type"]) for answer in each] for each in answers] == [
        ["red", "", ""], [], ["error", ""],
    ]  # fmt: skip


def test_what_is_left_of_an_utterance_that_has_failed_is_one_of_its_own() -> None:
    speaker = dialect()
    speaker.receive(APPEND)
    heard = [Committed(0, 0, 450), UtteranceFailed(0, JobFailed("no memory"))]
    assert [event["type"] for told in heard for event in said(speaker.heard(told))] == ["error"]
    assert kinds(speaker.receive(END)) == ["Clear", "transcription.done"]


def test_what_newer_clients_ask_for_is_done_and_told() -> None:
    speaker = VLLMDialect(TERMS)
    words = {"hotwords": "Lotti,macOS", "prompt": 'Spoken by Ada. Required spellings: ["grey"]'}
    (answer,) = said(speaker.receive(UPDATE | words | {"language": "german", "include": ["logprobs"]}))
    assert answer.items() >= {"type": "session.updated", "model": "whisper-1", "language": "de"}.items()
    assert (speaker.request.keywords, speaker.request.prompt) == (("Lotti", "macOS", "grey"), words["prompt"])
    (delta,) = said(speaker.heard(LiveText(0, " red", (TOKEN,))))
    assert delta["logprobs"][0]["token"] == " red"


def test_an_update_that_the_session_refuses_leaves_nothing_behind() -> None:
    speaker = dialect(language="en")
    undo(speaker.receive(UPDATE | {"prompt": "Far too long.", "include": ["logprobs"]}))
    assert (speaker.request.prompt, speaker.request.language, speaker.model.name) == (None, "en", "whisper-1")
    assert said(speaker.receive(UPDATE))[0].items() >= {"prompt": None, "language": "en", "include": []}.items()
    assert said(speaker.heard(LiveText(0, " red", (TOKEN,))))[0]["logprobs"] is None


def test_delay_interval_and_likeliest_tokens_are_the_clients_to_choose() -> None:
    speaker = dialect()
    asked = {"delay_ms": 240, "interval_ms": 960, "top_logprobs": 2}
    (answer,) = said(speaker.receive(UPDATE | asked))
    assert answer.items() >= {"delay_ms": None, "interval_ms": None, "top_logprobs": 2}.items()
    assert speaker.request.delay_ms is None
    (answer,) = said(speaker.receive(UPDATE | {"model": "live", "language": "de"}))
    assert answer.items() >= asked.items()
    request = speaker.request
    assert (request.delay_ms, request.interval_ms, request.top_logprobs, request.language) == (240, 960, 2, "de")
    (delta,) = said(speaker.heard(LiveText(0, " red", (TOKEN,))))
    assert [other["token"] for other in delta["logprobs"][0]["top_logprobs"]] == [" red", " read"]
    speaker.receive(APPEND)
    for name, value in (("delay_ms", 480), ("interval_ms", None), ("top_logprobs", 0)):
        with pytest.raises(ApiError, match=f"{name} cannot change"):
            speaker.receive(UPDATE | {"model": "live", name: value})


@pytest.mark.parametrize(("event", "code"), [
    ({"type": "session.update"}, "invalid_event"), ({"type": "session.update", "model": "gpt-7"}, "model_not_found"),
    (APPEND, "model_not_validated"), (END, "model_not_validated"), ({"type": "hum"}, "unknown_event"),
    ({"type": 3}, "invalid_event"),
])  # fmt: skip
def test_what_comes_out_of_order_has_vllms_code(event: dict[str, Any], code: str) -> None:
    speaker = VLLMDialect(TERMS)
    with pytest.raises(ApiError) as caught:
        speaker.receive(event)
    (error,) = said([speaker.error(caught.value)])
    assert (error["type"], error["code"]) == ("error", code)
    assert isinstance(error["error"], str)


@pytest.mark.parametrize(("event", "code"), [
    (APPEND | {"audio": "###"}, "invalid_audio"), (UPDATE | {"language": "klingon"}, "invalid_value"),
    (UPDATE | {"include": ["everything"]}, "unsupported_value"), (UPDATE | {"delay_msec": 240}, "unknown_parameter"),
    (UPDATE | {"delay_ms": 100}, "invalid_value"), (UPDATE | {"top_logprobs": 6}, "invalid_value"),
    (UPDATE | {"interval_ms": 79}, "invalid_value"), (UPDATE | {"hotwords": 7}, "invalid_value"),
    (END | {"final": "perhaps"}, "invalid_value"),
    (UPDATE | {"model": "live", "prompt": "This is a talk. It is long."}, "unsupported_value"),
])  # fmt: skip
def test_a_wrong_field_is_named_and_the_session_goes_on(event: dict[str, Any], code: str) -> None:
    speaker = dialect()
    with pytest.raises(ApiError) as caught:
        speaker.receive(event)
    assert caught.value.code == code
    assert fed_seconds(speaker.receive(APPEND)) == 0.5


def test_the_model_stays_once_there_was_audio() -> None:
    speaker = dialect()
    speaker.receive(APPEND)
    speaker.receive(UPDATE | {"language": "de"})
    with pytest.raises(ApiError, match="cannot change"):
        speaker.receive(UPDATE | {"model": "live"})
    assert (speaker.model.name, speaker.request.language) == ("whisper-1", "de")


def test_words_that_may_be_missing_are_told_with_the_text() -> None:
    (done,) = said(dialect().heard(UtteranceDone(0, looped("red", 2000))))
    ((code, start),) = [(warning["code"], warning["start"]) for warning in done["warnings"]]
    assert (done["text"], code, start) == ("red", "loop", 2.0)


def test_a_failure_is_a_processing_error() -> None:
    (error,) = said(dialect().heard(UtteranceFailed(0, JobFailed("no memory"))))
    assert error == {"type": "error", "error": "no memory", "code": "processing_error"}
