"""The OpenAPI document and the server are held against each other, and /docs against a machine without a network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from config import DEMO_MODEL, Settings
from main import create_app
from tests.serving import Server
from tests.speech import clip

PROMISED = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, unsupported_method,
]  # fmt: skip


DOCUMENT = create_app(Settings(voxtral_model_id=str(DEMO_MODEL)))._app.openapi()
API = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def brief() -> Iterator[Server]:
    """Its answers are short: what the model makes of arbitrary conversations might go on for thousands of tokens."""
    with Server("--demo", MAX_ANSWER_TOKENS="64") as running:
        yield running


# A pull would ask the Hub, whose absence is a 502; tests/test_models.py has a hub of its own. Translations are read and
# described by the very code that transcriptions are.
@API.exclude(path=["/v1/models/pull", "/v1/audio/translations"]).parametrize()
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_whatever_the_document_allows_or_forbids_is_answered_as_it_says(case: schemathesis.Case, brief: Server) -> None:
    case.call_and_validate(base_url=brief.url, checks=PROMISED, timeout=60)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_document_is_the_one_that_is_served(server: Server) -> None:
    assert server.client.get("/openapi.json").json() == DOCUMENT


def test_every_example_of_a_body_runs_and_is_answered_as_described(server: Server) -> None:
    ran = 0
    for method, path, operation in operations():
        content = operation.get("requestBody", {"content": {}})["content"]
        for name, example in content.get("application/json", {}).get("examples", {}).items():
            response = server.client.request(method, path, json=example["value"])
            assert response.status_code == 200, f"{path} {name}: {response.text}"
            if response.headers["content-type"].startswith("application/json"):
                API[path][method].validate_response(response)
            ran += 1
    assert ran == 10


@pytest.mark.parametrize("fields", [
    {}, {"response_format": "verbose_json"}, {"response_format": "text"}, {"response_format": "srt"},
    {"response_format": "vtt"}, {"include[]": "logprobs", "timestamp_granularities[]": "segment"}, {"stream": "true"},
    {"include[]": "logprobs", "top_logprobs": "2"},
    {"timestamp_granularities[]": "word"}, {"timestamp_granularities[]": "word", "response_format": "verbose_json"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_every_form_of_a_transcript_is_described(server: Server, task: str, fields: dict[str, str]) -> None:
    path, data = f"/v1/audio/{task}", {"model": "whisper-1", **fields}
    request = server.client.build_request("POST", path, files={"file": clip("short_0").data}, data=data)
    request.read()
    response = server.client.send(request)
    kind = response.headers["content-type"].split(";")[0]
    assert kind in DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    if kind == "application/json":
        API[path]["POST"].validate_response(response)


def test_a_described_chat_answer_has_scores_and_calls_too(server: Server) -> None:
    path, messages = "/v1/chat/completions", [{"role": "user", "content": "Hello."}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for more in ({"logprobs": True, "top_logprobs": 2, "n": 2}, {"tools": [tool], "tool_choice": "required"}):
        body = {"model": "whisper-1", "messages": messages, "max_tokens": 20, **more}
        API[path]["POST"].validate_response(server.client.post(path, json=body))


def test_a_chat_whose_transcript_may_not_be_whole_is_described_and_tells_it_as_a_transcription_does(
    server: Server,
) -> None:
    path, said = "/v1/chat/completions", [{"role": "user", "content": "Transcribe this audio."}]
    audio = base64.b64encode(clip("voice_en-us").data).decode()
    answer = server.client.post(path, json={"model": "whisper-1", "audio": audio, "messages": said, "max_tokens": 3})
    API[path]["POST"].validate_response(answer)
    ((code, start),) = [(warning["code"], warning["start"]) for warning in answer.json()["warnings"]]
    assert (code, start < 2) == ("length", True)
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_every_field_and_status_says_what_it_means() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for method, path, operation in operations():
        assert operation.get("description"), f"{method} {path}"
        assert all(answer["description"] for answer in operation["responses"].values())
        assert "422" not in operation["responses"]
        for content in operation.get("requestBody", {"content": {}})["content"].values():
            schema = content["schema"]
            schema = schemas[schema["$ref"].rsplit("/")[-1]] if "$ref" in schema else schema
            for name, field in schema["properties"].items():
                assert field.get("description") or "$ref" in str(field), f"{method} {path}: {name}"
    for reference in re.findall(r"'\$ref': '([^']*)'", str(DOCUMENT)):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_the_pages_of_the_documentation_need_no_network(server: Server) -> None:
    for page in ("/docs", "/redoc"):
        text = server.client.get(page).text
        parts = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert len(parts) >= 2
        for part in parts:
            assert part.startswith("/"), f"{page} loads {part}"
            assert server.client.get(part).status_code == 200
