"""Which dialect is spoken at /v1/realtime. OpenAI's and vLLM's clients are told hello in one, and show themselves by
their first update."""

from __future__ import annotations

from typing import Any

from api.errors import unsupported
from api.realtime_dialect import Action, Dialect, Terms
from api.realtime_openai import OpenAIDialect
from api.realtime_openai_session import ONLY_TRANSCRIBES
from api.realtime_vllm import VLLMDialect

DECISIVE = ("session.update", "transcription_session.update", "input_audio_buffer.append", "input_audio_buffer.commit")


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
        if event.get("type") not in DECISIVE:
            return self
        if event["type"] == "session.update" and "session" not in event and "model" in event:
            return VLLMDialect(self._terms)
        decided = OpenAIDialect(self._terms, self.model, self._beta)
        decided.configure(self._given)
        return decided
