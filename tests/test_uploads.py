"""Bodies on their way in: how much of them is in memory, and what becomes of one that stops."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from fastapi import Request
from starlette.types import Message, Receive, Scope, Send

from api.errors import ApiError
from api.uploads import SMALL_BODY_BYTES, BodyLimit, read_json
from tests.serving import Server

MEGABYTE = 1 << 20


def test_a_body_is_in_memory_twice_at_most() -> None:
    pieces = [b'{"audio": "', *[b"A" * MEGABYTE] * 20, b'"}']

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    tracemalloc.start()
    try:
        values = asyncio.run(read_json(Request({"type": "http", "headers": []}, receive)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(values["audio"]) == 20 * MEGABYTE
    assert peak < 50 * MEGABYTE


def test_a_body_that_stops_arriving_is_answered_and_a_whole_one_has_all_the_time() -> None:
    async def never() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        async with asyncio.timeout(0.05):  # waits for a disconnect, as an answer at work does
            await receive()

    async def arriving(more_body: bool) -> None:
        first = iter([{"type": "http.request", "body": b"{", "more_body": more_body}])

        async def receive() -> Message:
            return next(first, None) or await never()

        await BodyLimit(reading, 1, pause_seconds=0.01)({"type": "http", "headers": []}, receive, None)

    with pytest.raises(ApiError, match="Nothing of the body") as caught:
        asyncio.run(arriving(more_body=True))
    assert caught.value.status == 408
    with pytest.raises(TimeoutError):
        asyncio.run(arriving(more_body=False))


def test_requests_without_audio_have_small_bodies(server: Server) -> None:
    body = json.dumps({"model": "m" * SMALL_BODY_BYTES}).encode()
    response = server.client.post("/v1/models/unload", content=body)
    assert response.status_code == 413
    assert "longer than" in response.json()["error"]["message"]
