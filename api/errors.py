"""Every error that a client can see: one envelope, and one table from exceptions to it.

    {"error": {"message", "type", "param", "code"}, "detail": message}

`error` is OpenAI's envelope; `detail` is what Lotti and clients of other FastAPI servers read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from admission import TooManyRequests
from audio_processor import AudioError
from engine.core import EngineError, EngineStopped, JobFailed, PromptInvalid, PromptTooLong
from live import LiveError, LiveErrorCode
from model_manager import ModelUnavailable

log = logging.getLogger("voxtral.api")

CLIENT_GONE = 499  # nginx's status for a client that closed the connection; nobody reads it but the log
RETRY_SOON_SECONDS = 5
RETRY_LATER_SECONDS = 30
NO_RETRY = {"x-should-retry": "false"}  # SDKs send everything again after any other 5xx


class ApiError(Exception):
    """An answer that is not 200. `param` names the field, the message says what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def type(self) -> str:
        return {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error, "detail": self.message}


def invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="unsupported_value")


def describe(error: Exception) -> ApiError:
    """What the client is told about any exception. The details of an unforeseen one stay in the log."""
    if isinstance(error, ApiError):
        return error
    for kind in type(error).__mro__:
        if kind in DESCRIPTIONS:
            return DESCRIPTIONS[kind](error)
    log.error("unforeseen error", exc_info=error)
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


@contextmanager
def about(param: str) -> Iterator[None]:
    """What is wrong with a conversation is told of the field that it was made for."""
    try:
        yield
    except (PromptInvalid, PromptTooLong) as error:
        raise ApiError(400, str(error), param=param, code=describe(error).code) from None


def _retry(status: int, message: str, code: str, seconds: int) -> ApiError:
    return ApiError(status, message, code=code, headers={"Retry-After": str(seconds)})


def _http_error(error: HTTPException) -> ApiError:
    """Starlette's own errors: no such route, wrong method."""
    if error.status_code == 404:
        return ApiError(404, "No such path. See /docs for what there is.", code="not_found")
    if error.status_code == 405:
        return ApiError(
            405, "This path has other methods. See /docs.", code="method_not_allowed", headers=dict(error.headers or {})
        )
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _bad_audio(error: AudioError) -> ApiError:
    return ApiError(413 if error.code == "audio_too_long" else 400, str(error), param="file", code=error.code)


def _model_unavailable(error: ModelUnavailable) -> ApiError:
    if error.reason == "absent":
        return ApiError(404, str(error), param="model", code="model_not_found")
    if error.reason == "downloading":
        return _retry(503, str(error), "model_downloading", RETRY_LATER_SECONDS)
    if error.reason == "busy":
        return _retry(503, str(error), "model_memory", RETRY_LATER_SECONDS)
    return ApiError(503, str(error), code="model_failed", headers=NO_RETRY)


# What the same problems would be in HTTP.
LIVE_STATUSES: dict[LiveErrorCode, int] = {
    "too_many_sessions": 429, "backlog_full": 503, "idle": 408, "too_long": 408, "reader_too_slow": 408,
}  # fmt: skip

DESCRIPTIONS: dict[type, Callable[[Any], ApiError]] = {
    AudioError: _bad_audio,
    ModelUnavailable: _model_unavailable,
    TooManyRequests: lambda error: _retry(429, str(error), "rate_limit_exceeded", RETRY_SOON_SECONDS),
    EngineStopped: lambda error: _retry(503, str(error), "engine_stopped", RETRY_SOON_SECONDS),
    PromptInvalid: lambda error: invalid(error.param, str(error)),
    PromptTooLong: lambda error: ApiError(400, str(error), param="messages", code="context_length_exceeded"),
    JobFailed: lambda error: ApiError(500, str(error), code="engine_error", headers=NO_RETRY),
    LiveError: lambda error: ApiError(LIVE_STATUSES.get(error.code, 400), str(error), code=error.code),
    HTTPException: _http_error,
    ClientDisconnect: lambda error: ApiError(CLIENT_GONE, "The client left before its request was whole."),
}


def from_validation(problems: list[Any]) -> ApiError:
    """The first problem that pydantic found, as a 400 that names the field by its path."""
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"] if part != "body")
    return invalid(where, f"{where}: {problem['msg']}." if where else f"{problem['msg']}.")


def install(app: FastAPI) -> None:
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return answer(describe(error))

    for kind in (ApiError, AudioError, TooManyRequests, ModelUnavailable, EngineError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(Exception, on_error)


def answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)
