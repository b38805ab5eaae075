"""What times of words cost: the time of the pass that finds them over the time of its chunk, alone in the batch.

    python -m bench.alignment [FOLDER] [--seconds 15,60] [--tokens 3] [--rounds 3] [--quantization auto]

Of noise, for the time does not depend on what is said; `--tokens` are those of a second of speech.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from bench.peers import numbers, table
from config import DEMO_MODEL
from engine.backends import load_backend
from engine.backends.base import Backend, LoadOptions
from engine.core import Job, Sampling


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def chunk_seconds(backend: Backend, job: Job, text: list[int]) -> tuple[float, float, float]:
    """Of the prefill, of all decode steps and of the alignment."""
    prefill = timed(lambda: backend.prefill([job], 0))
    decode = timed(lambda: [backend.decode([token]) for token in text])
    return prefill, decode, timed(lambda: backend.align(job, 0, text))


def measure(folder: Path, lengths: tuple[int, ...], tokens: float, rounds: int, quantization: str) -> str:
    backend, rows = load_backend("transformers", folder, LoadOptions("auto", "auto", 1, quantization)), []
    for seconds in lengths:
        noise = np.random.default_rng(0).standard_normal(seconds * 16_000).astype(np.float32) * 0.1
        text = [1000 + i for i in range(round(tokens * seconds))]
        job = Job(backend.tokenizer.transcription_prompt("en"), (noise,), len(text) + 1, Sampling())
        measured = [chunk_seconds(backend, job, text) for _ in range(rounds)]
        prefill, decode, align = (median(times) for times in zip(*measured, strict=True))
        rows.append((seconds, len(text), prefill, decode, align, f"{align / (prefill + decode + align):.1%}"))
    backend.close()
    return table(("chunk, s", "tokens", "prefill, s", "decoding, s", "alignment, s", "share"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO_MODEL)
    parser.add_argument("--seconds", type=numbers, default=(15, 60))
    parser.add_argument("--tokens", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", default="auto")
    args = parser.parse_args()
    print(measure(args.folder, args.seconds, args.tokens, args.rounds, args.quantization))


if __name__ == "__main__":
    main()
