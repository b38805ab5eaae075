"""LiteLLM, by each of its providers that take an address. drive_litellm.py makes the calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.outside import Results, litellm_command, results
from tests.serving import DEMOS, Server
from tests.speech import assert_heard, clip

pytestmark = pytest.mark.client("LiteLLM")
WORDS = clip("voice_en-us").words


@pytest.fixture(scope="module")
def driven(server: Server, recording: Path) -> Results:
    return results([*litellm_command(), "tests/clients/drive_litellm.py", server.url, recording])


@pytest.mark.parametrize("step", ["openai", "async"])
def test_openai_transcribes_with_segments_because_it_always_asks_for_verbose_json(driven: Results, step: str) -> None:
    answer = driven[step]
    assert_heard(WORDS, answer["text"])
    assert (answer["language"], answer["duration"]) == ("english", 5.0)
    assert " ".join(segment["text"] for segment in answer["segments"]) == answer["text"]


def test_json_counts_tokens(driven: Results) -> None:
    assert_heard(WORDS, driven["json"]["text"])
    assert driven["json"]["usage"]["input_token_details"]["audio_tokens"] == 375


@pytest.mark.parametrize("provider", ["hosted_vllm", "mistral"])
def test_other_providers_transcribe_too(driven: Results, provider: str) -> None:
    assert_heard(WORDS, driven[provider]["text"])


def test_a_stream_is_not_refused_and_holds_openais_events(driven: Results) -> None:
    """LiteLLM asks for verbose_json with it, and hands the events over as text: it cannot read them itself."""
    lines = driven["stream"]["text"].splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert_heard(WORDS, "".join(event.get("delta", "") for event in events))
    assert events[-1]["type"] == "transcript.text.done"


@pytest.mark.parametrize("step", ["chat", "chat_hosted_vllm"])
def test_a_chat_hears_audio(driven: Results, step: str) -> None:
    assert_heard(WORDS, driven[step]["choices"][0]["message"]["content"])
    assert driven[step]["usage"]["prompt_tokens_details"]["audio_tokens"] == 375


def test_a_chat_streams_with_usage(driven: Results) -> None:
    assert_heard(WORDS, "".join(driven["chat_stream"]["deltas"]))
    assert len(driven["chat_stream"]["deltas"]) > 5
    assert driven["chat_stream"]["usage"]["completion_tokens"] > 5


def test_a_schema_is_kept(driven: Results) -> None:
    assert json.loads(driven["schema"])["colour"] in ("red", "blue")


def test_models_are_listed(driven: Results) -> None:
    assert driven["models"] == DEMOS


@pytest.mark.parametrize("step", ["refused", "refused_chat"])
def test_a_wrong_field_is_named_in_a_bad_request_error(driven: Results, step: str) -> None:
    assert "BadRequestError" in driven[step]["classes"]
    assert driven[step]["param"] == "temperature"


def test_the_mistral_provider_says_what_was_refused(driven: Results) -> None:
    assert '"param":"diarize"' in driven["refused_mistral"]["message"]
