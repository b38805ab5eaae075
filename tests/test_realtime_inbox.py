"""Realtime sockets whose session takes no audio, or whose client takes no events: uvicorn as main.py has it, in this
process, or no server at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import connect

import main
from api import realtime, realtime_inbox
from api.realtime_inbox import Inbox
from api.realtime_mistral import MistralDialect
from api.realtime_openai import OpenAIDialect
from config import Settings
from engine.core import PromptTooLong
from live import LiveEvent, LiveRequest
from live_sessions import LiveSessions
from metrics import Metrics
from model_table import DEMOS
from tests.dialects import MODELS, TERMS, audio, find
from tests.listening import OneModel, until
from transcriber import Transcriber

pytestmark = pytest.mark.anyio

APPEND = json.dumps({"type": "input_audio_buffer.append", "audio": audio()})


class Loading(OneModel):
    """A model that is never there."""

    @asynccontextmanager
    async def use(self, model: object) -> AsyncIterator[object]:
        await asyncio.Event().wait()
        yield


def service(live: object) -> SimpleNamespace:
    secrets = SimpleNamespace(session=lambda key: None)
    model = SimpleNamespace(spec=DEMOS[0])
    return SimpleNamespace(settings=Settings(), live=live, live_model=find, model=lambda name: model, secrets=secrets)


@asynccontextmanager
async def serving(live: object) -> AsyncIterator[str]:
    """The address of the sockets."""
    app = FastAPI()
    app.include_router(realtime.router)
    app.state.service = service(live)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **main.SOCKETS))
    running = asyncio.create_task(server.serve([listening]))
    try:
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/realtime"
    finally:
        server.should_exit = True
        await running


async def test_while_a_model_is_loaded_pings_are_answered_and_who_leaves_gives_back_a_place() -> None:
    live = LiveSessions(Transcriber(Settings(), Loading(None), Metrics()))
    async with serving(live) as address, asyncio.timeout(30):
        async with connect(address) as talk:
            for _ in range(100):
                await talk.send(APPEND)
            await (await talk.ping())
            assert live.count == 1
        await until(lambda: live.count == 0)


async def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_inbox, "MOST_BYTES", 10_000)
    read = []

    async def receive() -> dict[str, Any]:
        read.append({"type": "websocket.receive", "text": f"{len(read):4000}"})
        return read[-1]

    inbox = Inbox(SimpleNamespace(receive=receive))
    filling = asyncio.create_task(inbox.fill())
    for taken in range(5):
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(read) == taken + 3
        assert int((await inbox.next())["text"]) == taken
    filling.cancel()


class Peer:
    """A socket whose client says `messages`, hears as many answers, and leaves."""

    headers: ClassVar = {}

    def __init__(self, messages: list[str], answers: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self._messages, self._answers, self._enough = iter(messages), answers, asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if text := next(self._messages, None):
            return {"type": "websocket.receive", "text": text}
        await self._enough.wait()
        return {"type": "websocket.disconnect"}

    async def send_text(self, text: str) -> None:
        self.heard.append(json.loads(text))
        if len(self.heard) == self._answers:
            self._enough.set()


class Particular:
    """A session that reads short prompts only, and hears nothing."""

    async def update(self, request: LiveRequest) -> None:
        if len(request.prompt or "") > 9:
            raise PromptTooLong("The prompt is too long.")

    async def feed(self, samples: object) -> None: ...

    async def close(self) -> None: ...

    async def events(self) -> AsyncIterator[LiveEvent]:
        await asyncio.Event().wait()
        yield


async def test_what_a_session_refuses_is_told_and_not_asked_for_again() -> None:
    def update(**asked: str) -> str:
        return json.dumps({"type": "session.update", "session": {"audio": {"input": {"transcription": asked}}}})

    async def opened(*_: object) -> Particular:
        return Particular()

    peer = Peer([APPEND, update(prompt="short"), update(prompt="far too long"), update(language="en")], 4)
    async with asyncio.timeout(30):
        live = SimpleNamespace(open=opened, socket=nullcontext)
        await realtime._Talk(peer, service(live), OpenAIDialect(TERMS, MODELS["whisper-1"])).run()
    _, first, refused, last = peer.heard
    assert refused["error"]["code"] == "context_length_exceeded"
    shown = [event["session"]["audio"]["input"]["transcription"] for event in (first, last)]
    assert [(each["prompt"], each["language"]) for each in shown] == [("short", None), ("short", "en")]


@pytest.mark.parametrize(("limits", "code", "closed"), [
    ({"realtime_idle_seconds": 1}, "idle", 4002), ({"realtime_session_seconds": 1}, "too_long", 4003),
], ids=str)  # fmt: skip
async def test_updates_without_end_are_no_audio_and_keep_no_socket(
    limits: dict[str, int], code: str, closed: int
) -> None:
    class Insistent(Peer):
        def __init__(self) -> None:
            super().__init__([], answers=0)
            self.closed: list[tuple[int, str]] = []

        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(0.1)
            return {"type": "websocket.receive", "text": '{"type": "session.update", "session": {}}'}

        async def close(self, code: int, reason: str) -> None:
            self.closed.append((code, reason))

    peer, around = Insistent(), service(SimpleNamespace(socket=nullcontext))
    around.settings = Settings(**limits)
    async with asyncio.timeout(30):
        await realtime._Talk(peer, around, OpenAIDialect(TERMS, MODELS["whisper-1"])).run()
    assert (peer.heard[-1]["error"]["code"], peer.closed) == (code, [(closed, code)])


async def test_a_client_that_takes_no_events_is_told_so_behind_them_and_the_socket_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(realtime, "SEND_SECONDS", 0.01)
    said, closed, forever = [], [], asyncio.Event()

    async def send_text(text: str) -> None:
        said.append(json.loads(text))
        await forever.wait()

    async def close(code: int, reason: str) -> None:
        closed.append((code, reason))
        await forever.wait()

    talk = SimpleNamespace(receive=forever.wait, send_text=send_text, close=close)
    await realtime._Talk(talk, service(SimpleNamespace(socket=nullcontext)), MistralDialect(TERMS, None)).run()
    assert [event["type"] for event in said] == ["session.created", "error"]
    assert (said[1]["error"]["type"], closed) == ("reader_too_slow", [(4004, "reader_too_slow")])
