"""What the endpoints share: the objects made at start-up, and the two ways to answer a transcription."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import Request
from starlette.responses import Response

from api.errors import ApiError, describe
from audio_processor import AudioFile, AudioLimits
from config import Settings
from model_manager import ModelManager
from streaming import EventStream, until_disconnect
from transcriber import Transcriber, Transcription
from transcript import Event, Transcript, TranscriptionRequest, fold

CLIENT_GONE = 499  # nginx's status for a client that closed the connection; nobody reads it but the log


@dataclass(frozen=True)
class Service:
    settings: Settings
    models: ModelManager
    transcriber: Transcriber

    def check_model(self, name: str) -> None:
        if not self.models.serves(name):
            raise ApiError(
                404,
                f"The model '{name}' is not served here. Use '{self.models.spec.id}', or set VOXTRAL_MODEL_ID.",
                param="model",
                code="model_not_found",
            )

    async def open(self, request: TranscriptionRequest, file: BinaryIO) -> Transcription:
        audio = await asyncio.to_thread(AudioFile, file, AudioLimits(self.settings.max_audio_duration_seconds))
        return await self.transcriber.open(request, audio)

    def stream(
        self, transcription: Transcription, frames: Callable[[AsyncGenerator[Event]], AsyncGenerator[bytes]]
    ) -> Response:
        return EventStream(
            frames(transcription.events()),
            self.settings.heartbeat_seconds,
            lambda error: describe(error).body,
            transcription.close,
        )

    async def whole(
        self, request: Request, transcription: Transcription, render: Callable[[Transcript], Response]
    ) -> Response:
        """Fold the events into one answer, unless the client goes away first."""
        try:
            async with aclosing(transcription.events()) as events:
                transcript = await until_disconnect(request.receive, fold(events))
        finally:
            await transcription.close()
        return Response(status_code=CLIENT_GONE) if transcript is None else render(transcript)


def service_of(request: Request) -> Service:
    return request.app.state.service
