"""The clients of Node: openai, @mistralai/mistralai, and the AI SDK with three of its providers. The scripts in node/
make the calls; each runs once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.clients.outside import NODE, Results, node_command, results
from tests.serving import DEMOS, Server
from tests.speech import assert_heard, clip

WORDS = clip("voice_en-us").words
COLOURS = ("red", "blue")
with_openai = pytest.mark.client("openai (Node)")
with_mistral = pytest.mark.client("@mistralai/mistralai (Node)")
ALL_PROVIDERS = ("openai", "mistral", "openai-compatible")


def providers(*names: str) -> pytest.MarkDecorator:
    """The test runs for these providers of the AI SDK."""
    marked = [pytest.param(name, marks=pytest.mark.client(f"AI SDK with @ai-sdk/{name}"), id=name) for name in names]
    return pytest.mark.parametrize("ai_sdk", marked, indirect=True)


@pytest.fixture(scope="module")
def openai(server: Server, recording: Path) -> Results:
    return results([*node_command(), NODE / "openai.mjs", server.url, recording])


@pytest.fixture(scope="module")
def mistral(server: Server, recording: Path) -> Results:
    return results([*node_command(), NODE / "mistral.mjs", server.url, recording])


@pytest.fixture(scope="module")
def ai_sdk(request: pytest.FixtureRequest, server: Server, recording: Path) -> Results:
    return results([*node_command(), NODE / "ai_sdk.mjs", server.url, recording, request.param])


def content(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def streamed(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@with_openai
def test_openai_transcribes_to_json_with_usage(openai: Results) -> None:
    assert_heard(WORDS, openai["json"]["text"])
    assert openai["json"]["usage"]["type"] == "tokens"


@with_openai
def test_openai_gets_segments_in_verbose_json(openai: Results) -> None:
    answer = openai["verbose_json"]
    assert (answer["language"], answer["duration"]) == ("english", 5)
    assert " ".join(segment["text"] for segment in answer["segments"]) == answer["text"]


@with_openai
def test_openai_gets_subtitles_as_a_string(openai: Results) -> None:
    assert openai["vtt"].startswith("WEBVTT\n\n00:00:0")


@with_openai
def test_openai_streams_a_transcription(openai: Results) -> None:
    *deltas, done = openai["stream"]
    assert done["type"] == "transcript.text.done"
    assert done["text"] == "".join(event["delta"] for event in deltas)
    assert_heard(WORDS, done["text"])


@with_openai
def test_openai_hears_audio_in_a_chat_and_streams_it(openai: Results) -> None:
    assert_heard(WORDS, content(openai["chat"]))
    assert streamed(openai["chat_stream"]) == content(openai["chat"])
    assert openai["chat_stream"][-1]["usage"]["prompt_tokens_details"]["audio_tokens"] == 375


@with_openai
def test_openai_gets_an_object_that_fits_its_schema(openai: Results) -> None:
    assert json.loads(content(openai["schema"]))["colour"] in COLOURS


@with_openai
@pytest.mark.parametrize("step", ["tool", "tool_stream"])
def test_openai_gets_a_tool_called(openai: Results, step: str) -> None:
    (choice,) = openai[step]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "paint"
    assert json.loads(call["function"]["arguments"])["colour"] in COLOURS


@with_openai
def test_openai_lists_models_and_finds_one_with_a_slash_in_its_name(openai: Results) -> None:
    assert [model["id"] for model in openai["models"]] == DEMOS
    assert openai["model"]["id"] == "mistralai/Voxtral-Mini-3B-2507"


@with_openai
def test_openai_names_the_wrong_field_in_its_own_error(openai: Results) -> None:
    error = openai["refused"]
    assert error["class"] == "BadRequestError"
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", "temperature")
    assert error["requestID"].startswith("req_")


@with_openai
def test_openai_transcribes_live(openai: Results) -> None:
    *events, completed = openai["live"]
    assert completed["transcript"] == "".join(event.get("delta", "") for event in events)
    assert_heard(WORDS, completed["transcript"])
    refused = openai.thrown("live_refused")
    assert refused == {"thrown": "unsupported_value", "message": "session.audio.input.transcription.diarize"}


@with_mistral
def test_mistral_transcribes_live(mistral: Results) -> None:
    *events, done = mistral["live"]
    assert (events[0]["type"], done["type"]) == ("session.created", "transcription.done")
    assert done["text"] == "".join(event["text"] for event in events if event["type"] == "transcription.text.delta")
    assert_heard(WORDS, done["text"])
    assert "voxtral-none" in mistral.thrown("live_refused")["message"]


@with_mistral
def test_mistral_transcribes_with_segments_where_it_asks_for_them(mistral: Results) -> None:
    assert_heard(WORDS, mistral["transcription"]["text"])
    assert mistral["transcription"]["usage"]["promptAudioSeconds"] == 5
    assert " ".join(segment["text"] for segment in mistral["segments"]["segments"]) == mistral["segments"]["text"]


@with_mistral
def test_mistral_may_name_words_to_expect_which_cost_no_tokens(mistral: Results) -> None:
    assert_heard(WORDS, mistral["biased"]["text"])
    assert mistral["biased"]["usage"]["promptTokens"] <= mistral["transcription"]["usage"]["promptTokens"]


@with_mistral
def test_mistral_streams_a_transcription_in_its_own_events(mistral: Results) -> None:
    events = [event["data"] for event in mistral["stream"]]
    text = "".join(event["text"] for event in events if event["type"] == "transcription.text.delta")
    assert events[-1]["type"] == "transcription.done"
    assert events[-1]["text"] == text
    assert_heard(WORDS, text)


@with_mistral
def test_mistral_hears_audio_in_a_chat_and_streams_it(mistral: Results) -> None:
    assert_heard(WORDS, content(mistral["chat"]))
    assert streamed([event["data"] for event in mistral["chat_stream"]]) == content(mistral["chat"])


@with_mistral
def test_mistral_lists_models_and_finds_one_by_its_alias(mistral: Results) -> None:
    assert [model["id"] for model in mistral["models"]] == DEMOS
    assert mistral["model"]["capabilities"]["audioTranscription"] is True


@with_mistral
def test_mistral_names_the_refused_field_in_its_own_error(mistral: Results) -> None:
    assert mistral["refused"]["class"] == "SDKError"
    assert (mistral["refused"]["status"], mistral["refused"]["param"]) == (400, "diarize")


@providers("openai", "mistral")
def test_the_ai_sdk_transcribes_with_segments(ai_sdk: Results) -> None:
    answer = ai_sdk["transcription"]
    assert_heard(WORDS, answer["text"])
    assert (answer["language"], answer["durationInSeconds"]) == ("en", 5)
    assert " ".join(segment["text"] for segment in answer["segments"]) == answer["text"]


@providers("openai", "mistral")
def test_the_ai_sdk_transcribes_live(ai_sdk: Results) -> None:
    answer = ai_sdk["live"]
    assert_heard(WORDS, answer["text"])
    assert "".join(answer["deltas"]) == answer["text"]


@providers("openai", "openai-compatible")
def test_the_ai_sdk_hears_audio_in_a_chat_and_streams_it(ai_sdk: Results) -> None:
    assert_heard(WORDS, ai_sdk["chat"]["text"])
    assert ai_sdk["chat"]["finishReason"] == "stop"
    assert "".join(ai_sdk["chat_stream"]["deltas"]) == ai_sdk["chat"]["text"]
    assert ai_sdk["chat_stream"]["usage"]["outputTokens"] > 5


@providers("mistral")
def test_the_ai_sdk_chats_without_audio_where_its_provider_cannot_send_any(ai_sdk: Results) -> None:
    """The demo model has nothing to say to a text; whole and streamed, it says the same."""
    assert ai_sdk["chat"]["usage"]["inputTokens"] > 5
    assert "".join(ai_sdk["chat_stream"]["deltas"]) == ai_sdk["chat"]["text"]


@providers(*ALL_PROVIDERS)
def test_the_ai_sdk_gets_an_object_that_fits_its_schema(ai_sdk: Results) -> None:
    assert ai_sdk["schema"]["colour"] in COLOURS


@providers("openai", "mistral")
def test_the_ai_sdk_gets_words_with_their_times(ai_sdk: Results) -> None:
    words = ai_sdk["words"]["segments"]
    assert [word["text"] for word in words] == ai_sdk["words"]["text"].split()
    assert all(a["endSecond"] <= b["startSecond"] for a, b in pairwise(words))


@providers(*ALL_PROVIDERS)
def test_the_ai_sdk_gets_a_tool_called(ai_sdk: Results) -> None:
    (call,) = ai_sdk["tool"]["calls"]
    assert ai_sdk["tool"]["finishReason"] == "tool-calls"
    assert call["toolName"] == "paint"
    assert call["input"]["colour"] in COLOURS


@providers("openai", "mistral")
def test_the_ai_sdk_names_the_refused_field_of_a_transcription(ai_sdk: Results) -> None:
    assert ai_sdk["refused"]["class"] == "APICallError"
    assert ai_sdk["refused"]["param"] in ("language", "diarize")


@providers(*ALL_PROVIDERS)
def test_the_ai_sdk_names_the_wrong_field_of_a_chat(ai_sdk: Results) -> None:
    error = ai_sdk["chat_refused"]
    assert (error["class"], error["status"], error["param"]) == ("APICallError", 400, "temperature")
