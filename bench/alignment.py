"""What times of words cost and how right they are, found by the model's own attention and by a CTC model.

    python -m bench.alignment [FOLDER] [--aligner FOLDER] [--seconds 15,60] [--tokens 3] [--quantization auto]

Costs are those of noise, for they do not depend on what is said; `--tokens` are those of a second of speech. Errors are
those of the clips of the tests, in English with known times, and of the words in them that are heard right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median

import numpy as np

from bench.peers import numbers, table
from config import DEMO_ALIGNER, DEMO_MODEL
from engine.backends import load_aligner, load_backend
from engine.backends.base import Backend, LoadOptions
from engine.core import Job, Sampling
from engine.ctc import CTCModel
from tests.speech import ALL_CLIPS, SAMPLE_RATE, Clip, normal
from transcript import TextToken
from word_times import places, word_pieces

Spans = Sequence[tuple[int, int]]
LONGEST_CLIP = 30  # seconds; the demo model loses its place in longer ones


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def job_of(backend: Backend, samples: np.ndarray, most: int) -> Job:
    return Job(backend.tokenizer.transcription_prompt("en"), (samples,), most, Sampling())


def costs(backend: Backend, aligner: CTCModel, lengths: tuple[int, ...], tokens: float, rounds: int) -> str:
    rows = []
    for seconds in lengths:
        noise = np.random.default_rng(0).standard_normal(seconds * SAMPLE_RATE).astype(np.float32) * 0.1
        text = [1000 + i for i in range(round(tokens * seconds))]
        measured = [chunk_seconds(backend, aligner, job_of(backend, noise, len(text) + 1), text) for _ in range(rounds)]
        prefill, decode, attention, ctc = (median(times) for times in zip(*measured, strict=True))
        share = f"{attention / (prefill + decode + attention):.1%}"
        rows.append((seconds, len(text), prefill, decode, attention, share, ctc))
    heads = ("chunk, s", "tokens", "prefill, s", "decoding, s", "attention, s", "its share", "CTC, s")
    return table(heads, rows)


def chunk_seconds(backend: Backend, aligner: CTCModel, job: Job, text: list[int]) -> tuple[float, float, float, float]:
    """Of the prefill, of all decode steps, and of both alignments. The CTC model is given as many letters as there
    would be: noise would not pass for any text."""
    prefill = timed(lambda: backend.prefill([job], 0))
    decode = timed(lambda: [backend.decode([token]) for token in text])
    attention = timed(lambda: backend.align(job, 0, text))
    return prefill, decode, attention, timed(lambda: aligner.spans(job.audio[0], [b" word"] * len(text)))


def errors(backend: Backend, aligner: CTCModel, clips: Sequence[Clip]) -> str:
    found: dict[str, list[float]] = {"attention": [], "CTC": []}
    for clip in clips:
        job = job_of(backend, clip.samples(), 64 + round(20 * clip.seconds))
        ids = hear(backend, job)
        tokens = [TextToken(token, backend.tokenizer.token_bytes(token), 0.0) for token in ids]
        found["attention"] += start_errors(clip, tokens, backend.align(job, 0, ids))
        found["CTC"] += start_errors(clip, tokens, aligner.spans(job.audio[0], [token.bytes for token in tokens]))
    quantiles = (0.5, 0.9, 0.95, 0.99)
    rows = [(name, len(values), *np.quantile(np.abs(values), quantiles).tolist()) for name, values in found.items()]
    return table(("times by", "words", "median, ms", "90 %", "95 %", "99 %"), rows)


def hear(backend: Backend, job: Job) -> list[int]:
    """Into row 0."""
    tokens = [int(backend.prefill([job], 0)[0].argmax())]
    while tokens[-1] != backend.tokenizer.end_of_text and len(tokens) < job.max_tokens:
        tokens.append(int(backend.decode(tokens[-1:])[0].argmax()))
    return tokens[:-1]


def start_errors(clip: Clip, tokens: list[TextToken], spans: Spans) -> list[float]:
    """Milliseconds by which words begin too late; none where no places were found."""
    raw = b"".join(token.bytes for token in tokens)
    pieces = word_pieces(raw)
    if not pieces or not spans:
        return []
    starts = places(pieces, tokens, spans)[:, 0] * 1000 / SAMPLE_RATE
    heard = normal(" ".join(raw[a:b].decode().strip(".,!?").lower() for a, b in pieces))
    expected = normal(clip.words)
    matches = SequenceMatcher(None, expected, heard, autojunk=False).get_matching_blocks()
    pairs = [(a + i, b + i) for a, b, size in matches for i in range(size)]
    return [starts[b] - clip.starts_ms[a] for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO_MODEL)
    parser.add_argument("--aligner", type=Path, default=DEMO_ALIGNER)
    parser.add_argument("--seconds", type=numbers, default=(15, 60))
    parser.add_argument("--tokens", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", default="auto")
    args = parser.parse_args()
    backend = load_backend("transformers", args.folder, LoadOptions("auto", "auto", 1, args.quantization))
    aligner = load_aligner(args.aligner, "auto")
    print(costs(backend, aligner, args.seconds, args.tokens, args.rounds))
    print(errors(backend, aligner, [clip for clip in ALL_CLIPS if clip.words and clip.seconds <= LONGEST_CLIP]))
    backend.close()


if __name__ == "__main__":
    main()
