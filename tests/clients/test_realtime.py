"""The realtime clients of Python: OpenAI's, of today and of its beta, and Mistral's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import soxr
from mistralai.client import Mistral
from mistralai.extra.exceptions import RealtimeTranscriptionWSError
from mistralai.extra.realtime import AudioFormat, RealtimeTranscription, UnknownRealtimeEvent

from tests.serving import Server
from tests.sockets import SPOKEN, pcm, pieces
from tests.speech import assert_heard

# OpenAI's own of its beta, and one that websockets gives to OpenAI's client.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
with_openai = pytest.mark.client("openai (Python)")
with_mistral = pytest.mark.client("mistralai (Python)")
PREFIX = "conversation.item.input_audio_transcription"
LOGPROBS = "item.input_audio_transcription.logprobs"
NEAR = {"noise_reduction": {"type": "near_field"}}  # as in OpenAI's examples; none holds


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    address = f"{server.url}/v1"
    sockets = address.replace("http", "ws")  # the beta's client would ask for wss:
    strict = {"_strict_response_validation": True}
    with openai.OpenAI(base_url=address, websocket_base_url=sockets, api_key="none", **strict) as client:
        yield client


def heard_live(connection: Any) -> list[Any]:
    """All events up to the text of the one utterance that is sent, at 24 kHz: the SDK's types know no other rate."""
    for piece in pieces(soxr.resample(SPOKEN.samples(), 16_000, 24_000), rate=24_000):
        connection.input_audio_buffer.append(audio=piece)
    connection.input_audio_buffer.commit()
    events = []
    for event in connection:
        assert event.type != "error", event
        events.append(event)
        if event.type == f"{PREFIX}.completed":
            return events
    raise AssertionError(events)


@with_openai
@pytest.mark.parametrize("model", ["whisper-1", "voxtral-realtime"])
def test_openai_transcribes_live_with_scores(client: openai.OpenAI, model: str) -> None:
    heard = {"transcription": {"model": model, "language": "en"}, "turn_detection": None, **NEAR}
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session={"type": "transcription", "audio": {"input": heard}, "include": [LOGPROBS]})
        created, updated, *events, completed = heard_live(connection)
    assert (created.type, updated.type) == ("session.created", "session.updated")
    assert updated.session.audio.input.transcription.language == "en"
    assert updated.session.audio.input.noise_reduction is None
    assert_heard(SPOKEN.words, completed.transcript)
    deltas = [event for event in events if event.type == f"{PREFIX}.delta"]
    assert "".join(event.delta for event in deltas) == completed.transcript
    scores = [score.token for event in deltas for score in event.logprobs]
    assert scores == [score.token for score in completed.logprobs]
    assert completed.usage.input_token_details.audio_tokens > 0


@with_openai
def test_openais_client_secret_opens_a_session_as_it_was_configured(client: openai.OpenAI) -> None:
    asked = {"type": "transcription", "audio": {"input": {"turn_detection": None, **NEAR}}}
    secret = client.realtime.client_secrets.create(session=asked)
    assert (secret.session.audio.input.turn_detection, secret.session.audio.input.noise_reduction) == (None, None)
    browser = client.with_options(api_key=secret.value)
    with browser.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert_heard(SPOKEN.words, heard_live(connection)[-1].transcript)


@with_openai
def test_openais_beta_transcribes_live(client: openai.OpenAI) -> None:
    asked = {"input_audio_format": "pcm16", "input_audio_transcription": {"model": "whisper-1", "language": "en"},
             "input_audio_noise_reduction": {"type": "near_field"}}  # fmt: skip
    session = client.beta.realtime.transcription_sessions.create(**asked)
    assert session.client_secret.value.startswith("ek_")
    with client.beta.realtime.connect(model="whisper-1") as connection:
        connection.transcription_session.update(session={**asked, "turn_detection": None})
        created, updated, *events, completed = heard_live(connection)
    assert (created.type, updated.type) == ("session.created", "transcription_session.updated")
    assert "conversation.item.created" in {event.type for event in events}
    assert_heard(SPOKEN.words, completed.transcript)


@pytest.fixture
def realtime(server: Server) -> Iterator[RealtimeTranscription]:
    with Mistral(server_url=server.url, api_key="none") as client:
        yield client.audio.realtime


async def spoken() -> AsyncIterator[bytes]:
    data = pcm(SPOKEN.samples())
    for start in range(0, len(data), 16_000):
        yield data[start : start + 16_000]


@with_mistral
@pytest.mark.anyio
@pytest.mark.parametrize("model", ["voxtral-mini-latest", "voxtral-realtime"])
async def test_mistral_transcribes_live_and_tells_of_turns(realtime: RealtimeTranscription, model: str) -> None:
    asked = {"language": "en", "turn_detection": {"min_silence_ms": 400}, "target_streaming_delay_ms": 480}
    events = [event async for event in realtime.transcribe_stream(spoken(), model, **asked)]
    assert not [event for event in events if isinstance(event, UnknownRealtimeEvent)]
    *_, done = events
    assert "turn.start" in {event.type for event in events}
    assert "".join(event.text for event in events if event.type == "transcription.text.delta") == done.text
    segments = [event for event in events if event.type == "transcription.segment"]
    assert [segment.text for segment in segments] == [segment.text for segment in done.segments]
    assert_heard(SPOKEN.words, done.text)
    assert done.usage.prompt_audio_seconds >= 4


@with_mistral
@pytest.mark.anyio
async def test_mistral_says_what_is_wrong_with_an_update_and_goes_on(realtime: RealtimeTranscription) -> None:
    model = "voxtral-mini-latest"
    async with await realtime.connect(model, AudioFormat(encoding="pcm_s16le", sample_rate=16_000)) as connection:
        await connection.send_audio(b"\0" * 32_000)
        await connection.update_session(AudioFormat(encoding="pcm_s16le", sample_rate=8_000))
        await connection.end_audio()
        created, updated, error, *_, done = [event async for event in connection]
    assert (created.type, updated.type, done.type) == ("session.created", "session.updated", "transcription.done")
    assert error.error.code == 400
    assert "audio_format cannot change" in error.error.message
    assert done.text == ""


@with_mistral
@pytest.mark.anyio
async def test_mistral_raises_over_a_model_that_is_not_there(realtime: RealtimeTranscription) -> None:
    with pytest.raises(RealtimeTranscriptionWSError, match="voxtral-none"):
        await realtime.connect("voxtral-none")
