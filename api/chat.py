"""POST /chat/completions with audio: as Lotti sends it, and with OpenAI's, Mistral's and vLLM's content parts."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from api import fields
from api.errors import ApiError, from_validation, invalid, unsupported
from api.instructions import means_transcription
from api.service import service_of
from api.uploads import base64_file, read_json
from streaming import ChatCompletion
from transcript import Message, Transcript, TranscriptionRequest

router = APIRouter()

# Fields that would change the answer and that nothing here obeys, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "stop": (None, [], ""), "logprobs": (None, False), "top_logprobs": (None, 0),
    "logit_bias": (None, {}), "frequency_penalty": (None, 0), "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "min_tokens": (None, 0),
    "tools": (None, []), "functions": (None, []), "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]), "prediction": (None,), "web_search_options": (None,),
}  # fmt: skip


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    audio: str | dict[str, Any] | None = (
        None  # Lotti's base64; OpenAI's object of the same name asks for spoken answers
    )
    language: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    random_seed: int | None = None
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)


@router.post("/chat/completions", openapi_extra={"requestBody": {"content": {"application/json": {"schema":
    ChatBody.model_json_schema()}}}})  # fmt: skip
async def complete(request: Request) -> Response:
    """A transcript, or what an instruction makes of the audio. Streams text as it is decoded when `stream` is true."""
    service = service_of(request)
    values = await read_json(request)
    try:
        body = ChatBody.model_validate(values)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from None
    _refuse_unsupported(values)
    service.check_model(body.model)
    messages, audio, param = conversation(body)
    asked = TranscriptionRequest(
        language=fields.language(values),
        messages=() if means_transcription(messages) else messages,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed if body.seed is not None else body.random_seed,
        max_tokens=body.max_completion_tokens or body.max_tokens,
    )
    file = await base64_file(audio, param, service.settings.max_audio_size_mb)
    transcription = await service.open(asked, file)
    completion = ChatCompletion(body.model)
    if body.stream:
        # Lotti shows usage and reads it from any chunk, but has no stream_options to ask for it.
        include_usage = body.stream_options.include_usage if body.stream_options else param == "audio"
        return service.stream(transcription, partial(completion.frames, include_usage=include_usage))
    return await service.whole(request, transcription, partial(_answer, completion))


def _answer(completion: ChatCompletion, transcript: Transcript) -> Response:
    reason = "length" if transcript.truncated else "stop"
    return JSONResponse(completion.body(transcript.text, reason, transcript.usage))


def _refuse_unsupported(values: dict[str, Any]) -> None:
    for name, neutral in NEUTRAL.items():
        if values.get(name) not in neutral:
            raise unsupported(name, f"{name} is not supported. Leave it out.")


def conversation(body: ChatBody) -> tuple[tuple[Message, ...], object, str]:
    """The messages, the one recording among them as it was sent, and the name of the field that held it."""
    turns: list[Message] = []
    found: list[tuple[object, str]] = []
    if isinstance(body.audio, str) and body.audio:
        found.append((body.audio, "audio"))
    for index, message in enumerate(body.messages):
        parts, audio_at = [], None
        for part in _parts(message):
            audio = _audio_of(part)
            if audio is not None:
                audio_at = len(parts)
                found.append((audio, f"messages.{index}.content"))
            else:
                parts.append(_text_of(part, index))
        if audio_at is not None and message.role != "user":
            raise invalid(f"messages.{index}", "Only messages of the user can hold audio.")
        turns.append(Message(_role(message), tuple(parts), audio_at))
    if turns[-1].role != "user":
        raise invalid("messages", "The last message must be the user's.")
    if len(found) != 1:
        raise _wrong_count(len(found))
    if found[0][1] == "audio":
        turns[-1] = Message("user", turns[-1].parts, audio_at=0)
    return tuple(turns), *found[0]


def _wrong_count(count: int) -> ApiError:
    if count:
        return unsupported("messages", f"{count} recordings in one request are not supported. Send one at a time.")
    return ApiError(
        400,
        "No audio: text-only chat is not supported. Put base64 into 'audio' or a content part of type input_audio.",
        param="audio",
        code="missing_audio",
    )


def _role(message: ChatMessage) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return message.content or []


def _audio_of(part: dict[str, Any]) -> object | None:
    """The base64 or address in an audio part of any dialect; None for a part that is not audio."""
    for kind, key in (("input_audio", "data"), ("audio_url", "url"), ("file", "file_data")):
        if kind in part:
            value = part[kind]
            return (value.get(key) or "") if isinstance(value, dict) else value
    return None


def _text_of(part: dict[str, Any], index: int) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise unsupported(f"messages.{index}.content", "Content parts may be of type text, input_audio or audio_url.")
    return part["text"]
