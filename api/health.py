"""GET /health: answers in milliseconds whatever the model does, because it only looks at what others have written.
GET /ready: 200 when a request would be answered at once, for load balancers and scripts that wait."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from aligner import AlignerModel
from api.schemas import Health, Readiness
from api.service import service_of
from model_manager import process_memory
from model_store import Download

router = APIRouter()


@router.get("/health", response_model=None, responses={200: {"model": Health, "description": "Always."}})
async def health(request: Request) -> dict[str, Any]:
    """The first five fields are Lotti's. `model_state`: absent, downloading, failed, on_disk, loading or loaded."""
    service = service_of(request)
    model = service.models.default
    worker, state = model.loaded, model.state
    return {
        "status": "unhealthy" if state == "failed" else "healthy",
        "model_available": state in ("on_disk", "loading", "loaded"),
        "model_loaded": worker is not None,
        "device": worker.backend.device if worker else service.settings.voxtral_device,
        "max_audio_minutes": service.settings.max_audio_duration_seconds / 60,
        "model": model.spec.id,
        "model_state": state,
        "model_description": worker.backend.description if worker else None,
        "models_loaded": [model.spec.id for model in service.models.loaded],
        "error": model.error,
        "download": _download(model.download),
        "aligner": _aligner(service.models.aligner),
        "requests": service.admission.active,
        "chunks_running": worker.running if worker else 0,
        "chunks_waiting": worker.waiting if worker else 0,
        "live_sessions": service.live.count,
        "live_backlog_seconds": round(service.live.behind, 3),
        "batch_size": worker.backend.limits.rows if worker else service.settings.max_batch_size,
        "memory_bytes": process_memory(),
    }


@router.get(
    "/ready",
    responses={
        200: {"model": Readiness, "description": "A request would be answered now."},
        503: {"model": Readiness, "description": "Not yet, or not at all: see model_state."},
    },
)
async def ready(request: Request) -> JSONResponse:
    """200 while the model is loaded, or on disk after being idle; 503 while it is fetched or loaded, or has failed."""
    model = service_of(request).models.default
    state = model.state
    is_ready = state in ("loaded", "on_disk")
    return JSONResponse({"ready": is_ready, "model": model.spec.id, "model_state": state}, 200 if is_ready else 503)


def _download(download: Download | None) -> dict[str, Any] | None:
    if not download or download.finished.is_set():
        return None
    return {"completed": download.completed, "total": download.total, "percent": download.percent}


def _aligner(aligner: AlignerModel | None) -> dict[str, Any] | None:
    """What VOXTRAL_ALIGNER names; until it is loaded, or where it cannot be, the model's own attention finds times."""
    if not aligner:
        return None
    download = _download(aligner.download)
    return {"model": aligner.spec.id, "state": aligner.state, "error": aligner.error, "download": download}
