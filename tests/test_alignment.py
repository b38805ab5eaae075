"""Where tokens were spoken: the choice of heads and the division of the audio, the pass that reads the attention, and
the worker that runs it between steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from config import DEMO_MODEL
from engine import attention
from engine.alignment import MOST_HEADS, BestHeads, borders, follow_scores, token_spans
from engine.attention import AudioWatch
from engine.backends import load_backend
from engine.backends import voxtral as voxtral_module
from engine.backends.base import LoadOptions
from engine.backends.voxtral import VoxtralBackend
from engine.core import Job, Sampling
from engine.job_stream import JobStream
from engine.native import supported
from engine.worker import Worker
from tests.scripted import held
from tests.speech import clip

NAMES = ("voice_en-us", "short_0", "dense_0", "gain-20", "voice_en-gb", "sparse_0", "voice_en-us+m1", "short_1")


@st.composite
def divisions(draw: st.DrawFn) -> list[int]:
    """Borders of tokens that have an audio token each at least."""
    return np.cumsum([0, *draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))]).tolist()


@given(edges=divisions(), seed=st.integers(0, 99))
def test_audio_goes_to_the_tokens_that_look_at_it(edges: list[int], seed: int) -> None:
    looks = np.random.default_rng(seed).uniform(0, 0.1, (len(edges) - 1, edges[-1]))
    for row, (start, end) in zip(looks, pairwise(edges), strict=True):
        row[start:end] += 1
    assert borders(looks).tolist() == edges


@settings(max_examples=50)
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(0, 1, width=16)))
def test_no_other_division_gives_the_tokens_a_larger_share(shares: np.ndarray) -> None:
    tokens, frames = shares.shape

    def gained(edges: tuple[int, ...]) -> float:
        return sum(shares[i, a:b].sum() for i, (a, b) in enumerate(pairwise(edges)))

    found = borders(shares)
    assert (found[0], found[-1], len(found)) == (0, frames, tokens + 1)
    assert (np.diff(found) >= 0).all()
    others = combinations_with_replacement(range(frames + 1), tokens - 1)
    assert gained(tuple(found)) >= max(gained((0, *inner, frames)) for inner in others) - 1e-5


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 99))
def test_what_nobody_looks_at_belongs_to_no_token(spoken: list[tuple[int, int]], seed: int) -> None:
    """A pause before each token, and behind the last one; the last row is what ends the text and looks nowhere."""
    rng, at, expected = np.random.default_rng(seed), 0, []
    looks = rng.uniform(0, 0.001, (len(spoken) + 1, sum(map(sum, spoken)) + 5))
    for row, (pause, length) in zip(looks, spoken, strict=False):
        start, at = at + pause, at + pause + length
        expected.append([start, at])
        row[start:at] += rng.uniform(0.5, 1, length)
    assert token_spans(looks)[:-1].tolist() == expected


def test_a_head_that_moves_on_is_better_than_one_that_stares_wanders_or_looks_away() -> None:
    rng = np.random.default_rng(0)
    follows, wanders = np.arange(0, 300, 3), rng.permutation(300)[:100]
    places = np.stack([follows, np.full(100, 150), wanders, follows])
    peaks = np.array([[0.9], [1.0], [0.9], [0.05]]) * np.ones((4, 100))
    scores = follow_scores(peaks, places)
    assert scores.argmax() == 0
    assert scores[0] == pytest.approx(0.9)
    assert scores[1] == 0
    assert scores[2:].max() < 0.2


@given(st.permutations([*range(2 * MOST_HEADS)]))
def test_the_best_heads_are_kept_whatever_their_order(order: list[int]) -> None:
    heads = BestHeads()
    for rank in order:
        if heads.wants(rank / 100):
            heads.add(rank / 100, np.full((1, 1), float(rank)))
    best = max(order)
    together = [rank for rank in order if rank >= 0.7 * best][:MOST_HEADS]
    assert heads.mean() == pytest.approx(np.mean(sorted(together)))


@pytest.fixture(scope="module")
def backend() -> VoxtralBackend:
    return load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 8, "none"))


@pytest.fixture
def worker(backend: VoxtralBackend) -> Iterator[Worker]:
    worker = Worker(backend)
    yield worker
    worker.close()
    backend.release_memory()


def job(backend: VoxtralBackend, name: str, timed: bool = True) -> Job:
    prompt = backend.tokenizer.transcription_prompt("en")
    return Job(prompt, (clip(name).samples(),), 200, Sampling(), timed=lambda tokens: timed)


def hear(backend: VoxtralBackend, heard: Job) -> list[int]:
    """Into row 0, as the worker does it."""
    tokens = [int(backend.prefill([heard], 0)[0].argmax())]
    while tokens[-1] != backend.tokenizer.end_of_text:
        tokens.append(int(backend.decode(tokens[-1:])[0].argmax()))
    return tokens[:-1]


class EveryHead:
    """In place of BestHeads: all of them, in order."""

    def __init__(self) -> None:
        self.weights: list[np.ndarray] = []

    def wants(self, score: float) -> bool:
        return True

    def add(self, score: float, weights: np.ndarray) -> None:
        self.weights.append(weights)

    def mean(self) -> np.ndarray:
        return np.mean(self.weights, axis=0)


def watched(backend: VoxtralBackend, monkeypatch: pytest.MonkeyPatch, heard: Job, tokens: list[int]) -> np.ndarray:
    """Attention (heads of all layers, text, audio) that the alignment sees."""
    seen = EveryHead()

    class Watch(AudioWatch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.heads = seen

    monkeypatch.setattr(voxtral_module, "AudioWatch", Watch)
    backend.align(heard, 0, tokens)
    return np.stack(seen.weights)


@torch.inference_mode()
def eager_weights(backend: VoxtralBackend, heard: Job, tokens: list[int]) -> np.ndarray:
    """The same by transformers' eager attention, in one forward over prompt, audio and text."""
    decoder, seen = backend._decoder, []
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, inputs, output: seen.append(output[1][0]))
        for layer in decoder.layers
    ]
    decoder.config._attn_implementation = "eager"
    try:
        inputs = torch.cat([backend._prompt_embeddings([heard]), backend._embed(torch.tensor([tokens]))], dim=1)
        decoder(inputs_embeds=inputs, use_cache=False)
    finally:
        decoder.config._attn_implementation = attention.WATCHED_SDPA
        for hook in hooks:
            hook.remove()
    audio = -(-len(heard.audio[0]) // 1280)  # tokens of 80 ms
    first = len(heard.prompt.texts[0])
    return torch.cat(seen)[:, -len(tokens) - 1 :, first : first + audio].numpy()


def test_what_is_watched_is_the_attention_of_transformers(
    backend: VoxtralBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = job(backend, "voice_en-us")
    tokens = hear(backend, heard)
    expected = eager_weights(backend, heard, tokens)
    found = watched(backend, monkeypatch, heard, tokens)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-3)  # kept in half precision


def test_attention_is_the_same_in_blocks(backend: VoxtralBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = job(backend, "dense_0")
    tokens = hear(backend, heard)
    whole = backend.align(heard, 0, tokens)
    monkeypatch.setattr(attention, "BLOCK", 3 * 4 * (375 + len(tokens) + 9))
    assert backend.align(heard, 0, tokens) == whole


def test_tokens_have_the_same_places_in_other_caches_and_in_fewer_bits(backend: VoxtralBackend) -> None:
    heard = job(backend, "dense_0")
    tokens = hear(backend, heard)
    expected = backend.align(heard, 0, tokens)
    fixed = load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 2, "none", positions=4096))
    assert hear(fixed, heard) == tokens
    assert fixed.align(heard, 0, tokens) == expected
    if supported():
        quantized = load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 1, "int8"))
        hear(quantized, heard)
        errors = np.abs(np.subtract(quantized.align(heard, 0, tokens), expected))
        assert np.quantile(errors, 0.9) <= 1280  # an audio token


@pytest.mark.parametrize("name", ["voice_en-us", "dense_0", "short_0"])
def test_tokens_lie_in_order_within_the_recording(backend: VoxtralBackend, name: str) -> None:
    heard = job(backend, name)
    tokens = hear(backend, heard)
    spans = backend.align(heard, 0, tokens)
    assert len(spans) == len(tokens)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert len(heard.audio[0]) / 2 < edges[-1] <= len(heard.audio[0])


async def ended(stream: JobStream) -> tuple[list[int], Sequence[tuple[int, int]]]:
    tokens = [token.id async for token in stream]
    assert stream.done
    return tokens, stream.done.spans


@pytest.mark.anyio
async def test_jobs_that_run_together_are_aligned_as_if_they_were_alone(worker: Worker) -> None:
    """Some of them want no times; rows move while others wait."""
    backend = worker.backend
    alone = [await ended(worker.submit(job(backend, name), "test")) for name in NAMES]
    streams = [worker.submit(job(backend, name, timed=i % 3 > 0), "test") for i, name in enumerate(NAMES)]
    together = await asyncio.gather(*map(ended, streams))
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]
    assert all(spans == () for _, spans in together[::3])
    for i, (_, spans) in enumerate(together):
        if i % 3:
            np.testing.assert_allclose(spans, alone[i][1], atol=1280)  # a near-tie may fall the other way


@pytest.mark.anyio
async def test_between_two_steps_running_jobs_wait_for_one_pass_at_most(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, calls = worker.backend, []
    for name in ("prefill", "decode", "align"):
        method = getattr(backend, name)
        monkeypatch.setattr(backend, name, lambda *a, name=name, method=method: (calls.append(name), method(*a))[1])
    with held(worker):
        long = worker.submit(job(backend, "dense_0"), "long")
        short = [worker.submit(job(backend, "short_0"), i) for i in range(10)]
    await asyncio.gather(*map(ended, short))
    assert calls.count("align") == 10
    assert all("decode" in pair for pair in pairwise(calls))
    assert len((await ended(long))[1]) > 20


@pytest.mark.anyio
async def test_a_failed_alignment_takes_its_own_places_only(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, align = worker.backend, worker.backend.align
    bad = job(backend, "short_0")

    def failing(aligned: Job, row: int, tokens: list[int]) -> list[tuple[int, int]]:
        if aligned is bad:
            raise RuntimeError("out of memory")
        return align(aligned, row, tokens)

    monkeypatch.setattr(backend, "align", failing)
    good = worker.submit(job(backend, "dense_0"), "test")
    tokens, spans = await ended(worker.submit(bad, "test"))
    assert (len(tokens) > 1, spans) == (True, ())
    assert len((await ended(good))[1]) > 20
    assert (worker.running, worker.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_job_that_leaves_while_it_waits_is_not_aligned(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies end in the same step; while the first is aligned the second one is cancelled."""
    backend, align, aligned = worker.backend, worker.backend.align, []
    monkeypatch.setattr(backend, "align", lambda *a: (aligned.append(a[0]), second.cancel(), align(*a))[2])
    with held(worker):
        first, second = (worker.submit(job(backend, "short_0"), "test") for _ in range(2))
    await ended(first)
    assert await ended(worker.submit(job(backend, "short_1"), "test"))
    assert not any(each is second.job for each in aligned)
    assert worker.running == 0
