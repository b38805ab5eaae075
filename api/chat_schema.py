"""The fields of a chat request, with OpenAI's names and limits, and Mistral's and vLLM's beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.fields import steady_temperature
from engine.core import Sampling

Bias = Annotated[float, Field(ge=-100, le=100)]
Words = str | list[str | None] | None  # as `keywords.named_words` reads them
MOST_BIASES = 1024
MOST_STOPS, LONGEST_STOP = 16, 200  # texts, characters of each: they are looked for at every token
LEAST_TOP_P = 1e-6  # the likeliest token always stays; a share that float32 cannot hold would leave none


class FunctionCall(BaseModel):
    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] = Field("{}", description="JSON, as text or as it is")


class AssistantToolCall(BaseModel):
    id: str = Field(min_length=1, description="nine letters and digits, as in the answer that made the call")
    function: FunctionCall


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = Field(
        None,
        description="text, or parts: {type: text, text}, {type: input_audio, input_audio: {data: base64}}, "
        "{type: audio_url, audio_url: {url}}, {type: file, file: {file_data: data URL}}; audio only from the user. "
        "With a format of pcm_s16le_16000, or of another rate, the audio is bare samples",
    )
    tool_calls: list[AssistantToolCall] | None = Field(None, description="that the assistant made")
    tool_call_id: str | None = Field(None, description="the call that a message of role tool answers")


class StreamOptions(BaseModel):
    include_usage: bool = Field(False, description="one more chunk at the end, with the usage")


class ChatBody(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, description="an id or alias of GET /v1/models", examples=["whisper-1"])
    messages: list[ChatMessage] = Field(min_length=1, description="the last one is the user's or a tool's")
    audio: str | dict[str, Any] | None = Field(
        None,
        description="base64 of a recording to transcribe in chunks, however long it is; OpenAI's object of this name "
        "asks for spoken answers, which there are none of, and means nothing",
    )
    language: str | None = Field(
        None, description="of the recording, ISO 639-1 or an English name; left out: recognised", examples=["en"]
    )
    keywords: Words = Field(
        None, description="spellings of words that may be said; also as text with commas between", examples=[["Lotti"]]
    )
    context_bias: Words = Field(None, description="Mistral's name for keywords")
    hotwords: Words = Field(None, description="vLLM's name for keywords")
    stream: bool | None = Field(False, description="server-sent events, text as it is decoded, `[DONE]` at the end")
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0: always the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="share of the probability that is drawn from")
    top_k: int | None = Field(None, ge=-1, description="likeliest tokens that are drawn from; -1 and 0: all")
    min_p: float | None = Field(None, ge=0, le=1, description="least share of the likeliest token's probability")
    seed: int | None = Field(None, description="the same seed makes the same choices at a temperature above 0")
    random_seed: int | None = Field(None, description="Mistral's name for seed")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="for each time that a token was written")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="for a token that was written")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=10, description="divides the logits of tokens in prompt and answer; 1: none"
    )
    logit_bias: dict[int, Bias] | None = Field(
        None, max_length=MOST_BIASES, description="added to the logits of these tokens"
    )
    logprobs: bool | None = Field(None, description="log-probability of each token")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="so many likeliest tokens beside it")
    max_tokens: int | None = Field(None, ge=0, description="0 and left out: MAX_ANSWER_TOKENS")
    max_completion_tokens: int | None = Field(None, ge=0, description="wins over max_tokens")
    min_tokens: int | None = Field(None, ge=0, description="before which the answer may not end")
    n: int = Field(1, ge=1, le=16, description="answers to the same conversation")
    stop: str | list[str] | None = Field(
        None,
        description=f"texts that end an answer and are no part of it: {MOST_STOPS} at most, of {LONGEST_STOP} "
        "characters each",
    )
    response_format: dict[str, Any] | None = Field(
        None, description="{type: text}, {type: json_object}, or {type: json_schema, json_schema: {name, schema}}"
    )
    tools: list[dict[str, Any]] | None = Field(
        None, description="functions that the answer may call, as OpenAI has them"
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="auto, none, required, or {type: function, function: {name}}"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")

    @field_validator("n", mode="before")
    @classmethod
    def _one_unless_given(cls, value: object) -> object:
        return 1 if value is None else value

    @field_validator("stop")
    @classmethod
    def _few_and_short(cls, value: str | list[str] | None) -> str | list[str] | None:
        given = [value] if isinstance(value, str) else value or []
        if len(given) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in given):
            raise ValueError(f"send {MOST_STOPS} texts at most, of {LONGEST_STOP} characters each")
        return value

    @field_validator("audio")
    @classmethod
    def _recording_or_voice(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(value, dict) and not value.keys() <= {"voice", "format"}:
            raise ValueError("send base64 as text here, or an object with data in a content part of type input_audio")
        return value

    @property
    def recording(self) -> str | None:
        return self.audio if isinstance(self.audio, str) else None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens or None

    @property
    def wants_usage(self) -> bool:
        """Lotti shows usage and reads it from any chunk, but has no stream_options to ask for it."""
        return self.stream_options.include_usage if self.stream_options else self.recording is not None

    @property
    def answer_format(self) -> dict[str, Any] | None:
        kind = (self.response_format or {}).get("type", "text")
        return None if kind == "text" else self.response_format

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=steady_temperature(self.temperature),
            top_p=1.0 if self.top_p is None else max(self.top_p, LEAST_TOP_P),
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=self.random_seed if self.seed is None else self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            min_tokens=self.min_tokens or 0,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else 0,
        )
