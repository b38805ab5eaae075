"""The live sessions of a server: how many there may be, and which kind a model makes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
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


class LiveSessions:
    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._opening = 0
        self._open: set[ListeningSession] = set()
        # Few for all: speech is looked for in 0.5 ms of each 64 that a session hears, and in a second at once at most.
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), "voices")

    @property
    def count(self) -> int:
        return len(self._open) + self._opening

    @property
    def behind(self) -> float:
        """Seconds of audio that wait for the model, in the session where these are most."""
        return max((session.behind for session in self._open), default=0.0)

    async def open(self, model: Model, request: LiveRequest, key: str = "") -> LiveSession:
        """A session, once the model is loaded, which then stays loaded. `close()` it in any case.

        `key`: SHA-256 of the API key, if one was sent. Raises LiveError too_many_sessions or prompt_unsupported,
        ModelUnavailable, PromptInvalid, PromptTooLong.
        """
        most = self._transcriber.settings.realtime_max_sessions
        if self.count >= most:
            raise LiveError(
                "too_many_sessions", f"{most} sessions are open, the most that this server takes. Try again later."
            )
        self._opening += 1
        held = AsyncExitStack()
        try:
            worker = await held.enter_async_context(self._transcriber.use(model))
            session = await self._session(model, request, worker, Caller("", key, keep=False), held)
        except BaseException:
            await held.aclose()
            raise
        finally:
            self._opening -= 1
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
        session = StreamingSession(request, around, model, worker, transcriber.replacements)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session
