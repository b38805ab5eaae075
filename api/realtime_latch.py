"""Which dialect is spoken at /v1/realtime. OpenAI's and vLLM's clients are told hello and errors in one, until they
show themselves by an update."""

from __future__ import annotations

from typing import Any

from api.errors import ApiError, invalid, unsupported
from api.realtime_dialect import Action, Dialect, Send, Terms
from api.realtime_openai import OpenAIDialect
from api.realtime_openai_session import ONLY_TRANSCRIBES
from api.realtime_vllm import VLLMDialect


class Undecided(OpenAIDialect):
    """OpenAI's, until the client has shown which it speaks."""

    def __init__(
        self, terms: Terms, name: str | None, beta: bool, given: dict[str, Any] | None = None, intent: str | None = None
    ) -> None:
        """`name` of a model and `intent`, from the address; `beta`, from the handshake; `given`: the session that a
        client secret was made for."""
        super().__init__(terms, terms.find(None), beta)
        self._name, self._given, self._intent = name, given or {}, intent

    def hello(self) -> list[Action]:
        if self._intent not in (None, "transcription"):
            raise unsupported("intent", f"{ONLY_TRANSCRIBES} Set intent to 'transcription', or leave it out.")
        self.model = self._terms.find(self._name)
        self.configure(self._given)
        return super().hello()

    def latched(self, event: dict[str, Any]) -> Dialect:
        kind, is_openais = event.get("type"), isinstance(event.get("session"), dict)
        if kind == "session.update" and not is_openais and event.get("model"):
            return VLLMDialect(self._terms)
        is_update = kind in ("session.update", "transcription_session.update")
        if not (is_update and is_openais) and kind != "input_audio_buffer.append":
            return self
        decided = OpenAIDialect(self._terms, self.model, self._beta)
        decided.configure(self._given)
        return decided

    def receive(self, event: dict[str, Any]) -> list[Action]:
        if event.get("type") == "session.update":
            raise invalid("session", "session.update must have a session, as OpenAI's, or a model, as vLLM's.")
        return super().receive(event)

    def error(self, error: ApiError, event: dict[str, Any] | None = None) -> Send:
        """OpenAI's, with vLLM's code beside."""
        return Send(super().error(error, event).event | {"code": self._vllms_code(error, event)})

    def _vllms_code(self, error: ApiError, event: dict[str, Any] | None) -> str | None:
        try:
            if event is not None:
                VLLMDialect(self._terms).receive(event)
        except ApiError as theirs:
            return theirs.code
        return error.code
