"""How far a model in fewer bits is from itself in float32, on logits: for models whose words mean nothing, too.

    python -m bench.accuracy FOLDER [--kinds float32,bfloat16,int8,int4] [--steps 16]

Every kind reads the same prompt with the same 30 s of noise and is then told the same tokens, so that all see the same
positions. One model is in memory at a time. Cosine similarity and relative error are means over the positions.
"""

from __future__ import annotations

import argparse
import gc
import io
import time
from pathlib import Path

import psutil
import soundfile as sf
import torch

from bench.peers import noise, table
from engine.backends import load_backend
from engine.backends.base import Backend, LoadOptions
from engine.core import Job, Sampling

POSITIONS = 1024  # of fixed slots, with which layers are PyTorch's own
KINDS = {  # precision, quantization and fixed positions
    "float32": ("float32", "none", 0),
    "bfloat16": ("bfloat16", "none", 0),
    "bfloat16-pytorch": ("bfloat16", "none", POSITIONS),
    "int8": ("auto", "int8", 0),
    "int4": ("auto", "int4", 0),
}


def logits(backend: Backend, told: list[int]) -> torch.Tensor:
    """(steps, vocabulary), float32: after the prompt, and after each token that the model is told."""
    samples, _ = sf.read(io.BytesIO(noise(30, seed=1)), dtype="float32")
    job = Job(backend.tokenizer.transcription_prompt("en"), (samples,), len(told) + 1, Sampling())
    rows = [backend.prefill([job], 0).float().cpu(), *(backend.decode([token]).float().cpu() for token in told)]
    return torch.cat(rows)


def measure(folder: Path, kinds: list[str], steps: int) -> str:
    told = torch.randint(1000, 2000, (steps - 1,), generator=torch.Generator().manual_seed(0)).tolist()
    exact: torch.Tensor | None = None
    rows = []
    for kind in kinds:
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        dtype, quantization, positions = KINDS[kind]
        backend = load_backend("transformers", folder, LoadOptions("auto", dtype, 1, quantization, positions))
        loaded, memory = time.perf_counter() - started, psutil.Process().memory_info().rss - before
        found = logits(backend, told)
        backend.close()
        del backend
        gc.collect()
        exact = found if exact is None else exact
        cosine = torch.nn.functional.cosine_similarity(found, exact, dim=-1).mean().item()
        error = ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).mean().item()
        same = (found.argmax(-1) == exact.argmax(-1)).float().mean().item()
        rows.append((kind, f"{cosine:.5f}", error, same, loaded, memory / 1e9))
    return table(("kind", "cosine", "relative error", "same likeliest token", "load, s", "GB more"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--kinds", default="float32,bfloat16,int8,int4", help=f"of {', '.join(KINDS)}; the first is exact"
    )
    parser.add_argument("--steps", type=int, default=16, help="positions that are compared")
    args = parser.parse_args()
    print(measure(args.folder, args.kinds.split(","), args.steps))


if __name__ == "__main__":
    main()
