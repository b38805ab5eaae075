"""POST /audio/translations: speech in any of Voxtral's languages to English text.

Voxtral has no translation mode of its own; it follows the instruction of a chat. All else is as in a transcription.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.service import AdmittedRoute
from api.transcriptions import TO_LANGUAGE, answer_audio, audio_route

router = APIRouter(route_class=AdmittedRoute)


@router.post("/audio/translations", **audio_route(**TO_LANGUAGE))
async def translate(request: Request) -> Response:
    """Speech to English text. Takes the fields of a transcription; `language` is what is spoken."""
    return await answer_audio(request, "translate")
