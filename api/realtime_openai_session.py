"""The configuration of an OpenAI transcription session: what a client may write, and what that asks for.

The beta's sessions are flat. They are translated to those of today and back, so that there is one configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from api.errors import ApiError, invalid, unsupported
from api.keywords import keywords_of
from api.realtime_dialect import (
    Asked,
    DelayMs,
    IntervalMs,
    LiveModel,
    TopLogprobs,
    expected_words,
    known_language,
    merged,
    wrong_field,
)  # fmt: skip
from live import LiveRequest
from pcm import Encoding
from turns import Eagerness, TurnDetection

TRANSCRIPTION = "session.audio.input.transcription"
# Milliseconds of the 4B's delay. OpenAI does not say what its words mean; 480 is what Mistral recommends.
DELAYS_MS = {"minimal": 160, "low": 240, "medium": 480, "high": 960, "xhigh": 2400}
ENCODINGS: dict[str, tuple[Encoding, int]] = {
    "audio/pcm": ("pcm_s16le", 24_000), "audio/pcmu": ("pcm_mulaw", 8_000), "audio/pcma": ("pcm_alaw", 8_000),
}  # fmt: skip
ONLY_TRANSCRIBES = "This server transcribes and does not answer."
# What a conversation is asked for, and a transcription would leave undone.
OF_CONVERSATIONS = ("instructions", "tools", "voice", "output_audio_format", "prompt", "temperature", "tracing")
# What OpenAI shows of a session beside its configuration, so that clients may send it back.
SHOWN = ("id", "object", "expires_at", "client_secret", "modalities")


class Format(Asked):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = Field(None, ge=8_000, le=48_000)


class Transcription(Asked):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    keywords: list[str] | None = None
    prompt: str | None = Field(None, max_length=20_000)
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None
    # Not OpenAI's: the delay as a number, audio that is heard at once, how many likeliest tokens stand beside each in
    # `logprobs`, and whether the client can wait for a model that is behind.
    delay_ms: DelayMs | None = None
    interval_ms: IntervalMs | None = None
    top_logprobs: TopLogprobs | None = None
    may_wait: bool | None = None
    diarize: Literal[False] | None = Field(None, exclude=True)

    @field_validator("delay_ms")
    @classmethod
    def _one_delay(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("delay"):
            raise ValueError("delay stands beside it. Send null for one of them")
        return value

    @property
    def chosen_delay_ms(self) -> int | None:
        return self.delay_ms or (DELAYS_MS[self.delay] if self.delay else None)


class Vad(Asked):
    """These two mean nothing where nobody answers."""

    create_response: bool | None = Field(None, exclude=True)
    interrupt_response: bool | None = Field(None, exclude=True)


class ServerVad(Vad):
    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=10_000)
    silence_duration_ms: int = Field(500, ge=0, le=60_000)
    idle_timeout_ms: None = Field(None, exclude=True)


class SemanticVad(Vad):
    type: Literal["semantic_vad"]
    eagerness: Eagerness = "auto"


class NoiseReduction(Asked):
    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class Input(Asked):
    format: Format = Format()
    transcription: Transcription = Transcription()
    noise_reduction: NoiseReduction | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = ServerVad(
        type="server_vad"
    )

    @field_validator("noise_reduction")
    @classmethod
    def _not_reduced(cls, value: NoiseReduction | None) -> None:
        """Voxtral hears speech as it is. OpenAI's own examples ask for less noise; they are told what holds."""


class Audio(Asked):
    input: Input = Input()


class SessionConfig(Asked):
    type: Literal["transcription"] = "transcription"
    model: str | None = Field(None, exclude=True)  # a conversation's; it may say again which one transcribes
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None
    audio: Audio = Audio()

    def updated(self, change: dict[str, Any]) -> SessionConfig:
        """With a client's partial update: what it leaves out stays, and null switches off. Raises ApiError."""
        _refuse_conversations(change)
        _refuse_flat(change)
        change = {name: value for name, value in change.items() if name not in (*OF_CONVERSATIONS, *SHOWN)}
        try:
            return SessionConfig.model_validate(merged(self.model_dump(), change, EITHER))
        except ValidationError as problem:
            raise _explained(wrong_field(problem, "session", tags=("server_vad", "semantic_vad"))) from None

    @property
    def encoding(self) -> tuple[Encoding, int]:
        encoding, rate = ENCODINGS[self.audio.input.format.type]
        return encoding, self.audio.input.format.rate or rate

    def request(self, model: LiveModel) -> LiveRequest:
        """What this asks of a model. Raises ApiError for what the model cannot do."""
        if self.model not in (None, model.name):
            raise unsupported(
                "session.model", f"{model.name} transcribes, not '{self.model}'. Name a model as {TRANSCRIPTION}.model."
            )
        asked = self.audio.input.transcription
        words = keywords_of(asked.keywords or [], f"{TRANSCRIPTION}.keywords")
        words += expected_words(model, asked.prompt, f"{TRANSCRIPTION}.prompt")
        return LiveRequest(
            language=_language(asked),
            prompt=None if model.streams else asked.prompt or None,
            keywords=tuple(dict.fromkeys(words)),
            delay_ms=asked.chosen_delay_ms if model.streams else None,
            interval_ms=asked.interval_ms,
            top_logprobs=asked.top_logprobs or 0,
            turn_detection=self._turns(),
            may_wait=bool(asked.may_wait),
        )

    def _turns(self) -> TurnDetection | None:
        vad = self.audio.input.turn_detection
        if isinstance(vad, ServerVad):
            return TurnDetection("server_vad", vad.threshold, vad.prefix_padding_ms, vad.silence_duration_ms)
        return TurnDetection("semantic_vad", eagerness=vad.eagerness) if vad else None

    def effective(self, model: LiveModel) -> dict[str, Any]:
        """What holds for `model`, as OpenAI writes it. What means nothing to the model is null."""
        shown = self.model_dump()
        heard = shown["audio"]["input"]
        heard["format"]["rate"] = self.encoding[1]
        heard["transcription"]["model"] = model.name
        if not model.streams:
            heard["transcription"] |= {"delay": None, "delay_ms": None, "interval_ms": None}
        return shown


def _refuse_conversations(change: dict[str, Any]) -> None:
    if change.get("type") == "realtime":
        raise unsupported("session.type", f"{ONLY_TRANSCRIBES} Set session.type to 'transcription'.")
    for name in OF_CONVERSATIONS:
        if change.get(name):
            raise unsupported(f"session.{name}", f"{ONLY_TRANSCRIBES} Leave session.{name} out.")


# Of two that say the same, the one that came last holds.
EITHER = {"delay": "delay_ms", "delay_ms": "delay", "language": "languages", "languages": "language"}

# What pydantic says of these would not tell what to do.
REMEDIES = {
    "idle_timeout_ms": "A transcription has no answers that a timeout could trigger. Leave it out.",
    "diarize": "Voxtral does not tell speakers apart. Leave it out.",
    "transcription": "A transcription cannot be switched off. Leave transcription out, or close the session.",
}  # fmt: skip


def _explained(error: ApiError) -> ApiError:
    last = (error.param or "").rsplit(".", 1)[-1]
    if last in REMEDIES and error.param:
        return unsupported(error.param, REMEDIES[last])
    return error


def _language(asked: Transcription) -> str | None:
    """ISO 639-1 of the one language that was named. Raises ApiError."""
    given = [asked.language, *(asked.languages or [])]
    codes = {known_language(each, f"{TRANSCRIPTION}.language") for each in given} - {None}
    if len(codes) > 1:
        raise unsupported(
            f"{TRANSCRIPTION}.languages", "Voxtral can be told one language at most. Send one, or leave languages out."
        )
    return next(iter(codes), None)


FLAT = {
    "input_audio_format": "format", "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction", "turn_detection": "turn_detection",
}  # fmt: skip
FLAT_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


def is_flat(kind: str, change: dict[str, Any], before: bool) -> bool:
    """Whether an update is of the beta: by the event's name, else by the fields that only one of the two has, else as
    `before`."""
    if kind == "transcription_session.update":
        return True
    return "audio" not in change and (before or any(name in change for name in FLAT))


def _refuse_flat(change: dict[str, Any]) -> None:
    for name, today in FLAT.items():
        if name in change:
            raise invalid(f"session.{name}", f"session.{name} is the beta's. Send session.audio.input.{today}.")


def from_flat(change: dict[str, Any]) -> dict[str, Any]:
    """A beta client's update. Its formats have no rate: 24 kHz for PCM."""
    heard = {name: change[flat] for flat, name in FLAT.items() if flat in change}
    if "format" in heard:
        kind = FLAT_FORMATS.get(str(heard["format"]))
        if kind is None:
            raise invalid(
                "session.input_audio_format", f"session.input_audio_format must be one of {', '.join(FLAT_FORMATS)}."
            )
        heard["format"] = {"type": kind, "rate": None}
    rest = {name: value for name, value in change.items() if name not in (*FLAT, "audio", "type")}
    return rest | {"audio": {"input": heard}}


def to_flat(shown: dict[str, Any]) -> dict[str, Any]:
    heard = shown["audio"]["input"]
    flat = {name: heard[today] for name, today in FLAT.items()}
    flat["input_audio_format"] = next(k for k, v in FLAT_FORMATS.items() if v == heard["format"]["type"])
    return flat | {"include": shown["include"]}


def flat_error(error: ApiError) -> ApiError:
    """The same error in the words of the beta."""

    def flat(text: str) -> str:
        for name, today in FLAT.items():
            text = text.replace(f"session.audio.input.{today}", f"session.{name}")
        return text

    return ApiError(error.status, flat(error.message), param=error.param and flat(error.param), code=error.code)
