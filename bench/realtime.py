"""How fast a realtime model steps, alone and in company, and how much faster guesses make a recording.

    python -m bench.realtime FOLDER [--quantization int4] [--streams 1,8] [--steps 20] [--seconds 30] [--pads 0.75]

FOLDER holds any realtime model; `python -m bench.checkpoint FOLDER --size 4b-realtime` writes one of real shapes. Its
weights are random, so what it would write is no text. Words are drawn instead, of so many that most come again, with
pads between them for the share that is asked. Guesses are right about as often as they are in speech with that share.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.peers import SAMPLE_RATE, numbers, table
from engine.backends import load_backend
from engine.backends.base import LoadOptions
from engine.backends.voxtral_realtime import RealtimeBackend
from engine.core import Job, Sampling
from engine.job_stream import JobStream
from engine.listeners import JobListener
from engine.live_worker import LiveWorker

WORDS = 1000  # that a text is drawn from, likelier the earlier they are
DELAY_MS = 480


class DrawnText:
    """Stands for a Sampler: writes words of one and two tokens with marks before and pads between them."""

    plain, spells, sampling = False, False, Sampling()

    def __init__(self, backend: RealtimeBackend, pads: float) -> None:
        self._rng, self._pads, self._tokenizer = random.Random(0), pads, backend.tokenizer
        first = backend.tokenizer.vocabulary_size - WORDS
        self._words = [tuple(range(first + i, first + i + 1 + i % 2)) for i in range(WORDS - 1)]
        self._weights = [1 / (1 + i) for i in range(len(self._words))]
        self._tokens = self._drawn()

    def choose(self, logits: torch.Tensor, total: torch.Tensor) -> int:
        return next(self._tokens)

    def _drawn(self) -> Iterator[int]:
        while True:
            (word,) = self._rng.choices(self._words, self._weights)
            written = (self._tokenizer.word, *word)
            silent = len(written) * self._pads / (1 - self._pads)
            yield from [self._tokenizer.pad] * round(self._rng.uniform(0, 2 * silent))
            yield from written


class DrawingWorker(LiveWorker):
    pads = 0.75

    def _job_listener(self, stream: JobStream) -> JobListener:
        listener = super()._job_listener(stream)
        listener.sampler = DrawnText(self.backend, self.pads)
        return listener


def noise(seconds: float) -> np.ndarray:
    return 0.05 * np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE), np.float32)


@torch.inference_mode()
def step_times(backend: RealtimeBackend, streams: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of encoder and decoder for each step of so many streams that hear 80 ms each time."""
    tokenizer = backend.tokenizer
    models = [backend.open(DELAY_MS) for _ in range(streams)]
    audio, times = [noise(tokenizer.step / SAMPLE_RATE)] * streams, []
    for _ in range(steps + 1):
        started = time.perf_counter()
        backend.hear(models, audio)
        if backend.device == "cuda":
            torch.cuda.synchronize()
        heard = time.perf_counter()
        backend.read(models, [[tokenizer.pad]] * streams, [1] * streams).argmax(1).tolist()
        times.append((heard - started, time.perf_counter() - heard))
        for model in models:
            backend.keep(model, 1)
    return times[1:]


def measure_steps(backend: RealtimeBackend, streams: tuple[int, ...], steps: int) -> str:
    rows = []
    for count in streams:
        encoder, decoder = map(median, zip(*step_times(backend, count, steps), strict=True))
        rows.append((count, 1000 * encoder, 1000 * decoder, 1000 * (encoder + decoder), count / (encoder + decoder)))
    return table(("streams", "ms encoder", "ms decoder", "ms in all", "steps/s in all"), rows)


def measure_recording(backend: RealtimeBackend, seconds: float, pads: float) -> str:
    worker = DrawingWorker(backend)
    worker.pads = pads

    async def hear() -> float:
        started = time.perf_counter()
        prompt = backend.tokenizer.transcription_prompt(None)
        async for _ in worker.submit(Job(prompt, (noise(seconds),), 1_000_000, Sampling()), "bench"):
            pass
        return time.perf_counter() - started

    try:
        took = asyncio.run(hear())
    finally:
        worker.close()
    counters = worker.counters
    accepted, saved = counters.accepted / max(1, counters.guessed), 1 - counters.reads / counters.tokens
    heads = ("pads", "times real time", "guesses accepted, %", "forwards saved, %")
    return table(heads, [(pads, seconds / took, 100 * accepted, 100 * saved)])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantization", choices=("auto", "none", "int8", "int4"), default="auto")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--streams", type=numbers, default=(1, 8), help="at once; several with commas between")
    parser.add_argument("--steps", type=int, default=20, help="that are timed; medians are told")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the recording")
    parser.add_argument("--pads", type=float, default=0.75, help="share of the recording's tokens")
    return parser


def measure(args: argparse.Namespace) -> str:
    backend = load_backend("realtime", args.folder, LoadOptions(args.device, "auto", 0, args.quantization))
    try:
        steps = measure_steps(backend, args.streams, args.steps)
        return f"{steps}\n\n{measure_recording(backend, args.seconds, args.pads)}"
    finally:
        backend.close()


def main() -> None:
    print(measure(arguments().parse_args()))


if __name__ == "__main__":
    main()
