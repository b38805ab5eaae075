"""Mistral's realtime transcription: one text of all that is said, from the first sample to `input_audio.end`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from api.errors import ApiError, describe, invalid, unsupported
from api.keywords import keywords_of
from api.realtime_dialect import (
    Action,
    Asked,
    AudioInput,
    Close,
    DelayMs,
    Dialect,
    Finish,
    Flush,
    IntervalMs,
    LiveModel,
    Send,
    Terms,
    TopLogprobs,
    Update,
    known_language,
    merged,
    typed,
    wrong_field,
)  # fmt: skip
from api.times import seconds
from api.transcription_wire import logprobs, token_usage, warnings
from live import (
    LiveEvent,
    LiveRequest,
    LiveText,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
    UtteranceDone,
    UtteranceFailed,
)  # fmt: skip
from pcm import Encoding
from transcript import Transcript, Usage
from turns import TurnDetection

MOST_BYTES = 262_144  # of audio in one event
DELAY_MS = 480
# Once audio was heard.
FIXED = ("audio_format", "target_streaming_delay_ms", "turn_detection", "interval_ms", "top_logprobs")


class AudioFormat(Asked):
    encoding: Encoding = "pcm_s16le"
    sample_rate: int = Field(16_000, ge=8_000, le=48_000)


class Turns(Asked):
    start_threshold: float = Field(0.5, ge=0, le=1)
    eager_end_threshold: float = Field(0.5, ge=0, le=1)
    end_threshold: float = Field(0.33, ge=0, le=1)
    min_silence_ms: int = Field(500, ge=0, le=60_000)
    end_timeout_ms: int | None = Field(None, ge=0, le=60_000)


class SessionConfig(Asked):
    # Shown beside the configuration, so that clients may send them back.
    request_id: str | None = Field(None, exclude=True)
    model: str | None = Field(None, exclude=True)
    audio_format: AudioFormat = AudioFormat()
    target_streaming_delay_ms: DelayMs = DELAY_MS
    diarize: bool | None = None
    context_bias: list[str] | None = None
    language: str | None = None
    speaker_references: dict[str, str] | None = None
    turn_detection: Turns | None = None
    # Not Mistral's: audio that is heard at once, and how many likeliest tokens are told beside each.
    interval_ms: IntervalMs | None = None
    top_logprobs: TopLogprobs | None = None

    @field_validator("audio_format", "target_streaming_delay_ms", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object, info: ValidationInfo) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    def request(self, model: LiveModel) -> LiveRequest:
        """Raises ApiError for what cannot be done."""
        if self.model not in (None, model.name):
            raise unsupported(
                "session.model", f"{model.name} transcribes, not '{self.model}'. Name a model in the address."
            )
        for name in ("diarize", "speaker_references"):
            if getattr(self, name):
                raise unsupported(f"session.{name}", f"Voxtral does not tell speakers apart. Leave {name} out.")
        return LiveRequest(
            language=known_language(self.language, "session.language"),
            keywords=keywords_of(self.context_bias or [], "session.context_bias"),
            delay_ms=self.target_streaming_delay_ms if model.streams else None,
            interval_ms=self.interval_ms,
            top_logprobs=self.top_logprobs or 0,
            timing="segments",
            turn_detection=self._turns(),
        )

    def _turns(self) -> TurnDetection | None:
        given = self.turn_detection
        return given and TurnDetection(
            threshold=given.start_threshold,
            silence_duration_ms=given.min_silence_ms,
            end_threshold=given.end_threshold,
            eager_end_threshold=given.eager_end_threshold,
            end_timeout_ms=given.end_timeout_ms,
        )


class MistralDialect(Dialect):
    def __init__(self, terms: Terms, name: str | None) -> None:
        """`name` of a model, from the address."""
        self._terms, self._name = terms, name
        self.model = terms.find(None)
        self._config = SessionConfig()
        self.request = self._config.request(self.model)
        self._audio = self._new_audio()
        self._ended = False
        self._text, self._utterance, self._language = "", 0, None
        self._segments: list[dict[str, Any]] = []
        self._usage = Usage()
        self._warnings: list[dict[str, Any]] = []

    def _new_audio(self) -> AudioInput:
        given = self._config.audio_format
        return AudioInput(given.encoding, given.sample_rate, MOST_BYTES)

    def hello(self) -> list[Action]:
        self.model = self._terms.find(self._name)
        self.request = self._config.request(self.model)
        return [self._told("created")]

    def _told(self, what: str) -> Send:
        shown = self._config.model_dump() | {"request_id": self._terms.id, "model": self.model.name}
        if not self.model.streams:
            shown |= {"target_streaming_delay_ms": None, "interval_ms": None}  # which mean nothing to it
        return Send({"type": f"session.{what}", "session": shown})

    def receive(self, event: dict[str, Any]) -> list[Action]:
        kind = typed(event)
        if self._ended:
            raise invalid("type", f"'{kind}' comes after input_audio.end. Open another session.")
        if kind == "session.update":
            return self._update(event)
        if kind == "input_audio.append":
            return self._audio.append(event)
        if kind == "input_audio.flush":
            return [*self._audio.end(), Flush()]
        if kind == "input_audio.end":
            self._ended = True
            return [*self._audio.end(), Finish()]
        raise invalid(
            "type",
            f"'{kind}' is not known. There are session.update, input_audio.append, input_audio.flush and "
            "input_audio.end.",
        )

    def _update(self, event: dict[str, Any]) -> list[Action]:
        change = event.get("session")
        if not isinstance(change, dict):
            raise invalid("session", "session must be an object with what is to change.")
        try:
            config = SessionConfig.model_validate(merged(self._config.model_dump(), change, {}))
        except ValidationError as problem:
            raise wrong_field(problem, "session") from None
        request = config.request(self.model)
        changed = [name for name in FIXED if getattr(config, name) != getattr(self._config, name)]
        if self._audio.began and changed:
            raise invalid(f"session.{changed[0]}", f"session.{changed[0]} cannot change once there was audio.")
        before = self._config, self.request
        self._set(config, request)
        if not self._audio.began:
            self._audio = self._new_audio()
        return [Update(lambda: self._set(*before)), self._told("updated")]

    def _set(self, config: SessionConfig, request: LiveRequest) -> None:
        self._config, self.request = config, request

    def heard(self, event: LiveEvent) -> list[Action]:
        if isinstance(event, LiveText):
            return [self._delta(event)]
        if isinstance(event, UtteranceDone):
            return self._done(event.transcript)
        if isinstance(event, UtteranceFailed):
            return [self.error(describe(event.error))]
        return [Send(turn) for turn in _turn(event)] if self._config.turn_detection else []

    def _delta(self, event: LiveText) -> Send:
        """A space stands between turns, which are parts of one text."""
        apart = self._text and event.utterance != self._utterance and not event.text[:1].isspace()
        text, self._utterance = f" {event.text}" if apart else event.text, event.utterance
        self._text += text
        scores = {"logprobs": logprobs(event.tokens)} if self.request.top_logprobs else {}
        return Send({"type": "transcription.text.delta", "text": text, **scores})

    def _done(self, heard: Transcript) -> list[Action]:
        self._usage += heard.usage
        self._warnings += warnings(heard)
        found = [{"text": part.text, **seconds(part), "speaker_id": None} for part in heard.segments if part.text]
        self._segments += found
        told: list[Action] = [Send({"type": "transcription.segment", **segment}) for segment in found]
        if heard.language and heard.language != self._language:
            self._language = heard.language
            told.insert(0, Send({"type": "transcription.language", "audio_language": heard.language}))
        return told

    def finished(self) -> list[Action]:
        done = {
            "type": "transcription.done",
            "model": self.model.name,
            "text": self._text,
            "language": self._language,
            "segments": [{"type": "transcription_segment", **segment} for segment in self._segments],
            "usage": token_usage(self._usage),
            **({"warnings": self._warnings} if self._warnings else {}),
        }
        return [Send(done), Close()]

    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        """Its code is a number to Mistral's SDKs: the status that the same error has in HTTP."""
        parts = {"message": error.message, "code": error.status, "type": error.code, "param": error.param}
        return Send({"type": "error", "error": parts})


def _turn(event: LiveEvent) -> list[dict[str, Any]]:
    kinds = {SpeechStarted: "start", SpeechPaused: "eager_end", SpeechResumed: "resume", SpeechStopped: "end"}
    kind = kinds.get(type(event))
    if kind is None:
        return []
    reason = {"end_reason": event.reason} if isinstance(event, SpeechStopped) else {}
    return [{"type": f"turn.{kind}", "time_s": event.ms / 1000, **reason}]
