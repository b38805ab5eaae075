"""The live sessions of a server: how many there may be, and which kind a model makes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from live import LiveError, LiveRequest, LiveSession
from live_listening import ListeningSession, Surroundings
from live_streaming import StreamingSession
from live_utterances import UtteranceSession, asked
from model_manager import Model
from progress import Caller
from transcriber import Transcriber

if TYPE_CHECKING:
    from engine.live_worker import LiveWorker  # these bring torch, which takes seconds
    from engine.worker import Worker

MOST_THREADS = 4  # that look for speech
SOCKETS_PER_SESSION = 4  # that may be open for each session that may: one without audio has none yet


class LiveSessions:
    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._places: Counter[str] = Counter()  # by model, those of sessions that open included
        self._open: set[ListeningSession] = set()
        self._sockets = 0
        # Few for all: speech is looked for in 0.5 ms of each 64 that a session hears, and in a second at once at most.
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), "voices")

    @property
    def count(self) -> int:
        return self._places.total()

    @property
    def behind(self) -> float:
        """Seconds of audio that wait for the model, in the session where these are most."""
        return max((session.behind for session in self._open), default=0.0)

    @contextmanager
    def socket(self) -> Iterator[None]:
        """A place for a socket, with or without a session. Raises LiveError too_many_sessions."""
        most = SOCKETS_PER_SESSION * self._transcriber.settings.realtime_max_sessions
        if self._sockets >= most:
            raise _too_many(f"{most} realtime sockets are open, the most that this server takes.")
        self._sockets += 1
        try:
            yield
        finally:
            self._sockets -= 1

    async def open(self, model: Model, request: LiveRequest, key: str = "") -> LiveSession:
        """A session, once the model is loaded, which then stays loaded. `close()` it in any case.

        `key`: SHA-256 of the API key, if one was sent. Raises LiveError too_many_sessions or prompt_unsupported,
        ModelUnavailable, PromptInvalid, PromptTooLong.
        """
        most = self._transcriber.settings.realtime_max_sessions
        if self.count >= most:
            raise _too_many(f"{most} sessions are open, the most that this server takes.")
        held = AsyncExitStack()
        self._places[model.spec.id] += 1
        held.callback(self._places.subtract, [model.spec.id])
        try:
            worker = await held.enter_async_context(self._transcriber.use(model))
            session = await self._session(model, request, worker, Caller("", key, keep=False), held)
        except BaseException:
            await held.aclose()
            raise
        self._open.add(session)
        held.callback(self._open.discard, session)
        return session

    async def _session(
        self, model: Model, request: LiveRequest, worker: Worker | LiveWorker, caller: Caller, held: AsyncExitStack
    ) -> ListeningSession:
        transcriber = self._transcriber
        around = Surroundings(transcriber.settings, transcriber.metrics, self._threads, held)
        if not hasattr(worker, "open"):
            await transcriber.check(worker, asked(request))
            return UtteranceSession(request, around, transcriber, model, worker, caller)
        most = worker.backend.most_streams
        if self._places[model.spec.id] > most:
            raise _too_many(f"The memory is enough for {most} sessions of this model, which are open.")
        session = StreamingSession(request, around, model, worker, transcriber.replacements)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session


def _too_many(why: str) -> LiveError:
    return LiveError("too_many_sessions", f"{why} Try again later.")
