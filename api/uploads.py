"""Bodies and audio on their way in: forms, JSON, base64, data URLs; audio ends in a file on disk, within limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, answer, from_validation, invalid, unsupported
from api.fields import every

Body = TypeVar("Body", bound=BaseModel)

SPOOL_BYTES = 1 << 20  # smaller audio stays in memory
FIELD_BYTES = 4 << 20  # longest form field that is not a file
MOST_FIELDS = 2000  # of a form, in which each of 1000 words to expect may be one
SMALL_BODY_BYTES = 1 << 20  # of requests without audio
PAUSE_SECONDS = 60.0  # without a byte of a body, after which its client is taken for gone
ENVELOPE_BYTES = 8 << 20  # what a request may hold beside the audio
DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
MOST_NESTING = 64  # levels of JSON; schemas of tools, the deepest there is, have a dozen
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
BASE64_SLICE = 4 * 256 * 1024  # characters decoded at a time; a multiple of 4


def too_large(limit_mb: int, param: str = "file") -> ApiError:
    return ApiError(
        413,
        f"The audio is larger than {limit_mb} MB, the most that this server accepts. Compress it (M4A, MP3, Opus), "
        "send it in parts, or raise MAX_AUDIO_SIZE_MB.",
        param=param,
        code="audio_too_large",
    )


def stalled(seconds: float) -> ApiError:
    return ApiError(
        408, f"Nothing of the body came for {seconds:g} s. Send it again.", code="timeout",
        headers={"Connection": "close"},
    )  # fmt: skip


class BodyLimit:
    """Stops reading a body that has grown past the limit, and does not begin with one that is declared to.

    JSON carries audio as base64, a third longer than the bytes that the limit is about. A body that stops arriving is
    answered 408: it has a place among the requests at work.
    """

    def __init__(self, app: ASGIApp, limit_mb: int, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._app, self._limit_mb, self._pause_seconds = app, limit_mb, pause_seconds
        self._limit = limit_mb * 1_000_000 * 4 // 3 + ENVELOPE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if int(Headers(scope=scope).get("content-length", 0)) > self._limit:
            await answer(too_large(self._limit_mb))(scope, receive, send)
            return
        read, whole = 0, False

        async def limited() -> Message:
            nonlocal read, whole
            try:
                async with asyncio.timeout(None if whole else self._pause_seconds):
                    message = await receive()
            except TimeoutError:
                raise stalled(self._pause_seconds) from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._limit:
                raise too_large(self._limit_mb)
            return message

        await self._app(scope, limited, send)


@asynccontextmanager
async def read_fields(request: Request) -> AsyncGenerator[Mapping[str, Any]]:
    """The fields of a request with audio: multipart, urlencoded or JSON. Uploaded files are spooled to disk by
    Starlette, and stay open unless the block fails. Raises ApiError for a body that cannot be read."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        yield await read_json(request)
        return
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(
            415, f"Content-Type '{kind}' cannot be read. Send multipart/form-data, or JSON with base64 audio."
        )
    try:
        form = await request.form(max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
    except HTTPException as error:  # Starlette's way to say that a form is broken, or has too many fields
        raise ApiError(
            400,
            f"The form cannot be read ({error.detail.rstrip('.')}). Send multipart/form-data with the recording in the "
            "field 'file', as curl -F does.",
            code="invalid_form",
        ) from None
    except UnicodeError as error:  # a charset that Python knows and that decodes nothing, such as `undefined`
        raise ApiError(
            400, f"The charset in Content-Type cannot be read ({error}). Leave it out.", code="invalid_form"
        ) from None
    try:
        yield form
    except BaseException:
        await form.close()
        raise


async def read_json(request: Request, may_be_empty: bool = False, most: int | None = None) -> dict[str, Any]:
    """The object in a body. Raises ApiError: 413 for one of more than `most` bytes, 400 for anything else."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if most and len(body) > most:
            raise ApiError(413, f"The body is longer than {most} bytes. /docs has its fields.", code="body_too_large")
    if not body and may_be_empty:
        return {}
    try:
        values = await asyncio.to_thread(_parse_json, body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return values


def _parse_json(body: bytearray) -> object:
    """JSON as its standard has it. Python alone would let in NaN, halves of characters, which can be encoded nowhere
    later, and nesting that breaks whoever walks it. Empties `body`, so that audio is in memory as base64 at most twice.
    Raises ValueError or RecursionError."""
    text = body.decode("utf-8-sig")
    body.clear()
    values = json.loads(text, parse_constant=_refuse_constant)
    if _deeper_than(MOST_NESTING, values):
        raise ValueError(f"it is nested deeper than {MOST_NESTING} levels")
    if SURROGATE.search(text):
        json.dumps(values, ensure_ascii=False).encode()
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _deeper_than(most: int, values: object) -> bool:
    level = [values]
    for _ in range(most):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
    return bool(level)


async def read_body(request: Request, kind: type[Body], may_be_empty: bool = False) -> Body:
    """A JSON body without audio as `kind`. Raises ApiError 400 that names the field."""
    try:
        return kind.model_validate(await read_json(request, may_be_empty, SMALL_BODY_BYTES))
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from None


async def sent_audio(values: Mapping[str, Any], limit_mb: int) -> BinaryIO:
    """The recording that came with the fields: the file of a form, or base64 in `file` or `audio` of JSON."""
    several = [value for name in ("file", "audio") if name in values for value in every(values, name) if value]
    if len(several) > 1:
        raise invalid("file", "There are several recordings. Send one in each request.")
    if isinstance(values, dict):
        name = "audio" if values.get("audio") else "file"
        if not values.get(name):
            raise _no_file()
        return await base64_file(values.pop(name), name, limit_mb)  # popped, so that it is not kept as text too
    upload = values.get("file")
    if upload is None or upload == "":
        raise _no_file()
    if not isinstance(upload, UploadFile):
        raise invalid("file", "file must be an uploaded file: curl -F file=@recording.m4a.")
    if (upload.size or 0) > limit_mb * 1_000_000:
        raise too_large(limit_mb)
    return upload.file


def _no_file() -> ApiError:
    return ApiError(
        400, "file is missing. Send the recording in the form field 'file'.", param="file", code="missing_file"
    )


def is_address(text: object) -> bool:
    """Of a recording, where base64 or a data URL could stand as well."""
    return isinstance(text, str) and ADDRESS.match(text) is not None


async def base64_file(text: object, param: str, limit_mb: int, raw_rate: int | None = None) -> BinaryIO:
    """Decode base64, with or without a `data:` prefix, into a file that is in memory only while small. With `raw_rate`
    it is samples of 16 bits, mono, at so many Hz, and the file is a WAV."""
    if not isinstance(text, str):
        raise invalid(param, f"{param} must be a string of base64 audio.")
    if is_address(text):
        raise unsupported(
            param,
            f"{param} is an address. Send the audio itself as base64, or the address in file_url of a transcription "
            "or in a part of type audio_url of a chat.",
        )
    return await asyncio.to_thread(_decode_base64, text, param, limit_mb, raw_rate)


def _decode_base64(text: str, param: str, limit_mb: int, raw_rate: int | None) -> BinaryIO:
    prefix = DATA_URL.match(text)
    start = prefix.end() if prefix else 0
    if (len(text) - start) * 3 // 4 > limit_mb * 1_000_000 + 2:
        raise too_large(limit_mb, param)
    if any(space in text for space in "\n\r "):
        text, start = "".join(text[start:].split()), 0
    file = cast(BinaryIO, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115 - handed to the caller
    try:
        if raw_rate:
            file.write(_wav_header(raw_rate, -(-(len(text) - start) // 4) * 3))
        for at in range(start, len(text), BASE64_SLICE):
            piece = text[at : at + BASE64_SLICE]
            file.write(base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True))
    except (binascii.Error, ValueError):
        file.close()
        raise invalid(param, f"{param} is not valid base64.") from None
    return file


def _wav_header(rate: int, most_bytes: int) -> bytes:
    """Of s16le samples, mono. A file may have fewer than its header says."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + most_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", most_bytes)
