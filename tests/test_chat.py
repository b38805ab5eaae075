"""The chat endpoint: every way to put audio into a conversation, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from instructions import means_transcription
from tests.serving import Server
from tests.speech import assert_heard, clip, wav
from transcript import Conversation, Message, Slot

URL = "/v1/chat/completions"
SPOKEN = clip("voice_en-us")
BASE64 = base64.b64encode(SPOKEN.data).decode()
DATA_URL = f"data:audio/flac;base64,{BASE64}"


def ask(server: Server, content: Any, **fields: Any) -> httpx.Response:
    messages = fields.pop("messages", [{"role": "user", "content": content}])
    return server.client.post(URL, json={"model": "whisper-1", "messages": messages, **fields})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": DATA_URL, "format": "flac"}},
        {"type": "input_audio", "input_audio": BASE64},
        {"type": "audio_url", "audio_url": {"url": DATA_URL}},
        {"type": "audio_url", "audio_url": DATA_URL},
        {"audio_url": DATA_URL},
        {"type": "file", "file": {"file_data": DATA_URL, "filename": "a.flac"}},
    ],
    ids=["openai", "data_url", "mistral", "vllm", "vllm_simple", "vllm_bare", "file"],
)
def test_audio_parts_of_every_dialect_are_heard(server: Server, part: dict[str, Any]) -> None:
    response = ask(server, [part, {"type": "text", "text": "Transcribe this audio."}])
    assert_heard(SPOKEN.words, response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("model", ["whisper-1", "voxtral-mini-transcribe-realtime-2602"])
def test_bare_samples_are_heard_where_their_format_says_so(server: Server, model: str) -> None:
    """The whole request of EchoPanel, whose model is the second, and what is wrong with it without the format."""
    samples = (SPOKEN.samples() * 32_767).astype("<i2").tobytes()
    url = f"data:audio/pcm;base64,{base64.b64encode(samples).decode()}"
    part = {"type": "audio_url", "audio_url": {"url": url, "format": "pcm_s16le_16000"}}
    answer = ask(server, [part], model=model, max_tokens=256, temperature=0.0)
    assert_heard(SPOKEN.words, answer.json()["choices"][0]["message"]["content"])
    del part["audio_url"]["format"]
    assert ask(server, [part], model=model).json()["error"]["code"] == "audio_unsupported"


def test_text_may_stand_before_the_audio_and_a_system_message_before_both(server: Server) -> None:
    messages = [
        {"role": "system", "content": "Answer with the transcript only."},
        {"role": "user", "content": [{"type": "text", "text": "Write down every word."}, {"audio_url": DATA_URL}]},
    ]
    answer = ask(server, None, messages=messages).json()
    assert answer["usage"]["prompt_tokens_details"]["text_tokens"] > 10
    assert answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "audio"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "audio"),
        ({"stop": ["."]}, "audio"),
        ({"response_format": {"type": "json_object"}}, "audio"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"stop": ["."] * 17}, "stop"),
        ({"stop": "." * 201}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prompt": "Notes on gardens."}, "prompt"),
        ({"chunking_strategy": {"type": "server_vad"}}, "chunking_strategy"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"include": ["logprobs"]}, "include"),
        ({"diarize": True}, "diarize"),
        ({"keywords": {"Lotti": 1}}, "keywords"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"language": "klingon"}, "language"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"audio": "***"}, "audio"),
        ({"audio": {"data": BASE64}}, "audio"),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    response = ask(server, "Transcribe", **{"audio": BASE64, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_neutral_values_of_every_field_are_fine(server: Server) -> None:
    fields = {
        "n": 1, "stop": None, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0.0,
        "response_format": {"type": "text"}, "max_tokens": 0, "max_completion_tokens": 0, "seed": -9007199254740991,
        "stream": None, "user": "me", "store": False, "prompt": "", "chunking_strategy": "auto", "keywords": [None],
        "timestamp_granularities": [], "include": None, "diarize": False, "context_bias": None, "hotwords": "",
    }  # fmt: skip
    assert ask(server, "Transcribe", audio=BASE64, **fields).status_code == 200


def test_an_address_is_not_fetched(server: Server) -> None:
    response = ask(server, [{"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/secret.wav"}}])
    assert response.status_code == 400
    assert "fetches nothing" in response.json()["detail"]


def test_an_instruction_too_long_for_the_model_is_refused_before_the_stream(server: Server) -> None:
    response = ask(server, "xyz " * 30_000, audio=BASE64, stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_too_short_audio_is_refused_before_the_stream(server: Server) -> None:
    audio = base64.b64encode(wav(SPOKEN.samples()[:500])).decode()
    response = ask(server, "Transcribe", audio=audio, stream=True)
    assert response.json()["error"]["code"] == "audio_too_short"


def test_an_empty_recording_is_no_plain_chat(server: Server) -> None:
    assert ask(server, "Transcribe and add punctuation.", audio="").json()["error"]["code"] == "audio_empty"
    spoken = {"voice": "alloy", "format": "wav"}  # asks OpenAI for a spoken answer
    assert ask(server, "Hello.", audio=spoken, max_tokens=3).status_code == 200


def test_silence_is_an_empty_answer(server: Server) -> None:
    audio = base64.b64encode(clip("silence").data).decode()
    assert ask(server, "Transcribe this audio.", audio=audio).json()["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize(
    "text",
    ["", "Transcribe this audio.", "transcribe", "Please transcribe the following recording.", " Transcribe to text!\n",
     "Transcribe the audio to natural text.", "transcribe\t this\n\naudio, please ."],
)  # fmt: skip
def test_asking_for_nothing_but_a_transcript_means_transcription_mode(text: str) -> None:
    assert means_transcription(Conversation((Message("user", (Slot.AUDIO, text)),)))


@pytest.mark.parametrize(
    "text",
    [
        "Transcribe this audio in French.",
        "What is said?",
        "Transcribe this audio. Remove filler words.",
        "Summarise",
        "transcribe" + " " * 200_000 + "x",
        "please " * 50_000 + "transcribe",
    ],
)
def test_asking_for_more_means_an_instruction(text: str) -> None:
    assert not means_transcription(Conversation((Message("user", (Slot.AUDIO, text)),)))


def test_much_white_space_is_little_work() -> None:
    assert not means_transcription(Conversation((Message("user", (Slot.AUDIO, "transcribe" + " " * 200_000 + "x")),)))


def test_a_system_message_is_an_instruction() -> None:
    turns = (Message("system", ("Be brief.",)), Message("user", (Slot.AUDIO, "Transcribe")))
    assert not means_transcription(Conversation(turns))
    assert not means_transcription(Conversation(turns[1:], response_format={"type": "json_object"}))
