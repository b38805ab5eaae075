"""Client secrets, made as OpenAI makes them: for its realtime sessions of today, and for those of its beta."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from api.errors import ApiError
from api.openapi import answers, json_body
from api.realtime_openai_session import SessionConfig, flat_error, from_flat, to_flat
from api.schemas import BetaTranscriptionSession, ClientSecret
from api.service import service_of
from api.uploads import read_body

router = APIRouter()


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"] = Field("created_at", description="from when the seconds count")
    seconds: int = Field(600, ge=10, le=7200, description="for which sessions can be opened; they may go on for longer")


class NewSecret(BaseModel):
    expires_after: ExpiresAfter = Field(ExpiresAfter(), description="when the secret is worth nothing any more")
    session: dict[str, Any] = Field({}, description="a transcription session, as in `session.update` of the socket")


class BetaSecret(BaseModel):
    expires_at: ExpiresAfter = ExpiresAfter()


class NewBetaSession(BaseModel, extra="allow"):
    """A session as in `transcription_session.update` of the beta."""

    client_secret: BetaSecret = Field(BetaSecret(), description="when the secret is worth nothing any more")


@router.post(
    "/realtime/client_secrets",
    response_model=None,
    openapi_extra=json_body(NewSecret, required=False, brief={"expires_after": {"seconds": 60}}),
    responses=answers(ClientSecret, refused=(404, 408, 413)),
)
async def create_client_secret(request: Request) -> dict[str, Any]:
    """A key that a web page can be given to open a realtime socket with."""
    body = await read_body(request, NewSecret, may_be_empty=True)
    value, expires_at, shown = _create(request, body.expires_after.seconds, SessionConfig().updated(body.session))
    return {"value": value, "expires_at": expires_at, "session": shown}


@router.post(
    "/realtime/transcription_sessions",
    response_model=None,
    openapi_extra=json_body(NewBetaSession, required=False, pcm={"input_audio_format": "pcm16"}),
    responses=answers(BetaTranscriptionSession, refused=(404, 408, 413)),
)
async def create_transcription_session(request: Request) -> dict[str, Any]:
    """The same for clients of OpenAI's beta."""
    body = await read_body(request, NewBetaSession, may_be_empty=True)
    try:
        config = SessionConfig().updated(from_flat(body.model_extra or {}))
        value, expires_at, shown = _create(request, body.client_secret.expires_at.seconds, config)
    except ApiError as error:
        raise flat_error(error) from None
    fixed = {name: shown[name] for name in ("id", "object")}
    return fixed | to_flat(shown) | {"client_secret": {"value": value, "expires_at": expires_at}}


def _create(request: Request, seconds: int, config: SessionConfig) -> tuple[str, int, dict[str, Any]]:
    """The key, when it expires, and the session as it will be. Raises ApiError for what the model cannot do."""
    service = service_of(request)
    model = service.live_model(config.audio.input.transcription.model)
    config.request(model)
    value, expires_at = service.secrets.create(seconds, config.model_dump())
    session = {"id": f"sess_{secrets.token_hex(12)}", "object": "realtime.transcription_session"}
    return value, expires_at, session | config.effective(model)
