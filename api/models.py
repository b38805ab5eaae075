"""GET /models and /models/{id}: the one model that is served, in a form that OpenAI's and Mistral's SDKs both read."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.service import service_of
from model_manager import ModelManager

router = APIRouter()


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [describe_model(service_of(request).models)]}


@router.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """Model ids hold slashes; both `%2F` and the slash itself find them."""
    service = service_of(request)
    service.check_model(model_id)
    return describe_model(service.models) | {"id": model_id}


def describe_model(models: ModelManager) -> dict[str, Any]:
    spec = models.spec
    return {
        "id": spec.id,
        "object": "model",
        "created": spec.created,
        "owned_by": spec.id.split("/")[0] if "/" in spec.id else "local",
        "shutdown_date": None,
        "type": "base",
        "name": spec.id,
        "aliases": list(models.names[1:]),
        "max_context_length": 32_768,
        "capabilities": {
            "completion_chat": True, "function_calling": False, "audio": True, "audio_transcription": True,
            "audio_transcription_realtime": False,
        },
        "audio_transcription_capabilities": {
            "modes": ["offline"], "diarization": False, "context_bias": False, "turn_detection": False,
            "timestamp_granularities": ["segment"], "languages": list(spec.languages),
        },
        "downloaded": models.folder is not None,
        "loaded": models.loaded is not None,
    }  # fmt: skip
