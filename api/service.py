"""What the endpoints share: the objects made at start-up, how work is opened, and the two ways to answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import logs
from admission import Admission
from api import fields
from api.edge import key_digest
from api.errors import CLIENT_GONE, ApiError, describe, invalid
from api.realtime_dialect import LiveModel
from api.remote import RemoteAudio
from api.uploads import sent_audio
from audio_processor import AudioFile, AudioLimits
from client_secrets import ClientSecrets
from config import Settings
from engine.backends import backend_of
from live_sessions import LiveSessions
from metrics import Metrics
from model_manager import Model, ModelManager
from progress import Caller, Progress
from responder import AnswerRequest, Reply, Responder
from streaming import KEEPALIVE, EventStream, sse, until_disconnect
from subtitles import SubtitleLimits
from transcriber import Transcriber, Transcription, TranscriptionRequest

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    settings: Settings
    models: ModelManager
    transcriber: Transcriber
    responder: Responder
    live: LiveSessions
    admission: Admission
    metrics: Metrics
    remote: RemoteAudio
    secrets: ClientSecrets

    def model(self, name: str) -> Model:
        """The model that a client means. Raises ApiError 404 with what there is."""
        if model := self.models.find(name):
            return model
        raise ApiError(
            404,
            f"The model '{name}' is not on this machine. Use '{self.models.default.spec.id}', or another of GET "
            "/v1/models; POST /v1/models/pull fetches more.",
            param="model",
            code="model_not_found",
        )

    def live_model(self, name: str | None) -> LiveModel:
        """What a dialect must know of the model that a client means; None: the one that is served."""
        model = self.model(name) if name else self.models.default
        return LiveModel(name or model.spec.id, streams=self.streams(model))

    def streams(self, model: Model) -> bool:
        """Whether a model writes while it hears. Reads the disk."""
        return model.folder is not None and backend_of(model.folder) == "realtime"

    @property
    def subtitle_limits(self) -> SubtitleLimits:
        settings = self.settings
        shortest, longest = settings.subtitle_min_seconds, settings.subtitle_max_seconds
        return SubtitleLimits(
            settings.subtitle_line_length, settings.subtitle_lines, round(shortest * 1000), round(longest * 1000)
        )

    async def recording(self, values: Mapping[str, Any]) -> BinaryIO:
        """What a transcription is of: the audio that came with its fields, or the one at `file_url`."""
        address = fields.text(values, "file_url")
        if address is None:
            return await sent_audio(values, self.settings.max_audio_size_mb)
        if values.get("file") or values.get("audio"):
            raise invalid("file_url", "There is a recording besides file_url. Send one of them.")
        return await self.remote.fetch(address, "file_url")

    def caller(self, request: Request) -> Caller:
        key = key_digest(request.headers) if self.settings.api_keys else ""
        keep = "no-store" not in request.headers.get("cache-control", "").lower()
        return Caller(logs.request_id.get(), key, keep)

    async def open(self, request: Request, model: Model, wanted: TranscriptionRequest, file: BinaryIO) -> Transcription:
        audio = await asyncio.to_thread(self._audio, file)
        return await self.transcriber.open(model, wanted, audio, self.caller(request))

    async def reply(self, model: Model, request: AnswerRequest, files: list[BinaryIO]) -> Reply:
        audio: list[AudioFile] = []
        try:
            for file in files:
                audio.append(await asyncio.to_thread(self._audio, file))
        except BaseException:
            for opened in (*audio, *files):
                opened.close()
            raise
        return await self.responder.open(model, request, audio)

    def _audio(self, file: BinaryIO) -> AudioFile:
        return AudioFile(file, AudioLimits(self.settings.max_audio_duration_seconds))

    def stream(
        self,
        frames: AsyncGenerator[bytes],
        close: Callable[[], Awaitable[None]],
        error_frame: Callable[[dict[str, Any]], bytes] = sse,
        progress: Progress | None = None,
    ) -> Response:
        def heartbeat() -> str:
            return f"{KEEPALIVE} {json.dumps(figures(progress))}" if progress else KEEPALIVE

        seconds = self.settings.heartbeat_seconds
        return EventStream(frames, seconds, lambda error: error_frame(describe(error).body), close, heartbeat)

    async def whole(
        self,
        request: Request,
        work: Coroutine[Any, Any, Result],
        close: Callable[[], Awaitable[None]],
        render: Callable[[Result], Response],
    ) -> Response:
        """The finished work as one answer, unless the client goes away first."""
        try:
            result = await until_disconnect(request.receive, work)
        finally:
            await close()
        return Response(status_code=CLIENT_GONE) if result is None else await asyncio.to_thread(render, result)


class AdmittedRoute(APIRoute):
    """A route whose requests have a place from before their body is read until their answer is sent, so that no more
    bodies than places are in memory. Raises TooManyRequests."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        with scope["app"].state.service.admission.place():
            await super().handle(scope, receive, send)


def figures(progress: Progress) -> dict[str, Any]:
    """How far a transcription is, as clients read it."""

    def rounded(value: float | None, digits: int = 1) -> float | None:
        return None if value is None else round(value, digits)

    return {
        "state": progress.state,
        "audio_seconds_done": progress.done_ms / 1000,
        "audio_seconds": None if progress.duration_ms is None else progress.duration_ms / 1000,
        "share": rounded(progress.share, 3),
        "elapsed_seconds": rounded(progress.elapsed_seconds),
        "remaining_seconds": rounded(progress.remaining_seconds),
        "chunks_done": progress.chunks_done,
        "chunks_stored": progress.chunks_stored,
    }


def service_of(request: Request) -> Service:
    return request.app.state.service
