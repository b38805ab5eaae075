"""Realtime sockets whose session takes no audio, or whose client takes no events: uvicorn as main.py has it, in this
process, or no server at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import connect

import main
from api import realtime, realtime_inbox
from api.realtime_inbox import Inbox
from api.realtime_mistral import MistralDialect
from config import Settings
from live_sessions import LiveSessions
from metrics import Metrics
from model_table import DEMOS
from tests.dialects import TERMS, audio, find
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


async def test_a_client_that_takes_no_events_is_told_so_behind_them_and_the_socket_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(realtime, "SEND_SECONDS", 0.01)
    said, closed, forever = [], [], asyncio.Event()

    async def send_text(text: str) -> None:
        said.append(json.loads(text))
        await forever.wait()

    async def close(code: int) -> None:
        closed.append(code)
        await forever.wait()

    talk = SimpleNamespace(receive=forever.wait, send_text=send_text, close=close)
    await realtime._Talk(talk, service(None), MistralDialect(TERMS, None)).run()
    assert [event["type"] for event in said] == ["session.created", "error"]
    assert (said[1]["error"]["type"], closed) == ("reader_too_slow", [1008])
