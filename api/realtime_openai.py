"""OpenAI's realtime transcription, as it is today and as its beta was: sessions are written differently, and one event.

Utterances are items of a conversation. Each is committed, by turn detection or by the client, and then transcribed.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from api.errors import ApiError, describe, invalid
from api.realtime_dialect import (
    FIXED,
    Action,
    AudioInput,
    Clear,
    Commit,
    Dialect,
    LiveModel,
    Send,
    Terms,
    Update,
    typed,
)  # fmt: skip
from api.realtime_openai_session import SessionConfig, flat_error, from_flat, is_flat, to_flat
from api.transcription_wire import language_codes, logprobs, token_usage, warnings_if_any
from live import (
    Committed,
    LiveEvent,
    LiveRequest,
    LiveText,
    SpeechStarted,
    SpeechStopped,
    UtteranceDone,
    UtteranceFailed,
)
from transcript import TextToken

MOST_BYTES = 15 * 1024 * 1024  # of audio in one event
LEAST_COMMIT_MS = 100
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class OpenAIDialect(Dialect):
    def __init__(self, terms: Terms, model: LiveModel, beta: bool = False) -> None:
        self._terms, self._beta, self.model = terms, beta, model
        self._config = SessionConfig()
        self._previous: str | None = None  # the item that was committed last
        self._committed_ms = 0  # of the audio, where what was committed or cleared last ended
        self.request = self._config.request(model)
        self._audio = AudioInput(*self._config.encoding, MOST_BYTES)

    def hello(self) -> list[Action]:
        """With what vLLM's clients look for beside OpenAI's own."""
        both = {"id": self._terms.id, "created": self._terms.created}
        return [Send(self._event("session.created", **both, session=self._session()))]

    def configure(self, session: dict[str, Any]) -> list[Action]:
        """Update the session, as that is written today. Raises ApiError, and nothing has changed."""
        config = self._config.updated(session)
        name = config.audio.input.transcription.model
        model = self._terms.find(name) if name else self.model
        request = config.request(model)
        if self._audio.began:
            self._check_fixed(config, changes_model=model != self.model)
        before = self._config, self.model, self.request
        return [*self._set(config, model, request), Update(lambda: self._set(*before))]

    def _set(self, config: SessionConfig, model: LiveModel, request: LiveRequest) -> list[Action]:
        self._config, self.model, self.request = config, model, request
        return self._audio.change(*config.encoding)

    def _check_fixed(self, config: SessionConfig, changes_model: bool) -> None:
        before, after = self._config.audio.input.transcription, config.audio.input.transcription
        changed = [name for name in ("delay", *FIXED) if getattr(before, name) != getattr(after, name)]
        if changed or changes_model:
            name = f"session.audio.input.transcription.{'model' if changes_model else changed[0]}"
            raise invalid(name, f"{name} cannot change once there was audio. Open another session for it.")

    def receive(self, event: dict[str, Any]) -> list[Action]:
        kind = typed(event)
        if kind in ("session.update", "transcription_session.update"):
            return self._update(event, f"{kind}d")
        if kind == "input_audio_buffer.append":
            return self._audio.append(event)
        if kind == "input_audio_buffer.commit":
            return self._commit(event)
        if kind == "input_audio_buffer.clear":
            rest = self._audio.end()
            self._committed_ms = self._audio.ms
            return [*rest, Clear(), Send(self._event("input_audio_buffer.cleared"))]
        raise invalid(
            "type",
            f"'{kind}' means nothing in a transcription. There are session.update, input_audio_buffer.append, "
            "input_audio_buffer.commit and input_audio_buffer.clear.",
        )

    def _update(self, event: dict[str, Any], answer: str) -> list[Action]:
        session = event.get("session")
        if not isinstance(session, dict):
            raise invalid("session", "session must be an object with what is to change.")
        self._beta = is_flat(event["type"], session, before=self._beta)
        changes = self.configure(from_flat(session) if self._beta else session)
        return [*changes, Send(self._event(answer, session=self._session()))]

    def _commit(self, event: dict[str, Any]) -> list[Action]:
        rest = self._audio.end()
        waiting = self._audio.ms - self._committed_ms
        if waiting >= LEAST_COMMIT_MS:
            self._committed_ms = self._audio.ms
            return [*rest, Commit()]
        problem = ApiError(
            400,
            "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer only "
            f"has {waiting:.2f}ms of audio.",
            code="input_audio_buffer_commit_empty",
        )
        return [*rest, self.error(problem, event)]

    def heard(self, event: LiveEvent) -> list[Action]:
        return [Send(self._event(kind, **parts)) for kind, parts in self._told(event)]

    def _told(self, event: LiveEvent) -> list[tuple[str, dict[str, Any]]]:
        if isinstance(event, SpeechStarted):
            return [("input_audio_buffer.speech_started", {"audio_start_ms": event.ms, **self._item(event)})]
        if isinstance(event, SpeechStopped):
            return [("input_audio_buffer.speech_stopped", {"audio_end_ms": event.ms, **self._item(event)})]
        if isinstance(event, Committed):
            return self._committed(event)
        if isinstance(event, LiveText):
            return [
                (f"{TRANSCRIPTION}.delta", {**self._part(event), "delta": event.text, **self._scores(event.tokens)})
            ]
        if isinstance(event, UtteranceDone):
            done = event.transcript
            text = {"transcript": done.text, "languages": language_codes(done.language), **self._scores(done.tokens)}
            more = {"usage": token_usage(done.usage), **warnings_if_any(done)}
            return [(f"{TRANSCRIPTION}.completed", {**self._part(event), **text, **more})]
        if isinstance(event, UtteranceFailed):
            error = describe(event.error).body["error"] | {"type": "transcription_error"}
            return [(f"{TRANSCRIPTION}.failed", {**self._part(event), "error": error})]
        return []  # pauses within a turn, which OpenAI does not tell of

    def _committed(self, event: Committed) -> list[tuple[str, dict[str, Any]]]:
        self._committed_ms = max(self._committed_ms, event.end_ms)
        item, previous = self._item(event), {"previous_item_id": self._previous}
        self._previous = item["item_id"]
        content = [{"type": "input_audio", "transcript": None}]
        message = {"id": item["item_id"], "type": "message", "object": "realtime.item", "status": "completed"}
        added = previous | {"item": message | {"role": "user", "content": content}}
        kinds = ("created",) if self._beta else ("added", "done")
        return [
            ("input_audio_buffer.committed", previous | item), *((f"conversation.item.{kind}", added) for kind in kinds)
        ]  # fmt: skip

    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        shown = flat_error(error) if self._beta else error
        of = event.get("event_id") if event else None
        return Send(self._event("error", error=shown.body["error"] | {"event_id": of if isinstance(of, str) else None}))

    def _event(self, kind: str, **parts: Any) -> dict[str, Any]:
        return {"type": kind, "event_id": f"event_{uuid4().hex}", **parts}

    def _session(self) -> dict[str, Any]:
        shown = self._config.effective(self.model)
        fixed = {
            "id": self._terms.id, "object": "realtime.transcription_session", "expires_at": self._terms.expires_at
        }  # fmt: skip
        return fixed | (to_flat(shown) if self._beta else shown)

    def _item(self, event: LiveEvent) -> dict[str, Any]:
        return {"item_id": f"item_{self._terms.id}_{event.utterance}"}

    def _part(self, event: LiveEvent) -> dict[str, Any]:
        return self._item(event) | {"content_index": 0}

    def _scores(self, tokens: tuple[TextToken, ...]) -> dict[str, Any]:
        asked = self._config.include or self.request.top_logprobs
        return {"logprobs": logprobs(tokens)} if asked else {}
