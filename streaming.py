"""Events to the wire: server-sent events, heartbeats, and what happens when the client goes away.

One event is one write of ASCII JSON, because Lotti loses an event that arrives in two reads. Keep-alives are comment
lines, the only ones that every client skips. After the first byte an error can no longer be a status: it is sent in
the dialect's own way and the connection is broken, so that no client takes half a transcript for a whole one.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from transcript import Event, Finished, TextDelta, Usage

Result = TypeVar("Result")
HEARTBEAT = b": keepalive\n\n"


def sse(payload: dict[str, Any] | str) -> bytes:
    """One server-sent event; a string is sent as it stands."""
    data = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    return f"data: {data}\n\n".encode("ascii")


def token_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's token usage of a transcription, with Mistral's names beside, whose SDK insists on them."""
    return {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "input_token_details": {"text_tokens": usage.text_tokens, "audio_tokens": usage.audio_tokens},
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "prompt_audio_seconds": usage.audio_seconds,
    }


def chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "audio_tokens": usage.audio_tokens, "text_tokens": usage.text_tokens, "cached_tokens": 0,
        },
    }  # fmt: skip


async def transcription_frames(events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    """OpenAI's `transcript.text.*` events. The stream ends by its end: `[DONE]` would break other SDKs."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield sse({"type": "transcript.text.delta", "delta": event.text})
            elif isinstance(event, Finished):
                transcript = event.transcript
                usage = token_usage(transcript.usage)
                yield sse({"type": "transcript.text.done", "text": transcript.text, "usage": usage})


class ChatCompletion:
    """The fixed part of one chat answer: its id, its time and the model's name."""

    def __init__(self, model: str) -> None:
        self.id, self.created, self.model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model

    def body(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._envelope("chat.completion", [choice], usage=chat_usage(usage))

    async def frames(self, events: AsyncGenerator[Event], include_usage: bool) -> AsyncGenerator[bytes]:
        """Chunks with the role, the text as it is decoded, the finish reason, the usage if asked for, and `[DONE]`."""
        async with aclosing(events):
            yield self._chunk({"role": "assistant", "content": ""})
            async for event in events:
                if isinstance(event, TextDelta):
                    yield self._chunk({"content": event.text})
                elif isinstance(event, Finished):
                    yield self._chunk({}, "length" if event.transcript.truncated else "stop")
                    if include_usage:
                        usage = chat_usage(event.transcript.usage)
                        yield sse(self._envelope("chat.completion.chunk", [], usage=usage))
        yield sse("[DONE]")

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse(self._envelope("chat.completion.chunk", [choice]))

    def _envelope(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **rest}


async def with_heartbeats(frames: AsyncGenerator[bytes], seconds: float) -> AsyncGenerator[bytes]:
    """`frames`, and a comment line whenever none has come for `seconds`."""
    async with aclosing(frames):
        while True:
            upcoming = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({upcoming}, timeout=seconds))[0]:
                    yield HEARTBEAT
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
        error_body: Callable[[Exception], dict[str, Any]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = with_heartbeats(frames, heartbeat_seconds)
        self._error_body, self._close = error_body, close

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
                body = sse(self._error_body(error))
                await send({"type": "http.response.body", "body": body, "more_body": True})
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
