"""OpenAI's realtime dialect and its beta, without a socket: events in, actions out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.beta.realtime import TranscriptionSessionUpdatedEvent
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from api.errors import ApiError
from api.realtime_latch import Undecided
from api.realtime_openai import OpenAIDialect
from api.realtime_vllm import VLLMDialect
from engine.core import JobFailed
from live import (
    Committed,
    LiveFlushed,
    LiveText,
    SpeechPaused,
    SpeechStarted,
    SpeechStopped,
    UtteranceDone,
    UtteranceFailed,
)
from tests.dialects import MODELS, TERMS, TOKEN, audio, fed_seconds, kinds, looped, said, transcript, undo
from turns import TurnDetection

APPEND = {"type": "input_audio_buffer.append", "audio": audio()}
COMMIT = {"type": "input_audio_buffer.commit"}
LOGPROBS = "item.input_audio_transcription.logprobs"
PART = {"item_id": "item_sess_1_0", "content_index": 0}
server_event = TypeAdapter(RealtimeServerEvent)


def dialect(model: str = "whisper-1", beta: bool = False) -> OpenAIDialect:
    return OpenAIDialect(TERMS, MODELS[model], beta)


def update(heard: dict[str, Any] | None = None, **session: Any) -> dict[str, Any]:
    audio = {"audio": {"input": heard}} if heard is not None else {}
    return {"type": "session.update", "event_id": "mine", "session": {"type": "transcription", **session, **audio}}


def updated(speaker: OpenAIDialect, event: dict[str, Any]) -> dict[str, Any]:
    (answer,) = said(speaker.receive(event))
    return answer["session"]


def test_hello_has_what_openai_and_vllm_look_for() -> None:
    (hello,) = said(dialect().hello())
    server_event.validate_python(hello, strict=True)
    assert (hello["type"], hello["id"], hello["created"]) == ("session.created", "sess_1", 1_752_624_000)
    session = hello["session"]
    assert (session["type"], session["object"]) == ("transcription", "realtime.transcription_session")
    assert session["expires_at"] == TERMS.expires_at
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert session["audio"]["input"]["turn_detection"] == {
        "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
    }  # fmt: skip


def test_an_update_changes_what_it_names_and_null_switches_off() -> None:
    speaker = dialect()
    updated(speaker, update({"transcription": {"language": "German", "keywords": ["Lotti"]}}, include=[LOGPROBS]))
    vad = {"type": "server_vad", "silence_duration_ms": 900}
    session = updated(speaker, update({"transcription": {"prompt": "Spoken by Ada."}, "turn_detection": vad}))
    asked = session["audio"]["input"]["transcription"]
    assert (asked["language"], asked["keywords"], asked["prompt"]) == ("German", ["Lotti"], "Spoken by Ada.")
    assert (speaker.request.language, speaker.request.keywords) == ("de", ("Lotti",))
    assert speaker.request.prompt == "Spoken by Ada."
    assert speaker.request.turn_detection == TurnDetection("server_vad", 0.5, 300, 900)
    assert session["include"] == [LOGPROBS]
    updated(speaker, update({"transcription": {"languages": ["fr"]}}))
    assert speaker.request.language == "fr"
    (answer,) = said(speaker.receive(update({"turn_detection": None, "noise_reduction": None}, include=None)))
    server_event.validate_python(answer, strict=True)
    assert answer["session"]["include"] is None
    assert speaker.request.turn_detection is None
    updated(speaker, update({"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}))
    assert speaker.request.turn_detection == TurnDetection("semantic_vad", eagerness="high")


@pytest.mark.parametrize("reduction", [{"type": "near_field", "strength": 1}, {"type": "far_field"}, {}], ids=str)
def test_noise_reduction_may_be_asked_for_as_in_openais_examples_and_what_holds_is_that_there_is_none(
    reduction: dict[str, Any],
) -> None:
    speaker = dialect()
    asked = {"transcription": {"model": "live", "language": "en"}, "turn_detection": None}
    for _ in range(2):
        (answer,) = said(speaker.receive(update(asked | {"noise_reduction": reduction})))
        server_event.validate_python(answer, strict=True)
        heard = answer["session"]["audio"]["input"]
        assert (heard["noise_reduction"], heard["turn_detection"]) == (None, None)
    assert (speaker.model.name, speaker.request.language) == ("live", "en")


def test_a_delay_is_the_streaming_models_and_null_where_there_is_none() -> None:
    speaker = dialect()
    session = updated(speaker, update({"transcription": {"delay": "low"}}))
    assert session["audio"]["input"]["transcription"]["delay"] is None
    assert speaker.request.delay_ms is None
    session = updated(speaker, update({"transcription": {"model": "live"}}))
    assert session["audio"]["input"]["transcription"]["delay"] == "low"
    assert (speaker.model.name, speaker.request.delay_ms) == ("live", 240)
    updated(speaker, update({"transcription": {"delay_ms": 80}}))
    assert speaker.request.delay_ms == 80
    updated(speaker, update({"transcription": {"delay": "high"}}))
    assert speaker.request.delay_ms == 960


def test_a_prompt_of_words_is_expected_by_models_that_read_no_prompt_and_others_are_refused() -> None:
    speaker = dialect("live")
    updated(speaker, update({"transcription": {"prompt": "Lotti, macOS"}}))
    assert (speaker.request.prompt, speaker.request.keywords) == (None, ("Lotti", "macOS"))
    with pytest.raises(ApiError, match="reads no prompt"):
        speaker.receive(update({"transcription": {"prompt": "This is a talk. It is about birds."}}))
    assert speaker.request.keywords == ("Lotti", "macOS")


@pytest.mark.parametrize("spellings", ['Required spellings: ["Lotti", "macOS"]', "Lotti, macOS"])
def test_words_of_a_prompt_are_expected_by_every_model(spellings: str) -> None:
    for model, prompt in (("whisper-1", spellings), ("live", None)):
        speaker = dialect(model)
        updated(speaker, update({"transcription": {"prompt": spellings, "keywords": ["Ada"]}}))
        assert (speaker.request.prompt, speaker.request.keywords) == (prompt, ("Ada", "Lotti", "macOS"))


@pytest.mark.parametrize(("prompt", "refused"), [
    ('Transcribe this audio. Required spellings: ["Lotti"]', False), ("Please transcribe the audio.", False),
    ('Remove filler words. Required spellings: ["Lotti"]', True), ("Lotti, " + "x" * 101, True),
    ('Required spellings: ["Lotti" "macOS"]', True),
])  # fmt: skip
def test_what_a_prompt_says_beside_its_words_must_be_done_or_is_refused(prompt: str, refused: bool) -> None:
    speaker = dialect("live")
    with pytest.raises(ApiError, match="reads no prompt") if refused else nullcontext():
        speaker.receive(update({"transcription": {"prompt": prompt}}))


INPUT = "session.audio.input"


@pytest.mark.parametrize(("session", "param"), [
    ({"audio": {"input": {"transcription": {"model": "gpt-7"}}}}, "model"),
    ({"audio": {"input": {"transcription": {"language": "klingon"}}}}, f"{INPUT}.transcription.language"),
    ({"audio": {"input": {"transcription": {"languages": ["en", "de"]}}}}, f"{INPUT}.transcription.languages"),
    ({"audio": {"input": {"transcription": {"delay": "soon"}}}}, f"{INPUT}.transcription.delay"),
    ({"audio": {"input": {"transcription": {"delay_ms": 100}}}}, f"{INPUT}.transcription.delay_ms"),
    ({"audio": {"input": {"transcription": {"keywords": ["x" * 101]}}}}, f"{INPUT}.transcription.keywords"),
    ({"audio": {"input": {"transcription": None}}}, f"{INPUT}.transcription"),
    ({"audio": {"input": {"noise_reduction": {"type": "in_space"}}}}, f"{INPUT}.noise_reduction.type"),
    ({"audio": {"input": {"noise_reduction": {"level": 1}}}}, f"{INPUT}.noise_reduction.level"),
    ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, f"{INPUT}.format.type"),
    ({"audio": {"input": {"format": {"rate": 96_000}}}}, f"{INPUT}.format.rate"),
    ({"audio": {"input": {"turn_detection": {"threshold": 2}}}}, f"{INPUT}.turn_detection.threshold"),
    ({"audio": {"input": {"turn_detection": {"type": "sometimes"}}}}, f"{INPUT}.turn_detection"),
    ({"audio": {"input": {"turn_detection": {"idle_timeout_ms": 9}}}}, f"{INPUT}.turn_detection.idle_timeout_ms"),
    ({"include": ["everything"]}, "session.include.0"),
    ({"type": "realtime"}, "session.type"),
    ({"instructions": "Answer in rhymes."}, "session.instructions"),
    ({"model": "live"}, "session.model"),
    ({"temperature": 0.8}, "session.temperature"),
    ({"tracing": "auto"}, "session.tracing"),
    ({"prompt": {"id": "pmpt_1"}}, "session.prompt"),
    ({"delay": "low"}, "session.delay"),
    ({"audio": {"output": {"voice": "ash"}}}, "session.audio.output"),
    ({"audio": {"input": {"format": {"sample_rate": 8_000}}}}, f"{INPUT}.format.sample_rate"),
    ({"audio": {"input": {"transcription": {"delay_msec": 80}}}}, f"{INPUT}.transcription.delay_msec"),
    ({"audio": {"input": {"transcription": {"diarize": True}}}}, f"{INPUT}.transcription.diarize"),
    ({"audio": {"input": {"transcription": {"delay": "low", "delay_ms": 80}}}}, f"{INPUT}.transcription.delay_ms"),
    ({"audio": {"input": {"transcription": {"language": "en", "languages": ["de"]}}}},
     f"{INPUT}.transcription.languages"),
    ({"audio": {"input": {"turn_detection": {"eagerness": "low"}}}}, f"{INPUT}.turn_detection.eagerness"),
    ({"audio": 3}, "session.audio"),
    ({"audio": {}, "turn_detection": None}, "session.turn_detection"),
    ("transcription", "session"),
], ids=str)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name_and_nothing_changes(session: Any, param: str) -> None:
    speaker = dialect()
    before = speaker.request
    event = {"type": "session.update", "event_id": "mine", "session": session}
    with pytest.raises(ApiError) as caught:
        speaker.receive(event)
    assert caught.value.param == param
    (error,) = said([speaker.error(caught.value, event)])
    server_event.validate_python(error, strict=True)
    assert error["error"]["event_id"] == "mine"
    assert speaker.request == before


def test_an_update_that_the_session_refuses_leaves_nothing_behind() -> None:
    speaker = dialect()
    before = updated(speaker, update({"transcription": {"language": "en"}}))
    refused = {"transcription": {"prompt": "Far too long."}, "format": {"type": "audio/pcmu"}}
    undo(speaker.receive(update(refused, include=[LOGPROBS])))
    assert (speaker.request.prompt, speaker.request.language, speaker.model.name) == (None, "en", "whisper-1")
    assert updated(speaker, update()) == before
    assert fed_seconds([*speaker.receive(APPEND), *speaker.receive(COMMIT)]) == pytest.approx(0.5, abs=0.001)


def test_what_changes_nothing_may_be_sent() -> None:
    """A session as OpenAI and this server show it, with what other SDKs write for what was not set."""
    speaker = dialect()
    before = updated(speaker, update({"transcription": {"language": "en", "keywords": ["Lotti"]}}))
    vad = {"type": "server_vad", "create_response": True, "interrupt_response": False, "idle_timeout_ms": None}
    asked = {"model": None, "diarize": False, "temperature": None, "language": "en", "languages": ["en"]}
    after = updated(speaker, update(
        {"turn_detection": vad, "transcription": asked}, id="sess_1", object="realtime.transcription_session",
        expires_at=1, client_secret=None, modalities=["text"], tools=[], instructions="", temperature=0, prompt=None,
        tracing=None, model="whisper-1", output=None,
    ))  # fmt: skip
    heard = after["audio"]["input"]
    assert heard["transcription"].pop("languages") == ["en"]
    before["audio"]["input"]["transcription"].pop("languages")
    assert after == before
    updated(speaker, {"type": "session.update", "session": after})
    assert speaker.request.keywords == ("Lotti",)


@pytest.mark.parametrize(("form", "rate", "kind"), [
    ({"type": "audio/pcm", "rate": 48_000}, 48_000, "<i2"), ({"type": "audio/pcm", "rate": 8_000}, 8_000, "<i2"),
    ({"type": "audio/pcmu"}, 8_000, "u1"), ({"type": "audio/pcma"}, 8_000, "u1"),
], ids=str)  # fmt: skip
def test_audio_of_every_format_is_fed_at_its_own_rate(form: dict[str, Any], rate: int, kind: str) -> None:
    speaker = dialect()
    assert updated(speaker, update({"format": form}))["audio"]["input"]["format"] == {
        "type": form["type"],
        "rate": rate,
    }
    actions = speaker.receive(APPEND | {"audio": audio(0.5, rate, kind)})
    assert fed_seconds([*actions, *speaker.receive(COMMIT)]) == pytest.approx(0.5, abs=0.001)


def test_a_format_may_change_between_two_pieces_of_audio() -> None:
    speaker = dialect()
    actions = [*speaker.receive(APPEND), *speaker.receive(update({"format": {"type": "audio/pcmu"}}))]
    actions += [*speaker.receive(APPEND | {"audio": audio(0.5, 8_000, "u1")}), *speaker.receive(COMMIT)]
    assert fed_seconds(actions) == pytest.approx(1, abs=0.001)
    assert kinds(actions)[-1] == "Commit"


def test_model_and_delay_stay_once_there_was_audio() -> None:
    speaker = dialect("live")
    speaker.receive(APPEND)
    for change in ({"model": "whisper-1"}, {"delay": "high"}, {"top_logprobs": 2}):
        with pytest.raises(ApiError, match="cannot change"):
            speaker.receive(update({"transcription": change}))
    updated(speaker, update({"transcription": {"keywords": ["Lotti"]}}))
    assert speaker.request.keywords == ("Lotti",)


@pytest.mark.parametrize("wrong", [None, 3, "####", "AAA", "é"])
def test_audio_that_is_no_base64_is_refused_and_the_session_goes_on(wrong: Any) -> None:
    speaker = dialect()
    with pytest.raises(ApiError) as caught:
        speaker.receive(APPEND | {"audio": wrong})
    assert caught.value.param == "audio"
    assert fed_seconds(speaker.receive(APPEND)) > 0.4


def test_an_empty_commit_is_an_error_in_openais_words() -> None:
    speaker = dialect()
    for before in ([], [APPEND | {"audio": audio(0.05)}]):
        for event in before:
            speaker.receive(event)
        error = said(speaker.receive(COMMIT | {"event_id": "mine"}))[-1]
        assert error["error"]["code"] == "input_audio_buffer_commit_empty"
        assert error["error"]["event_id"] == "mine"
    assert error["error"]["message"].endswith("but buffer only has 50.00ms of audio.")
    speaker.receive(APPEND)
    assert kinds(speaker.receive(COMMIT))[-1] == "Commit"
    assert said(speaker.receive(COMMIT))[0]["error"]["message"].endswith("only has 0.00ms of audio.")


def test_what_turn_detection_committed_cannot_be_committed_again() -> None:
    speaker = dialect()
    speaker.receive(APPEND)
    speaker.heard(Committed(0, 0, 450))
    assert said(speaker.receive(COMMIT))[0]["error"]["message"].endswith("only has 50.00ms of audio.")


def test_clear_forgets_what_was_appended() -> None:
    speaker = dialect()
    speaker.receive(APPEND)
    actions = speaker.receive({"type": "input_audio_buffer.clear"})
    assert kinds(actions)[-2:] == ["Clear", "input_audio_buffer.cleared"]
    assert said(speaker.receive(COMMIT))[0]["error"]["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize(("event", "code"), [
    ({}, "invalid_event"), ({"type": 7}, "invalid_event"), ({"type": "response.create"}, "invalid_value"),
    ({"type": "session.update"}, "invalid_value"),
])  # fmt: skip
def test_events_that_mean_nothing_here_are_refused(event: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as caught:
        dialect().receive(event)
    assert caught.value.code == code


def conversation(speaker: OpenAIDialect) -> list[dict[str, Any]]:
    """One utterance with everything that can be told of it, and the commit of a second."""
    events = [
        SpeechStarted(0, 200), SpeechPaused(0, 800), LiveText(0, " red", (TOKEN,)), SpeechStopped(0, 1500, "threshold"),
        Committed(0, 200, 1500), LiveFlushed(0), UtteranceDone(0, transcript("red")), Committed(1, 1500, 2000),
        UtteranceFailed(1, JobFailed("no memory")),
    ]  # fmt: skip
    return [told for event in events for told in said(speaker.heard(event))]


def test_an_utterance_is_told_in_the_order_and_the_words_of_openai() -> None:
    speaker = dialect()
    speaker.receive(update({"transcription": {"top_logprobs": 2}}, include=[LOGPROBS]))
    told = conversation(speaker)
    for event in told:
        server_event.validate_python(event, strict=True)
    assert len({event["event_id"] for event in told}) == len(told)
    prefix = "conversation.item.input_audio_transcription"
    started, delta, stopped, committed, added, done, completed, *later = told
    assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (200, 1500)
    assert (committed["type"], committed["previous_item_id"]) == ("input_audio_buffer.committed", None)
    assert [added["type"], done["type"]] == ["conversation.item.added", "conversation.item.done"]
    assert added["item"]["id"] == committed["item_id"] == PART["item_id"]
    assert delta.items() >= {"type": f"{prefix}.delta", "delta": " red", **PART}.items()
    assert delta["logprobs"][0]["logprob"] == -0.5
    assert [other["token"] for other in delta["logprobs"][0]["top_logprobs"]] == [" red", " read"]
    assert completed.items() >= {"type": f"{prefix}.completed", "transcript": "red", **PART}.items()
    assert (completed["usage"]["type"], completed["usage"]["total_tokens"]) == ("tokens", 20)
    assert later[0]["previous_item_id"] == PART["item_id"]
    assert later[-1]["type"] == f"{prefix}.failed"
    assert later[-1]["error"]["message"] == "no memory"


def test_words_that_may_be_missing_are_told_with_the_text() -> None:
    (completed,) = said(dialect().heard(UtteranceDone(0, looped("red", 2000))))
    server_event.validate_python(completed, strict=True)
    ((code, start),) = [(warning["code"], warning["start"]) for warning in completed["warnings"]]
    assert (completed["transcript"], code, start) == ("red", "loop", 2.0)
    assert all("warnings" not in event for event in conversation(dialect()))


def test_scores_come_only_where_they_were_asked_for() -> None:
    assert "logprobs" not in json.dumps(conversation(dialect()))
    speaker = dialect()
    speaker.receive(update({"transcription": {"top_logprobs": 2}}))
    (delta,) = said(speaker.heard(LiveText(0, " red", (TOKEN,))))
    assert len(delta["logprobs"][0]["top_logprobs"]) == 2


FLAT = {"type": "transcription_session.update", "session": {
    "input_audio_format": "g711_ulaw", "input_audio_transcription": {"model": "whisper-1", "language": "en"},
    "turn_detection": {"type": "server_vad", "silence_duration_ms": 300}, "include": [LOGPROBS],
}}  # fmt: skip


def test_the_beta_is_flat_and_tells_of_an_item_once() -> None:
    speaker = dialect(beta=True)
    assert said(speaker.hello())[0]["session"]["input_audio_format"] == "pcm16"
    (answer,) = said(speaker.receive(FLAT))
    TranscriptionSessionUpdatedEvent.model_validate({**answer, "session": {**answer["session"], "client_secret": {
        "value": "", "expires_at": 0}}})  # fmt: skip
    session = answer["session"]
    assert answer["type"] == "transcription_session.updated"
    assert session["input_audio_format"] == "g711_ulaw"
    assert session["input_audio_transcription"]["language"] == "en"
    assert session["turn_detection"]["silence_duration_ms"] == 300
    assert fed_seconds(speaker.receive(APPEND | {"audio": audio(0.5, 8_000, "u1")})) > 0.4
    told = [event["type"] for event in conversation(speaker)]
    assert told.count("conversation.item.created") == 2
    assert not {"conversation.item.added", "conversation.item.done"} & set(told)


def test_the_betas_errors_are_in_its_own_words() -> None:
    speaker = dialect(beta=True)
    for change, name in (
        ({"input_audio_noise_reduction": {"type": "in_space"}}, "session.input_audio_noise_reduction.type"),
        ({"input_audio_transcription": {"language": "klingon"}}, "session.input_audio_transcription.language"),
        ({"input_audio_transcription": {"delay_msec": 80}}, "session.input_audio_transcription.delay_msec"),
        ({"input_audio_format": "mp3"}, "session.input_audio_format"),
    ):
        with pytest.raises(ApiError) as caught:
            speaker.receive({"type": "transcription_session.update", "session": change})
        assert said([speaker.error(caught.value)])[0]["error"]["param"] == name


@pytest.mark.parametrize("name", ["transcription_session.update", "session.update"])
@pytest.mark.parametrize("before", [[APPEND], [update({"transcription": {"language": "de"}}), APPEND]], ids=len)
def test_an_update_of_the_beta_does_what_it_says_also_once_there_was_audio(
    name: str, before: list[dict[str, Any]]
) -> None:
    speaker = undecided().latched(before[0])
    for event in before:
        speaker.receive(event)
    rest = said(speaker.receive({"type": name, "session": FLAT["session"] | {"turn_detection": None}}))
    assert (rest[0]["session"]["input_audio_format"], rest[0]["session"]["turn_detection"]) == ("g711_ulaw", None)
    assert (speaker.request.turn_detection, speaker.request.language) == (None, "en")
    actions = [*speaker.receive(APPEND | {"audio": audio(0.5, 8_000, "u1")}), *speaker.receive(COMMIT)]
    assert fed_seconds(actions) == pytest.approx(0.5, abs=0.001)
    assert "audio" in updated(speaker, update({}))


def undecided(beta: bool = False, given: dict[str, Any] | None = None, name: str | None = None) -> Undecided:
    return Undecided(TERMS, name, beta, given)


@pytest.mark.parametrize(("event", "beta", "answer"), [
    (update({}), False, "session.updated"),
    (update({}), True, "session.updated"),
    (FLAT, False, "transcription_session.updated"),
    ({"type": "session.update", "session": FLAT["session"]}, False, "session.updated"),
    ({"type": "session.update", "model": "whisper-1"}, False, "session.updated"),
], ids=["today", "today despite the header", "beta", "the beta's conversation", "vLLM"])  # fmt: skip
def test_the_first_update_says_which_dialect_is_spoken(event: dict[str, Any], beta: bool, answer: str) -> None:
    speaker = undecided(beta).latched(event)
    assert speaker.latched(update({})) is speaker
    (told,) = said(speaker.receive(event))
    assert told["type"] == answer
    flat, vllm = "input_audio_format" in told.get("session", ()), isinstance(speaker, VLLMDialect)
    assert (flat, vllm) == ("input_audio_format" in event.get("session", ()), "model" in event)


@pytest.mark.parametrize(("event", "code", "vllms"), [
    ({"type": "hum"}, "invalid_value", "unknown_event"),
    ({"type": 7}, "invalid_event", "invalid_event"),
    ({"type": "session.update"}, "invalid_value", "invalid_event"),
    ({"type": "session.update", "session": "transcription"}, "invalid_value", "invalid_event"),
    ({"type": "session.update", "model": ""}, "invalid_value", "invalid_event"),
    ({"type": "transcription_session.update"}, "invalid_value", "unknown_event"),
    (COMMIT, "input_audio_buffer_commit_empty", "model_not_validated"),
    (COMMIT | {"final": True}, "input_audio_buffer_commit_empty", "model_not_validated"),
], ids=str)  # fmt: skip
def test_what_does_not_tell_the_dialect_is_refused_in_both_and_either_may_follow(
    event: dict[str, Any], code: str, vllms: str
) -> None:
    speaker = undecided()
    assert speaker.latched(event) is speaker
    try:
        (error,) = said(speaker.receive(event))
    except ApiError as problem:
        (error,) = said([speaker.error(problem, event)])
    server_event.validate_python(error, strict=True)
    assert (error["error"]["code"], error["code"]) == (code, vllms)
    assert isinstance(speaker.latched({"type": "session.update", "model": "whisper-1"}), VLLMDialect)
    assert not isinstance(speaker.latched(update({})), Undecided | VLLMDialect)


def test_audio_before_any_update_is_openais() -> None:
    speaker = undecided()
    assert not isinstance(speaker.latched(APPEND), Undecided)
    assert "input_audio_format" in said(undecided(beta=True).hello())[0]["session"]


def test_a_client_secrets_session_and_the_addresss_model_hold_from_the_start() -> None:
    heard = {"transcription": {"language": "fr"}, "format": {"type": "audio/pcm", "rate": 8_000}}
    speaker = undecided(given={"audio": {"input": heard}}, name="live")
    (hello,) = said(speaker.hello())
    assert hello["session"]["audio"]["input"]["transcription"].items() >= {"model": "live", "language": "fr"}.items()
    decided = speaker.latched(APPEND)
    assert (decided.model.name, decided.request.language) == ("live", "fr")
    actions = [*decided.receive(APPEND | {"audio": audio(0.5, 8_000)}), *decided.receive(COMMIT)]
    assert fed_seconds(actions) == pytest.approx(0.5, abs=0.001)
    with pytest.raises(ApiError, match="not on this machine"):
        undecided(name="gpt-realtime").hello()
    with pytest.raises(ApiError, match="intent"):
        Undecided(TERMS, None, beta=False, intent="conversation").hello()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "session", "audio", "input", "format", "rate", "transcription", "turn_detection",
                         "model", "include", "threshold", "input_audio_format", "language", "keywords"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=30)
@given(st.lists(st.tuples(
    st.sampled_from(["session.update", "transcription_session.update", "input_audio_buffer.append",
                     "input_audio_buffer.commit", "input_audio_buffer.clear", "x"]),
    st.dictionaries(st.sampled_from(["session", "audio", "model", "final", "language", "include"]), json_values),
), max_size=5))  # fmt: skip
def test_whatever_a_client_sends_is_answered_or_refused(events: list[tuple[str, dict[str, Any]]]) -> None:
    speaker = undecided()
    for kind, rest in events:
        event = {**rest, "type": kind}
        speaker = speaker.latched(event)
        try:
            actions = speaker.receive(event)
        except ApiError as error:
            actions = [speaker.error(error, event)]
        json.dumps(said(actions))
