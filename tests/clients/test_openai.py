"""The official `openai` package against the real server."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.serving import Server
from tests.speech import Clip, assert_heard, clip, clips_of, encode, word_error_rate

pytestmark = pytest.mark.client("openai (Python)")
MODEL = "whisper-1"


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True) as client:
        yield client


def test_every_clip_is_heard(client: openai.OpenAI) -> None:
    def hear(spoken: Clip) -> tuple[str, str]:
        with spoken.path.open("rb") as file:
            return spoken.words, client.audio.transcriptions.create(model=MODEL, file=file, language="en").text

    known = clips_of("trained voice", "loudness", "short", "long pauses", "half a minute", "a full chunk")
    with ThreadPoolExecutor(8) as threads:
        assert word_error_rate([*threads.map(hear, known)]) <= 0.03
        assert word_error_rate([*threads.map(hear, clips_of("unheard voice"))]) <= 0.10


@pytest.mark.parametrize("spoken", clips_of("no speech"), ids=lambda c: c.file)
def test_silence_and_noise_are_the_empty_string(client: openai.OpenAI, spoken) -> None:
    assert client.audio.transcriptions.create(model=MODEL, file=spoken.path).text == ""


@pytest.mark.parametrize("spoken", clips_of("sound-alike"), ids=lambda c: c.file)
def test_sound_alikes_are_spelled_the_common_way(client: openai.OpenAI, spoken) -> None:
    assert client.audio.transcriptions.create(model=MODEL, file=spoken.path, language="en").text == spoken.words


def test_json_is_the_default_and_counts_tokens(client: openai.OpenAI) -> None:
    spoken = clip("voice_en-us")
    answer = client.audio.transcriptions.create(model=MODEL, file=spoken.data, language="en")
    assert_heard(spoken.words, answer.text)
    assert answer.usage.type == "tokens"
    assert answer.usage.input_token_details.audio_tokens == 375
    assert answer.usage.input_tokens == 375 + 9
    assert answer.usage.output_tokens > len(spoken.words.split())


def test_text_srt_and_vtt_are_strings(client: openai.OpenAI) -> None:
    spoken = clip("voice_en-us")
    text, srt, vtt = (
        client.audio.transcriptions.create(model=MODEL, file=spoken.path, response_format=kind)
        for kind in ("text", "srt", "vtt")
    )
    assert_heard(spoken.words, text)
    cue = r"(\d+\n)?00:00:0\d[,.]\d{3} --> 00:00:0\d[,.]\d{3}\n(?P<text>[^\n]+(\n[^\n]+)?)\n\n"
    assert re.fullmatch(f"({cue})+".replace("?P<text>", ""), srt)
    for shown in (srt, vtt):
        lines = " ".join(match["text"] for match in re.finditer(cue, shown))
        assert lines.split() == text.split()
    assert vtt.startswith("WEBVTT\n\n00:00:0")


def test_words_have_times_with_segments_and_without(client: openai.OpenAI) -> None:
    spoken = clip("sparse_1")
    words, both = (
        client.audio.transcriptions.create(
            model=MODEL, file=spoken.path, response_format="verbose_json", timestamp_granularities=wanted
        )
        for wanted in (["word"], ["word", "segment"])
    )
    assert " ".join(word.word for word in words.words) == words.text
    assert words.segments is None
    assert both.words == words.words
    assert len(both.segments) > 2
    for segment in both.segments:
        inside = [word.word for word in both.words if segment.start <= word.start < segment.end]
        assert " ".join(inside) == segment.text


def test_a_stream_ends_with_the_times_that_were_asked_for(client: openai.OpenAI) -> None:
    *_, done = client.audio.transcriptions.create(
        model=MODEL, file=clip("voice_en-us").path, stream=True, timestamp_granularities=["word"]
    )
    assert " ".join(word["word"] for word in done.words) == done.text


def test_verbose_json_carries_segments_with_times_inside_the_audio(client: openai.OpenAI) -> None:
    spoken = clip("minute")
    answer = client.audio.transcriptions.create(
        model=MODEL, file=spoken.path, response_format="verbose_json", language="english"
    )
    assert answer.language == "english"
    assert answer.duration == pytest.approx(spoken.seconds, abs=0.1)
    assert answer.usage.seconds == 60
    assert " ".join(segment.text for segment in answer.segments) == answer.text
    for segment in answer.segments:
        assert 0 <= segment.start < segment.end <= answer.duration
        assert segment.avg_logprob < 0
        assert segment.no_speech_prob < 0.5
        assert segment.tokens


def test_streamed_deltas_add_up_to_the_final_text(client: openai.OpenAI) -> None:
    spoken = clip("dense_1")
    events = list(client.audio.transcriptions.create(model=MODEL, file=spoken.path, stream=True, language="en"))
    deltas = [event.delta for event in events[:-1]]
    assert len(deltas) > 20
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(deltas)
    assert events[-1].usage.output_tokens >= len(deltas)
    assert_heard(spoken.words, events[-1].text)


def test_a_prompt_is_heard_by_the_model_and_counted(client: openai.OpenAI) -> None:
    spoken = clip("voice_en-gb")
    plain = client.audio.transcriptions.create(model=MODEL, file=spoken.path)
    prompted = client.audio.transcriptions.create(model=MODEL, file=spoken.path, prompt="Kubernetes, Lotti")
    assert_heard(spoken.words, prompted.text)
    assert prompted.usage.input_token_details.text_tokens > plain.usage.input_token_details.text_tokens + 20


def test_temperature_samples(client: openai.OpenAI) -> None:
    """The demo model is sure of most words, so it is asked until it has said something else."""
    texts: set[str] = set()
    for _ in range(40):
        texts.add(client.audio.transcriptions.create(model=MODEL, file=clip("minute").path, temperature=1.0).text)
        if len(texts) > 1:
            return
    raise AssertionError("40 transcripts at temperature 1 were the same")


@pytest.mark.parametrize("container_and_codec", [("ipod", "aac"), ("webm", "libopus"), ("mp3", "libmp3lame")])
def test_compressed_speech_is_heard(client: openai.OpenAI, container_and_codec: tuple[str, str]) -> None:
    spoken = clip("voice_en-us+m1")
    file = io.BytesIO(encode(spoken.samples(), *container_and_codec))
    assert_heard(spoken.words, client.audio.transcriptions.create(model=MODEL, file=file, language="en").text)


def test_audio_in_a_chat_message_is_transcribed(client: openai.OpenAI) -> None:
    spoken = clip("voice_en-gb")
    audio = {"data": base64.b64encode(spoken.data).decode(), "format": "wav"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": audio},
                    {"type": "text", "text": "What did the speaker say?"},
                ],
            }
        ],
    )
    assert_heard(spoken.words, answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.audio_tokens == 375


def test_chat_streams_with_usage_when_asked(client: openai.OpenAI) -> None:
    audio = {"data": base64.b64encode(clip("voice_en-gb").data).decode(), "format": "wav"}
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert_heard(clip("voice_en-gb").words, text)
    assert chunks[-1].usage.completion_tokens > 5


def test_max_tokens_cuts_and_says_so(client: openai.OpenAI) -> None:
    audio = {"data": base64.b64encode(clip("voice_en-gb").data).decode(), "format": "wav"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}],
        max_completion_tokens=3,
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_models_are_listed_and_found_by_every_name(client: openai.OpenAI) -> None:
    model, _ = client.models.list().data
    assert model.id == "voxtral-demo"
    for name in ("voxtral-demo", "whisper-1", "mistralai/Voxtral-Mini-3B-2507"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-2")
    assert caught.value.code == "model_not_found"


def test_errors_name_the_field_and_carry_the_request_id(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model=MODEL, file=b"not audio at all, but text", language="en")
    assert (caught.value.code, caught.value.param) == ("audio_unsupported", "file")
    assert caught.value.request_id.startswith("req_")


@pytest.mark.anyio
async def test_sixteen_requests_at_once_are_all_right_and_share_the_batch(server: Server) -> None:
    """How much less time that takes than one after another is measured by bench.throughput."""
    spoken = [clip(name) for name in ("voice_en-us", "voice_en-gb", "gain-20", "gain-30")] * 4
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        requests = [client.audio.transcriptions.create(model=MODEL, file=c.path, language="en") for c in spoken]
        together = asyncio.gather(*requests)
        running = []
        while not together.done():
            running.append((await asyncio.to_thread(server.health))["chunks_running"])
        answers = await together
    assert word_error_rate([(c.words, a.text) for c, a in zip(spoken, answers, strict=True)]) <= 0.05
    assert max(running) >= 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the method, not of the endpoint
@pytest.mark.parametrize("kind", ["json", "text", "verbose_json", "srt", "vtt"])
def test_a_translation_comes_in_every_format(client: openai.OpenAI, kind: str) -> None:
    answer = client.audio.translations.create(model=MODEL, file=clip("voice_en-us").path, response_format=kind)
    text = answer if isinstance(answer, str) else answer.text
    assert text.strip()
    if kind == "verbose_json":
        assert answer.language == "english"


def test_logprobs_come_with_the_text_and_with_its_deltas(client: openai.OpenAI) -> None:
    spoken = clip("voice_en-us")
    answer = client.audio.transcriptions.create(model=MODEL, file=spoken.path, include=["logprobs"])
    assert b"".join(bytes(map(int, score.bytes)) for score in answer.logprobs).decode().strip() == answer.text
    events = client.audio.transcriptions.create(model=MODEL, file=spoken.path, include=["logprobs"], stream=True)
    *deltas, done = list(events)
    assert [score.token for delta in deltas for score in delta.logprobs] == [score.token for score in answer.logprobs]
    assert all(score.logprob <= 0 for score in done.logprobs)
