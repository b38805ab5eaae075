"""The engine against transformers' own `generate()`, and what happens when jobs fail, leave, or the thread dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import DEMO_MODEL
from engine.backends import load_backend
from engine.backends.base import LoadOptions
from engine.backends.voxtral import VoxtralBackend
from engine.core import EngineStopped, Job, JobFailed, PromptTooLong, Sampling, Token
from engine.job_stream import JobStream
from engine.loading import Placement, load_model
from engine.native import supported
from engine.sampling import Sampler
from engine.steps import GraphSteps
from engine.tokenizer import TextDecoder
from engine.worker import Worker
from instructions import instructed
from tests.graphs import stand_in_for_cuda_graphs
from tests.scripted import ScriptedBackend, held
from tests.speech import assert_heard, clip

pytestmark = pytest.mark.anyio
NAMES = ("voice_en-us", "short_0", "dense_0", "gain-20", "minute", "silence", "voice_en-gb", "sparse_0")


THREADS_LEFT = """
import asyncio, os, time
import numpy as np
import engine.backends.voxtral
from aligner import Aligner
from config import DEMO_ALIGNER, DEMO_MODEL
from engine.backends import LoadOptions, load_aligner, load_backend

def threads():
    return len(os.listdir("/proc/self/task"))

before, patience = threads(), time.monotonic() + 10
backend = load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 8, "int8"))
aligner = Aligner(load_aligner(DEMO_ALIGNER, "cpu"), ("demo",))
asyncio.run(aligner.spans(np.zeros(16_000, np.float32), [b" one"]))
waiting = 2  # for the next to align, and for a bar of tqdm that hangs
while threads() > before + waiting and time.monotonic() < patience:
    time.sleep(0.1)
print(threads() - before - waiting)
"""


@pytest.mark.skipif(not supported(), reason="counts the threads that Linux knows, and loads in int8")
def test_loads_and_alignments_end_the_threads_that_they_calculated_with() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    left = subprocess.run([sys.executable, "-c", THREADS_LEFT], env=environment, capture_output=True, text=True)
    assert left.stdout == "0\n", left.stderr


@pytest.fixture(scope="module")
def backend() -> VoxtralBackend:
    return load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 8, "none"))


@pytest.fixture(scope="module")
def fixed_backend() -> VoxtralBackend:
    """As on a GPU: prefills of several jobs, steps of rounded sizes, and a cache that holds six long jobs or eight
    short ones; on a GPU, where there is one, with captured graphs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_backend("transformers", DEMO_MODEL, LoadOptions(device, "float32", 8, "none", positions=6 * 1536))


@contextmanager
def running(backend: VoxtralBackend) -> Iterator[Worker]:
    worker = Worker(backend)
    yield worker
    worker.close()
    backend.release_memory()


@pytest.fixture
def worker(backend: VoxtralBackend) -> Iterator[Worker]:
    with running(backend) as worker:
        yield worker


@pytest.fixture
def fixed_worker(fixed_backend: VoxtralBackend) -> Iterator[Worker]:
    with running(fixed_backend) as worker:
        yield worker


def job(worker: Worker, name: str, language: str | None = "en", max_tokens: int = 700, **sampling: float) -> Job:
    prompt = worker.backend.tokenizer.transcription_prompt(language)
    return Job(prompt, (clip(name).samples(),), max_tokens, Sampling(**sampling))


async def tokens_of(stream: JobStream) -> list[int]:
    return [token.id async for token in stream]


def generate(backend: VoxtralBackend, name: str, language: str | None) -> list[int]:
    """Token ids by transformers alone: its own model, the prompt of its processor, its `generate()`."""
    from transformers import AutoProcessor, VoxtralForConditionalGeneration

    processor = AutoProcessor.from_pretrained(DEMO_MODEL)
    inputs = processor.apply_transcription_request(
        audio=[clip(name).samples()], model_id=str(DEMO_MODEL), language=language, sampling_rate=16_000, format=["wav"]
    )
    model = VoxtralForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=700, do_sample=False)
    answer = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return [i for i in answer if i not in (backend.tokenizer.end_of_text, 11)]


@pytest.fixture(scope="module")
def expected(backend: VoxtralBackend) -> dict[str, list[int]]:
    return {name: generate(backend, name, "en") for name in NAMES}


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
async def test_greedy_tokens_equal_generate_in_batches_of_mixed_lengths(
    worker: Worker, expected: dict[str, list[int]], batch: int
) -> None:
    await assert_heard_as_expected(worker, expected, NAMES[-batch:])


async def assert_heard_as_expected(worker: Worker, expected: dict[str, list[int]], names: tuple[str, ...]) -> None:
    with held(worker):
        streams = [worker.submit(job(worker, name), "test") for name in names]
    heard = await asyncio.gather(*map(tokens_of, streams))
    assert dict(zip(names, heard, strict=True)) == {name: expected[name] for name in names}


async def test_greedy_tokens_equal_generate_in_shared_prefills_and_rounded_steps(
    fixed_worker: Worker, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, together = fixed_worker.backend.prefill, []

    def noting(jobs: list[Job], row: int) -> torch.Tensor:
        together.append(len({fixed_worker.backend.size(job).prompt for job in jobs}))
        return prefill(jobs, row)

    monkeypatch.setattr(fixed_worker.backend, "prefill", noting)
    await assert_heard_as_expected(fixed_worker, expected, NAMES)
    assert max(together) == 2  # prompts of two lengths in one prefill


async def test_a_captured_step_gives_the_tokens_of_generate(
    fixed_worker: Worker, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_cuda_graphs(monkeypatch)
    backend = fixed_worker.backend
    logits = torch.empty(8, backend.tokenizer.vocabulary_size)
    monkeypatch.setattr(backend, "_steps", GraphSteps(backend._step, backend._cache, logits))
    await assert_heard_as_expected(fixed_worker, expected, ("gain-20", "short_0", "silence", "voice_en-gb"))


async def test_a_step_that_finds_no_memory_to_be_captured_is_run_without(
    fixed_worker: Worker, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stand_in_for_cuda_graphs(monkeypatch)
    monkeypatch.setattr(torch.cuda, "graph", full)
    backend = fixed_worker.backend
    logits = torch.empty(8, backend.tokenizer.vocabulary_size)
    monkeypatch.setattr(backend, "_steps", GraphSteps(backend._step, backend._cache, logits))
    await assert_heard_as_expected(fixed_worker, expected, ("short_0", "voice_en-gb"))


async def test_jobs_that_join_and_leave_midway_do_not_change_each_other(
    worker: Worker, expected: dict[str, list[int]]
) -> None:
    first = worker.submit(job(worker, "minute"), "test")
    started = [await anext(first) for _ in range(20)]
    leaving = worker.submit(job(worker, "dense_0"), "test")
    joining = worker.submit(job(worker, "voice_en-us"), "test")
    await anext(leaving)
    leaving.cancel()
    late = worker.submit(job(worker, "gain-20"), "test")
    rest, joined, last = await asyncio.gather(tokens_of(first), tokens_of(joining), tokens_of(late))
    assert [token.id for token in started] + rest == expected["minute"]
    assert joined == expected["voice_en-us"]
    assert last == expected["gain-20"]


Arrival = tuple[str, int, int | None, int]
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(["short_0", "voice_en-us", "silence", "voice_en-gb", "gain-20"]),
        st.integers(0, 30),  # turns of the event loop before it arrives
        st.none() | st.integers(1, 10),  # tokens after which it leaves
        st.sampled_from([300, 700]),  # tokens that it may come to; no text is that long
    ),
    min_size=1,
    max_size=8,
)


@hypothesis.settings(max_examples=6, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(arrivals=ARRIVALS)
def test_whoever_comes_and_goes_each_gets_the_tokens_of_generate(
    worker: Worker, expected: dict[str, list[int]], arrivals: list[Arrival]
) -> None:
    assert_each_gets_the_tokens_of_generate(worker, expected, arrivals)


@hypothesis.settings(max_examples=6, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(arrivals=ARRIVALS)
def test_and_so_in_shared_prefills_and_rounded_steps(
    fixed_worker: Worker, expected: dict[str, list[int]], arrivals: list[Arrival]
) -> None:
    assert_each_gets_the_tokens_of_generate(fixed_worker, expected, arrivals)


def assert_each_gets_the_tokens_of_generate(
    worker: Worker, expected: dict[str, list[int]], arrivals: list[Arrival]
) -> None:
    async def one(name: str, turns: int, leaves_after: int | None, max_tokens: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0.001)
        stream, heard = worker.submit(job(worker, name, max_tokens=max_tokens), name), []
        async for token in stream:
            heard.append(token.id)
            if len(heard) == leaves_after:
                stream.cancel()
                break
        assert heard == expected[name][:leaves_after]

    async def all_of_them() -> None:
        await asyncio.gather(*(one(*arrival) for arrival in arrivals))

    asyncio.run(all_of_them())
    while worker.running or worker.waiting:  # rows of those who left come back; the timeout of all tests is the limit
        time.sleep(0.01)


async def test_prompt_ids_equal_the_official_processor(backend: VoxtralBackend) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(DEMO_MODEL)
    samples = clip("voice_en-us").samples()
    for language in ("en", None):
        official = processor.apply_transcription_request(
            audio=[samples], model_id="x", language=language, sampling_rate=16_000, format=["wav"]
        )["input_ids"][0].tolist()
        prompt = backend.tokenizer.transcription_prompt(language)
        before, after = prompt.texts
        assert [*before, *[24] * backend.audio_tokens(len(samples)), *after] == official
    instruction, grammar = backend.tokenizer.chat_prompt(instructed("What is said?"))
    text = backend.tokenizer._tekken.encode("What is said?", bos=False, eos=False)
    assert instruction.texts == ((1, 3, 25), (*text, 4))
    assert grammar is None


async def test_a_cancelled_job_gives_its_row_back(worker: Worker) -> None:
    streams = [worker.submit(job(worker, "minute"), "test") for _ in range(10)]
    await anext(streams[0])
    for stream in streams:
        stream.cancel()
    assert await asyncio.wait_for(tokens_of(worker.submit(job(worker, "short_0"), "test")), 20)
    assert (worker.running, worker.waiting) == (0, 0)


async def test_a_short_request_does_not_wait_for_all_chunks_of_a_long_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, prefilled = worker.backend.prefill, []
    rows_are_taken, short_has_come = threading.Event(), threading.Event()

    def noting(jobs: list[Job], row: int) -> torch.Tensor:
        prefilled.extend(jobs)
        if len(prefilled) == 8:
            rows_are_taken.set()
            assert short_has_come.wait(20)
        return prefill(jobs, row)

    monkeypatch.setattr(worker.backend, "prefill", noting)
    with held(worker):
        chunks = [worker.submit(job(worker, "sparse_0"), "the long one") for _ in range(24)]
    await asyncio.to_thread(rows_are_taken.wait)
    short = worker.submit(job(worker, "short_0"), "the short one")
    short_has_come.set()
    assert await tokens_of(short)
    assert prefilled[8] is short.job
    for chunk in chunks:
        chunk.cancel()


async def test_the_cap_ends_a_job_and_says_so(worker: Worker) -> None:
    stream = worker.submit(job(worker, "minute", max_tokens=5), "test")
    assert len(await tokens_of(stream)) == 5
    assert stream.done.reason == "length"
    assert stream.done.output_tokens == 5


async def test_the_end_reports_tokens_and_how_likely_silence_was(worker: Worker) -> None:
    speech, silence = worker.submit(job(worker, "voice_en-us"), "test"), worker.submit(job(worker, "silence"), "test")
    heard, nothing = await asyncio.gather(tokens_of(speech), tokens_of(silence))
    assert speech.done.output_tokens == len(heard) + 1
    assert (speech.done.audio_tokens, speech.done.text_tokens) == (375, 9)
    assert nothing == []
    assert speech.done.no_speech_prob < 0.1 < 0.9 < silence.done.no_speech_prob


async def test_a_seed_repeats_a_sampled_text(worker: Worker) -> None:
    streams = [worker.submit(job(worker, "dense_0", temperature=1.5, seed=seed), "test") for seed in (3, 3, 4)]
    first, again, other = await asyncio.gather(*map(tokens_of, streams))
    assert first == again != other


@pytest.mark.parametrize("kind", ["worker", "fixed_worker"])
async def test_a_failure_stays_in_its_own_job(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker: Worker = request.getfixturevalue(kind)
    prefill = worker.backend.prefill

    def failing(jobs: list[Job], row: int) -> torch.Tensor:
        if any(len(job.audio[0]) == 777 for job in jobs):
            raise RuntimeError("out of memory")
        return prefill(jobs, row)

    monkeypatch.setattr(worker.backend, "prefill", failing)
    good = worker.submit(job(worker, "voice_en-us"), "test")
    bad = worker.submit(Job(good.job.prompt, (np.zeros(777, np.float32),), 10, Sampling()), "test")
    with pytest.raises(JobFailed, match="out of memory"):
        await tokens_of(bad)
    decoder, token_bytes = TextDecoder(), worker.backend.tokenizer.token_bytes
    assert_heard(clip("voice_en-us").words, "".join(decoder.add(token_bytes(i)) for i in await tokens_of(good)))


async def test_what_one_job_asks_for_cannot_fail_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = Sampler.choose

    def failing(sampler: Sampler, *args: torch.Tensor) -> int:
        if sampler.sampling.seed == 7 and len(backend.jobs) == 3:
            raise RuntimeError("nothing to choose from")
        return choose(sampler, *args)

    monkeypatch.setattr(Sampler, "choose", failing)
    backend = ScriptedBackend(lambda job: "alpha bravo charlie delta")
    with running(backend) as worker:
        # One fails in the middle of its text, one at its first token.
        wishes = (Sampling(1.0, seed=7), Sampling(1.0, top_k=1), Sampling(1.0, seed=7))
        with held(worker):
            failed, good, failed_at_once = [worker.submit(scripted_job(backend, wish), "test") for wish in wishes]
        for stream in (failed, failed_at_once):
            with pytest.raises(JobFailed, match="nothing to choose from"):
                await asyncio.wait_for(tokens_of(stream), 20)
        assert len(await tokens_of(good)) == 4


def scripted_job(backend: ScriptedBackend, sampling: Sampling) -> Job:
    return Job(backend.tokenizer.transcription_prompt("en"), (np.zeros(16_000, np.float32),), 50, sampling)


async def test_a_job_that_finds_no_memory_waits_for_another_to_leave(
    worker: Worker, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, refused = worker.backend.prefill, []

    def short_of_memory(jobs: list[Job], row: int) -> torch.Tensor:
        if row > 0:
            refused.append(row)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefill(jobs, row)

    monkeypatch.setattr(worker.backend, "prefill", short_of_memory)
    await assert_heard_as_expected(worker, expected, ("short_0", "voice_en-gb", "silence"))
    assert refused == [1, 1]  # once for each job that had to wait


def test_the_cache_of_a_gpu_takes_of_what_is_free_but_no_more_than_is_of_use(
    backend: VoxtralBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = backend._model.config.text_config
    bytes_each = 2 * 4 * 2 * 64 * 4  # keys and values, layers, heads, numbers of each, float32
    for free, positions in ((bytes_each * 100_000, 80_000), (2**40, 64 * 4096)):
        monkeypatch.setattr("engine.backends.voxtral.free_memory", lambda device, free=free: free)
        assert backend._positions_that_fit(config, rows=64) == positions


def test_a_gpu_without_memory_for_a_single_chunk_is_a_load_that_failed(
    backend: VoxtralBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.backends.voxtral.free_memory", lambda device: 4_000_000)
    with pytest.raises(ValueError, match=r"0\.0 GB .* are free, and 0\.0 are needed\. Free some"):
        backend._positions_that_fit(backend._model.config.text_config, rows=64)


def test_attention_on_a_gpu_is_not_left_to_cudnn() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        load_model(MagicMock(), DEMO_MODEL, Placement("cuda", torch.bfloat16, "none", packed=False))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("call", ["prefill", "decode", "align"])
async def test_a_device_that_is_gone_ends_the_thread_and_not_only_the_job_that_met_it(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    backend = ScriptedBackend(lambda job: "alpha bravo")
    monkeypatch.setattr(backend, call, gone)
    with running(backend) as worker:
        timed = replace(scripted_job(backend, Sampling()), timed=lambda text: True)
        with held(worker):
            streams = [worker.submit(timed, "test") for _ in range(3)]
        for stream in streams:
            with pytest.raises(EngineStopped):
                await asyncio.wait_for(tokens_of(stream), 20)
        assert not worker.alive


async def test_a_job_that_cannot_say_whether_it_is_timed_fails_alone() -> None:
    def fail(text: list[int]) -> bool:
        raise KeyError("a letter")

    backend = ScriptedBackend(lambda job: "alpha bravo")
    with running(backend) as worker:
        job = scripted_job(backend, Sampling())
        bad, *good = (worker.submit(each, "test") for each in (replace(job, timed=fail), job, job))
        with pytest.raises(JobFailed, match="a letter"):
            await asyncio.wait_for(tokens_of(bad), 20)
        assert [len(await tokens_of(stream)) for stream in good] == [2, 2]
        assert worker.alive


async def test_a_dead_thread_ends_every_job_and_takes_no_more(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: int, target: int) -> None:
        raise SystemError("the worker dies here")

    monkeypatch.setattr(worker.backend, "move_row", die)
    with held(worker):
        short, long = [worker.submit(job(worker, name), "test") for name in ("short_0", "minute")]
    with pytest.raises(EngineStopped):
        await tokens_of(long)
    assert isinstance(await anext(short), Token)
    assert not worker.alive
    with pytest.raises(EngineStopped):
        worker.submit(job(worker, "short_0"), "test")


async def test_cancelled_jobs_do_not_keep_a_dead_thread_from_ending_the_others() -> None:
    streams: list[JobStream] = []

    def script(job: Job) -> str:
        if len(backend.jobs) == 4:
            for stream in streams[:2]:
                stream.cancel()
        return "alpha bravo charlie delta echo foxtrot golf hotel"

    class Dying(ScriptedBackend):
        def move_row(self, source: int, target: int) -> None:
            raise SystemError("the device is gone")

    backend = Dying(script)
    worker = Worker(backend)
    with held(worker):
        streams += [worker.submit(scripted_job(backend, Sampling()), "test") for _ in range(4)]
    for stream in streams[2:]:
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(tokens_of(stream), 20)
    worker.close()


async def test_closing_ends_what_is_left(backend: VoxtralBackend) -> None:
    worker = Worker(backend)
    stream = worker.submit(job(worker, "minute"), "test")
    await anext(stream)
    await asyncio.to_thread(worker.close)
    with pytest.raises(EngineStopped):
        await tokens_of(stream)


async def test_a_prompt_beyond_the_context_is_refused(worker: Worker) -> None:
    prompt = worker.backend.tokenizer.chat_prompt(instructed("word " * 40_000))[0]
    with pytest.raises(PromptTooLong, match="Shorten the text"):
        worker.submit(Job(prompt, (np.zeros(16_000, np.float32),), 10, Sampling()), "test")


def test_characters_of_several_tokens_come_out_whole(backend: VoxtralBackend) -> None:
    text = "naïve café — 你好 🎙️"
    decoder, token_bytes = TextDecoder(), backend.tokenizer.token_bytes
    pieces = [decoder.add(token_bytes(i)) for i in backend.tokenizer._tekken.encode(text, bos=False, eos=False)]
    assert "".join(pieces) + decoder.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)
