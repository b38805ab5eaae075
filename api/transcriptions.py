"""POST /audio/transcriptions: OpenAI's multipart form, and the same fields as JSON with base64 audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from api import fields
from api.errors import ApiError, invalid, unsupported
from api.formats import FORMATS
from api.instructions import prompted_transcription
from api.service import Service, service_of
from api.uploads import base64_file, read_form, read_json, too_large
from streaming import transcription_frames
from transcript import TranscriptionRequest

router = APIRouter()


@dataclass(frozen=True)
class TranscriptionCall:
    model: str
    response_format: str
    stream: bool
    request: TranscriptionRequest


@router.post("/audio/transcriptions", openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "language": {"type": "string", "description": "ISO 639-1; left out: recognised"},
        "prompt": {"type": "string", "description": "names and style to expect"},
        "response_format": {"type": "string", "enum": list(FORMATS)},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        "stream": {"type": "boolean"},
    },
}}}}})  # fmt: skip
async def transcribe(request: Request) -> Response:
    """Audio to text. Answers in `response_format`, or with server-sent events when `stream` is true."""
    service = service_of(request)
    values, file = await _read(request, service)
    try:
        call = parse(values)
        service.check_model(call.model)
    except BaseException:
        file.close()
        raise
    transcription = await service.open(call.request, file)
    if call.stream:
        return service.stream(transcription, transcription_frames)
    return await service.whole(request, transcription, partial(FORMATS[call.response_format], model=call.model))


async def _read(request: Request, service: Service) -> tuple[Mapping[str, Any], BinaryIO]:
    """The fields and the audio, from whichever kind of body was sent."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    limit_mb = service.settings.max_audio_size_mb
    if kind == "application/json":
        values = await read_json(request)
        name = "audio" if values.get("audio") else "file"
        if not values.get(name):
            raise _no_file()
        return values, await base64_file(values.pop(name), name, limit_mb)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(
            415, f"Content-Type '{kind}' cannot be read. Send multipart/form-data, or JSON with base64 audio."
        )
    form = await read_form(request)
    upload = form.get("file")
    if upload is None or upload == "":
        raise _no_file()
    if not isinstance(upload, UploadFile):
        raise invalid("file", "file must be an uploaded file: curl -F file=@recording.m4a.")
    if (upload.size or 0) > service.settings.max_audio_bytes:
        raise too_large(limit_mb)
    return form, upload.file


def _no_file() -> ApiError:
    return ApiError(
        400, "file is missing. Send the recording in the form field 'file'.", param="file", code="missing_file"
    )


def parse(values: Mapping[str, Any]) -> TranscriptionCall:
    """Every field that is known is obeyed or refused here."""
    response_format = _response_format(values)
    stream = fields.boolean(values, "stream")
    if stream and response_format in ("srt", "vtt"):
        raise unsupported(
            "response_format", f"{response_format} cannot be streamed. Leave out stream, or ask for json."
        )
    _refuse_unsupported(values)
    language = fields.language(values)
    prompt = fields.text(values, "prompt")
    request = TranscriptionRequest(
        language=language,
        messages=prompted_transcription(prompt, language) if prompt else (),
        temperature=fields.number(values, "temperature", 0, 1) or 0.0,
    )
    model = fields.text(values, "model")
    if model is None:
        raise ApiError(
            400, "model is missing. GET /v1/models lists what is served.", param="model", code="missing_model"
        )
    return TranscriptionCall(model, response_format, stream, request)


def _response_format(values: Mapping[str, Any]) -> str:
    if fields.text(values, "response_format") == "diarized_json":
        raise unsupported(
            "response_format", "diarized_json needs speaker labels, which Voxtral does not give. Use json."
        )
    return fields.choice(values, "response_format", tuple(FORMATS), "json")


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    granularities = fields.listed(values, "timestamp_granularities")
    if any("word" in value for value in _all(values, "timestamp_granularities")):
        raise unsupported("timestamp_granularities", "Times of words are not supported yet. Ask for 'segment'.")
    if any(value not in ("segment", '["segment"]') for value in granularities):
        raise invalid("timestamp_granularities", "timestamp_granularities may only hold 'segment'.")
    strategy = fields.listed(values, "chunking_strategy") or fields.listed(values, "chunking_strategy[type]")
    if strategy and strategy[0] != "auto":
        raise unsupported("chunking_strategy", "Only chunking_strategy 'auto' is supported.")
    if fields.boolean(values, "diarize"):
        raise unsupported("diarize", "Voxtral does not tell speakers apart. Send diarize=false.")
    fields.refuse(
        values,
        ("known_speaker_names", "known_speaker_references", "speaker_references"),
        "needs speaker labels, which Voxtral does not give.",
    )
    fields.refuse(values, ("include",), "is not supported yet.")
    fields.refuse(values, ("keywords", "context_bias", "languages"), "is not supported yet. Put names into 'prompt'.")
    fields.refuse(values, ("file_url", "file_id"), "is not supported: this server fetches nothing. Send 'file'.")


def _all(values: Mapping[str, Any], name: str) -> list[str]:
    """Every value of a repeated form field, under either of its names."""
    getlist = getattr(values, "getlist", lambda key: [values.get(key, "")])
    return [str(value) for key in (name, f"{name}[]") for value in getlist(key)]
