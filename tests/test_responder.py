"""Conversations that are more than a transcript: several recordings and turns, choices, stops, tools and schemas."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError, OpenAI

from answer import AnswerDelta, AnswerDone, ToolCallMade, Writer
from config import DEMO_MODEL, Settings
from engine.core import Sampling, Token
from engine.tokenizer import VoxtralTokenizer
from responder import AnswerRequest, Responder
from tests.serving import Server
from tests.speech import clip, wav
from transcript import Conversation, Usage

MODEL = "whisper-1"
SPOKEN = clip("voice_en-us")
AUDIO = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SPOKEN.data).decode(), "format": "flac"}}
QUESTION = {"type": "text", "text": "What is said in this recording?"}
ASKED = [{"role": "user", "content": [AUDIO, QUESTION]}]
WINDOW_TOKENS = 375  # of audio for each begun window of 30 s
TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "description": "Keep a note.",
        "parameters": {
            "type": "object", "properties": {"text": {"type": "string", "maxLength": 20}}, "required": ["text"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}  # fmt: skip


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(server: Server, messages: list[dict[str, Any]], **fields: Any) -> httpx.Response:
    return server.client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **fields})


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "DOUBLE"])
def test_a_question_may_be_about_stereo_of_any_samples(server: Server, subtype: str) -> None:
    """At the model's rate, where nothing is resampled."""
    stereo = np.stack([SPOKEN.samples()] * 2, axis=1)
    data = base64.b64encode(wav(stereo, subtype=subtype)).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    answer = ask(server, [{"role": "user", "content": [audio, QUESTION]}], max_tokens=2)
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 2)


def test_a_question_about_channels_in_opposite_phase_is_about_what_is_said_in_them(server: Server) -> None:
    def answer(channels: list[int]) -> str:
        data = base64.b64encode(wav(SPOKEN.samples()[:, None] * np.array(channels))).decode()
        audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        asked = [{"role": "user", "content": [audio, QUESTION]}]
        return ask(server, asked, max_tokens=20, temperature=0).json()["choices"][0]["message"]["content"]

    assert answer([1, -1]) == answer([1, 1]) != answer([0, 0])


def test_transcripts_tell_the_likeliest_tokens_too(client: OpenAI) -> None:
    asked = [{"role": "user", "content": [AUDIO, {"type": "text", "text": "Transcribe this audio."}]}]
    answer = client.chat.completions.create(model=MODEL, messages=asked, logprobs=True, top_logprobs=2)
    scores = answer.choices[0].logprobs.content
    assert scores
    assert all(len(score.top_logprobs) == 2 for score in scores)


@pytest.mark.anyio
async def test_a_file_stays_open_for_the_thread_that_decodes_it_when_the_client_has_gone() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Recording:
        def blocks(self) -> Iterator[np.ndarray]:
            yield np.zeros(16_000, np.float32)
            began.set()
            assert go_on.wait(60)
            ended.set()
            yield np.zeros(16_000, np.float32)

        def close(self) -> None:
            assert ended.is_set()

    settings = Settings()
    models = SimpleNamespace(check_available=lambda: None, loaded=None)
    responder = Responder(settings, None, None)
    opening = asyncio.create_task(responder.open(models, AnswerRequest(Conversation(()), Sampling()), [Recording()]))
    await asyncio.to_thread(began.wait, 60)
    opening.cancel()
    await asyncio.sleep(0.05)
    assert not opening.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert ended.is_set()


def test_several_recordings_and_turns_are_heard_in_one_context(server: Server) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [AUDIO, AUDIO, {"type": "text", "text": "Are these the same?"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [AUDIO, {"type": "text", "text": "And this one?"}]},
    ]
    answer = ask(server, messages, max_tokens=20)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens_details"]["audio_tokens"] == 3 * WINDOW_TOKENS


def test_a_chat_needs_no_audio(server: Server) -> None:
    answer = ask(server, [{"role": "user", "content": "Say red."}], max_tokens=5).json()
    assert answer["usage"]["prompt_tokens_details"]["audio_tokens"] == 0
    assert 1 <= answer["usage"]["completion_tokens"] <= 5


def test_the_language_of_a_recording_is_told_to_the_model(server: Server) -> None:
    def text_tokens(**fields: Any) -> int:
        answer = ask(server, ASKED, max_tokens=1, **fields).json()
        return answer["usage"]["prompt_tokens_details"]["text_tokens"]

    assert text_tokens(language="de") > text_tokens() + 5
    refused = ask(server, [{"role": "user", "content": "Say red."}], language="de")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "language")


def test_an_answer_says_when_its_limit_cut_it(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_choices_share_the_prompt_and_draw_for_themselves(client: OpenAI) -> None:
    wanted = {"model": MODEL, "messages": ASKED, "n": 4, "temperature": 2.0, "seed": 5, "max_tokens": 12}
    answer = client.chat.completions.create(**wanted)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    streamed = ["", "", "", ""]
    for chunk in client.chat.completions.create(**wanted, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: OpenAI, stream: bool) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASKED).choices[0].message.content
    stop = whole[len(whole) // 2 :][:4]
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, stop=[stop, "no such text"], stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text, reason = "".join(choice.delta.content or "" for choice in chunks), chunks[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"


def test_logprobs_come_with_the_likeliest_others(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, logprobs=True, top_logprobs=3)
    scores = answer.choices[0].logprobs.content
    assert (
        b"".join(bytes(score.bytes) for score in scores).decode().strip() == answer.choices[0].message.content.strip()
    )
    for score in scores:
        assert len(score.top_logprobs) == 3
        assert score.top_logprobs[0].logprob == pytest.approx(score.logprob)  # greedy: the likeliest was taken
        assert score.logprob <= 0


def test_a_schema_holds_whatever_the_model_would_rather_say(client: OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"], "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=100, logit_bias={},
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}},
    )  # fmt: skip
    found = json.loads(answer.choices[0].message.content)
    assert found["colour"] in ("red", "blue")
    assert isinstance(found["count"], int)


def test_json_object_is_an_object_and_no_list(server: Server) -> None:
    choice = ask(server, ASKED, response_format={"type": "json_object"}, max_tokens=40).json()["choices"][0]
    text = choice["message"]["content"]
    assert text.lstrip().startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_is_refused(server: Server) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "nonsense"}}}
    answer = ask(server, ASKED, response_format=response_format)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"


def test_a_tool_that_must_be_called_is_called_with_fitting_arguments(client: OpenAI) -> None:
    wanted = {"model": MODEL, "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 100}
    choice = client.chat.completions.create(**wanted, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "note"
    assert set(json.loads(call.function.arguments)) == {"text"}
    assert len(call.id) == 9

    name = arguments = ""
    for chunk in client.chat.completions.create(**wanted, parallel_tool_calls=False, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            name += delta.function.name or ""
            arguments += delta.function.arguments
    assert (name, arguments) == ("note", call.function.arguments)

    history = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "kept"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=5)
    assert answer.usage.completion_tokens >= 1


def test_a_tool_may_have_no_parameters(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "stop"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=40
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("stop", {})


@pytest.mark.parametrize("odd", [{"format": "uri"}, {"pattern": "^(?!x).*$"}], ids=["unknown_format", "look_ahead"])
def test_schemas_hold_without_strict_as_far_as_they_can_be_held(client: OpenAI, odd: dict[str, str]) -> None:
    """Most clients leave `strict` out. Keywords that no grammar can hold are refused only to those that say it."""
    colour = {"enum": ["red", "blue"]}
    schema = {
        "type": "object", "properties": {"colour": colour}, "required": ["colour"], "additionalProperties": False,
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "paint", "parameters": schema}}
    wanted = {"model": MODEL, "messages": ASKED, "max_tokens": 40}
    (call,) = client.chat.completions.create(
        **wanted, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ).choices[0].message.tool_calls  # fmt: skip
    assert call.function.name == "paint"
    assert json.loads(call.function.arguments)["colour"] in colour["enum"]
    held = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    answer = client.chat.completions.create(**wanted, response_format=held)
    assert json.loads(answer.choices[0].message.content)["colour"] in colour["enum"]

    schema["properties"] = {"colour": {**colour, "type": "string"}, "odd": {"type": "string", **odd}}
    answer = client.chat.completions.create(**wanted, response_format=held)
    assert answer.choices[0].message.content.strip().startswith('{"colour":"')
    called = client.chat.completions.create(**wanted, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    assert called.choices[0].message.tool_calls[0].function.name == "paint"
    held["json_schema"]["strict"] = True
    with pytest.raises(BadRequestError, match="response_format cannot be obeyed"):
        client.chat.completions.create(**wanted, response_format=held)


def test_audio_beyond_the_context_is_refused_with_the_numbers(server: Server) -> None:
    answer = ask(server, [{"role": "user", "content": [AUDIO] * 90 + [QUESTION]}])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert f"{90 * WINDOW_TOKENS} of audio" in answer.json()["detail"]
    assert "32768" in answer.json()["detail"]


def test_a_bias_for_a_token_that_does_not_exist_is_refused(server: Server) -> None:
    answer = ask(server, ASKED, logit_bias={"999999": 5})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias")
    transcript = ask(server, [{"role": "user", "content": [AUDIO]}], logit_bias={"999999": 5})
    assert (transcript.status_code, transcript.json()["error"]["param"]) == (400, "logit_bias")


def test_every_penalty_changes_what_is_said(client: OpenAI) -> None:
    def text(**fields: Any) -> str:
        answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=30, **fields)
        return answer.choices[0].message.content

    plain = text()
    assert text() == plain
    assert text(extra_body={"min_tokens": 29}) != plain
    assert text(logit_bias={"2": 100}) == ""


TOKENIZER = VoxtralTokenizer(DEMO_MODEL)
LETTERS = st.text("ab", max_size=30)


def written(text: str, stops: tuple[str, ...]) -> tuple[str, str, bool]:
    """The deltas joined, the final text, and whether a stop text was met."""
    writer, deltas = Writer(0, TOKENIZER, stops), []
    for token in TOKENIZER._tekken.encode(text, bos=False, eos=False):
        deltas += [event.text for event in writer.add(Token(token, -0.1)) if isinstance(event, AnswerDelta)]
        if writer.stopped:
            break
    *last, done = writer.finish("stop", Usage())
    assert isinstance(done, AnswerDone)
    return "".join(deltas) + "".join(event.text for event in last), done.answer.text, writer.stopped


@given(LETTERS, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_deltas_are_the_text_before_the_first_stop_wherever_tokens_end(text: str, stops: list[str]) -> None:
    ends = [text.index(stop) for stop in stops if stop in text]
    joined, final, stopped = written(text, tuple(stops))
    assert joined == final
    assert stopped == bool(ends)
    if ends:
        assert final == text[: len(final)]
        assert not any(stop in final for stop in stops)
    else:
        assert final == text


def test_two_calls_after_a_text_become_a_text_and_two_calls() -> None:
    def ids(text: str) -> list[int]:
        return TOKENIZER._tekken.encode(text, bos=False, eos=False)

    tokens = ids("Noted.")
    for name, arguments in (("note", '{"text": "a"}'), ("send", "{}")):
        tokens += [TOKENIZER.tool_calls, *ids(name), TOKENIZER.tool_arguments, *ids(arguments)]
    writer = Writer(0, TOKENIZER)
    events = [event for token in tokens for event in writer.add(Token(token, -0.1))]
    events += writer.finish("stop", Usage())
    calls = [event.call for event in events if isinstance(event, ToolCallMade)]
    assert [(call.name, call.arguments) for call in calls] == [("note", '{"text": "a"}'), ("send", "{}")]
    answer = events[-1].answer
    assert (answer.text, answer.finish_reason) == ("Noted.", "tool_calls")
