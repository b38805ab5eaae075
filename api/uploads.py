"""Audio on its way in: multipart files, JSON with base64 in it, data URLs; all end in a file on disk, within limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, invalid, unsupported
from config import Settings

SPOOL_BYTES = 1 << 20  # smaller audio stays in memory
FIELD_BYTES = 4 << 20  # longest form field that is not a file
ENVELOPE_BYTES = 8 << 20  # what a request may hold beside the audio
DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
BASE64_SLICE = 4 * 256 * 1024  # characters decoded at a time; a multiple of 4


def too_large(limit_mb: int) -> ApiError:
    return ApiError(
        413,
        f"The audio is larger than {limit_mb} MB, the most that this server accepts. Compress it (M4A, MP3, Opus), "
        "send it in parts, or raise MAX_AUDIO_SIZE_MB.",
        param="file",
        code="audio_too_large",
    )


class BodyLimit:
    """Stops reading a body that has grown past the limit, also where no length was declared beforehand.

    JSON carries audio as base64, a third longer than the bytes that the limit is about.
    """

    def __init__(self, app: ASGIApp, limit_mb: int) -> None:
        self._app, self._limit_mb = app, limit_mb
        self._limit = limit_mb * 1_000_000 * 4 // 3 + ENVELOPE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise too_large(self._limit_mb)
            return message

        await self._app(scope, limited, send)


async def read_form(request: Request) -> FormData:
    """The fields and files of a multipart or urlencoded body; files are spooled to disk by Starlette."""
    return await request.form(max_part_size=FIELD_BYTES)


async def read_json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
    try:
        values = await asyncio.to_thread(json.loads, body)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return values


async def read_audio_form(request: Request, settings: Settings) -> tuple[Mapping[str, Any], BinaryIO]:
    """The fields and the audio of a transcription, from whichever kind of body was sent."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        values = await read_json(request)
        name = "audio" if values.get("audio") else "file"
        if not values.get(name):
            raise _no_file(values)
        return values, await base64_file(values.pop(name), name, settings.max_audio_size_mb)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(
            415, f"Content-Type '{kind}' cannot be read. Send multipart/form-data, or JSON with base64 audio."
        )
    form = await read_form(request)
    upload = form.get("file")
    if upload is None or upload == "":
        raise _no_file(form)
    if not isinstance(upload, UploadFile):
        raise invalid("file", "file must be an uploaded file: curl -F file=@recording.m4a.")
    if (upload.size or 0) > settings.max_audio_bytes:
        raise too_large(settings.max_audio_size_mb)
    return form, upload.file


def _no_file(values: Mapping[str, Any]) -> ApiError:
    for name in ("file_url", "file_id"):
        if values.get(name):
            return unsupported(name, f"{name} is not supported: this server fetches nothing. Send 'file'.")
    return ApiError(
        400, "file is missing. Send the recording in the form field 'file'.", param="file", code="missing_file"
    )


async def base64_file(text: object, param: str, limit_mb: int) -> BinaryIO:
    """Decode base64, with or without a `data:` prefix, into a file that is in memory only while small."""
    if not isinstance(text, str) or not text:
        raise invalid(param, f"{param} must be a string of base64 audio.")
    if text[:8].lower().startswith(("http://", "https://", "file://")):
        raise unsupported(
            param, f"{param} is an address; this server fetches nothing. Send the audio itself as base64."
        )
    return await asyncio.to_thread(_decode_base64, text, param, limit_mb)


def _decode_base64(text: str, param: str, limit_mb: int) -> BinaryIO:
    prefix = DATA_URL.match(text)
    start = prefix.end() if prefix else 0
    if (len(text) - start) * 3 // 4 > limit_mb * 1_000_000 + 2:
        raise too_large(limit_mb)
    if any(space in text for space in "\n\r "):
        text, start = "".join(text[start:].split()), 0
    file = cast(BinaryIO, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115 - handed to the caller
    try:
        for at in range(start, len(text), BASE64_SLICE):
            piece = text[at : at + BASE64_SLICE]
            file.write(base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True))
    except (binascii.Error, ValueError):
        file.close()
        raise invalid(param, f"{param} is not valid base64.") from None
    return file
