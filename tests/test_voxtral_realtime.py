"""The realtime backend and its worker against transformers' own `generate()`, on a model with random weights and on the
demo."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import VoxtralRealtimeFeatureExtractor, VoxtralRealtimeForConditionalGeneration

from config import DEMO_REALTIME, Settings
from engine.backends import backend_of, load_backend, voxtral_realtime
from engine.backends.base import LoadOptions
from engine.backends.voxtral_realtime import ModelStream, RealtimeBackend
from engine.core import Job, Sampling, Token
from engine.guesses import Guesses
from engine.listeners import FILE_DELAY_MS, Listener, SampleQueue
from engine.live import Flushed, LiveOptions, LiveToken
from engine.live_worker import LiveWorker
from engine.native import supported
from engine.tokenizer import TextDecoder
from main import create_app
from tests.realtime import noise, write_random_model
from tests.speech import Clip, clip, clips_of, word_errors

pytestmark = pytest.mark.anyio
SPOKEN = clips_of("trained voice")[:4]
AUDIO = [noise(seconds, seed) for seed, seconds in enumerate((9.0, 1.77, 0.2))]  # the first rolls over both windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> RealtimeBackend:
    return load_backend(backend_of(folder), folder, LoadOptions("cpu", "float32", 8, "none"))


@pytest.fixture(scope="module")
def demo() -> RealtimeBackend:
    return load_backend("realtime", DEMO_REALTIME, LoadOptions("cpu", "float32", 8, "none"))


def transformers_model(folder: Path) -> VoxtralRealtimeForConditionalGeneration:
    """The model as transformers loads it."""
    return VoxtralRealtimeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def reference(folder: Path) -> VoxtralRealtimeForConditionalGeneration:
    return transformers_model(folder)


@contextmanager
def running(backend: RealtimeBackend) -> Iterator[LiveWorker]:
    worker = LiveWorker(backend)
    yield worker
    worker.close()


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> list[Listener]:
    """All that there were, with what each was given (`given`) and what it wrote (`tokens`), pads and all."""
    known: list[Listener] = []
    init, wrote, put = Listener.__init__, Listener.wrote, SampleQueue.put

    def beginning(listener: Listener, *args: Any) -> None:
        init(listener, *args)
        listener.tokens = []
        known.append(listener)

    def writing(listener: Listener, step: int, token: Token, guesses: Guesses) -> None:
        assert step + 1 == listener._prompt + len(listener.tokens)
        listener.tokens.append(token.id)
        wrote(listener, step, token, guesses)

    def taking(waiting: SampleQueue, samples: np.ndarray) -> None:
        waiting.given = [*getattr(waiting, "given", []), samples]
        put(waiting, samples)

    monkeypatch.setattr(Listener, "__init__", beginning)
    monkeypatch.setattr(Listener, "wrote", writing)
    monkeypatch.setattr(SampleQueue, "put", taking)
    return known


@torch.inference_mode()
def assert_as_transformers(
    model: VoxtralRealtimeForConditionalGeneration, backend: RealtimeBackend, listener: Listener
) -> None:
    """One forward of transformers' model over all that was heard and written: each token is the likeliest behind those
    before it, so they are those of `generate()`."""
    tokenizer, delay_ms = backend.tokenizer, listener._delay_ms
    _, *given = listener._samples.given  # the first is what is left of the silence before all audio
    samples = np.concatenate([np.zeros(tokenizer.left_pads * tokenizer.step, np.float32), *given])
    mel = VoxtralRealtimeFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    ids = torch.tensor([tokenizer.prompt(delay_ms) + listener.tokens])
    assert ids.shape[1] == len(samples) // tokenizer.step  # as many as generate() gives
    mel = mel[..., : 8 * (ids.shape[1] - 1)]
    logits = model(ids[:, :-1], mel, num_delay_tokens=delay_ms // 80).logits[0]
    logits[:, tokenizer.end_of_text] = -torch.inf
    assert logits.argmax(1)[-len(listener.tokens) :].tolist() == listener.tokens


def test_so_many_streams_are_heard_as_fit_beside_the_weights_with_full_windows(
    backend: RealtimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.limits.rows == 8  # of small ones any number fits
    # keys and values, layers, heads, numbers of each, positions of the window and of a call, float32
    stream = 2 * 4 * (4 * 4 * 32 * (50 + 255) + 3 * 2 * 64 * (125 + 23))
    for free, most in ((10 * stream, 8), (0, 1)):
        monkeypatch.setattr(voxtral_realtime, "free_memory", lambda device, free=free: free)
        assert backend._streams_that_fit() == most


Session = tuple[int, int, int, int | None, int, int | None]
SESSIONS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which audio
        st.sampled_from([80, 480, 2400]),  # delay
        st.integers(100, 40_000),  # samples in a piece
        st.sampled_from([None, 80, 400, 5000]),  # interval
        st.integers(0, 2),  # likeliest tokens
        st.none() | st.integers(0, 3),  # piece before which it is flushed
    ),
    min_size=1,
    max_size=3,
)


@hypothesis.settings(max_examples=3, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(sessions=SESSIONS)
def test_however_it_is_fed_and_beside_whomever_each_gets_the_tokens_of_generate(
    backend: RealtimeBackend,
    reference: VoxtralRealtimeForConditionalGeneration,
    listeners: list[Listener],
    sessions: list[Session],
) -> None:
    listeners.clear()

    async def one(worker: LiveWorker, session: Session) -> None:
        which, delay, size, interval, top, flush_before = session
        stream = worker.open(LiveOptions(delay, interval, top))
        for number, first in enumerate(range(0, len(AUDIO[which]), size)):
            if number == flush_before:
                stream.flush()
            stream.feed(AUDIO[which][first : first + size])
            await asyncio.sleep(0.001)
        stream.finish()
        text = [item.id async for item in stream if isinstance(item, LiveToken)]
        silent = worker.backend.tokenizer.silent
        (mine,) = [listener for listener in listeners if listener.stream is stream]
        assert text == [token for token in mine.tokens if token not in silent]

    async def all_of_them() -> None:
        with running(backend) as worker:
            await asyncio.gather(*(one(worker, session) for session in sessions))
            assert worker.running == 0

    asyncio.run(all_of_them())
    for each in listeners:
        assert_as_transformers(reference, backend, each)


@pytest.mark.parametrize("model", ["random", "demo"])
async def test_a_recording_gets_the_tokens_of_generate(
    backend: RealtimeBackend, demo: RealtimeBackend, folder: Path, model: str
) -> None:
    from mistral_common.protocol.transcription.request import StreamingMode, TranscriptionRequest
    from mistral_common.tokens.tokenizers.audio import Audio
    from transformers import AutoProcessor

    audio = AUDIO[1]
    if model == "demo":
        backend, folder, audio = demo, DEMO_REALTIME, SPOKEN[0].samples()
    processor = AutoProcessor.from_pretrained(folder)
    encoded = processor.tokenizer.tokenizer.encode_transcription(
        TranscriptionRequest(
            audio=Audio(audio, 16_000, "wav").to_base64("wav"), streaming=StreamingMode.OFFLINE, language=None,
            target_streaming_delay_ms=FILE_DELAY_MS,
        )
    )  # fmt: skip
    samples = encoded.audios[0].audio_array
    mel = processor.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    prompt = torch.tensor([encoded.tokens])
    with torch.inference_mode():
        ids = (
            transformers_model(folder)
            .generate(
                prompt, input_features=mel, num_delay_tokens=FILE_DELAY_MS // 80, do_sample=False, max_new_tokens=1000
            )[0]
            .tolist()
        )
    expected = [i for i in ids[prompt.shape[1] :] if i not in (*backend.tokenizer.silent, 2)]
    with running(backend) as worker:
        prompt = backend.tokenizer.transcription_prompt("en")
        stream = worker.submit(Job(prompt, (audio,), 1000, Sampling(), timed=lambda text: True), "test")
        assert [token.id async for token in stream] == expected
        assert worker.counters.reads < worker.counters.tokens
    done = stream.done
    assert (done.reason, done.output_tokens, len(done.spans)) == ("stop", len(expected), len(expected))
    assert (np.diff(done.spans) >= 0).all()
    assert done.spans[-1][1] <= len(audio)


async def test_a_long_session_takes_no_more_memory_than_a_short_one_and_does_not_drift(
    backend: RealtimeBackend, reference: VoxtralRealtimeForConditionalGeneration, listeners: list[Listener]
) -> None:
    def held(model: ModelStream, listener: Listener) -> int:
        tensors = [model.audio, model.hearing._memory, model.reading._memory, *model.edges.values()]
        numbers = sum(tensor.untyped_storage().nbytes() for tensor in tensors) + model.samples.nbytes
        return numbers, len(listener._samples) + len(listener._known) + len(listener._flushes)

    audio, sizes = noise(16, seed=9), []
    with running(backend) as worker:
        stream = worker.open(LiveOptions(delay_ms=160))
        for first in range(0, len(audio), 64_000):
            stream.feed(audio[first : first + 64_000])
            stream.flush()
            while not isinstance(await anext(stream), Flushed):
                pass
            (listener,) = listeners
            sizes.append(held(listener.model, listener))
            assert stream.backlog == 0
        stream.finish()
        assert [item async for item in stream] == []
    assert max(sizes[2:]) <= max(sizes[:2])
    assert_as_transformers(reference, backend, listener)


async def heard(backend: RealtimeBackend, clips: Sequence[Clip]) -> list[str]:
    async def hear(worker: LiveWorker, samples: np.ndarray) -> str:
        stream, decoder = worker.open(LiveOptions()), TextDecoder()
        stream.feed(samples)
        stream.finish()
        token_bytes = backend.tokenizer.token_bytes
        return "".join([decoder.add(token_bytes(item.id)) async for item in stream if isinstance(item, LiveToken)])

    with running(backend) as worker:
        return await asyncio.gather(*(hear(worker, each.samples()) for each in clips))


@pytest.mark.skipif(not supported(), reason="quantization needs an x86 CPU")
async def test_the_demo_model_hears_as_well_in_fewer_bits(demo: RealtimeBackend) -> None:
    async def errors(backend: RealtimeBackend) -> int:
        texts = await heard(backend, SPOKEN)
        return sum(word_errors(each.words, text) for each, text in zip(SPOKEN, texts, strict=True))

    exact = await errors(demo)
    assert exact <= 0.05 * sum(len(each.words.split()) for each in SPOKEN)
    for quantization, more in (("int8", 1), ("int4", 2)):
        options = LoadOptions("cpu", "float32", 8, quantization)
        assert await errors(load_backend("realtime", DEMO_REALTIME, options)) <= exact + more


async def test_the_server_transcribes_with_it_and_tells_when_words_were_spoken(folder: Path) -> None:
    app = create_app(Settings(voxtral_model_id=str(folder), voxtral_vad="off", chunk_store_mb=0))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://voxtral", timeout=100) as client:
        asked = {"model": "voxtral", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        response = await client.post("/v1/audio/transcriptions", files={"file": clip("short_0").data}, data=asked)
        assert response.status_code == 200, response.text
        answer = response.json()
        times = [time for word in answer["words"] for time in (word["start"], word["end"])]
        assert times
        assert times == sorted(times)
        assert times[-1] <= answer["duration"]
        metrics = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines())
        steps, reads = (
            float(metrics[f'voxtral_realtime_{name}{{model="{folder.name}"}}']) for name in ("steps", "reads")
        )
        assert 0 < reads < steps
        refused = await client.post(
            "/v1/audio/transcriptions",
            files={"file": clip("short_0").data},
            data={"model": "voxtral", "prompt": "In capitals, please."},
        )
        assert refused.status_code == 400
        assert "follows no instructions" in refused.json()["error"]["message"]
    await app._app.state.service.models.close()
