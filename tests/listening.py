"""Live sessions on a scripted model: audio of `scripted.spoken`, ears that know its levels, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import live_listening
from config import Settings
from engine.core import EngineError, Job
from engine.live import Flushed, LiveOptions, LiveStream, LiveToken
from engine.worker import Worker
from live import LiveEvent, LiveRequest, LiveSession
from live_sessions import LiveSessions
from metrics import Metrics
from model_table import DEMOS
from tests.scripted import WORDS, ScriptedBackend, tokenizer, words_in
from tests.speech import SAMPLE_RATE
from transcriber import Transcriber
from voice_activity import FRAME

SILENCE = np.zeros(SAMPLE_RATE, np.float32)


class LevelEars:
    """In the place of a Listener: whatever is not silent is speech, and "window" is murmured."""

    def __init__(self, batch: int) -> None:
        self._batch, self._waiting = batch, np.zeros(0, np.float32)

    def hear(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        samples = np.concatenate([self._waiting, samples])
        whole = len(samples) // self._batch * self._batch
        self._waiting = samples[whole:]
        for start in range(0, whole, self._batch):
            frames = samples[start : start + self._batch].reshape(-1, FRAME)
            levels = np.abs(frames).mean(axis=1)
            murmured = np.abs(levels * 100 - WORDS.index("window") - 1) < 0.1
            yield np.where(murmured, 0.5, levels > 0.005).astype(np.float32)


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_listening, "Listener", LevelEars)


Script = Callable[[Job], str]


def clean(job: Job) -> str:
    return " ".join(words_in(job.audio[0]))


class OneModel:
    """In the place of a ModelManager: a worker that is there already."""

    aligner = None  # none is configured

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
        self.model = SimpleNamespace(spec=DEMOS[0])
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


@dataclass
class Heard:
    """What a stream of a ScriptedStreams has heard."""

    audio: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pieces: list[int] = field(default_factory=list)
    told: int = 0  # words
    keywords: list[object] = field(default_factory=list)
    cancelled: bool = False


class ScriptedStreams:
    """In the place of a LiveWorker: writes each of WORDS once it was said and its delay has passed."""

    def __init__(self, spelled: Callable[[str], str] = str) -> None:
        self.backend = SimpleNamespace(tokenizer=tokenizer(), most_streams=64)
        self.streams: dict[LiveStream, Heard] = {}
        self.hears = True  # False: what is fed waits
        self._spelled = spelled

    def open(self, options: LiveOptions) -> LiveStream:
        stream = LiveStream(options, self._post)
        self.streams[stream] = Heard()
        return stream

    @property
    def heard(self) -> Heard:
        """Of the only stream that is open."""
        (heard,) = [heard for heard in self.streams.values() if not heard.cancelled]
        return heard

    def fail(self, error: EngineError) -> None:
        for stream in self.streams:
            stream.arrived.put_nowait(error)

    def close(self) -> None: ...

    def _post(self, kind: str, stream: LiveStream, given: object) -> None:
        heard = self.streams[stream]
        if kind == "feed":
            heard.audio = np.concatenate([heard.audio, given])
            heard.pieces.append(len(given))
            if stream.backlog >= (stream.options.interval_ms or 0) * 16:
                self._tell(stream, len(heard.audio) - stream.options.delay_ms * 16)
        elif kind == "keywords":
            heard.keywords.append(given)
        elif kind == "cancel":
            heard.cancelled = True
        else:
            self._tell(stream, len(heard.audio))
            stream.arrived.put_nowait(Flushed(len(heard.audio)) if kind == "flush" else None)

    def _tell(self, stream: LiveStream, until: int) -> None:
        heard = self.streams[stream]
        if self.hears:
            stream.heard = len(heard.audio)
        for word, start, end in [*words_at(heard.audio)][heard.told :]:
            if end > until:
                break
            heard.told += 1
            for token in tokenizer()._tekken.encode(f" {self._spelled(word)}", bos=False, eos=False):
                stream.arrived.put_nowait(LiveToken(token, -0.1, ((token, -0.1),), start, end))


def words_at(samples: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """The WORDS of `scripted.spoken`, as far as they were said, and their samples."""
    levels = np.round(samples * 100).astype(int)
    for start, end in pairwise([0, *np.flatnonzero(np.diff(levels)) + 1, len(levels)]):
        if end - start > SAMPLE_RATE // 2 and levels[start]:
            yield WORDS[levels[start] - 1], int(start), int(end)
