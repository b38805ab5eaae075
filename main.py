"""Composition root: settings, one ModelManager, the FastAPI app, and the command that serves it."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import logs
from admission import Admission
from api import BODIES, ROUTERS, UNVERSIONED_ROUTERS, errors, openapi
from api.edge import DOCS_ASSETS, CheckOrigin, HeadAsGet, LimitRate, RequestId, RequireKey, SocketKey, TrustedHosts
from api.realtime import MOST_READ_BYTES
from api.remote import RemoteAudio
from api.service import Service
from api.transcription_wire import WARNINGS_HEADER
from api.uploads import BodyLimit
from client_secrets import ClientSecrets
from config import DEMO_MODEL, DEMO_REALTIME, ConfigError, Settings, load_settings
from live_sessions import LiveSessions
from metrics import Gauges, Metrics
from model_manager import ModelManager, ModelUnavailable, until_finished
from model_store import LAYOUTS, missing_files, valid_repository
from model_table import DEMOS, ModelSpec, aligner_spec, model_spec
from responder import Responder
from transcriber import Transcriber

if TYPE_CHECKING:
    from engine.worker import Worker  # brings torch, which takes seconds

log = logging.getLogger("voxtral")

# The demo model loses its place in long pieces; see its README. It is too small to gain by quantization.
DEMO_DEFAULTS = {"audio_chunk_size_seconds": 15, "voxtral_quantization": "none"}
DEMO_ALIASES = {name: str(DEMO_REALTIME) for name in DEMOS[1].names}
GONE_SECONDS = 60  # in which a client acknowledged nothing that it was sent, a WebSocket's pings included
SHUTDOWN_SECONDS = 5  # that streams may go on for after a signal to end
SOCKETS = {
    "ws_max_size": MOST_READ_BYTES,
    "ws_per_message_deflate": False,  # most is raw audio in base64, which takes long and gains little
    "ws_ping_timeout": None,  # a pong is read behind what a sender that must wait has sent, and may be very late
}


def create_app(settings: Settings, download: bool = True) -> ASGIApp:
    """The service. Its model is loaded, or fetched first if `download`, while requests are already answered.

    Raises ConfigError for a file that a setting names and that cannot be used.
    """
    models, metrics, admission = ModelManager(settings), Metrics(), Admission(settings.max_concurrent_requests)
    transcriber = Transcriber(settings, models, metrics)
    responder, live = Responder(settings, models, metrics), LiveSessions(transcriber)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = _prepare_models(models, download), models.keep_house(), transcriber.keep_house()
        tasks = [asyncio.create_task(part) for part in work]
        yield
        for task in tasks:
            task.cancel()
        await models.close()

    # The pages of /docs come from this machine too, and not from a network that may not be there.
    app = FastAPIOffline(
        title="Voxtral Local",
        summary="Speech to text on this machine",
        lifespan=lifespan,
        static_url=DOCS_ASSETS,
        generate_unique_id_function=lambda route: route.name,
    )
    secrets = ClientSecrets()
    app.state.service = Service(
        settings, models, transcriber, responder, live, admission, metrics, RemoteAudio(settings), secrets
    )
    metrics.registry.register(_gauges(models, admission, live))
    for router in ROUTERS:
        app.include_router(router, prefix="/v1")
        app.include_router(
            router, include_in_schema=False
        )  # Mistral's SDK and some users leave /v1 out or add it twice
    for router in UNVERSIONED_ROUTERS:
        app.include_router(router)
    errors.install(app)
    openapi.install(app, BODIES, with_keys=bool(settings.api_keys))
    _surround(app, settings, secrets)
    return RequestId(app, metrics)  # around everything, so that an answer to an unforeseen error has an id too


def _surround(app: FastAPI, settings: Settings, secrets: ClientSecrets) -> None:
    """What a request passes before its route; the last one comes first."""
    app.add_middleware(BodyLimit, limit_mb=settings.max_audio_size_mb)
    if settings.requests_per_minute:
        app.add_middleware(LimitRate, per_minute=settings.requests_per_minute, by_key=bool(settings.api_keys))
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=settings.api_keys, secrets=secrets)
    if settings.cors_origins:  # outside the keys: browsers ask for permission without one
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", WARNINGS_HEADER],
        )  # fmt: skip
    app.add_middleware(CheckOrigin, allowed=settings.cors_origins)
    app.add_middleware(TrustedHosts, names=settings.trusted_hosts)
    app.add_middleware(SocketKey)


def _gauges(models: ModelManager, admission: Admission, live: LiveSessions) -> Gauges:
    """What is going on, read when it is asked for."""

    def workers(read: Callable[[Worker], float]) -> Callable[[], list[tuple[str, float]]]:
        return lambda: [(model.spec.id, read(model.loaded)) for model in models.loaded if model.loaded]

    def counted(name: str) -> Callable[[], list[tuple[str, float]]]:
        """Of models that hear live."""
        return lambda: [
            (model.spec.id, getattr(model.loaded.counters, name)) for model in models.loaded if model.hears_live
        ]

    return Gauges(
        [
            ("voxtral_requests_active", "Requests at work or waiting", "", lambda: [("", admission.active)]),
            ("voxtral_live_sessions", "Live sessions", "", lambda: [("", live.count)]),
            (
                "voxtral_live_backlog_seconds", "Audio that waits for the model, in the live session where it is most",
                "", lambda: [("", live.behind)],
            ),
            ("voxtral_batch_size", "Chunks decoded together now", "model", workers(lambda worker: worker.running)),
            ("voxtral_chunks_waiting", "Chunks that wait for a place", "model", workers(lambda worker: worker.waiting)),
            (
                "voxtral_engine_busy_seconds", "Time that the model computed since it was loaded", "model",
                workers(lambda worker: worker.busy_seconds),
            ),
            ("voxtral_realtime_steps", "Steps of 80 ms that were written since the load", "model", counted("tokens")),
            ("voxtral_realtime_reads", "Forwards of single streams that they took", "model", counted("reads")),
            ("voxtral_realtime_guesses", "Steps that were read ahead as guesses", "model", counted("guessed")),
            ("voxtral_realtime_guesses_accepted", "Guesses that were right", "model", counted("accepted")),
            ("voxtral_model_memory_bytes", "Weights", "model", workers(lambda worker: worker.backend.memory_bytes)),
        ]
    )  # fmt: skip


async def _prepare_models(models: ModelManager, download: bool) -> None:
    """Load the model if it is on disk; else fetch it in the background and load it then."""
    _prepare_aligner(models, download)
    model = models.default
    if model.folder is None:
        if not download:
            log.warning("%s is not on this machine and --no-download was given", model.spec.id)
            return
        await until_finished(models.download(model))
    if model.folder:
        with suppress(ModelUnavailable):  # logged, and in /health
            await models.worker(model)


def _prepare_aligner(models: ModelManager, download: bool) -> None:
    """Fetch the aligner in the background if it is not on disk. The first request that shows times loads it."""
    aligner = models.aligner
    if aligner and aligner.folder is None and download:
        aligner.fetch()
    elif aligner and aligner.folder is None:
        log.warning("the aligner %s is not on this machine and --no-download was given", aligner.spec.id)


def check_models(settings: Settings) -> None:
    """A model that can be neither a folder nor a repository is found out before the server starts."""
    name = settings.voxtral_model_id
    _check_model(f"VOXTRAL_MODEL_ID={name}", name, model_spec(name), "mistralai/Voxtral-Mini-3B-2507")
    if name := settings.voxtral_aligner:
        _check_model(f"VOXTRAL_ALIGNER={name}", name, aligner_spec(name), "facebook/wav2vec2-base-960h")


def _check_model(setting: str, name: str, spec: ModelSpec, example: str) -> None:
    if spec.folder:
        layout = LAYOUTS[spec.kind]
        if missing := missing_files(spec.folder, spec.kind):
            raise ConfigError(f"{setting} lacks {', '.join(missing)}. Give a complete model folder.")
        if not layout.fits(spec.folder):
            raise ConfigError(f"{setting} is not {layout.kind}, whose config.json {layout.named}.")
    elif name.startswith(("/", ".", "~")):
        raise ConfigError(f"{setting}: there is no such folder.")
    elif not valid_repository(spec.repository):
        raise ConfigError(f"{setting} is neither a folder nor a repository such as {example}.")


def listen(settings: Settings) -> socket.socket:
    """The bound socket; taken before anything slow is done, so that a taken port is known at once."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux. Connections inherit it.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_SECONDS * 1000)
        return listening
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno)
        remedy = (
            "Stop the program that does, or set PORT in .env or with --port."
            if error.errno == errno.EADDRINUSE
            else "Set HOST to an address of this machine and PORT to one that this user may take, in .env or with "
            "--host and --port."
        )
        raise ConfigError(f"Cannot listen on {settings.host}:{settings.port} ({reason}). {remedy}") from None


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="start_server.sh", description="Serve Voxtral speech-to-text.")
    parser.add_argument("--demo", action="store_true", help="serve the small bundled models, which know 111 words")
    parser.add_argument("--no-download", action="store_true", help="fetch no model unless a client asks for one")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", help="port to listen on")
    return parser.parse_args(arguments)


def read_settings(args: argparse.Namespace) -> Settings:
    """With --demo, names that the user gives stand beside those of the demos, and win. Raises ConfigError."""
    given = {name: value for name in ("host", "port") if (value := getattr(args, name)) is not None}
    if not args.demo:
        return load_settings(**given)
    settings = load_settings(defaults=DEMO_DEFAULTS, voxtral_model_id=str(DEMO_MODEL), **given)
    return settings.model_copy(update={"model_aliases": DEMO_ALIASES | settings.model_aliases})


def main(arguments: list[str]) -> int:
    args = parse_arguments(arguments)
    try:
        settings = read_settings(args)
        check_models(settings)
        app = create_app(settings, download=not args.no_download)
        listening = listen(settings)
    except ConfigError as error:
        print(f"voxtral-local: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Voxtral Local listens on http://{shown}:{port} (model {settings.voxtral_model_id})", flush=True)
    # "on": a start that fails ends the server, where "auto" would serve 500s.
    config = uvicorn.Config(
        HeadAsGet(app), lifespan="on", log_config=None, timeout_graceful_shutdown=SHUTDOWN_SECONDS, **SOCKETS
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
