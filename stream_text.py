"""What comes out of a LiveStream, on the clock of a session, with marks at the places where something is to be done.

A session need not feed all that it hears, so samples of the stream lead back to those of the session. A mark is set
together with a flush and passes where its `Flushed` comes, behind all text of what was fed before.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from engine.core import EngineError
from engine.live import Flushed, LiveStream, LiveToken

MarkKind = Literal["paused", "flushed", "ended", "dropped"]


@dataclass(frozen=True)
class Mark:
    kind: MarkKind
    number: int  # of the utterance
    bounds: tuple[int, int]  # samples of the utterance
    set_at: float  # when, on the event loop's clock


class StreamText:
    """Iterate it with `next`. `cancel` it in any case."""

    def __init__(self, stream: LiveStream, position: int) -> None:
        """What is fed first begins at `position` of the session."""
        self._stream = stream
        self._marks: deque[Mark] = deque()  # that have not passed
        self._passed: asyncio.Queue[LiveToken | Mark | EngineError | None] = asyncio.Queue()
        # Where feeding began, and where it went on somewhere else: samples of the stream, and of the session.
        self._places: list[tuple[int, int]] = [(0, position)]
        self._reader = asyncio.create_task(self._read())

    def go_on_at(self, position: int) -> None:
        """What is fed next is not what follows in the session, but begins at `position`."""
        self._places.append((self._stream.fed, position))

    def set(self, mark: Mark) -> None:
        self._stream.flush()
        self._marks.append(mark)

    async def next(self) -> LiveToken | Mark | None:
        """Tokens with their samples of the session, and marks; None at the end. Raises EngineError."""
        item = await self._passed.get()
        if isinstance(item, EngineError):
            raise item
        if isinstance(item, LiveToken):
            return replace(item, start=self._position(item.start), end=self._position(item.end))
        return item

    def _position(self, sample: int) -> int:
        """Tokens come in order, so places before theirs are not needed any more."""
        place = bisect_right(self._places, sample, key=lambda place: place[0]) - 1
        of_stream, of_session = self._places[max(place, 0)]
        del self._places[: max(place - 1, 0)]
        return of_session + sample - of_stream

    async def _read(self) -> None:
        try:
            async for item in self._stream:
                self._passed.put_nowait(self._marks.popleft() if isinstance(item, Flushed) else item)
        except EngineError as error:
            self._passed.put_nowait(error)
            return
        self._passed.put_nowait(None)

    def cancel(self) -> None:
        self._stream.cancel()
        self._reader.cancel()
