"""Frames to the wire: server-sent events, heartbeats, and what happens when the client goes away.

One event is one write of ASCII JSON, because Lotti loses an event that arrives in two reads. Keep-alives are comment
lines, the only ones that every client skips. After the first byte an error can no longer be a status: it is sent in
the dialect's own way and the connection is broken, so that no client takes half a transcript for a whole one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")
KEEPALIVE = "keepalive"


def sse(payload: dict[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event, with an `event:` line if it has a name; a string is sent as it stands."""
    data = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {data}\n\n".encode("ascii")


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return f": {text}\n\n".encode("ascii")


async def with_heartbeats(
    frames: AsyncGenerator[bytes], seconds: float, heartbeat: Callable[[], str]
) -> AsyncGenerator[bytes]:
    """`frames`, and a comment with what `heartbeat` says whenever none has come for `seconds`."""
    async with aclosing(frames):
        while True:
            upcoming = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({upcoming}, timeout=seconds))[0]:
                    yield comment(heartbeat())
            finally:
                if not upcoming.done():
                    upcoming.cancel()
                    await asyncio.gather(upcoming, return_exceptions=True)
            frame = upcoming.result()
            if frame is None:
                return
            yield frame


class EventStream(Response):
    """Sends frames until they end, the client goes, or an error breaks the connection. Then calls `close`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        heartbeat_seconds: float,
        error_frame: Callable[[Exception], bytes],
        close: Callable[[], Awaitable[None]],
        heartbeat: Callable[[], str] = lambda: KEEPALIVE,
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = with_heartbeats(frames, heartbeat_seconds, heartbeat)
        self._error_frame, self._close = error_frame, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            complete = await until_disconnect(receive, self._send_frames(send))
            if complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._close()

    async def _send_frames(self, send: Send) -> bool:
        """False when an error ended the frames: the response then stays unfinished and the connection is cut."""
        async with aclosing(self._frames):
            try:
                async for frame in self._frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            except Exception as error:  # noqa: BLE001 - the edge: the status is out, the stream must say it
                frame = self._error_frame(error)
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                return False
        return True


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, or None when the client went away first, after cancelling it."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
