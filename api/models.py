"""The models: list, retrieve, pull, load, unload, delete; in a form that OpenAI's and Mistral's SDKs both read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from api.errors import ApiError, invalid
from api.openapi import EVENTS, answers, json_body
from api.schemas import DeletedModel, LoadedModel, ModelObject, ModelObjects, PulledModel, UnloadedModel
from api.service import Service, service_of
from api.uploads import read_body
from model_manager import Model, until_finished
from model_store import Download, DownloadFailed, valid_repository
from model_table import CONTEXT_LENGTH
from streaming import sse

router = APIRouter()

STREAMING_DELAYS_MS = [{"min": 80, "max": 1200}, {"min": 2400, "max": 2400}]  # of models that write while they hear
PROGRESS_SECONDS = 0.4  # between two lines of progress; clients are promised two a second at least


ModelId = Annotated[str, Path(description="id or alias; may hold slashes", examples=["whisper-1"])]


class ModelName(BaseModel):
    model: str | None = Field(None, description="id or alias; left out: the model that this server was started with")
    model_name: str | None = Field(None, description="the same, as Lotti calls it")

    @property
    def name(self) -> str | None:
        return self.model or self.model_name


class Pull(ModelName):
    stream: bool = Field(True, description="progress as server-sent events; false: one answer at the end")


@router.get("/models", response_model=None, responses=answers(ModelObjects))
async def list_models(request: Request) -> dict[str, Any]:
    """The models on this machine, the served one first."""
    service = service_of(request)
    models = await asyncio.to_thread(service.models.listed)
    return {"object": "list", "data": [describe_model(service, model) for model in models]}


@router.post(
    "/models/pull",
    openapi_extra=json_body(Pull, required=False, served={"model": "whisper-1"}),
    responses=answers(PulledModel, refused=(404, 408, 413, 502, 507), events=EVENTS),
)
async def pull(request: Request) -> Response:
    """Fetch a model from the Hugging Face Hub, or join the download of it that is at work."""
    body = await read_body(request, Pull, may_be_empty=True)
    service = service_of(request)
    name = body.name or service.models.default.spec.id
    model = service.models.to_download(name) if valid_repository(name) else service.models.find(name)
    if model is None:
        raise invalid("model_name", f"model_name '{name}' is no repository such as mistralai/Voxtral-Mini-3B-2507.")
    download = None if model.folder and not model.downloading else service.models.download(model)
    if body.stream:
        return StreamingResponse(_progress(download), media_type="text/event-stream")
    if download:
        await until_finished(download)
    if download and download.error:
        raise _pull_error(download.error)
    return Response(b'{"status":"success"}', media_type="application/json")


async def _progress(download: Download | None) -> AsyncGenerator[bytes]:
    """Lines as Lotti's dialog reads them: bytes while they come, and `success` only when every file is whole."""
    while download and not download.finished.is_set():
        status = "verifying" if download.stage == "verifying" else "downloading"
        yield sse({"status": status, "total": download.total, "completed": download.completed})
        await asyncio.sleep(PROGRESS_SECONDS)
    if download and download.error:
        yield sse({"status": "error", "error": str(download.error)})
    else:
        size = {"total": download.total, "completed": download.completed} if download else {}
        yield sse({"status": "success", **size})


def _pull_error(error: DownloadFailed) -> ApiError:
    if error.reason == "unknown":
        return ApiError(404, str(error), param="model_name", code="model_not_found")
    if error.reason == "no_space":
        return ApiError(507, str(error), code="no_space", headers={"x-should-retry": "false"})
    return ApiError(502, str(error), code="download_failed")


@router.post(
    "/models/load",
    response_model=None,
    openapi_extra=json_body(ModelName, required=False, served={"model": "whisper-1"}),
    responses=answers(LoadedModel, refused=(404, 408, 413, 503)),
)
async def load(request: Request) -> dict[str, Any]:
    """Load a model before the first request that needs it."""
    service = service_of(request)
    model = _named(service, await read_body(request, ModelName, may_be_empty=True))
    before = model.loaded
    model.check_available()
    worker = await service.models.worker(model)
    status = "already_loaded" if before else "loaded"
    return {"status": status, "message": worker.backend.description, "device": worker.backend.device}


@router.post(
    "/models/unload",
    response_model=None,
    openapi_extra=json_body(ModelName, required=False, served={"model": "whisper-1"}),
    responses=answers(UnloadedModel, refused=(404, 408, 413)),
)
async def unload(request: Request) -> dict[str, Any]:
    """Give the model's memory back. The next request that asks for it loads it again."""
    model = _named(service_of(request), await read_body(request, ModelName, may_be_empty=True))
    _check_unused(model)
    status = "unloaded" if model.loaded else "not_loaded"
    await model.unload()
    return {"status": status, "id": model.spec.id}


@router.get("/models/{model_id:path}", response_model=None, responses=answers(ModelObject, refused=(404,)))
async def get_model(request: Request, model_id: ModelId) -> dict[str, Any]:
    """Model ids hold slashes; both `%2F` and the slash itself find them."""
    service = service_of(request)
    return describe_model(service, service.model(model_id)) | {"id": model_id}


@router.delete("/models/{model_id:path}", response_model=None, responses=answers(DeletedModel, refused=(404,)))
async def delete_model(request: Request, model_id: ModelId) -> dict[str, Any]:
    """Unload a model and remove its files from the cache."""
    model = service_of(request).model(model_id)
    if model.spec.folder:
        raise invalid("model", f"'{model_id}' is a folder on this machine; delete it there.")
    _check_unused(model)
    if model.downloading:
        raise invalid("model", f"'{model_id}' is being downloaded; delete it afterwards.")
    if model.is_loading:
        raise invalid("model", f"'{model_id}' is being loaded; delete it afterwards.")
    freed = await service_of(request).models.delete(model)
    return {"id": model_id, "object": "model", "deleted": True, "freed_bytes": freed}


def _named(service: Service, body: ModelName) -> Model:
    return service.model(body.name) if body.name else service.models.default


def _check_unused(model: Model) -> None:
    if model.users:
        raise invalid("model", f"'{model.spec.id}' is at work for {model.users} requests. Try again when it is idle.")


def describe_model(service: Service, model: Model) -> dict[str, Any]:
    spec, streams = model.spec, service.streams(model)
    return {
        "id": spec.id,
        "object": "model",
        "created": spec.created,
        "owned_by": spec.id.split("/")[0] if "/" in spec.id else "local",
        "shutdown_date": None,
        "type": "base",
        "name": spec.id,
        "aliases": list(service.models.names.of(spec))[1:],
        "max_context_length": model.loaded.backend.context_length if model.loaded else CONTEXT_LENGTH,
        "capabilities": {
            "completion_chat": not streams, "function_calling": not streams, "audio": True, "audio_transcription": True,
            "audio_transcription_realtime": True,
        },
        "audio_transcription_capabilities": {
            "modes": ["offline", "realtime"], "diarization": False, "context_bias": True, "turn_detection": True,
            "timestamp_granularities": ["segment", "word"], "languages": list(spec.languages),
            "streaming_delays_ms": STREAMING_DELAYS_MS if streams else [],
        },
        "downloaded": model.folder is not None,
        "loaded": model.loaded is not None,
    }  # fmt: skip
