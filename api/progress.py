"""GET /transcriptions/{request_id}: how far a transcription is, for whoever has the key that it was asked for with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from api.errors import ApiError
from api.openapi import EVERYWHERE, refusals
from api.schemas import ErrorBody, Progress
from api.service import figures, service_of

router = APIRouter()
UNKNOWN = {404: {"model": ErrorBody, "description": "This key has sent no such request lately."}}


@router.get("/audio/transcriptions/{request_id}", include_in_schema=False)
@router.get("/transcriptions/{request_id}", response_model=Progress, responses=refusals(*EVERYWHERE) | UNKNOWN)
async def progress(request: Request, request_id: str) -> dict[str, Any]:
    """How far a request is, and for an hour after its end how it ended. `request_id` is the `x-request-id` of its
    answer, which a client may choose by sending one. Transcriptions, translations, and chats that transcribe have it,
    from when their audio has arrived."""
    service = service_of(request)
    asked = replace(service.caller(request), request_id=request_id)
    found = service.transcriber.progress.find(asked)
    if found is None:
        raise ApiError(
            404,
            "No transcription of this id is at work, or ended within the last hour. Send x-request-id with a request, "
            "and ask for it with the same key once its audio has arrived.",
            param="request_id",
            code="request_not_found",
        )
    return {"id": request_id, "object": "transcription.progress", **figures(found)}
