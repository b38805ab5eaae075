"""The HTTP API as the command line uses it. Whatever goes wrong is a Failure, whose message is for people."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx

from cli.alternatives import shown

log = logging.getLogger("voxtral.cli")

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # for what the server only has to look up
# A server that is alive writes to a stream every few seconds, HEARTBEAT_SECONDS of its settings and at most 300. Of a
# whole answer nothing comes before its end, which may be hours away.
STREAM = httpx.Timeout(600.0, connect=CONNECT_SECONDS)
WHOLE = httpx.Timeout(600.0, connect=CONNECT_SECONDS, read=None)
MOST_TRIES = 5
LONGEST_WAIT_SECONDS = 60
MOST_ALTERNATIVES = 5  # that the server tells beside a token
WARNINGS = "x-voxtral-warnings"  # the header of an answer whose format has no place for them


class Failure(Exception):
    """What the user must know and do about it, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NoServer(Failure):
    """There is nobody to ask anything."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Recording:
    """Audio on its way to the server. `open` can be called more than once, unless it is `once`."""

    name: str
    open: Callable[[], AbstractContextManager[Readable]]
    once: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # of the request, by which its progress is asked for


@dataclass(frozen=True)
class Wanted:
    """What is asked of a transcription, in the words of the API."""

    response_format: str = "text"
    model: str = "whisper-1"
    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    alternatives: float | None = None  # cutoff of the other tokens that text is shown with, 0 to 1

    @property
    def streams(self) -> bool:
        return self.response_format == "text"

    def form(self) -> dict[str, Any]:
        scores = {"include[]": "logprobs", "top_logprobs": str(MOST_ALTERNATIVES)}
        fields = {
            "model": self.model,
            "language": self.language,
            "prompt": self.prompt,
            "keywords[]": list(self.keywords),
            **({"stream": "true"} if self.streams else {"response_format": self.response_format}),
            **({} if self.alternatives is None else scores),
        }
        return {name: value for name, value in fields.items() if value}

    def shown(self, text: str, logprobs: list[dict[str, Any]] | None) -> str:
        """A piece of the answer as it is to be read."""
        return text if self.alternatives is None else shown(text, logprobs, self.alternatives)


@dataclass(frozen=True)
class Figures:
    """How far a transcription is, in seconds: of its recording, and on the clock. None: the server cannot tell."""

    done: float
    of: float | None
    left: float | None


@dataclass(frozen=True)
class Model:
    id: str
    state: Literal["loaded", "on disk", "absent"]
    aliases: tuple[str, ...]


class Client:
    """One server. All methods raise Failure; `warn` is told what the user should know meanwhile."""

    def __init__(self, server: str, key: str | None, warn: Callable[[str], None]) -> None:
        self.server, self.key = server.rstrip("/").removesuffix("/v1"), key
        self._warn = warn
        self._http = httpx.Client(
            base_url=self.server,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )

    def close(self) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        with self._explained():
            found = self._get("/health")
            found["model_state"]  # no other server says that
            return found

    def models(self) -> list[Model]:
        with self._explained():
            return [_model(row) for row in self._get("/v1/models")["data"]]

    def pull(self, model: str) -> Iterator[dict[str, Any]]:
        """`total` and `completed` bytes and what is done with them, until every file is there."""
        body, done = {"model": model, "stream": True}, False
        with self._explained(), self._http.stream("POST", "/v1/models/pull", json=body, timeout=STREAM) as response:
            _check(response)
            for event in _events(response):
                if event["status"] == "error":
                    raise Failure(event["error"])
                done = event["status"] == "success"
                yield event
        if not done:
            raise self.broken()

    def progress(self, request_id: str) -> Figures | None:
        """Of the transcription with this id; None until its recording has arrived."""
        with self._explained():
            response = self._http.get(f"/v1/transcriptions/{request_id}")
            if response.status_code == 404:
                return None
            _check(response)
            found = response.json()
            return Figures(found["audio_seconds_done"], found["audio_seconds"], found["remaining_seconds"])

    def transcribe(self, recording: Recording, wanted: Wanted) -> Iterator[str]:
        """The answer, text as it is heard. A server that is busy and says until when is asked again."""
        for tries_left in reversed(range(1 if recording.once else MOST_TRIES)):
            wait = yield from self._transcribe(recording, wanted, may_wait=tries_left > 0)
            if wait is None:
                return
            self._warn(f"{recording.name}: the server is busy, next try in {wait} s")
            time.sleep(wait)

    def _transcribe(self, recording: Recording, wanted: Wanted, may_wait: bool) -> Generator[str, None, int | None]:
        """Pieces of the answer; returns the seconds to wait if the server has asked for that instead."""
        timeout = STREAM if wanted.streams else WHOLE
        with self._explained(), recording.open() as file:
            upload = {"data": wanted.form(), "files": {"file": ("recording", file)}}
            headers = {"X-Request-Id": recording.id}
            with self._http.stream(
                "POST", "/v1/audio/transcriptions", headers=headers, timeout=timeout, **upload
            ) as response:
                if may_wait and (wait := _wait(response)):
                    return wait
                _check(response)
                if wanted.streams:
                    yield from self._heard(recording.name, response, wanted)
                else:
                    yield response.read().decode()
                    self._tell(recording.name, json.loads(response.headers.get(WARNINGS, "[]")))
        return None

    def _heard(self, name: str, response: httpx.Response, wanted: Wanted) -> Iterator[str]:
        done = False
        for event in _events(response):
            if "error" in event:
                raise Failure(event["error"]["message"])
            if event["type"] == "transcript.text.delta":
                yield wanted.shown(event["delta"], event.get("logprobs"))
            elif event["type"] == "transcript.text.done":
                done = True
                self._tell(name, event["warnings"])
        if not done:
            raise self.broken()
        yield "\n"

    def _tell(self, name: str, warnings: list[dict[str, Any]]) -> None:
        for warning in warnings:
            self._warn(f"{name}: {warning['start']:.1f} to {warning['end']:.1f} s: {warning['message']}")

    def _get(self, path: str) -> dict[str, Any]:
        response = self._http.get(path)
        _check(response)
        return response.json()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what can go wrong on the way into a Failure."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            log.debug("no connection", exc_info=error)
            raise self.nobody() from None
        except httpx.RequestError as error:
            log.debug("broken connection", exc_info=error)
            raise self.broken() from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            log.debug("strange answer", exc_info=error)
            raise self.stranger() from None
        except OSError as error:
            raise Failure(f"{error.strerror or error}.") from None

    # What can be wrong with it.

    def nobody(self) -> Failure:
        return NoServer(
            f"no server answers at {self.server}. Start one with ./start_server.sh, or say with --server or "
            "VOXTRAL_SERVER where it is."
        )

    def broken(self) -> Failure:
        return Failure(f"the connection to {self.server} broke before the answer was whole. Its log may say why.")

    def stranger(self) -> Failure:
        return Failure(f"what answers at {self.server} is not Voxtral Local. Check --server.")


def _check(response: httpx.Response) -> None:
    """Raises Failure for what is no answer, with the server's own words if there are any."""
    if response.is_success:
        return
    response.read()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"{response.url} answered {response.status_code} {response.reason_phrase}. Check --server."
    if response.status_code == 401:
        message += " On the command line: --api-key or VOXTRAL_API_KEY."
    raise Failure(message)


def _model(row: dict[str, Any]) -> Model:
    on_disk = "on disk" if row["downloaded"] else "absent"
    return Model(row["id"], "loaded" if row["loaded"] else on_disk, tuple(row["aliases"]))


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events; this server writes each as one line of JSON, and comments to show that it is alive."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _wait(response: httpx.Response) -> int | None:
    """Seconds after which a busy server wants to be asked again."""
    seconds = response.headers.get("Retry-After", "")
    busy = response.status_code in (429, 503) and seconds.isdecimal()
    return int(seconds) if busy and 0 < int(seconds) <= LONGEST_WAIT_SECONDS else None
