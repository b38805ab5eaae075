"""A backend that writes what a script says of each job, for the real worker, and audio that such a script can read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import groupby

import numpy as np
import torch

from config import DEMO_MODEL
from engine.core import Job
from engine.live_worker import LiveWorker
from engine.scheduler import Limits, Size
from engine.tokenizer import VoxtralTokenizer
from engine.worker import Worker
from tests.speech import SAMPLE_RATE

LOGIT = 12.0  # of the scripted token; all others have 0
# Behind a text that ends where another word is nearly as likely, or a full stop.
DOUBTFUL, FULL_STOP = " ...", " [.]"
WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike oscar papa quebec romeo sierra "
    "tango uniform victor whiskey yankee zulu monday tuesday wednesday thursday friday saturday sunday january "
    "february march april august september october november december red orange yellow green blue purple black white "
    "brown silver river mountain garden window music paper table doctor morning evening open close send call play stop"
).split()  # each is one token of the demo model


def spoken(words: Sequence[str]) -> np.ndarray:
    """Samples of WORDS: for each 0.7 s of a level that names it, then 0.3 s of silence."""
    levels = np.repeat([(WORDS.index(word) + 1) / 100 for word in words], SAMPLE_RATE).astype(np.float32)
    levels = levels.reshape(-1, SAMPLE_RATE)
    levels[:, int(0.7 * SAMPLE_RATE) :] = 0
    return levels.ravel()


def words_in(samples: np.ndarray) -> list[str]:
    """The WORDS whose level lasts for half a second or more."""
    runs = ((number, len([*run])) for number, run in groupby(np.round(samples * 100).astype(int).tolist()))
    return [WORDS[number - 1] for number, length in runs if number and length >= SAMPLE_RATE // 2]


@contextmanager
def held(worker: Worker | LiveWorker) -> Iterator[None]:
    """What is sent to an idle worker meanwhile reaches it at once, however long the sending takes."""
    go, handle = threading.Event(), worker._handle

    def wait_and_handle(*message: object) -> None:
        go.wait()
        handle(*message)

    worker._handle = wait_and_handle
    worker.cancel(None)  # of no stream: the idle thread has looked up what it calls with the next message
    try:
        yield
    finally:
        go.set()


@cache
def tokenizer() -> VoxtralTokenizer:
    return VoxtralTokenizer(DEMO_MODEL)


class ScriptedBackend:
    def __init__(self, script: Callable[[Job], str], rows: int = 4) -> None:
        self.tokenizer = tokenizer()
        self.limits, self.context_length, self.memory_bytes = Limits(rows, prefill_tokens=0), 8192, 0
        self.description = self.device = "script"
        self.jobs: list[Job] = []
        self._script = script
        self._texts: dict[int, Iterator[tuple[int, int]]] = {}  # by row: tokens, and what is nearly as likely

    def audio_tokens(self, samples: int) -> int:
        return 375

    def size(self, job: Job) -> Size:
        return Size(prompt=375, most=375 + job.max_tokens)

    def prefill(self, jobs: list[Job], row: int) -> torch.Tensor:
        (job,) = jobs
        self.jobs.append(job)
        text = self._script(job)
        said = text.removesuffix(DOUBTFUL).removesuffix(FULL_STOP)
        encode = partial(self.tokenizer._tekken.encode, bos=False, eos=False)
        tokens, end = encode(f" {said}" if said else ""), self.tokenizer.end_of_text
        rivals = {said: end, said + DOUBTFUL: tokens[0] if tokens else end, said + FULL_STOP: encode(".")[0]}
        self._texts[row] = iter([*zip(tokens, tokens, strict=True), (end, rivals[text])])
        return self._logits([next(self._texts[row])])

    def decode(self, tokens: list[int]) -> torch.Tensor:
        return self._logits([next(self._texts[row]) for row in range(len(tokens))])

    def align(self, job: Job, row: int, tokens: list[int]) -> list[tuple[int, int]]:
        """A word a second, as in `spoken`."""
        return [(i * SAMPLE_RATE, i * SAMPLE_RATE + int(0.7 * SAMPLE_RATE)) for i in range(len(tokens))]

    def _logits(self, tokens: list[tuple[int, int]]) -> torch.Tensor:
        logits = torch.zeros(len(tokens), self.tokenizer.vocabulary_size)
        for row, (token, rival) in zip(logits, tokens, strict=True):
            row[rival] = LOGIT - 0.1
            row[token] = LOGIT
        return logits

    def move_row(self, source: int, target: int) -> None:
        self._texts[target] = self._texts[source]

    def release_memory(self) -> None:
        self._texts.clear()

    def free_memory(self) -> int:
        return 2**40

    def close(self) -> None: ...
