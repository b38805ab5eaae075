"""vLLM's realtime transcription. Its `commit` opens an utterance; only with `final` it ends one, as OpenAI's does."""

from __future__ import annotations

from collections import deque
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from api import fields
from api.errors import ApiError, describe, invalid, unsupported
from api.keywords import keywords_of
from api.realtime_dialect import (
    FIXED,
    Action,
    Asked,
    AudioInput,
    Clear,
    Commit,
    DelayMs,
    Dialect,
    IntervalMs,
    LiveModel,
    Send,
    Terms,
    TopLogprobs,
    Update,
    expected_words,
    known_language,
    typed,
    wrong_field,
)  # fmt: skip
from api.realtime_openai import LEAST_COMMIT_MS, MOST_BYTES
from api.transcription_wire import logprobs, warnings_if_any
from live import Committed, LiveEvent, LiveRequest, LiveText, UtteranceDone, UtteranceFailed
from transcript import Transcript

INCLUDE = ("logprobs", "item.input_audio_transcription.logprobs")
NOTHING = Transcript("", None)  # was there to hear


class SessionConfig(Asked):
    """What updates have asked for: what one leaves out stays."""

    language: str | None = None
    prompt: str | None = Field(None, max_length=20_000)
    hotwords: list[str] = Field([])
    include: list[str] = Field([])
    # Not vLLM's, which has one delay for all.
    delay_ms: DelayMs | None = None
    interval_ms: IntervalMs | None = None
    top_logprobs: TopLogprobs | None = None

    @field_validator("hotwords", "include", mode="before")
    @classmethod
    def _listed(cls, value: object, info: ValidationInfo) -> list[str]:
        """Raises ApiError."""
        return fields.listed({info.field_name: value}, info.field_name)

    def updated(self, event: dict[str, Any]) -> SessionConfig:
        """Raises ApiError."""
        change = {name: value for name, value in event.items() if name not in ("type", "event_id", "model")}
        try:
            return SessionConfig.model_validate(self.model_dump() | change)
        except ValidationError as problem:
            raise wrong_field(problem) from None

    def request(self, model: LiveModel) -> LiveRequest:
        """Raises ApiError for what the model cannot do."""
        if unknown := [item for item in self.include if item not in INCLUDE]:
            raise unsupported("include", f"include may hold '{INCLUDE[0]}', not '{unknown[0]}'.")
        words = keywords_of(self.hotwords, "hotwords") + expected_words(model, self.prompt, "prompt")
        return LiveRequest(
            language=known_language(self.language, "language"),
            prompt=None if model.streams else self.prompt or None,
            keywords=tuple(dict.fromkeys(words)),
            delay_ms=self.delay_ms if model.streams else None,
            interval_ms=self.interval_ms,
            top_logprobs=self.top_logprobs or 0,
        )


class VLLMDialect(Dialect):
    """Begins with the first update. The hello before it is OpenAI's, in which vLLM's is contained."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.model, self.request = terms.find(None), LiveRequest()
        self._config, self._validated = SessionConfig(), False
        self._audio = AudioInput("pcm_s16le", 16_000, MOST_BYTES)
        self._ended_ms = 0  # of the audio, where the utterance before ended
        self._unanswered: deque[bool] = deque()  # utterances that have ended, and whether there is anything to hear

    def receive(self, event: dict[str, Any]) -> list[Action]:
        kind = typed(event)
        if kind == "session.update":
            return self._update(event)
        if kind not in ("input_audio_buffer.append", "input_audio_buffer.commit"):
            raise ApiError(400, f"Unknown event type: {kind}", param="type", code="unknown_event")
        if not self._validated:
            raise ApiError(400, "Send session.update with a model first.", param="model", code="model_not_validated")
        if kind == "input_audio_buffer.append":
            return self._append(event)
        return self._end() if fields.boolean(event, "final") else []  # text comes as soon as there is audio

    def _update(self, event: dict[str, Any]) -> list[Action]:
        name = event.get("model")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "session.update must name a model.", param="model", code="invalid_event")
        model = self._terms.find(name)
        if self._audio.began and model != self.model:
            raise invalid("model", "model cannot change once there was audio. Open another session for it.")
        config = self._config.updated(event)
        request = config.request(model)
        changed = [name for name in FIXED if getattr(config, name) != getattr(self._config, name)]
        if self._audio.began and changed:
            raise invalid(changed[0], f"{changed[0]} cannot change once there was audio. Open another session for it.")
        before = self._config, self.model, self.request
        self._set(config, model, request)
        self._validated = True
        return [Update(lambda: self._set(*before)), self._updated()]

    def _set(self, config: SessionConfig, model: LiveModel, request: LiveRequest) -> None:
        self._config, self.model, self.request = config, model, request

    def _updated(self) -> Send:
        """With what holds; what means nothing to the model is null."""
        shown = self._config.model_dump() | {"model": self.model.name, "language": self.request.language}
        if not self.model.streams:
            shown |= {"delay_ms": None, "interval_ms": None}
        return Send({"type": "session.updated", "id": self._terms.id, **shown})

    def _append(self, event: dict[str, Any]) -> list[Action]:
        try:
            return self._audio.append(event)
        except ApiError as error:
            raise ApiError(400, error.message, param=error.param, code="invalid_audio") from None

    def _end(self) -> list[Action]:
        """The utterance's text follows, also where there was nothing to hear."""
        rest = self._audio.end()
        heard_ms, self._ended_ms = self._audio.ms - self._ended_ms, self._audio.ms
        self._unanswered.append(heard_ms >= LEAST_COMMIT_MS)
        return [*rest, Commit()] if self._unanswered[-1] else [*rest, Clear(), *self._empty_ones()]

    def _empty_ones(self) -> list[Action]:
        """Those whose turn it is: nothing but its place says which utterance an answer is of."""
        done: list[Action] = []
        while self._unanswered and not self._unanswered[0]:
            self._unanswered.popleft()
            done.append(self._done(NOTHING))
        return done

    def heard(self, event: LiveEvent) -> list[Action]:
        if isinstance(event, LiveText):
            asked = self._config.include or self.request.top_logprobs
            scores = logprobs(event.tokens) if asked else None
            return [Send({"type": "transcription.delta", "delta": event.text, "logprobs": scores})]
        if isinstance(event, Committed):
            self._ended_ms = max(self._ended_ms, event.end_ms)
        if isinstance(event, UtteranceDone):
            return self._answered(self._done(event.transcript))
        if isinstance(event, UtteranceFailed):
            return self._answered(self.error(describe(event.error)))
        return []

    def _answered(self, answer: Send) -> list[Action]:
        """One that failed may not have been ended by the client."""
        if self._unanswered:
            self._unanswered.popleft()
        return [answer, *self._empty_ones()]

    def _done(self, heard: Transcript) -> Send:
        usage = heard.usage
        tokens = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
        more = {"usage": tokens | {"total_tokens": usage.total_tokens}, **warnings_if_any(heard)}
        return Send({"type": "transcription.done", "text": heard.text, **more})

    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        code = error.code if error.status < 500 else "processing_error"
        return Send({"type": "error", "error": error.message, "code": code})
