"""The live worker on a scripted model: what reaches sessions and jobs, and what happens when one fails."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import live_worker
from engine.backends.voxtral_realtime import ON_CPU
from engine.core import EngineStopped, Job, JobFailed, PromptInvalid, Sampling, Token
from engine.live import Flushed, LiveOptions, LiveStream, LiveToken
from engine.live_worker import LEAST_PORTION, LiveWorker
from engine.realtime_tokenizer import RealtimeTokenizer
from engine.sampling import Sampler, choose_tokens
from engine.scheduler import Limits
from live import UtteranceDone
from tests.listening import Desk, of, told
from tests.scripted import held
from tools.realtime_checkpoint import write_files

pytestmark = pytest.mark.anyio
STEP = 1280
SURE = 12.0  # logit of a scripted token; those that are not named have 0
Script = list[int | dict[int, float]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RealtimeTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_files(folder)
    return RealtimeTokenizer(folder)


class ScriptedModel:
    """Writes what the script says, token by token, then pads. Every stream has the same script."""

    limits, batching, most_streams = Limits(2, prefill_tokens=0), ON_CPU, 64

    def __init__(self, tokenizer: RealtimeTokenizer, script: Script) -> None:
        self.tokenizer, self._script = tokenizer, script
        self.portions: list[int] = []  # steps that were heard at once
        self.together: list[int] = []  # streams that were read at once
        self.streams: list[weakref.ref[SimpleNamespace]] = []

    def audio_tokens(self, samples: int) -> int:
        return -(-samples // STEP)

    def open(self, delay_ms: int) -> SimpleNamespace:
        prompt, read = len(self.tokenizer.prompt(delay_ms)), self.tokenizer.left_pads - 1
        stream = Stream(prompt=prompt, read=read, taken=read * STEP + 40, audio=torch.empty(0, 1))
        self.streams.append(weakref.ref(stream))
        return stream

    def hear(self, streams: list[SimpleNamespace], audio: list[np.ndarray]) -> None:
        if any((samples == 0.75).any() for samples in audio):
            raise RuntimeError("not to be heard")
        for stream, samples in zip(streams, audio, strict=True):
            steps, rest = divmod(len(samples), STEP)
            assert steps > 0 == rest
            self.portions.append(steps)
            stream.taken += len(samples)
            stream.audio = torch.cat([stream.audio, torch.zeros(steps, 1)])

    def read(self, streams: list[SimpleNamespace], tokens: list[list[int]], answers: list[int]) -> torch.Tensor:
        rows = []
        self.together.append(len(streams))
        for stream, ids, count in zip(streams, tokens, answers, strict=True):
            assert len(ids) <= len(stream.audio)
            rows += [self._logits(stream.read + len(ids) - count + i + 1 - stream.prompt) for i in range(count)]
        return torch.stack(rows) if rows else torch.empty(0, self.tokenizer.vocabulary_size)

    def _logits(self, written: int) -> torch.Tensor:
        said = self._script[written] if written < len(self._script) else self.tokenizer.pad
        logits = torch.zeros(self.tokenizer.vocabulary_size)
        for token, logit in ({said: SURE} if isinstance(said, int) else said).items():
            logits[token] = logit
        return logits

    def keep(self, stream: SimpleNamespace, count: int) -> None:
        stream.read += count
        stream.audio = stream.audio[count:]

    def release_memory(self) -> None: ...


class Stream(SimpleNamespace):
    """Can be referred to weakly."""


@contextmanager
def running(tokenizer: RealtimeTokenizer, script: Script) -> Iterator[LiveWorker]:
    worker = LiveWorker(ScriptedModel(tokenizer, script))
    yield worker
    worker.close()


def silence(steps: float) -> np.ndarray:
    return np.zeros(int(steps * STEP), np.float32)


def word(tokenizer: RealtimeTokenizer, text: str) -> list[int]:
    return [tokenizer.word, *tokenizer._tekken.encode(f" {text}", bos=False, eos=False)]


async def until_flushed(stream: LiveStream) -> list[LiveToken]:
    stream.flush()
    tokens = []
    while not isinstance(item := await asyncio.wait_for(anext(stream), 20), Flushed):
        tokens.append(item)
    assert item.at == stream.fed
    return tokens


def test_options_that_the_model_was_not_made_for_are_refused() -> None:
    for wrong in (
        {"delay_ms": 100},
        {"delay_ms": 1280},
        {"interval_ms": 79},
        {"interval_ms": 5001},
        {"top_logprobs": 6},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            LiveOptions(**wrong)


async def test_words_have_the_times_of_what_was_fed(tokenizer: RealtimeTokenizer) -> None:
    pad = tokenizer.pad
    first, second = word(tokenizer, "alpha"), word(tokenizer, "bravo")
    script = [pad] * 9 + first + [pad] * (40 - 9 - len(first)) + second
    with running(tokenizer, script) as worker:
        stream = worker.open(LiveOptions(delay_ms=80))
        stream.feed(silence(12.5))
        (alpha,) = await until_flushed(stream)
        # The flush filled up half a step and put in 12 more, so that what is fed now begins with step 25 of the stream.
        stream.feed(silence(25))
        stream.finish()
        (bravo,) = [token async for token in stream]
    assert (alpha.id, alpha.start, alpha.end) == (first[1], 4 * STEP, 10 * STEP)
    assert (bravo.id, bravo.end) == (second[1], int((12.5 + 41 - 25) * STEP))
    assert bravo.end - bravo.start == 6 * STEP
    assert alpha.logprob > -0.1
    assert stream.backlog == 0


async def test_all_that_was_fed_is_written_at_a_flush_and_nothing_is_put_in_twice(
    tokenizer: RealtimeTokenizer,
) -> None:
    with running(tokenizer, []) as worker:
        stream = worker.open(LiveOptions())
        assert await until_flushed(stream) == []
        stream.feed(silence(3))
        await until_flushed(stream)
        heard = sum(worker.backend.portions)
        assert heard == 1 + 3 + 17 - 1  # the rest of the silence before, the audio, the silence behind; the last waits
        await until_flushed(stream)
        stream.finish()
        assert [item async for item in stream] == []
        assert sum(worker.backend.portions) == heard


async def test_flushes_of_silence_leave_nothing_to_count_again_at_every_step(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, []) as worker:
        stream = worker.open(LiveOptions())
        for _ in range(20):
            stream.feed(silence(1))
            await until_flushed(stream)
        assert len(worker._listeners[stream]._clock._inserted) == 1
        assert stream.backlog == 0


async def test_keywords_change_in_mid_session_and_pads_stand_between_the_tokens_of_a_word(
    tokenizer: RealtimeTokenizer,
) -> None:
    _, begins, goes_on, *_ = word(tokenizer, "zyx")
    _, other = word(tokenizer, "alpha")
    bare = tokenizer._tekken.encode("e", bos=False, eos=False)[0]
    doubtful = {other: SURE, begins: SURE - 0.5}, {bare: SURE, goes_on: SURE - 0.5}
    spelled = [tokenizer.word, doubtful[0], tokenizer.pad, tokenizer.pad, doubtful[1]]
    script = [*spelled, *[tokenizer.pad] * (16 - len(spelled)), *spelled]
    with running(tokenizer, script) as worker:
        stream = worker.open(LiveOptions(delay_ms=80, keywords=tokenizer.keyword_tree(("zyx",))))
        stream.feed(silence(4))
        assert [token.id for token in await until_flushed(stream)] == [begins, goes_on]
        stream.set_keywords(None)
        stream.feed(silence(4))
        assert [token.id for token in await until_flushed(stream)] == [other, bare]


async def test_alternatives_come_with_their_probabilities(tokenizer: RealtimeTokenizer) -> None:
    _, alpha = word(tokenizer, "alpha")
    _, bravo = word(tokenizer, "bravo")
    with running(tokenizer, [tokenizer.word, {alpha: SURE, bravo: SURE - 1}]) as worker:
        stream = worker.open(LiveOptions(top_logprobs=2))
        stream.feed(silence(4))
        (token,) = await until_flushed(stream)
    assert [token_id for token_id, _ in token.top] == [alpha, bravo]
    assert token.top[0] == (token.id, pytest.approx(token.logprob))
    assert token.top[1][1] == pytest.approx(token.logprob - 1, abs=1e-4)


async def test_sessions_that_fall_behind_take_several_steps_in_a_tick_however_many_they_are(
    tokenizer: RealtimeTokenizer,
) -> None:
    with running(tokenizer, []) as worker:
        with held(worker):
            streams = [worker.open(LiveOptions()) for _ in range(20)]
            for stream in streams:
                stream.feed(silence(40))
                stream.finish()
        for stream in streams:
            assert [item async for item in stream] == []
        assert worker.backend.portions.count(LEAST_PORTION) > 100


async def test_a_session_waits_for_its_interval_but_not_with_a_flush(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, []) as worker:
        stream = worker.open(LiveOptions(interval_ms=400))
        for _ in range(5):
            stream.feed(silence(1))
            await asyncio.sleep(0.002)
        while not worker.backend.portions:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.01)
        assert worker.backend.portions == [1 + 5 - 1]  # the rest of the silence before, the audio; the last waits
        stream.feed(silence(7))
        await until_flushed(stream)
        assert sum(worker.backend.portions) == 1 + 12 + 17 - 1
        stream = worker.open(LiveOptions(interval_ms=5000))
        stream.feed(silence(70))  # all of it in several portions, none of which is an interval of its own
        while stream.backlog > 2 * STEP:  # noqa: ASYNC110 - nothing tells of pads
            await asyncio.sleep(0.01)


async def test_pads_are_read_several_at_once_and_guesses_that_are_wrong_change_nothing(
    tokenizer: RealtimeTokenizer,
) -> None:
    script, texts = [], ("alpha", "bravo", "alpha", "zulu", "alpha", "bravo")
    for text in texts:
        script += [tokenizer.pad] * 11 + word(tokenizer, text)
    with running(tokenizer, script) as worker:
        stream = worker.open(LiveOptions())
        stream.feed(silence(len(script)))
        heard = [token.id for token in await until_flushed(stream)]
        counters = worker.counters
    assert heard == [token for text in texts for token in word(tokenizer, text)[1:]]
    assert counters.tokens >= len(script)
    assert counters.tokens == counters.reads + counters.accepted
    assert counters.reads < counters.tokens / 3


def job(tokenizer: RealtimeTokenizer, seconds: float = 2.0, max_tokens: int = 100, **options: object) -> Job:
    prompt = tokenizer.transcription_prompt(None)
    samples = np.zeros(int(seconds * 16_000), np.float32)
    return Job(prompt, (samples,), max_tokens, Sampling(), timed=lambda text: True, **options)


async def test_a_recording_ends_with_the_text_and_a_session_does_not(tokenizer: RealtimeTokenizer) -> None:
    _, alpha = word(tokenizer, "alpha")
    end = {tokenizer.end_of_text: SURE, tokenizer.pad: SURE - 1}
    with running(tokenizer, [tokenizer.word, alpha, end, tokenizer.word, alpha]) as worker:
        stream = worker.submit(job(tokenizer), "test")
        assert [token.id async for token in stream] == [alpha]
        assert (stream.done.reason, stream.done.output_tokens, stream.done.audio_tokens) == ("stop", 1, 25)
        assert stream.done.no_speech_prob < 0.05
        live = worker.open(LiveOptions())
        live.feed(silence(4))
        assert [token.id for token in await until_flushed(live)] == [alpha, alpha]


async def test_recordings_wait_for_a_place_and_each_ends_for_its_reason(tokenizer: RealtimeTokenizer) -> None:
    said = word(tokenizer, "alpha") * 60
    with running(tokenizer, said) as worker:
        wishes = {"length": {"max_tokens": 2}, "stop": {}, "loop": {"loops_end": True, "seconds": 8}}
        streams = {reason: worker.submit(job(tokenizer, **wish), reason) for reason, wish in wishes.items()}
        texts = {reason: [token.id async for token in stream] for reason, stream in streams.items()}
        for reason, stream in streams.items():
            assert stream.done.reason == reason
            assert len(stream.done.spans) == (0 if reason == "loop" else len(texts[reason]))
    assert len(texts["length"]) == 2
    assert max(end for _, end in streams["stop"].done.spans) <= 32_000


async def test_a_recording_that_cannot_say_whether_it_is_timed_fails_alone(tokenizer: RealtimeTokenizer) -> None:
    def fail(text: list[int]) -> bool:
        raise KeyError("a letter")

    with running(tokenizer, word(tokenizer, "alpha") * 60) as worker:
        bad = worker.submit(replace(job(tokenizer), timed=fail), "bad")
        good = worker.submit(job(tokenizer, max_tokens=2), "good")
        with pytest.raises(JobFailed, match="a letter"):
            async for _ in bad:
                pass
        assert len([token async for token in good]) == 2
        assert worker.alive


async def test_a_text_that_is_there_is_only_placed(tokenizer: RealtimeTokenizer) -> None:
    pad = tokenizer.pad
    (_, bravo), said = word(tokenizer, "bravo"), word(tokenizer, "alpha")
    script = [pad] * 4 + said + [pad] * 8 + said
    with running(tokenizer, script) as worker:
        heard = {said[1]: SURE, bravo: 2.0}  # neither pad nor mark is likelier than what there is to be placed
        worker.backend._script = [heard if token == said[1] else token for token in script]
        stream = worker.submit(job(tokenizer, answer=(bravo, bravo, bravo)), "test")
        assert [token async for token in stream] == []
    assert [end // STEP for _, end in stream.done.spans] == [5, 15, 15]


async def test_silence_is_told_from_speech(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, []) as worker:
        stream = worker.submit(job(tokenizer), "test")
        assert [token async for token in stream] == []
    assert stream.done.no_speech_prob > 0.5
    assert stream.done.spans == []


async def test_a_failure_stays_in_its_own_session(tokenizer: RealtimeTokenizer) -> None:
    script = word(tokenizer, "alpha")
    with running(tokenizer, script) as worker:
        good, bad = worker.open(LiveOptions()), worker.open(LiveOptions())
        bad.feed(np.full(4 * STEP, 0.75, np.float32))
        good.feed(silence(4))
        assert len(await until_flushed(good)) == 1
        with pytest.raises(JobFailed, match="not to be heard"):
            await anext(bad)
        bad.feed(silence(4))
        assert [item async for item in bad] == []
        with pytest.raises(PromptInvalid, match="logit_bias"):
            worker.submit(replace(job(tokenizer), sampling=Sampling(logit_bias=((10**6, 1.0),))), "test")


async def test_a_choice_that_fails_in_company_is_made_alone(
    tokenizer: RealtimeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(logits: torch.Tensor, samplers: list[Sampler]) -> list[Token | Exception]:
        if len(samplers) > 1 or samplers[0].sampling.top_logprobs:
            failed.append(len(samplers))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose_tokens(logits, samplers)

    failed: list[int] = []
    monkeypatch.setattr(live_worker, "choose_tokens", short_of_memory)
    with running(tokenizer, word(tokenizer, "alpha")) as worker:
        with held(worker):
            good, bad = worker.open(LiveOptions()), worker.open(LiveOptions(top_logprobs=1))
            for stream in (good, bad, good):
                stream.feed(silence(100))
        assert len(await until_flushed(good)) == 1
        with pytest.raises(JobFailed, match="out of memory"):
            await anext(bad)
    assert set(failed) == {1, 2}


async def test_a_device_that_is_gone_ends_the_thread_and_not_only_the_stream_that_met_it(
    tokenizer: RealtimeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(streams: list[SimpleNamespace], audio: list[np.ndarray]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with running(tokenizer, []) as worker:
        monkeypatch.setattr(worker.backend, "hear", gone)
        streams = [worker.open(LiveOptions()), worker.open(LiveOptions())]
        streams[0].feed(silence(4))
        for stream in streams:
            with pytest.raises(EngineStopped):
                await asyncio.wait_for(anext(stream), 20)
        assert not worker.alive


@pytest.mark.parametrize(("most", "together"), [(3, 2), (2, 1), (1, 1)])
async def test_fewer_recordings_are_heard_at_once_beside_sessions_but_always_one(
    tokenizer: RealtimeTokenizer, monkeypatch: pytest.MonkeyPatch, most: int, together: int
) -> None:
    monkeypatch.setattr(ScriptedModel, "most_streams", most)
    with running(tokenizer, []) as worker:
        with held(worker):
            worker.open(LiveOptions())
            streams = [worker.submit(job(tokenizer, seconds=20), i) for i in range(4)]
        for stream in streams:
            assert [token async for token in stream] == []
        assert max(worker.backend.together) == together


async def test_a_cancelled_session_leaves_nothing_behind(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, word(tokenizer, "alpha")) as worker:
        stream = worker.open(LiveOptions())
        stream.feed(silence(40))
        await anext(stream)
        stream.cancel()
        assert [item async for item in stream] == []
        other = worker.open(LiveOptions())
        other.feed(silence(2))
        await until_flushed(other)  # by then the other is forgotten
        gc.collect()
        assert [reference() is None for reference in worker.backend.streams] == [True, False]
        assert worker.running == 1


async def test_what_a_session_clears_before_it_is_heard_never_is(tokenizer: RealtimeTokenizer) -> None:
    worker = LiveWorker(ScriptedModel(tokenizer, word(tokenizer, "alpha")))
    async with Desk(worker) as desk:
        session = await desk.open()
        with held(worker):
            await session.feed(silence(200))
            await session.clear()
            await session.feed(silence(4))
            await session.finish()
        (done,) = of(await told(session), UtteranceDone)
        assert (done.utterance, done.transcript.text) == (1, "alpha")
        assert done.transcript.segments[0].start_ms == 200 * 80
        assert sum(worker.backend.portions) == 1 + 4 + 17 - 1  # as where nothing was cleared
        await session.close()


async def test_a_session_that_clears_waits_for_what_it_has_committed(tokenizer: RealtimeTokenizer) -> None:
    worker = LiveWorker(ScriptedModel(tokenizer, word(tokenizer, "alpha")))
    async with Desk(worker) as desk:
        session = await desk.open()
        with held(worker):
            await session.feed(silence(4))
            await session.commit()
            await session.feed(silence(200))
            clearing = asyncio.create_task(session.clear())
            await asyncio.sleep(0)
        await clearing
        await session.feed(silence(4))
        await session.finish()
        done = of(await told(session), UtteranceDone)
        assert [(each.utterance, each.transcript.text) for each in done] == [(0, "alpha"), (2, "alpha")]
        assert [each.transcript.segments[0].start_ms for each in done] == [0, 204 * 80]
        await session.close()


async def test_a_dead_thread_ends_every_session_and_takes_no_more(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, []) as worker:
        worker.backend.keep = None
        with held(worker):
            streams = [worker.open(LiveOptions()), worker.submit(job(tokenizer), "test"), worker.open(LiveOptions())]
        streams[0].feed(silence(4))
        for stream in streams:
            with pytest.raises(EngineStopped):
                await asyncio.wait_for(anext(stream), 20)
        assert not worker.alive
        with pytest.raises(EngineStopped):
            worker.open(LiveOptions())


async def test_closing_ends_what_is_left(tokenizer: RealtimeTokenizer) -> None:
    with running(tokenizer, []) as worker:
        stream = worker.open(LiveOptions())
        stream.feed(silence(4))
        await asyncio.to_thread(worker.close)
        with pytest.raises(EngineStopped):
            await anext(stream)
