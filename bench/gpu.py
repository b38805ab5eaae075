"""Clips at once on one CUDA card, by this engine and by transformers' `generate()`, on random weights of the 3B.

    python -m bench.gpu [--clips 1,16,64] [--seconds 30] [--tokens 120] [--rounds 3]

Writes its own checkpoint to a temporary folder (9.4 GB). `generate()` gets all clips as one batch. Medians over the
rounds, after one that is not counted, in which graphs are captured. `--device cpu --size tiny` tries it out anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.checkpoint import TEXT, write_checkpoint
from bench.peers import SAMPLE_RATE, numbers, table
from engine.backends import load_backend, start_worker
from engine.backends.base import LoadOptions
from engine.core import Job, Sampling
from engine.job_stream import JobStream
from engine.worker import Worker


@dataclass(frozen=True)
class Round:
    seconds: float  # from the first submission to the last token
    token_rates: list[float]  # tokens a second of each clip, after its first


def clips(count: int, seconds: float) -> list[np.ndarray]:
    """Noise, as loud as speech."""
    drawn = np.random.default_rng(0).standard_normal((count, int(SAMPLE_RATE * seconds)), np.float32)
    return list(0.05 * drawn)


async def hear(stream: JobStream) -> float:
    """Tokens a second after the first."""
    await anext(stream)
    first, count = time.perf_counter(), 0
    async for _ in stream:
        count += 1
    return count / (time.perf_counter() - first)


async def hear_at_once(worker: Worker, samples: list[np.ndarray], tokens: int) -> Round:
    prompt = worker.backend.tokenizer.transcription_prompt("en")
    started = time.perf_counter()
    streams = [worker.submit(Job(prompt, (s,), tokens, Sampling()), i) for i, s in enumerate(samples)]
    rates = await asyncio.gather(*map(hear, streams))
    return Round(time.perf_counter() - started, rates)


def engine_rounds(folder: Path, args: argparse.Namespace) -> dict[int, list[Round]]:
    """By the number of clips."""
    backend = load_backend("transformers", folder, LoadOptions(args.device, args.dtype, max(args.clips), "none"))
    worker = start_worker(backend)
    try:
        return {
            count: [
                asyncio.run(hear_at_once(worker, clips(count, args.seconds), args.tokens))
                for _ in range(args.rounds + 1)
            ][1:]
            for count in args.clips
        }
    finally:
        worker.close()
        backend.close()


def generate_seconds(folder: Path, args: argparse.Namespace) -> dict[int, float]:
    """The quicker of two rounds, by the number of clips."""
    from transformers import AutoProcessor, VoxtralForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = VoxtralForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, args.dtype)).to(args.device)
    try:
        return {count: min(generate(processor, model, folder, count, args) for _ in range(2)) for count in args.clips}
    finally:
        del model
        gc.collect()  # the engine's cache gets what is free


def generate(processor, model, folder: Path, count: int, args: argparse.Namespace) -> float:
    samples = clips(count, args.seconds)
    started = time.perf_counter()
    inputs = processor.apply_transcription_request(
        audio=samples, model_id=str(folder), language="en", sampling_rate=SAMPLE_RATE,
        format=["wav"] * count,
    ).to(model.device, dtype=model.dtype)  # fmt: skip
    with torch.inference_mode():
        model.generate(**inputs, min_new_tokens=args.tokens, max_new_tokens=args.tokens, do_sample=False).cpu()
    return time.perf_counter() - started


def measure(args: argparse.Namespace) -> str:
    args.dtype = "bfloat16" if args.device == "cuda" else "float32"
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.size, args.device)
        theirs = generate_seconds(Path(folder), args)
        ours = engine_rounds(Path(folder), args)
    rows = []
    for count in args.clips:
        seconds, audio = median(r.seconds for r in ours[count]), count * args.seconds
        rate = median(rate for r in ours[count] for rate in r.token_rates)
        rows.append(
            (count, seconds, audio / seconds, rate, theirs[count], audio / theirs[count], theirs[count] / seconds)
        )
    heads = (
        "clips",
        "seconds",
        "times real time",
        "tokens/s of one",
        "generate(), seconds",
        "times real time",
        "ratio",
    )
    return table(heads, rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=numbers, default=(1, 16, 64), help="at once; several with commas between")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=TEXT, default="3b")
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu measures a CUDA card, and this machine has none.", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, {args.size}, clips of {args.seconds:g} s, {args.tokens} tokens each\n\n{measure(args)}")


if __name__ == "__main__":
    main()
