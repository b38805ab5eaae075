"""What a client has sent and its session has not heard yet."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket

# About 12 minutes of 16-bit audio at 16 kHz in base64. Who sends more than waits here is not read until there is room.
MOST_BYTES = 32 * 1024 * 1024
LEAST_SIZE = 1024  # that a message counts for, so that small ones are bounded too


class Inbox:
    """Reads a socket whatever its session is at, so that pings are answered and a client that goes is noticed."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._bytes = 0
        self._room = asyncio.Event()

    async def fill(self) -> None:
        """Until the client is gone."""
        while (message := dict(await self._socket.receive()))["type"] != "websocket.disconnect":
            self._messages.put_nowait(message)
            self._bytes += _size(message)
            while self._bytes > MOST_BYTES:
                self._room.clear()
                await self._room.wait()

    async def next(self) -> dict[str, Any]:
        message = await self._messages.get()
        self._bytes -= _size(message)
        self._room.set()
        return message


def _size(message: dict[str, Any]) -> int:
    return max(len(message.get("text") or message.get("bytes") or ""), LEAST_SIZE)
