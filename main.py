"""Composition root: settings, one ModelManager, the FastAPI app, and the command that serves it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from huggingface_hub.utils import HFValidationError, validate_repo_id
from starlette.types import ASGIApp

from api import ROUTERS, UNVERSIONED_ROUTERS, errors
from api.request_id import RequestId
from api.service import Service
from api.uploads import BodyLimit
from config import DEMO_MODEL, ConfigError, Settings, load_settings
from model_manager import ModelManager, ModelUnavailable, missing_files
from transcriber import Transcriber

log = logging.getLogger("voxtral")

# The demo model hears short pieces better than long ones; see its README.
DEMO_DEFAULTS = {"audio_chunk_size_seconds": 6}
SHUTDOWN_SECONDS = 5  # that streams may go on for after a signal to end


def create_app(settings: Settings, download: bool = True) -> ASGIApp:
    """The service. Its model is loaded, or fetched first if `download`, while requests are already answered."""
    models = ModelManager(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        preparing = asyncio.create_task(_prepare_model(models, download))
        yield
        preparing.cancel()
        await models.close()

    app = FastAPI(title="Voxtral Local", summary="Speech to text on this machine", lifespan=lifespan)
    app.state.service = Service(settings, models, Transcriber(settings, models))
    for router in ROUTERS:
        app.include_router(router, prefix="/v1")
        app.include_router(
            router, include_in_schema=False
        )  # Mistral's SDK and some users leave /v1 out or add it twice
    for router in UNVERSIONED_ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BodyLimit, limit_mb=settings.max_audio_size_mb)
    return RequestId(app)  # around everything, so that an answer to an unforeseen error has an id too


async def _prepare_model(models: ModelManager, download: bool) -> None:
    """Load the model if it is on disk; else fetch it in the background and load it then."""
    if models.folder is None:
        if not download:
            log.warning("%s is not on this machine and --no-download was given", models.spec.id)
            return
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        models.start_download(lambda: loop.call_soon_threadsafe(arrived.set))
        await arrived.wait()
    try:
        await models.worker()
    except ModelUnavailable as error:
        log.error("%s", error)


def check_model_folder(settings: Settings) -> None:
    """A model id that can be neither a folder nor a repository is found out before the server starts."""
    models = ModelManager(settings)
    if models.spec.folder:
        missing = missing_files(models.spec.folder)
        if missing:
            raise ConfigError(
                f"VOXTRAL_MODEL_ID={models.spec.folder} lacks {', '.join(missing)}. Give a complete model folder."
            )
        return
    if settings.voxtral_model_id.startswith(("/", ".", "~")):
        raise ConfigError(f"VOXTRAL_MODEL_ID={settings.voxtral_model_id}: there is no such folder.")
    try:
        validate_repo_id(models.spec.repository)
    except HFValidationError:
        raise ConfigError(
            f"VOXTRAL_MODEL_ID={settings.voxtral_model_id} is neither a folder nor a repository such as "
            "mistralai/Voxtral-Mini-3B-2507."
        ) from None


def listen(settings: Settings) -> socket.socket:
    """The bound socket; taken before anything slow is done, so that a taken port is known at once."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno)}). Stop the program that "
            "does, or set PORT in .env or with --port."
        ) from None


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="start_server.sh", description="Serve Voxtral speech-to-text.")
    parser.add_argument("--demo", action="store_true", help="serve the small bundled model, which knows 111 words")
    parser.add_argument("--no-download", action="store_true", help="never fetch a model that is not on this machine")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", help="port to listen on")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse_arguments(arguments)
    given = {"host": args.host, "port": args.port, "voxtral_model_id": str(DEMO_MODEL) if args.demo else None}
    try:
        defaults = DEMO_DEFAULTS if args.demo else None
        settings = load_settings(
            defaults=defaults, **{name: value for name, value in given.items() if value is not None}
        )
        check_model_folder(settings)
        listening = listen(settings)
    except ConfigError as error:
        print(f"voxtral-local: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Voxtral Local listens on http://{shown}:{port} (model {settings.voxtral_model_id})", flush=True)
    app = create_app(settings, download=not args.no_download)
    config = uvicorn.Config(app, log_level=settings.log_level, timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
