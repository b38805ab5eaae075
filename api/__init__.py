"""HTTP: one file for each family of endpoints, one row here for each file."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from api import (
    chat,
    health,
    models,
    operations,
    progress,
    realtime,
    realtime_secrets,
    transcriptions,
    translations,
)

ROUTERS: tuple[APIRouter, ...] = (
    transcriptions.router, translations.router, progress.router, chat.router, models.router, realtime.router,
    realtime_secrets.router,
)  # fmt: skip
UNVERSIONED_ROUTERS: tuple[APIRouter, ...] = (health.router, operations.router)
# What these read from JSON bodies themselves, for the documentation.
BODIES: tuple[type[BaseModel], ...] = (
    chat.ChatBody, models.ModelName, models.Pull, realtime_secrets.NewSecret, realtime_secrets.NewBetaSession,
)  # fmt: skip
