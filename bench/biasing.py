"""What words to expect cost: the time of their part of a decode step over the time of the step, in one run.

    python -m bench.biasing [FOLDER] [--words 500] [--vocabulary 131072] [--rounds 200]

The step is the model's in FOLDER with one row and with eight, by default the demo model's, which is the shortest there
is. The part is what words to expect in every row add to the choice of the tokens: where no word is near, as nearly
always, and where one is raised.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.peers import table
from config import DEMO_MODEL
from engine.backends import load_backend
from engine.backends.base import Backend, LoadOptions
from engine.biasing import KeywordTree
from engine.core import Job, Sampling
from engine.sampling import Sampler, choose_tokens

SYLLABLES = "ka lo mi tar ven sho pra du fel gri ne os bra kin wol".split()


def made_up_words(count: int, rng: random.Random) -> list[str]:
    """Names that nobody has, of two to four syllables."""
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4))))
    return sorted(found)


def microseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e6


def step_microseconds(backend: Backend, batch: int, rounds: int) -> float:
    """A decode step after five seconds of silence in each row, as long a context as any chunk has at least."""
    job = Job(backend.tokenizer.transcription_prompt("en"), (np.zeros(80_000, np.float32),), rounds + 1, Sampling())
    backend.prefill([job] * batch, 0)
    return median(microseconds(lambda: backend.decode([1000] * batch)) for _ in range(rounds))


def choice_microseconds(logits: torch.Tensor, keywords: KeywordTree, rounds: int) -> tuple[float, float]:
    """Without keywords, and what they add to a choice that is made right after one without."""
    plain, expecting = (
        partial(choose_tokens, logits, [Sampler(Sampling(), 0, keywords=each) for _ in logits])
        for each in (None, keywords)
    )
    times = [(microseconds(plain), microseconds(expecting)) for _ in range(rounds)]
    return median(without for without, _ in times), median(added - without for without, added in times)


def measure(folder: Path, count: int, vocabulary: int, rounds: int) -> str:
    backend = load_backend("transformers", folder, LoadOptions("auto", "auto", 8, "none"))
    tree = backend.tokenizer.keyword_tree(tuple(made_up_words(count, random.Random(0))))
    assert tree
    begins = np.flatnonzero(tree.borders.spaced)
    first = next(token for token in begins if token not in tree.spaced.children)
    near = next(iter(tree.spaced.children))
    size = max(vocabulary, backend.tokenizer.vocabulary_size)
    rows = []
    for batch in (1, 8):
        step = step_microseconds(backend, batch, rounds)
        for name, level in (("no word is near", -20.0), ("a word is near", -2.0)):
            logits = torch.full((batch, size), -20.0)
            logits[:, int(first)], logits[:, near] = 0.0, level
            without, added = choice_microseconds(logits, tree, rounds)
            rows.append((batch, name, added, step, f"{added / (step + without):.2%}"))
    backend.close()
    return table(("rows", "where", "words, µs", "step, µs", "share"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO_MODEL)
    parser.add_argument("--words", type=int, default=500)
    parser.add_argument("--vocabulary", type=int, default=131_072, help="logits to look through: Voxtral's")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    print(measure(args.folder, args.words, args.vocabulary, args.rounds))


if __name__ == "__main__":
    main()
