"""Bodies that nobody should send: whatever arrives, the answer is a clear one and the server goes on."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzzing import CHAT, FEW, FORM, JSON, SILENCE, TRANSCRIPTIONS, check, form, mutated, nothing_fails, post
from tests.serving import Server

__all__ = ["nothing_fails"]
pytestmark = pytest.mark.usefixtures("nothing_fails")

ODD_TEXT = (
    st.sampled_from(["", "null", "NaN", "\0", "\x7f", "\u202e", "\ufeff", "😀", "a" * 5000, "[" * 5000, "{" * 5000])
    | st.sampled_from(["[{[]: 1}]", "['a'", "-" * 3000, "[" + "-" * 3000 + "1]", '{"a": ' * 3000, "/etc/passwd"])
    | st.text(max_size=8)
)
ODD_NUMBER = (
    st.integers(-3, 3) | st.sampled_from([10**30, -(10**30), 1e-300, 1e300, 2**63, 0.5]) | st.floats(-2, 2, width=16)
)
ODD_JSON = st.recursive(
    st.none() | st.booleans() | ODD_NUMBER | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=6,
)


GOOD_FORM = form([("model", b"whisper-1"), ("language", b"en")])


@FEW
@given(st.binary(max_size=200) | mutated(GOOD_FORM) | st.integers(0, len(GOOD_FORM)).map(lambda n: GOOD_FORM[:n]))
def test_a_broken_form_is_refused(server: Server, body: bytes) -> None:
    check(post(server, body, FORM))


@FEW
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@example("undefined")
def test_any_boundary_and_charset_is_read_or_refused(server: Server, text: str) -> None:
    for kind in (f"multipart/form-data; boundary={text}", f"multipart/form-data; boundary=frontier; charset={text}",
                 f"multipart/form-data{text}", text):  # fmt: skip
        check(post(server, GOOD_FORM, kind.strip()), 400, 415)


@FEW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["language", "languages[]", "keywords", "keywords[0]", "keywords[x]", "prompt", "stream",
                             "temperature", "seed", "include", "chunking_strategy", "chunking_strategy[type]", "model",
                             "timestamp_granularities[]", "response_format", "file_url", "to_language", "file", "[]"]),
            ODD_TEXT | ODD_NUMBER.map(str),
        ),
        max_size=5,
    ),
    st.sampled_from(["transcriptions", "translations"]),
)  # fmt: skip
def test_any_text_in_any_field_is_read_or_refused(server: Server, fields: list[tuple[str, str]], task: str) -> None:
    body = form([("model", b"whisper-1"), *((name, value.encode()) for name, value in fields)])
    check(post(server, body, FORM, f"/v1/audio/{task}"), 400, 404)


def test_too_many_fields_or_files_and_too_long_ones_are_refused(server: Server) -> None:
    check(post(server, form([("a", b"")] * 3000), FORM), 400)
    check(post(server, form([("prompt", b"x" * 5_000_000)]), FORM), 400)
    check(post(server, form([("x" * 100_000, b"x")]), FORM), 400)
    check(post(server, b"--frontier\r\n" + b"X-Header: y\r\n" * 50_000 + b"\r\n--frontier--", FORM), 400)
    check(post(server, b"&a=" * 100_000, "application/x-www-form-urlencoded"), 400)


@FEW
@given(st.binary(max_size=60) | mutated(b'{"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}]}'))
def test_broken_json_is_refused(server: Server, body: bytes) -> None:
    for url in (CHAT, TRANSCRIPTIONS, "/v1/models/load"):
        check(post(server, body, JSON, url))


@pytest.mark.parametrize(
    "value",
    [
        "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "[" * 900 + "]" * 900, "NaN", "-Infinity",
        '"\\ud800"', "1" * 10_000, "1e999", "\ufeff1",
    ],
    ids=["lists", "objects", "hundreds", "nan", "infinity", "surrogate", "digits", "overflow", "mark"],
)  # fmt: skip
def test_json_that_python_would_stumble_over_is_refused(server: Server, value: str) -> None:
    for field in ("tools", "model", "temperature", "response_format", "logit_bias", "language", "stop", "unknown"):
        body = '{"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1, "%s": %s}'
        check(post(server, (body % (field, value)).encode(), JSON, CHAT), *([] if value == "1e999" else [400]))
    for url in (TRANSCRIPTIONS, "/v1/models/pull", "/v1/models/load", "/v1/models/unload"):
        check(post(server, f'{{"model": {value}, "model_name": {value}}}'.encode(), JSON, url), 400, 404)
        check(post(server, value.encode(), JSON, url), 400)


def test_json_that_is_no_object_is_refused(server: Server) -> None:
    for body in (
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b"true",
        b"[[]]",
        b"",
        b" ",
        b"{}",
        b"\xff",
        b'{"a": "\xed\xa0\x80"}',
    ):
        check(post(server, body, JSON, CHAT), 400)
        check(post(server, body, JSON), 400)


@FEW
@given(st.dictionaries(
    st.sampled_from(["model", "messages", "audio", "language", "stream", "stream_options", "temperature", "top_p",
                     "top_k", "min_p", "seed", "random_seed", "frequency_penalty", "presence_penalty",
                     "repetition_penalty", "logit_bias", "logprobs", "top_logprobs", "max_tokens", "min_tokens",
                     "n", "stop", "response_format", "tools", "tool_choice",
                     "parallel_tool_calls", "modalities", "functions"]),
    ODD_JSON, min_size=1, max_size=3,
))  # fmt: skip
def test_any_value_in_any_field_of_a_chat_is_read_or_refused(server: Server, fields: dict[str, Any]) -> None:
    chat = {"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_completion_tokens": 1}
    check(server.client.post(CHAT, json={**chat, **fields}))


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 1e-300}, {"temperature": 1e-30, "top_p": 0.5}, {"temperature": 1, "top_p": 1e-300},
     {"temperature": 2, "min_p": 1, "top_k": 10**30}, {"repetition_penalty": 0.01, "temperature": 1},
     {"logit_bias": {"5": 100}, "min_tokens": 10**30, "temperature": 1}, {"seed": -(10**30)},
     {"frequency_penalty": -2, "presence_penalty": 2}],
    ids=str,
)  # fmt: skip
def test_numbers_at_the_edge_of_what_is_allowed_are_obeyed(server: Server, fields: dict[str, Any]) -> None:
    chat = {"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 3}
    check(server.client.post(CHAT, json={**chat, **fields}), 200)
    data = {name: str(fields[name]) for name in ("temperature", "seed") if float(fields.get(name, 2)) <= 1}
    body = form([("model", b"whisper-1"), *((name, value.encode()) for name, value in data.items())], SILENCE)
    check(post(server, body, FORM), 200)


PART = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "input_audio", "audio_url", "file"]) | ODD_JSON,
        "text": ODD_JSON,
        "input_audio": ODD_JSON | st.fixed_dictionaries({"data": ODD_JSON}),
        "audio_url": ODD_JSON | st.fixed_dictionaries({"url": ODD_JSON}),
    },
)
CALL = st.fixed_dictionaries(
    {
        "id": ODD_JSON | st.just("abcdefghi"),
        "function": st.fixed_dictionaries({"name": ODD_TEXT, "arguments": ODD_JSON}),
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | ODD_JSON},
    optional={
        "content": ODD_JSON | st.lists(PART, max_size=3),
        "tool_calls": ODD_JSON | st.lists(CALL, max_size=2),
        "tool_call_id": ODD_JSON | st.just("abcdefghi"),
    },
)


@FEW
@given(st.lists(MESSAGE, min_size=1, max_size=4))
def test_any_conversation_is_answered_or_refused(server: Server, messages: list[dict[str, Any]]) -> None:
    check(server.client.post(CHAT, json={"model": "whisper-1", "messages": messages, "max_tokens": 1}))


SCHEMA = st.recursive(
    st.booleans() | st.fixed_dictionaries({"type": st.sampled_from(["string", "object", "number", "array", "no", 1])}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": ODD_JSON, "properties": st.dictionaries(ODD_TEXT, inner, max_size=2) | ODD_JSON, "items": inner,
            "enum": st.lists(ODD_JSON, max_size=3), "pattern": ODD_TEXT, "$ref": ODD_TEXT, "anyOf": st.lists(inner),
            "required": ODD_JSON, "minLength": ODD_NUMBER, "maxItems": ODD_NUMBER, "minimum": ODD_NUMBER,
        },
    ),
    max_leaves=5,
)  # fmt: skip


@FEW
@given(SCHEMA | ODD_JSON, ODD_TEXT)
def test_any_schema_is_obeyed_or_refused(server: Server, schema: Any, name: str) -> None:
    chat = {"model": "whisper-1", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
    json_schema = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    check(server.client.post(CHAT, json={**chat, "response_format": json_schema}), 200, 400)
    tool = {"type": "function", "function": {"name": name, "parameters": schema}}
    check(server.client.post(CHAT, json={**chat, "tools": [tool], "tool_choice": "required"}), 200, 400)


@pytest.mark.parametrize("length", ["10", "999999", "-1", "x", "1" * 400, "5, 6"])
def test_a_wrong_content_length_harms_nobody(server: Server, length: str) -> None:
    """What comes after it is no answer of ours: the connection ends. The server must go on, which the fixture sees."""
    host, port = server.url.removeprefix("http://").split(":")
    for kind, body in ((FORM, GOOD_FORM), (JSON, b"{}")):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert server.health()["status"] == "healthy"


def test_a_duplicate_key_or_field_takes_the_last_value(server: Server) -> None:
    body = b'{"model": "nothing", "model": "whisper-1", "audio": "UklGRg=="}'
    assert post(server, body, JSON).json()["error"]["code"] == "audio_damaged"
    twice = form([("model", b"nothing"), ("model", b"whisper-1")])
    assert post(server, twice, FORM).json()["error"]["code"] == "audio_unsupported"
    assert json.loads(post(server, GOOD_FORM, FORM).text)["error"]["code"] == "audio_unsupported"
