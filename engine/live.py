"""Live hearing: audio goes in piece by piece, tokens come out as they are heard, for as long as anybody talks.

A `LiveStream` is one such session, at its border to asyncio; `engine.live_worker` has the thread that hears all of them
together. The model writes one token for every 80 ms, most of them pads, which stay inside: what comes out is text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.biasing import KeywordTree
from engine.core import EngineError

STEP_MS = 80  # between two tokens of the model
DELAYS_MS = (*range(80, 1201, 80), 2400)  # that Voxtral Realtime was trained for
SHORTEST_INTERVAL_MS, LONGEST_INTERVAL_MS = 80, 5000
MOST_ALTERNATIVES = 5


@dataclass(frozen=True)
class LiveOptions:
    """How a session is heard. Raises ValueError for what the model was not made for."""

    delay_ms: int = 480  # by which text follows speech; more is more accurate
    interval_ms: int | None = None  # of audio that is waited for, so that it costs less; None: as little as load allows
    top_logprobs: int = 0  # likeliest tokens that are told beside each
    keywords: KeywordTree | None = None  # words to expect

    def __post_init__(self) -> None:
        if self.delay_ms not in DELAYS_MS:
            raise ValueError(f"delay_ms is {self.delay_ms}; it can be 80 to 1200 in steps of 80, or 2400")
        interval = self.interval_ms
        if interval is not None and not SHORTEST_INTERVAL_MS <= interval <= LONGEST_INTERVAL_MS:
            raise ValueError(f"interval_ms is {interval}; it can be {SHORTEST_INTERVAL_MS} to {LONGEST_INTERVAL_MS}")
        if not 0 <= self.top_logprobs <= MOST_ALTERNATIVES:
            raise ValueError(f"top_logprobs is {self.top_logprobs}; it can be 0 to {MOST_ALTERNATIVES}")


@dataclass(frozen=True)
class LiveToken:
    """A token of the text; control tokens never come out.

    `start` and `end`: of its word, in samples of the audio that was fed, to 80 ms.
    """

    id: int
    logprob: float  # natural logarithm of its probability
    top: tuple[tuple[int, float], ...]  # ids and log-probabilities of the likeliest, if they were asked for
    start: int
    end: int


@dataclass(frozen=True)
class Flushed:
    """The text of all that was fed before a flush is out."""

    at: int  # samples that had been fed then


# What a stream asks of its worker: feed, flush, finish, cancel or keywords, and the samples or the tree.
Post = Callable[[str, "LiveStream", Any], None]


class LiveStream:
    """One session: what is fed, and an async iterator of what is heard. All of it on one event loop.

    Iteration ends when all is out after `finish`, or with `cancel`. It raises EngineError: JobFailed if the session
    failed, EngineStopped if the model was unloaded.
    """

    def __init__(self, options: LiveOptions, post: Post) -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.arrived: asyncio.Queue[LiveToken | Flushed | EngineError | None] = asyncio.Queue()
        self.fed = self.heard = 0  # samples; what was heard is counted by the worker
        self._post = post
        self._closed = False  # to more audio
        self._ended = False

    @property
    def backlog(self) -> int:
        """Samples that were fed and are not yet heard. Less than two steps stay until more is fed, or a flush."""
        return self.fed - self.heard

    def feed(self, samples: np.ndarray) -> None:
        """Samples (n,) at 16 kHz, mono. They are copied. After finish or the end nobody hears them."""
        if not self._closed and len(samples):
            self.fed += len(samples)
            self._post("feed", self, np.array(samples, np.float32))

    def flush(self) -> None:
        """Write what was fed to its end at once, without waiting for the delay; a `Flushed` follows it.

        The model hears silence for that, which no time counts. Where somebody is still speaking, it hears a pause.
        """
        if not self._closed:
            self._post("flush", self, None)

    def finish(self) -> None:
        """No more audio comes; the iteration ends when all of it is written."""
        if not self._closed:
            self._closed = True
            self._post("finish", self, None)

    def set_keywords(self, keywords: KeywordTree | None) -> None:
        """Other words to expect from here on."""
        if not self._closed:
            self._post("keywords", self, keywords)

    def cancel(self) -> None:
        """Leave the batch before its next step. Safe at any time, also after the end."""
        if not self._ended:
            self._closed = True
            self._post("cancel", self, None)
            self.arrived.put_nowait(None)

    def __aiter__(self) -> LiveStream:
        return self

    async def __anext__(self) -> LiveToken | Flushed:
        if self._ended:
            raise StopAsyncIteration
        item = await self.arrived.get()
        if item is None or isinstance(item, EngineError):
            self._ended = self._closed = True
            raise item or StopAsyncIteration
        return item
