"""Fields however clients spell them, and nothing but a clear refusal for what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import FormData

from api import fields
from api.dialects import speaks_mistral
from api.errors import ApiError
from api.transcriptions import parse

WORDS = st.lists(st.text("abcé", min_size=1, max_size=5), min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.integers() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["model", "language", "languages", "languages[]", "prompt", "response_format", "temperature", "seed", "stream",
     "include[]", "timestamp_granularities[]", "chunking_strategy", "chunking_strategy[type]", "keywords", "diarize",
     "known_speaker_names[]", "file_url", "file_id", "context_bias", "hotwords", "max_completion_tokens", "top_p",
     "top_k", "repetition_penalty"],
)  # fmt: skip


@given(WORDS)
def test_every_spelling_of_a_list_is_read_alike(words: list[str]) -> None:
    spellings: list[Any] = [
        FormData([("keywords", word) for word in words]),
        FormData([("keywords[]", word) for word in words]),
        FormData([(f"keywords[{i}]", word) for i, word in enumerate(words)]),
        FormData([("keywords", ",".join(words))]),
        FormData([("keywords", json.dumps(words))]),
        FormData([("keywords", repr(words))]),
        {"keywords": words},
    ]
    assert all(fields.listed(values, "keywords") == words for values in spellings)


@pytest.mark.parametrize("absent", [{}, {"a": ""}, {"a": None}, {"a": "null"}, {"a": []}, {"a[]": ""}, {"a": "[]"}])
def test_what_is_empty_is_absent(absent: dict[str, Any]) -> None:
    assert fields.listed(absent, "a") == []


@pytest.mark.parametrize("text", ["[{[]: 1}]", "[" * 10_000, "[" + "-" * 9_000 + "1]", "[1, 'a'", "[x]"])
def test_what_looks_like_a_list_and_is_none_is_text(text: str) -> None:
    assert fields.listed({"a": text}, "a") == [text.strip()] if "," not in text else ["[1", "'a'"]


@pytest.mark.parametrize(
    "values",
    [
        {"a": "x," * 100_001},
        {"a": ["x"] * 200_001},
        FormData([("a", "x" * 1_000)] * 201),
        {"a": "[" + "'x'," * 3_000 + "]"},  # Python's own way of writing a list takes long to read
    ],
)
def test_a_list_that_would_take_long_to_read_is_refused_by_name(values: Any) -> None:
    with pytest.raises(ApiError) as caught:
        fields.listed(values, "a")
    assert (caught.value.status, caught.value.param) == (400, "a")


def test_a_long_list_in_json_is_read() -> None:
    words = [f"{n:0>99}" for n in range(1_000)]
    assert fields.listed({"a": json.dumps(words)}, "a") == words


@pytest.mark.parametrize("value", [{"Lotti": 1}, 7, ["Lotti", 7], "[1, 2]", "[('Lotti',)]", object()])
def test_what_is_no_list_of_texts_is_refused_by_name(value: object) -> None:
    with pytest.raises(ApiError, match="list of texts") as caught:
        fields.listed({"a": value}, "a")
    assert (caught.value.status, caught.value.param) == (400, "a")


@pytest.mark.parametrize(
    "read", [lambda values: fields.number(values, "a", 0, 1), lambda values: fields.text(values, "a")]
)
@pytest.mark.parametrize("value", [10**400, "x" * 200_001])
def test_what_is_far_too_large_is_refused_by_name(read: Callable[[dict], object], value: object) -> None:
    with pytest.raises(ApiError) as caught:
        read({"a": value})
    assert (caught.value.status, caught.value.param) == (400, "a")


@pytest.mark.parametrize(
    ("given", "code"),
    [("Greek", "el"), ("malay", "ms"), ("haitian creole", "ht"), ("farsi", "fa"), ("iw", "he"), ("pt_BR", "pt"),
     ("en", "en"), ("German", "de"), ("burmese", "my")],
)  # fmt: skip
def test_languages_have_the_names_of_iso_and_of_whisper(given: str, code: str) -> None:
    assert fields.language({"language": given}) == code


def test_an_object_that_would_take_long_to_read_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match="longer than"):
        fields.nested({"a": "{" + " " * 200_000 + "}"}, "a")


def test_every_spelling_of_an_object_is_read_alike() -> None:
    for values in (
        {"s[type]": "server_vad", "s[threshold]": "0.5"},
        {"s": '{"type": "server_vad", "threshold": "0.5"}'},
        {"s": {"type": "server_vad", "threshold": "0.5"}},
    ):
        assert fields.nested(values, "s") == {"type": "server_vad", "threshold": "0.5"}
    assert fields.nested({"s": "auto"}, "s") == "auto"


@given(st.dictionaries(NAMES, st.text(max_size=20), max_size=6))
def test_a_form_is_understood_or_refused_by_name(values: dict[str, str]) -> None:
    understood_or_refused(FormData(list(values.items())))


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_a_json_body_is_understood_or_refused_by_name(values: dict[str, Any]) -> None:
    understood_or_refused(values)


def understood_or_refused(values: Any) -> None:
    refused = None
    try:
        parse(values, "transcribe")
    except ApiError as error:
        refused = error
    if refused:
        assert (refused.status, refused.param in str(NAMES)) == (400, True)
        assert len(refused.message) > 15


@pytest.mark.parametrize(
    ("headers", "values", "mistral"),
    [
        ({"x-stainless-lang": "python"}, {"diarize": "false"}, False),
        ({"user-agent": "mistral-client-python/3.7.0"}, {}, True),
        ({"user-agent": "curl/8"}, {"context_bias": "a"}, True),
        ({"user-agent": "curl/8"}, {"context_bias": "a", "response_format": "json"}, False),
        ({}, {"timestamp_granularities": "segment"}, True),
        ({}, {"timestamp_granularities[]": "segment"}, False),
        ({}, {"timestamp_granularities": "word", "include[]": "logprobs"}, False),
        ({}, {}, False),
    ],
)
def test_the_dialect_of_a_stream_is_the_clients(headers: dict[str, str], values: dict[str, str], mistral: bool) -> None:
    assert speaks_mistral(headers, values) is mistral
