"""POST /audio/translations: speech in any of Voxtral's languages to English text.

Voxtral has no translation mode of its own; it follows the instruction of a chat.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import fields
from api.errors import unsupported
from api.formats import FORMATS, Shape
from api.instructions import translation
from api.service import service_of
from api.transcriptions import audio_form_schema, model_name, refuse_speakers
from api.uploads import read_audio_form
from engine.core import Sampling
from transcriber import TranscriptionRequest
from transcript import fold

router = APIRouter()


@router.post("/audio/translations", openapi_extra=audio_form_schema("prompt", "response_format", "temperature", "seed"))
async def translate(request: Request) -> Response:
    """Speech to English text, in `response_format`."""
    service = service_of(request)
    values, file = await read_audio_form(request, service.settings)
    try:
        refuse_speakers(values)
        if fields.boolean(values, "stream"):
            raise unsupported("stream", "A translation is not streamed. Leave stream out.")
        asked = TranscriptionRequest(
            language="en",
            conversation=translation(fields.text(values, "prompt")),
            sampling=Sampling(fields.number(values, "temperature", 0, 1) or 0.0, seed=fields.integer(values, "seed")),
        )
        render = FORMATS[fields.choice(values, "response_format", tuple(FORMATS), "json")]
        name = model_name(values)
        model = service.model(name)
    except BaseException:
        file.close()
        raise
    transcription = await service.open(model, asked, file)
    shaped = partial(render, shape=Shape(name, task="translate"))
    return await service.whole(request, fold(transcription.events()), transcription.close, shaped)
