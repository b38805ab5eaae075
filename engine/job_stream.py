"""The border between an inference thread and asyncio: a job's tokens as an iterator, and what is sent in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from typing import Any, Protocol

from engine.core import EngineError, Job, JobDone, Token

log = logging.getLogger("voxtral.engine")


class JobRunner(Protocol):
    def audio_tokens(self, job: Job) -> int: ...

    def cancel(self, stream: JobStream) -> None: ...


class JobStream:
    """The tokens of one job as an async iterator. After its end `done` tells how it ended."""

    def __init__(self, job: Job, owner: Hashable, worker: JobRunner) -> None:
        self.job, self.owner = job, owner
        self.audio_tokens = worker.audio_tokens(job)
        self.done: JobDone | None = None
        self.loop = asyncio.get_running_loop()
        self.arrived: asyncio.Queue[Token | JobDone | EngineError] = asyncio.Queue()
        self._worker = worker

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Token:
        if self.done:
            raise StopAsyncIteration
        item = await self.arrived.get()
        if isinstance(item, Token):
            return item
        if isinstance(item, EngineError):
            raise item
        self.done = item
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Leave the batch before its next step. Safe at any time, also after the end."""
        if not self.done:
            self._worker.cancel(self)


class Stream(Protocol):
    """What a thread can send to."""

    loop: asyncio.AbstractEventLoop
    arrived: asyncio.Queue[Any]


class Outbox:
    """What a step has for the event loops, which are called once each."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Any]]] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, stream: Stream, item: Any) -> None:
        self._items.setdefault(stream.loop, []).append((stream, item))

    def send(self) -> None:
        for loop, items in self._items.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                log.debug("%d results came after their event loop had closed", len(items))
        self._items = {}


def _deliver(items: list[tuple[Stream, Any]]) -> None:
    for stream, item in items:
        stream.arrived.put_nowait(item)
