"""Live sessions on a scripted model: audio of `scripted.spoken`, ears that know its levels, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import live_listening
from config import Settings
from engine.core import Job
from engine.worker import Worker
from live import LiveEvent, LiveRequest, LiveSession
from live_sessions import LiveSessions
from metrics import Metrics
from model_table import DEMO
from tests.scripted import ScriptedBackend, words_in
from tests.speech import SAMPLE_RATE
from transcriber import Transcriber
from voice_activity import FRAME

SILENCE = np.zeros(SAMPLE_RATE, np.float32)


class LevelEars:
    """In the place of a Listener: whatever is not silent is speech."""

    def __init__(self, batch: int) -> None:
        self._batch, self._waiting = batch, np.zeros(0, np.float32)

    def hear(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        samples = np.concatenate([self._waiting, samples])
        whole = len(samples) // self._batch * self._batch
        self._waiting = samples[whole:]
        for start in range(0, whole, self._batch):
            frames = samples[start : start + self._batch].reshape(-1, FRAME)
            yield (np.abs(frames).mean(axis=1) > 0.005).astype(np.float32)


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_listening, "Listener", LevelEars)


Script = Callable[[Job], str]


def clean(job: Job) -> str:
    return " ".join(words_in(job.audio[0]))


class OneModel:
    """In the place of a ModelManager: a worker that is there already."""

    def __init__(self, worker: object) -> None:
        self.worker, self.users = worker, 0

    @asynccontextmanager
    async def use(self, model: object) -> AsyncIterator[object]:
        self.users += 1
        try:
            yield self.worker
        finally:
            self.users -= 1


class Desk:
    """`async with Desk(script) as desk:` has live sessions of a model that answers every chunk as `script` does."""

    def __init__(
        self, worker: object | None = None, script: Callable[[Job], str] | None = None, **given: object
    ) -> None:
        self.backend = None if worker else ScriptedBackend(script or (lambda job: " ".join(words_in(job.audio[0]))))
        self.worker = worker or Worker(self.backend)
        self.models, self.metrics = OneModel(self.worker), Metrics()
        self.model = SimpleNamespace(spec=DEMO)
        settings = Settings(chunk_store_mb=0, **given)
        self.live = LiveSessions(Transcriber(settings, self.models, self.metrics))

    async def __aenter__(self) -> Desk:
        return self

    async def __aexit__(self, *details: object) -> None:
        self.worker.close()

    async def open(self, **asked: object) -> LiveSession:
        return await self.live.open(self.model, LiveRequest(**asked))


class Clock:
    """In the place of a session's event loop, for the time that it tells."""

    def __init__(self, session: LiveSession) -> None:
        self._loop, self._ahead = session._loop, 0.0
        session._loop = self

    def turn(self, seconds: float) -> None:
        self._ahead += seconds

    def time(self) -> float:
        return self._loop.time() + self._ahead

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


async def hear(session: LiveSession, samples: np.ndarray, piece: int = 1600) -> None:
    for start in range(0, len(samples), piece):
        await session.feed(samples[start : start + piece])


async def told(session: LiveSession) -> list[LiveEvent]:
    return [event async for event in session.events()]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


def of(events: list[LiveEvent], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]
