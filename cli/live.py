"""Text while somebody speaks: samples go to the server's realtime socket as they come, and its text to stdout.

One thread sends what the source gives; this one prints. The dialect is OpenAI's, with this server's own fields for what
that has no words for. The server finds the pauses and gives a line for each turn.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import Progress
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cli.client import MOST_ALTERNATIVES, Client, Failure, Wanted
from cli.listening import COLUMNS, INTERRUPTED, interruptible
from cli.screen import Screen
from cli.sources import Source
from cli.transcribing import write_out
from cli.utterances import SILENCE_DB, level_of

log = logging.getLogger("voxtral.cli")

PATH = "/v1/realtime?intent=transcription"
ITEM = "conversation.item.input_audio_transcription"
# What a model that hears recordings does not have.
OF_STREAMS = {"delay_ms": "--delay", "interval_ms": "--interval"}
# Behind the last sample, so that the last turn ends as every other one does. What the commit ends then is silence.
END_SECONDS = 1.0
RECORDED_DELAY_MS = 2400  # with which the server hears files
LATE_SECONDS = 5.0  # by which the text of a turn follows its end before that is said, and said again


@dataclass(frozen=True)
class Live:
    """How a model that writes while it hears shall do so. None: as the server likes."""

    delay_ms: int | None = None  # by which text follows speech
    interval_seconds: float | None = None  # of audio that is heard at once
    recorded: bool = False  # nobody waits for each word

    @property
    def chosen(self) -> dict[str, int]:
        """In the words of the API, what was asked of the model."""
        interval_ms = None if self.interval_seconds is None else round(self.interval_seconds * 1000)
        return {name: ms for name, ms in (("delay_ms", self.delay_ms), ("interval_ms", interval_ms)) if ms}

    def session(self, wanted: Wanted, rate: int, may_wait: bool) -> dict[str, Any]:
        """In the words of the API."""
        asked = {
            "model": wanted.model,
            "language": wanted.language,
            "prompt": wanted.prompt,
            "keywords": list(wanted.keywords),
            "delay_ms": RECORDED_DELAY_MS if self.recorded else None,
            **self.chosen,
            "may_wait": may_wait,
            "top_logprobs": None if wanted.alternatives is None else MOST_ALTERNATIVES,
        }
        heard = {
            "format": {"type": "audio/pcm", "rate": rate},
            "transcription": {name: value for name, value in asked.items() if value},
        }
        include = [] if wanted.alternatives is None else ["item.input_audio_transcription.logprobs"]
        return {"type": "transcription", "audio": {"input": heard}, "include": include}


def listen_live(source: Source, client: Client, wanted: Wanted, live: Live, screen: Screen) -> int:
    """Until the source ends or Ctrl-C, after which what was spoken is still heard. Returns the exit status."""
    with _explained(client), _socket(client) as socket:
        talk = _Talk(socket, wanted, screen)
        talk.agree(live.session(wanted, source.rate, may_wait=not source.live), live)
        with interruptible(source) as interrupted, screen.bars(*COLUMNS) as meter:
            sender = _Sender(source, socket, meter)
            sender.start()
            while not talk.over:
                write_out(talk.line(sender), screen)
    if sender.error:
        raise sender.error
    return INTERRUPTED if interrupted.is_set() else int(talk.lost)


class _Sender(threading.Thread):
    """Samples of a source to the server. What ends the source early is in `error`; at last `commits`."""

    def __init__(self, source: Source, socket: ClientConnection, meter: Progress) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self.commits = False
        self._sent = 0  # samples
        self._source, self._socket, self._meter = source, socket, meter
        self._bar = meter.add_task("", total=-SILENCE_DB, state="listening", level=SILENCE_DB)

    def run(self) -> None:
        with suppress(ConnectionClosed):  # whoever reads it knows as well
            try:
                for block in self._source.blocks():
                    self._send(block)
                    level = level_of(block) if len(block) else SILENCE_DB
                    self._meter.update(self._bar, completed=level - SILENCE_DB, level=level)
            except Failure as error:
                self.error = error
            self._send(np.zeros(int(END_SECONDS * self._source.rate), np.int16))
            self.commits = True
            self._socket.send(json.dumps({"type": "input_audio_buffer.commit"}))

    def _send(self, samples: np.ndarray) -> None:
        audio = base64.b64encode(samples.astype("<i2").tobytes()).decode()
        self._socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        self._sent += len(samples)

    def seconds_since(self, ms: int) -> float:
        """Spoken since then; 0 for a source that waits for the server, and so is never ahead of it by much."""
        return self._sent / self._source.rate - ms / 1000 if self._source.live else 0.0


class _Talk:
    """What the server says. `over` when the text of all that was sent is here."""

    def __init__(self, socket: ClientConnection, wanted: Wanted, screen: Screen) -> None:
        self.over = self.lost = False
        self._socket, self._wanted, self._screen = socket, wanted, screen
        self._turns: dict[str, int] = {}  # ends in ms of those that a pause has ended; the end has the other one
        self._behind = 0.0  # seconds, as last said
        self._last: str | None = None

    def _events(self) -> Iterator[dict[str, Any]]:
        for message in self._socket:
            event = json.loads(message)
            log.debug("%s", event["type"])
            if event["type"] == "error":
                raise Failure(event["error"]["message"])
            yield event
        raise Failure("the server has ended the session before all was heard. Its log may say why.")

    def agree(self, session: dict[str, Any], live: Live) -> None:
        self._socket.send(json.dumps({"type": "session.update", "session": session}))
        while (event := next(self._events()))["type"] != "session.updated":
            continue  # the server has greeted first
        agreed = event["session"]["audio"]["input"]["transcription"]
        for option in (OF_STREAMS[name] for name, value in live.chosen.items() if agreed[name] != value):
            self._screen.warn(f"{option} changes nothing: {agreed['model']} does not write while it hears")

    def line(self, sender: _Sender) -> Iterator[str]:
        """The text of the next turn, as it comes."""
        for event in self._events():
            kind, item = event["type"], event.get("item_id")
            if kind == "input_audio_buffer.speech_stopped":
                self._turns[item] = event["audio_end_ms"]
            elif kind == "input_audio_buffer.committed" and sender.commits and item not in self._turns:
                self._last = item
            elif kind == f"{ITEM}.delta":
                yield self._wanted.shown(event["delta"], event.get("logprobs"))
            elif kind in (f"{ITEM}.completed", f"{ITEM}.failed"):
                if kind.endswith("failed"):
                    self._screen.error(f"some speech is lost: {event['error']['message']}")
                    self.lost = True
                for warning in event.get("warnings", ()):
                    self._screen.warn(f"{warning['start']:.1f} to {warning['end']:.1f} s: {warning['message']}")
                self._say_if_late(sender.seconds_since(self._turns.pop(item)) if item in self._turns else 0.0)
                self.over = item == self._last
                return

    def _say_if_late(self, behind: float) -> None:
        if behind < LATE_SECONDS:
            self._behind = 0.0
        elif behind > self._behind + LATE_SECONDS:
            self._behind = behind
            self._screen.warn(f"the text is {behind:.0f} s behind; the server hears more at once to catch up")


@contextmanager
def _socket(client: Client) -> Iterator[ClientConnection]:
    """No pings: a server that lets a fast sender wait does not answer them meanwhile."""
    headers = {"Authorization": f"Bearer {client.key}"} if client.key else {}
    address = "ws" + client.server.removeprefix("http") + PATH
    try:
        socket = connect(address, additional_headers=headers, ping_interval=None, max_size=None)
    except OSError as error:
        log.debug("no connection", exc_info=error)
        raise client.nobody() from None
    with socket:
        yield socket


@contextmanager
def _explained(client: Client) -> Iterator[None]:
    """Turns what can go wrong on the way into a Failure."""
    try:
        yield
    except InvalidStatus as error:
        status = error.response.status_code
        why = (
            "a key is missing or wrong; --api-key or VOXTRAL_API_KEY gives one"
            if status in (401, 403)
            else "--live needs one that has /v1/realtime"
        )
        raise Failure(f"the server refuses a live session (status {status}): {why}.") from None
    except (ConnectionClosed, InvalidHandshake) as error:
        log.debug("broken connection", exc_info=error)
        raise client.broken() from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        log.debug("strange answer", exc_info=error)
        raise client.stranger() from None
