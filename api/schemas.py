"""The answers as /openapi.json describes them. They are written by other modules; tests compare what those write."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Fields that are always there are required, those with a default may be missing."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)


class ErrorDetail(Answer):
    message: str = Field(description="what is wrong and what to do about it")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="the field that is wrong")
    code: str | None = Field(description="for programs; does not change", examples=["invalid_value"])


class ErrorBody(Answer):
    """OpenAI's envelope."""

    error: ErrorDetail
    detail: str = Field(description="the message once more, for clients of other servers")


class InputDetails(Answer):
    text_tokens: int
    audio_tokens: int = Field(description="12.5 for each second")


class TranscriptionUsage(Answer):
    type: Literal["tokens"]
    input_tokens: int
    input_token_details: InputDetails
    output_tokens: int
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    prompt_audio_seconds: int = Field(description="rounded up")


class Logprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Logprob):
    top_logprobs: list[Logprob] | None = Field(None, description="the likeliest tokens there, where asked for")


class WhisperSegment(Answer):
    id: int
    seek: int = Field(description="start in units of 10 ms")
    start: float = Field(description="seconds from the start of the audio")
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Segment(WhisperSegment):
    type: Literal["transcription_segment"]
    speaker_id: None


class WordSegment(Answer):
    """A word in the place of a segment, as Mistral has it."""

    type: Literal["transcription_segment"]
    text: str
    start: float
    end: float
    speaker_id: None


class Word(Answer):
    word: str = Field(description="with the punctuation around it")
    start: float = Field(description="seconds from the start of the audio")
    end: float


class LanguageCode(Answer):
    code: str = Field(examples=["en"])


class TranscriptionWarning(Answer):
    """Where the text may not be whole, or has no times though they were asked for."""

    code: Literal["loop", "length", "audio_incomplete", "untimed"]
    message: str
    start: float = Field(description="seconds; of the segment, or of what the file lacks")
    end: float


class Transcription(Answer):
    """`json`: the keys of OpenAI and of Mistral."""

    model: str
    text: str
    language: str | None = Field(description="ISO 639-1; null: too little was said to tell")
    languages: list[LanguageCode]
    usage: TranscriptionUsage
    finish_reason: Literal["stop", "length"]
    warnings: list[TranscriptionWarning]
    segments: list[Segment] | list[WordSegment] | None = Field(
        None, description="where timestamp_granularities asked for them; words, where it asked for nothing else"
    )
    words: list[Word] | None = Field(None, description="where timestamp_granularities asked for them")
    logprobs: list[TokenLogprob] | None = Field(None, description="where include asked for them")


class Progress(Answer):
    """How far a transcription is."""

    id: str
    object: Literal["transcription.progress"]
    state: Literal["queued", "running", "finished", "failed", "cancelled"] = Field(
        description="queued: waits for the model to be loaded; cancelled: the client left before the end"
    )
    audio_seconds_done: float = Field(
        description="of the recording, up to where its transcript is whole; silence is done once it is found"
    )
    audio_seconds: float | None = Field(description="of the whole recording; null: its container does not say")
    share: float | None = Field(description="of it that is done, 0 to 1")
    elapsed_seconds: float
    remaining_seconds: float | None = Field(description="at the pace so far; null: too early to tell")
    chunks_done: int
    chunks_stored: int = Field(description="of these, kept from an earlier request, which cost no time")


class DurationUsage(Answer):
    type: Literal["duration"]
    seconds: int


class VerboseTranscription(Answer):
    """`verbose_json`: Whisper's keys."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name in lower case, or unknown")
    duration: float = Field(description="seconds")
    text: str
    segments: list[WhisperSegment] | None = Field(
        None, description="unless timestamp_granularities asked for words only"
    )
    words: list[Word] | None = Field(None, description="where timestamp_granularities asked for them")
    usage: DurationUsage
    warnings: list[TranscriptionWarning]


class ChatAnswer(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(Answer):
    index: int
    message: ChatAnswer
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptDetails(InputDetails):
    cached_tokens: int


class ChatUsage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    warnings: list[TranscriptionWarning] | None = Field(None, description="where there are any, of the recordings")


class ModelObject(Answer):
    """OpenAI's and Mistral's keys, and whether the model is on this machine and in memory."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["base"]
    name: str
    aliases: list[str]
    max_context_length: int = Field(description="tokens of prompt, audio and answer together")
    capabilities: dict[str, bool]
    audio_transcription_capabilities: dict[str, Any]
    downloaded: bool
    loaded: bool


class ModelObjects(Answer):
    object: Literal["list"]
    data: list[ModelObject]


class DeletedModel(Answer):
    id: str
    object: Literal["model"]
    deleted: Literal[True]
    freed_bytes: int


class PulledModel(Answer):
    status: Literal["success"]


class LoadedModel(Answer):
    status: Literal["loaded", "already_loaded"]
    message: str = Field(description="model, device and precision")
    device: str


class UnloadedModel(Answer):
    status: Literal["unloaded", "not_loaded"]
    id: str


class Health(Answer):
    model_config = ConfigDict(extra="allow")

    status: Literal["healthy", "unhealthy"]
    model_available: bool
    model_loaded: bool
    device: str
    max_audio_minutes: float
    model: str
    model_state: Literal["absent", "downloading", "failed", "on_disk", "loading", "loaded"]
    error: str | None
    download: dict[str, Any] | None
    aligner: dict[str, Any] | None = Field(description="what VOXTRAL_ALIGNER names: model, state, error, download")
    requests: int = Field(description="at work or waiting")
    live_sessions: int
    live_backlog_seconds: float = Field(
        description="of audio that waits for the model, in the session where it is most"
    )


class Readiness(Answer):
    ready: bool
    model: str
    model_state: str


class ClientSecret(Answer):
    value: str = Field(description="the key, in the place of an API key of a realtime socket", examples=["ek_68af296e"])
    expires_at: int = Field(description="Unix time")
    session: dict[str, Any] = Field(description="what the session will be, as in `session.created` of the socket")


class BetaClientSecret(Answer):
    value: str
    expires_at: int


class BetaTranscriptionSession(Answer):
    id: str
    object: Literal["realtime.transcription_session"]
    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"]
    input_audio_transcription: dict[str, Any]
    input_audio_noise_reduction: None
    turn_detection: dict[str, Any] | None
    include: list[str] | None
    client_secret: BetaClientSecret
