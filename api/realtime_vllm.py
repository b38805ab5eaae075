"""vLLM's realtime transcription. Its `commit` opens an utterance; only with `final` it ends one, as OpenAI's does."""

from __future__ import annotations

from collections import deque
from typing import Any

from api import fields
from api.errors import ApiError, describe, invalid, unsupported
from api.keywords import keywords_of
from api.realtime_dialect import (
    Action,
    AudioInput,
    Clear,
    Commit,
    Dialect,
    Send,
    Terms,
    Update,
    expected_words,
    known_language,
    typed,
)  # fmt: skip
from api.realtime_openai import LEAST_COMMIT_MS, MOST_BYTES
from api.transcription_wire import logprobs
from live import Committed, LiveEvent, LiveRequest, LiveText, UtteranceDone, UtteranceFailed
from transcript import Usage

INCLUDE = ("logprobs", "item.input_audio_transcription.logprobs")


class VLLMDialect(Dialect):
    """Begins with the first update. The hello before it is OpenAI's, in which vLLM's is contained."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.model, self.request = terms.find(None), LiveRequest()
        self._validated = self._logprobs = False
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
        include = fields.listed(event, "include")
        if unknown := [item for item in include if item not in INCLUDE]:
            raise unsupported("include", f"include may hold '{INCLUDE[0]}', not '{unknown[0]}'.")
        prompt = fields.text(event, "prompt")
        words = keywords_of(fields.listed(event, "hotwords"), "hotwords") + expected_words(model, prompt, "prompt")
        language = known_language(event.get("language"), "language")
        self.request = LiveRequest(language, None if model.streams else prompt, tuple(dict.fromkeys(words)))
        self.model, self._validated, self._logprobs = model, True, bool(include)
        effective = {"model": model.name, "language": language, "prompt": self.request.prompt, "include": include}
        return [Update(), Send({"type": "session.updated", "id": self._terms.id, **effective})]

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
            done.append(self._done("", Usage()))
        return done

    def heard(self, event: LiveEvent) -> list[Action]:
        if isinstance(event, LiveText):
            scores = logprobs(event.tokens) if self._logprobs else None
            return [Send({"type": "transcription.delta", "delta": event.text, "logprobs": scores})]
        if isinstance(event, Committed):
            self._ended_ms = max(self._ended_ms, event.end_ms)
        if isinstance(event, UtteranceDone):
            return self._answered(self._done(event.transcript.text, event.transcript.usage))
        if isinstance(event, UtteranceFailed):
            return self._answered(self.error(describe(event.error)))
        return []

    def _answered(self, answer: Send) -> list[Action]:
        """One that failed may not have been ended by the client."""
        if self._unanswered:
            self._unanswered.popleft()
        return [answer, *self._empty_ones()]

    def _done(self, text: str, usage: Usage) -> Send:
        tokens = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
        return Send(
            {"type": "transcription.done", "text": text, "usage": tokens | {"total_tokens": usage.total_tokens}}
        )

    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        code = error.code if error.status < 500 else "processing_error"
        return Send({"type": "error", "error": error.message, "code": code})
