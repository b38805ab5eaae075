"""The events of a live session that wait for their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from live import LiveError, LiveEvent

MOST_EVENTS = 10_000


class EventQueue:
    """Iterate it once."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        self._error: Exception | None = None

    def put(self, event: LiveEvent) -> None:
        """Raises LiveError reader_too_slow."""
        if self._events.qsize() >= MOST_EVENTS:
            raise LiveError("reader_too_slow", f"{MOST_EVENTS} events wait to be read. Read them as they come.")
        self._events.put_nowait(event)

    def forget(self, utterance: int) -> None:
        """None of this utterance comes out any more."""
        for _ in range(self._events.qsize()):
            event = self._events.get_nowait()
            if event is None or event.utterance != utterance:
                self._events.put_nowait(event)

    def end(self, error: Exception | None) -> None:
        """The iteration ends behind the events so far, and raises the error."""
        self._error = error
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        while (event := await self._events.get()) is not None:
            yield event
        if self._error:
            raise self._error
