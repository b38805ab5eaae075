"""What the dialects of the realtime sockets share: what they tell the adapter to do, how audio comes in, and how what a
client writes is checked.

A dialect is a state machine without a socket: events of a client and of a live session go in, actions come out, which
the adapter carries out one after another.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

import languages
from api.errors import ApiError, from_validation, invalid, unsupported
from api.keywords import prompted_words
from audio_processor import SAMPLE_RATE
from engine.live import DELAYS_MS
from instructions import says_no_more
from live import LiveEvent, LiveRequest
from pcm import Encoding, PcmDecoder, PcmError


@dataclass(frozen=True)
class Send:
    event: dict[str, Any]


@dataclass(frozen=True)
class Update:
    """The dialect's `request` has changed. `undo`, where the session refuses it, takes all back that the event did."""

    undo: Callable[[], object]


@dataclass(frozen=True)
class Feed:
    samples: np.ndarray  # float32 (n,), 16 kHz


@dataclass(frozen=True)
class Commit:
    """As LiveSession has it; so are the next ones."""


@dataclass(frozen=True)
class Clear: ...


@dataclass(frozen=True)
class Flush: ...


@dataclass(frozen=True)
class Finish: ...


@dataclass(frozen=True)
class Close:
    code: int = 1000  # RFC 6455, section 7.4
    reason: str = ""  # the code of the error that led to it


Action = Send | Update | Feed | Commit | Clear | Flush | Finish | Close


@dataclass(frozen=True)
class LiveModel:
    """What a dialect must know of a model."""

    name: str  # as the client calls it
    streams: bool  # it writes while it hears: its delay can be chosen, and it reads no prompt


@dataclass(frozen=True)
class Terms:
    """On which a socket is open."""

    id: str
    created: int  # Unix time, as the next one
    expires_at: int
    find: Callable[[str | None], LiveModel]  # by name; None: the default. Raises ApiError for one that is not there


class Dialect(ABC):
    model: LiveModel
    request: LiveRequest

    def hello(self) -> list[Action]:
        """What is said first. Raises ApiError for what is wrong with the address."""
        return []

    def latched(self, event: dict[str, Any]) -> Dialect:
        """The dialect that goes on, now that the client has sent `event`."""
        return self

    @abstractmethod
    def receive(self, event: dict[str, Any]) -> list[Action]:
        """What a client's event leads to. Raises ApiError for one that is wrong, and nothing has changed."""

    @abstractmethod
    def heard(self, event: LiveEvent) -> list[Action]: ...

    @abstractmethod
    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        """The dialect's word for an error; `event`: the client's that it is about."""

    def finished(self) -> list[Action]:
        """After a Finish, when all has been heard."""
        return []


class AudioInput:
    """What a client appends. Counts it on the clock of the live session, which is fed all of it."""

    def __init__(self, encoding: Encoding, rate: int, most_bytes: int) -> None:
        self.format = (encoding, rate)
        self._decoder = PcmDecoder(encoding, rate)
        self._most_bytes = most_bytes
        self._samples = 0
        self.began = False

    @property
    def ms(self) -> int:
        return self._samples * 1000 // SAMPLE_RATE

    def change(self, encoding: Encoding, rate: int) -> list[Action]:
        """What comes from now on is of another format."""
        if (encoding, rate) == self.format:
            return []
        last = self.end()
        self.format, self._decoder = (encoding, rate), PcmDecoder(encoding, rate)
        return last

    def append(self, event: dict[str, Any]) -> list[Action]:
        """Raises ApiError for what is no base64, too much, or no audio."""
        text = event.get("audio")
        if not isinstance(text, str):
            raise invalid("audio", "audio must be the base64 of raw audio.")
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            raise invalid("audio", "audio is not valid base64.") from None
        if len(data) > self._most_bytes:
            raise invalid("audio", f"audio is of {len(data)} bytes; {self._most_bytes} are taken. Send smaller pieces.")
        try:
            samples = self._decoder.decode(data)
        except PcmError as error:
            raise invalid("audio", str(error)) from None
        self.began = True
        return self._feed(samples)

    def end(self) -> list[Action]:
        """The rest of what was appended."""
        return self._feed(self._decoder.end())

    def _feed(self, samples: np.ndarray) -> list[Action]:
        self._samples += len(samples)
        return [Feed(samples)] if len(samples) else []


class Asked(BaseModel):
    """What a client writes. A field that is not known is refused, as OpenAI does: one that is misspelled would be left
    undone. Null asks for nothing."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name in cls.model_fields or value is not None}


def merged(old: dict[str, Any], change: dict[str, Any], either: dict[str, str]) -> dict[str, Any]:
    """Objects are merged, unless they become of another type; everything else is replaced. `either`: of names that say
    the same, the other one, which a value of this one puts out of force."""
    result = dict(old)
    for name, value in change.items():
        if name in either and value is not None:
            result[either[name]] = change.get(either[name])
        before = old.get(name)
        alike = isinstance(before, dict) and isinstance(value, dict)
        if alike and value.get("type", before.get("type")) == before.get("type"):
            result[name] = merged(before, value, either)
        else:
            result[name] = value
    return result


def _trained_for(delay_ms: int) -> int:
    if delay_ms not in DELAYS_MS:
        raise ValueError("it can be 80 to 1200 in steps of 80, or 2400")
    return delay_ms


# What every dialect can ask of a realtime model; LiveRequest says what they are.
DelayMs = Annotated[int, AfterValidator(_trained_for)]
IntervalMs = Annotated[int, Field(ge=80, le=5_000)]
TopLogprobs = Annotated[int, Field(ge=0, le=5)]
FIXED = ("delay_ms", "interval_ms", "top_logprobs")  # once audio was heard


def wrong_field(problem: ValidationError, *above: str, tags: Container[str] = ()) -> ApiError:
    """The first thing that is wrong. `above`: where what was checked stands in the event; `tags` stand in none."""
    error = problem.errors()[0]
    path = (*above, *(part for part in error["loc"] if part not in tags))
    if error["type"] != "extra_forbidden":
        return from_validation([error | {"loc": path}])
    name = ".".join(map(str, path))
    return ApiError(400, f"Unknown parameter: '{name}'. Leave it out.", param=name, code="unknown_parameter")


def typed(event: dict[str, Any]) -> str:
    """The type of an event. Raises ApiError where it has none."""
    kind = event.get("type")
    if not isinstance(kind, str):
        raise ApiError(400, "The 'type' field is missing.", param="type", code="invalid_event")
    return kind


def known_language(given: object, param: str) -> str | None:
    """ISO 639-1; None for `auto` and none. Raises ApiError, naming `param`, for what is no language."""
    if given in (None, "", "auto"):
        return None
    if isinstance(given, str) and (code := languages.code_of(given)):
        return code
    raise invalid(param, f"{param} '{given}' is not known. Send an ISO 639-1 code such as 'en', or leave it out.")


def expected_words(model: LiveModel, prompt: str | None, param: str) -> tuple[str, ...]:
    """The words of a prompt. Raises ApiError, naming `param`, for one that says more to a model that reads none."""
    words, rest = prompted_words(prompt or "")
    if model.streams and not says_no_more(rest):
        raise unsupported(param, f"{model.name} reads no prompt. Send words to expect, with commas between.")
    return words
