"""Mistral's own Python SDK, pointed at this server."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from tests.serving import DEMOS, Server
from tests.speech import assert_heard, clip

pytestmark = pytest.mark.client("mistralai (Python)")
MODEL = "voxtral-mini-latest"
SPOKEN = clip("voice_en-us")
FILE = {"file_name": "recording.flac", "content": SPOKEN.data}


@pytest.fixture
def client(server: Server) -> Iterator[Mistral]:
    with Mistral(server_url=server.url, api_key="none") as client:
        yield client


def test_a_transcription_has_every_field_that_the_sdk_insists_on(client: Mistral) -> None:
    answer = client.audio.transcriptions.complete(model=MODEL, file=FILE, language="en")
    assert_heard(SPOKEN.words, answer.text)
    assert (answer.model, answer.language) == (MODEL, "en")
    assert answer.usage.prompt_audio_seconds == -(-len(SPOKEN.samples()) // 16_000)


def test_asking_for_times_of_segments_gives_segments(client: Mistral) -> None:
    answer = client.audio.transcriptions.complete(model=MODEL, file=FILE, timestamp_granularities=["segment"])
    assert " ".join(segment.text for segment in answer.segments) == answer.text
    assert 0 <= answer.segments[0].start < answer.segments[0].end <= len(SPOKEN.samples()) / 16_000


def test_asking_for_times_of_words_gives_words_in_the_place_of_segments(client: Mistral) -> None:
    answer = client.audio.transcriptions.complete(model=MODEL, file=FILE, timestamp_granularities=["word"])
    assert [word.text for word in answer.segments] == answer.text.split()
    events = client.audio.transcriptions.stream(model=MODEL, file=FILE, timestamp_granularities=["word"])
    streamed = [event.data for event in events if event.event == "transcription.segment"]
    assert [(word.start, word.end) for word in streamed] == [(word.start, word.end) for word in answer.segments]


def test_words_to_expect_decide_between_spellings(client: Mistral) -> None:
    spoken = {"file_name": "gray.flac", "content": clip("sounds_like_gray").data}
    plain = client.audio.transcriptions.complete(model=MODEL, file=spoken)
    biased = client.audio.transcriptions.complete(model=MODEL, file=spoken, context_bias=["grey", "Lotti"])
    assert (plain.text, biased.text) == ("monday gray garden", "monday grey garden")
    assert biased.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_stream_speaks_mistrals_dialect(client: Mistral) -> None:
    events = list(client.audio.transcriptions.stream(model=MODEL, file=FILE, language="en"))
    names = [event.event for event in events]
    assert names[-1] == "transcription.done"
    assert names.count("transcription.segment") == 1
    assert "transcription.language" in names
    text = "".join(event.data.text for event in events if event.event == "transcription.text.delta")
    assert text == events[-1].data.text
    assert_heard(SPOKEN.words, text)


def test_a_refused_field_is_named_in_the_sdks_error(client: Mistral) -> None:
    with pytest.raises(SDKError) as caught:
        client.audio.transcriptions.complete(model=MODEL, file=FILE, diarize=True)
    assert caught.value.status_code == 400
    assert '"param":"diarize"' in caught.value.body


def test_a_chat_hears_audio_as_mistral_sends_it(client: Mistral) -> None:
    content = [
        {"type": "input_audio", "input_audio": base64.b64encode(SPOKEN.data).decode()},
        {"type": "text", "text": "Transcribe this audio."},
    ]
    messages = [{"role": "user", "content": content}]
    answer = client.chat.complete(model=MODEL, messages=messages, random_seed=1)
    assert_heard(SPOKEN.words, answer.choices[0].message.content)
    streamed = client.chat.stream(model=MODEL, messages=messages)
    text = "".join(event.data.choices[0].delta.content or "" for event in streamed if event.data.choices)
    assert text == answer.choices[0].message.content


def test_models_are_listed_and_found_by_alias(client: Mistral) -> None:
    assert [model.id for model in client.models.list().data] == DEMOS
    found = client.models.retrieve(model_id=MODEL)
    assert found.capabilities.audio_transcription
