"""Lotti's own requests, byte for byte, read by its own parser's rules: a line must begin with `data: `, and a line that
is split over two reads of the socket is lost."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any

import httpx
import pytest

from tests.serving import Server
from tests.speech import assert_heard, clip, encode

pytestmark = pytest.mark.client("Lotti")

SKILL_PROMPT = """Transcribe the provided audio file(s). Do NOT translate - keep the original language.
Format the transcription clearly with proper punctuation.
Start a new paragraph when there are small pauses in the speech.
Remove filler words.

IMPORTANT - SPEECH DICTIONARY (MUST USE):
The following terms are domain-specific and MUST be spelled exactly as shown when they appear in the audio.
Required spellings: ["macOS", "iPhone", "Flutter"]
"""


def recording(name: str = "dense_1") -> str:
    """M4A, AAC-LC at 48 kHz, as the phone records it."""
    return base64.b64encode(encode(clip(name).samples(), "ipod", "aac")).decode()


def body(stream: bool, content: str = "Transcribe this audio.", name: str = "dense_1", **more: Any) -> dict[str, Any]:
    return {
        "model": "mistralai/Voxtral-Mini-3B-2507",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0.0,
        "max_tokens": 4096,
        "audio": recording(name),
        "stream": stream,
        **more,
    }


def stream_as_lotti_does(server: Server, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events, read chunk by chunk with no buffer between them, until `[DONE]`."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(request),
        {"Content-Type": "application/json", "Accept": "text/event-stream"},
    )
    response = connection.getresponse()
    assert response.status == 200
    events = []
    while data := response.read1(65536):
        for line in data.decode().split("\n"):
            if line == "data: [DONE]":
                connection.close()
                return events
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    raise AssertionError("the stream ended without [DONE]")


@pytest.mark.parametrize("content", ["Transcribe this audio.", "Transcribe the audio to natural text.", SKILL_PROMPT])
def test_a_recording_streams_as_text(server: Server, content: str) -> None:
    events = stream_as_lotti_does(server, body(True, content, "voice_en-gb"))
    for event in events:
        assert isinstance(event["id"], str)
        assert isinstance(event["created"], int)
        assert isinstance(event["choices"], list)
    deltas = [e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]]
    assert_heard(clip("voice_en-gb").words, "".join(deltas))
    assert len(deltas) > 10
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_a_plain_request_to_transcribe_uses_transcription_mode(server: Server) -> None:
    """Transcription mode has five ids around the audio without a language; an instruction would add its own."""
    usage = stream_as_lotti_does(server, body(True, name="voice_en-us"))[-1]["usage"]
    assert usage["prompt_tokens_details"]["text_tokens"] == 5
    instructed = stream_as_lotti_does(server, body(True, SKILL_PROMPT, "voice_en-us"))[-1]["usage"]
    assert instructed["prompt_tokens_details"]["text_tokens"] > 100


def test_a_language_is_passed_on(server: Server) -> None:
    usage = stream_as_lotti_does(server, body(True, name="voice_en-us", language="en"))[-1]["usage"]
    assert usage["prompt_tokens_details"]["text_tokens"] == 9


def test_without_streaming_one_json_answers(server: Server) -> None:
    response = server.client.post("/v1/chat/completions", json=body(False))
    answer = response.json()
    assert response.status_code == 200
    assert_heard(clip("dense_1").words, answer["choices"][0]["message"]["content"])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_max_tokens_of_4096_does_not_cut_long_recordings(server: Server) -> None:
    """It is a cap for each chunk; here three chunks together are let through."""
    response = server.client.post("/v1/chat/completions", json=body(False, name="minute", max_tokens=400))
    assert_heard(clip("minute").words, response.json()["choices"][0]["message"]["content"])


def test_each_event_is_one_write(server: Server) -> None:
    """Read from the bare socket: every chunk of the chunked body is one whole event."""
    request = json.dumps(body(True)).encode()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/v1/chat/completions", request, {"Content-Type": "application/json"})
    response = connection.getresponse()
    chunks = []
    while size := int(response.fp.readline(), 16):
        chunks.append(response.fp.read(size))
        response.fp.readline()
    connection.close()
    assert len(chunks) > 20
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1 for chunk in chunks)


def test_health_has_the_fields_lotti_reads(server: Server) -> None:
    health = server.health()
    assert health["status"] == "healthy"
    assert health["model_available"] is True
    assert health["model_loaded"] is True
    assert isinstance(health["device"], str)
    assert health["max_audio_minutes"] == 240.0


def test_errors_have_both_forms_that_lotti_reads(server: Server) -> None:
    response = server.client.post("/v1/chat/completions", json=body(True, audio=base64.b64encode(b"diary").decode()))
    assert response.status_code == 400
    assert response.json()["detail"] == response.json()["error"]["message"]


def test_no_audio_is_a_clear_400(server: Server) -> None:
    request = body(True)
    del request["audio"]
    response = server.client.post("/v1/chat/completions", json=request)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "missing_audio"


def test_json_transcriptions_of_other_lotti_providers(server: Server) -> None:
    for field in ("audio", "file"):
        response = server.client.post(
            "/v1/audio/transcriptions", json={"model": "whisper-1", field: recording("voice_en-us")}
        )
        assert_heard(clip("voice_en-us").words, response.json()["text"])


def test_the_omlx_provider_sends_octets_and_a_key(server: Server) -> None:
    response = httpx.post(
        f"{server.url}/v1/audio/transcriptions",
        files={"file": ("audio.m4a", base64.b64decode(recording("voice_en-gb")), "application/octet-stream")},
        data={"model": "whisper-1", "response_format": "json", "prompt": "garden, window"},
        headers={"Authorization": "Bearer anything"},
        timeout=60,
    )
    assert_heard(clip("voice_en-gb").words, response.json()["text"])
