"""The translation endpoint: every field of a transcription is obeyed or refused there too."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serving import Server
from tests.speech import clip

URL = "/v1/audio/translations"


def translate(server: Server, **fields: Any) -> httpx.Response:
    return server.client.post(URL, files={"file": clip("short_0").data}, data={"model": "whisper-1", **fields})


def prompt_tokens(server: Server, **fields: Any) -> int:
    response = translate(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()["usage"]["input_token_details"]["text_tokens"]


def test_language_prompt_and_keywords_reach_the_model(server: Server) -> None:
    bare = prompt_tokens(server)
    told = prompt_tokens(server, language="de")
    assert told > bare
    assert prompt_tokens(server, language="german") == prompt_tokens(server, **{"languages[]": "de"}) == told
    expected = prompt_tokens(server, prompt="Kubernetes")
    assert expected > bare
    assert prompt_tokens(server, **{"keywords[]": "Kubernetes"}) == expected
    assert prompt_tokens(server, context_bias="Kubernetes") == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "klingon"}, "language"),
        ({"to_language": "fr"}, "to_language"),
        ({"include[]": "everything"}, "include"),
        ({"include[]": "logprobs", "response_format": "srt"}, "include"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"chunking_strategy": "by_hand"}, "chunking_strategy"),
        ({"diarize": "true"}, "diarize"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "true", "response_format": "vtt"}, "response_format"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    response = translate(server, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_segments_and_logprobs_come_when_they_are_asked_for(server: Server) -> None:
    bare = translate(server).json()
    assert "logprobs" not in bare
    assert "segments" not in bare
    fields = {"include[]": "logprobs", "timestamp_granularities[]": "segment", "to_language": "en"}
    body = translate(server, **fields).json()
    assert body["logprobs"]
    assert body["segments"]
    verbose = translate(server, response_format="verbose_json", language="de").json()
    assert (verbose["task"], verbose["language"]) == ("translate", "english")


def test_a_translation_can_be_streamed(server: Server) -> None:
    events = [
        json.loads(line.removeprefix("data: "))
        for line in translate(server, stream="true").text.splitlines()
        if line.startswith("data: ")
    ]
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == "".join(event["delta"] for event in events[:-1])
