"""The realtime sockets: bytes between a client, the dialect that it speaks, and a live session.

Three tasks share a socket. One reads it. One carries out what the client's events lead to, one after another, so that a
client that sends too fast waits for the model. One tells the client what the session has heard.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from api.edge import key_digest, sent_key
from api.errors import ApiError, describe
from api.realtime_dialect import Action, Clear, Close, Commit, Dialect, Feed, Finish, Flush, Send, Terms, Update
from api.realtime_inbox import Inbox
from api.realtime_latch import Undecided
from api.realtime_mistral import MistralDialect
from api.service import Service
from engine.core import PromptInvalid, PromptTooLong
from live import LiveError, LiveSession

log = logging.getLogger("voxtral.api")
router = APIRouter()

# Of one message: 15 MiB of audio in base64, which OpenAI takes, and what stands around it.
MOST_MESSAGE_BYTES = 21 * 1024 * 1024
MOST_READ_BYTES = 32 * 1024 * 1024  # of one, to say that it is too large; over a larger one the connection breaks
QUICK = 100_000  # characters, which are read in about a millisecond; more are read in a thread
SEND_SECONDS = 20  # for a client to make room for an event
BETA_PROTOCOL = "openai-beta.realtime-v1"
# For private use, by RFC 6455, section 7.4.2.
LIMITS = {"backlog_full": 4001, "idle": 4002, "too_long": 4003, "reader_too_slow": 4004}
# A session goes on after these.
PASSING = ("input_audio_buffer_commit_empty", "prompt_unsupported", "delay_fixed")


@router.websocket("/realtime")
async def realtime(socket: WebSocket) -> None:
    """OpenAI's dialect of today, that of its beta, and vLLM's."""
    service: Service = socket.app.state.service
    beta = "realtime=v1" in socket.headers.get("openai-beta", "") or BETA_PROTOCOL in socket.scope["subprotocols"]
    given = service.secrets.session(sent_key(socket.headers))
    name, intent = socket.query_params.get("model"), socket.query_params.get("intent")
    await _serve(socket, service, lambda terms: Undecided(terms, name, beta, given, intent))


@router.websocket("/audio/transcriptions/realtime")
async def mistral_realtime(socket: WebSocket) -> None:
    """Mistral's dialect."""
    name = socket.query_params.get("model")
    await _serve(socket, socket.app.state.service, lambda terms: MistralDialect(terms, name))


async def _serve(socket: WebSocket, service: Service, dialect: Callable[[Terms], Dialect]) -> None:
    # Browsers hold that a server which names no protocol has not understood them.
    await socket.accept(subprotocol="realtime" if "realtime" in socket.scope["subprotocols"] else None)
    now = int(time.time())
    seconds = service.settings.realtime_session_seconds
    terms = Terms(f"sess_{uuid.uuid4().hex}", now, now + round(seconds), service.live_model)
    await _Talk(socket, service, dialect(terms)).run()


class _Talk:
    def __init__(self, socket: WebSocket, service: Service, dialect: Dialect) -> None:
        self._socket, self._service, self._dialect = socket, service, dialect
        self._inbox = Inbox(socket)
        self._session: LiveSession | None = None
        self._opened = asyncio.Event()
        self._idle_at = asyncio.get_running_loop().time() + service.settings.realtime_idle_seconds
        self._dialects_turn = asyncio.Lock()  # large events are read in a thread

    async def run(self) -> None:
        """Until the client is gone, the session is over, or one of them has failed."""
        self._reading = asyncio.create_task(self._inbox.fill())
        try:
            with self._service.live.socket():
                if error := await self._until_over():
                    await self._fail(error)
        except LiveError as refused:
            await self._fail(refused)
        finally:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _until_over(self) -> Exception | None:
        """What has ended the session, if it is an error."""
        seconds = self._service.settings.realtime_session_seconds
        tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._tell())]
        try:
            done, _ = await asyncio.wait([self._reading, *tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            if self._session:
                await self._session.close()
        if not done:
            return LiveError("too_long", f"The session is {seconds:g} s old, after which it ends. Open another one.")
        return next((result for result in results if isinstance(result, Exception)), None)

    async def _fail(self, error: Exception) -> None:
        """Say what has ended the session, and close the socket. A client that took nothing may have begun to."""
        if self._reading.done() or isinstance(error, WebSocketDisconnect):
            return
        told = describe(error)
        log.warning("a realtime socket is closed: %s", told.message)
        for action in (self._dialect.error(told), Close(close_code(told), told.code or "")):
            if not self._reading.done():
                with suppress(WebSocketDisconnect, LiveError):
                    await self._carry_out([action])

    async def _hear(self) -> None:
        goes_on = await self._carry_out(self._dialect.hello())
        while goes_on:
            message = await self._next_message()
            event: dict[str, Any] | None = None
            try:
                event = await self._read(message)
                actions = await self._led_to(event, len(message.get("text") or ""))
            except ApiError as error:
                actions = [self._dialect.error(error, event)]
            try:
                goes_on = await self._carry_out(actions)
            except (ApiError, LiveError) as error:
                if isinstance(error, LiveError) and error.code not in PASSING:
                    raise
                goes_on = await self._carry_out([self._dialect.error(describe(error), event)])

    async def _next_message(self) -> dict[str, Any]:
        """Raises LiveError where no audio has come for too long, whatever else has, and ApiError over a message that is
        too large."""
        try:
            async with asyncio.timeout_at(None if self._session else self._idle_at):
                message = await self._inbox.next()
        except TimeoutError:
            seconds = self._service.settings.realtime_idle_seconds
            raise LiveError("idle", f"No audio came within {seconds:g} s, after which a session ends.") from None
        if len(message.get("text") or "") > MOST_MESSAGE_BYTES:
            raise ApiError(
                413, f"A message is of more than {MOST_MESSAGE_BYTES} bytes. Send smaller pieces.",
                code="message_too_large",
            )  # fmt: skip
        return message

    async def _read(self, message: dict[str, Any]) -> dict[str, Any]:
        """Raises ApiError for what is no JSON object."""
        text = message.get("text")
        if text is None:
            raise _no_json("There are bytes where text is expected: audio is sent as base64 in JSON.")
        try:
            event = json.loads(text) if len(text) < QUICK else await asyncio.to_thread(json.loads, text)
        except (ValueError, RecursionError):
            raise _no_json("An event must be a JSON object; this is not JSON.") from None
        if not isinstance(event, dict):
            raise _no_json("An event must be a JSON object.")
        return event

    async def _led_to(self, event: dict[str, Any], size: int) -> list[Action]:
        async with self._dialects_turn:
            self._dialect = self._dialect.latched(event)
            if size < QUICK:
                return self._dialect.receive(event)
            return await asyncio.to_thread(self._dialect.receive, event)

    async def _tell(self) -> None:
        await self._opened.wait()
        async with aclosing(self._session.events()) as events:
            async for event in events:
                async with self._dialects_turn:
                    actions = self._dialect.heard(event)
                await self._carry_out(actions)
        await self._carry_out(self._dialect.finished())

    async def _carry_out(self, actions: list[Action]) -> bool:
        """Whether the socket stays open."""
        for action in actions:
            if isinstance(action, Send):
                await _taken(self._socket.send_text(json.dumps(action.event, separators=(",", ":"))))
            elif isinstance(action, Close):
                await _taken(self._socket.close(action.code, action.reason))
                return False
            elif isinstance(action, Finish) and self._session is None:
                return await self._carry_out(self._dialect.finished())
            else:
                await self._work(action)
        return True

    async def _work(self, action: Action) -> None:
        """What a session does. There is one as soon as there is audio, and nothing to do before."""
        if isinstance(action, Feed):
            session = self._session or await self._open()
            await session.feed(action.samples)
        elif session := self._session:
            if isinstance(action, Update):
                await self._update(session, action)
            elif isinstance(action, Commit):
                await session.commit()
            elif isinstance(action, Clear):
                await session.clear()
            elif isinstance(action, Flush):
                await session.flush()
            else:
                await session.finish()

    async def _update(self, session: LiveSession, action: Update) -> None:
        """Raises ApiError for a prompt that is too long, and LiveError; what was asked before then still is."""
        try:
            await session.update(self._dialect.request)
        except (PromptInvalid, PromptTooLong, LiveError) as error:
            action.undo()
            raise (error if isinstance(error, LiveError) else describe(error)) from None

    async def _open(self) -> LiveSession:
        model = self._service.model(self._dialect.model.name)
        key = key_digest(self._socket.headers) if self._service.settings.api_keys else ""
        self._session = await self._service.live.open(model, self._dialect.request, key)
        self._opened.set()
        return self._session


async def _taken(sending: Awaitable[None]) -> None:
    """Raises LiveError reader_too_slow, and WebSocketDisconnect."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await sending
    except TimeoutError:
        raise LiveError(
            "reader_too_slow", f"The client took nothing for {SEND_SECONDS} s. Read events as they come."
        ) from None


def close_code(error: ApiError) -> int:
    """A limit's own, else of RFC 6455, section 7.4.1, and IANA's registry: come again later, too much, the server
    failed, or a rule was broken."""
    if error.code in LIMITS:
        return LIMITS[error.code]
    if error.status in (429, 503):
        return 1013
    if error.status == 413:
        return 1009
    return 1011 if error.status >= 500 else 1008


def _no_json(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")
