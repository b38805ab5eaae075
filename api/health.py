"""GET /health: answers in milliseconds whatever the model does, because it only looks at what others have written."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.service import service_of
from model_manager import ModelManager, process_memory

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """The first five fields are Lotti's. `model_state`: absent, downloading, failed, on_disk, loading or loaded."""
    service = service_of(request)
    models, worker = service.models, service.models.loaded
    return {
        "status": "unhealthy" if models.state == "failed" else "healthy",
        "model_available": models.state in ("on_disk", "loading", "loaded"),
        "model_loaded": worker is not None,
        "device": worker.backend.device if worker else service.settings.voxtral_device,
        "max_audio_minutes": service.settings.max_audio_duration_seconds / 60,
        "model": models.spec.id,
        "model_state": models.state,
        "model_description": worker.backend.description if worker else None,
        "error": models.error,
        "download": _download(models),
        "requests": service.transcriber.active,
        "chunks_running": worker.running if worker else 0,
        "chunks_waiting": worker.waiting if worker else 0,
        "batch_size": service.settings.max_batch_size,
        "memory_bytes": process_memory(),
    }


def _download(models: ModelManager) -> dict[str, Any] | None:
    if not models.downloading:
        return None
    progress = models.progress
    share = progress.completed / progress.total if progress.total else 0.0
    return {"completed": progress.completed, "total": progress.total, "percent": round(100 * share, 1)}
