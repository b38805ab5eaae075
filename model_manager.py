"""The models: which there are, whether they are on disk, and the one that is loaded.

One ModelManager lives in a process. It downloads in a thread, loads once however many ask at once, and loads again
when the inference thread has died. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from mistral_common.exceptions import MistralCommonException
from safetensors import SafetensorError
from tqdm.auto import tqdm

from config import DEMO_MODEL, Settings
from engine.backends import load_backend
from engine.backends.base import LoadOptions
from engine.worker import Worker

log = logging.getLogger("voxtral.models")

# Everything that the transformers backend reads. The Hub repositories also hold `consolidated.safetensors`, all
# weights a second time in Mistral's own layout.
FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tekken.json", "model.safetensors.index.json",
    "model*.safetensors",
)  # fmt: skip
# What the libraries raise over a folder that is not quite a model, or that this machine cannot hold.
LOAD_ERRORS = (
    OSError, ValueError, RuntimeError, MemoryError, KeyError, TypeError, AttributeError, SafetensorError,
    MistralCommonException,
)  # fmt: skip
LANGUAGES = ("en", "es", "fr", "pt", "hi", "de", "nl", "it", "ar")


@dataclass(frozen=True)
class ModelSpec:
    id: str
    repository: str
    revision: str
    created: int  # Unix time of its publication
    aliases: tuple[str, ...] = ()
    backend: str = "transformers"
    languages: tuple[str, ...] = LANGUAGES
    folder: Path | None = None  # on disk already, outside the Hugging Face cache


# Clients that were written for other servers ask for these; whichever model is served answers to them.
CLIENT_ALIASES = (
    "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "voxtral", "voxtral-local",
    "voxtral-mini-latest", "voxtral-small-latest",
)  # fmt: skip
MODELS = (
    ModelSpec(
        "mistralai/Voxtral-Mini-3B-2507", "mistralai/Voxtral-Mini-3B-2507", "3060fe34b35ba5d44202ce9ff3c097642914f8f3",
        1_751_414_400, ("voxtral-mini", "voxtral-mini-2507", "voxtral-mini-3b", "Voxtral-Mini-3B-2507"),
    ),
    ModelSpec(
        "mistralai/Voxtral-Small-24B-2507", "mistralai/Voxtral-Small-24B-2507",
        "da5b42409f279fdd92febee0511a6c32828569c1", 1_751_414_400,
        ("voxtral-small", "voxtral-small-2507", "voxtral-small-24b", "Voxtral-Small-24B-2507"),
    ),
)  # fmt: skip
# The demo answers to Voxtral Mini's names too, so that a client can be tried before 9.4 GB are fetched.
DEMO = ModelSpec(
    "voxtral-demo", "", "", 1_795_219_200, (MODELS[0].id, *MODELS[0].aliases), languages=("en",), folder=DEMO_MODEL
)


class ModelUnavailable(Exception):
    """The model cannot answer now. `reason` says why: absent, downloading or failed."""

    def __init__(self, reason: Literal["absent", "downloading", "failed"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Progress:
    completed: int = 0  # bytes
    total: int = 0


def model_spec(model_id: str, revision: str | None) -> ModelSpec:
    """The spec that VOXTRAL_MODEL_ID means: a known model, a folder, or any other Hub repository."""
    folder = Path(model_id).expanduser()
    if folder == DEMO_MODEL:
        return DEMO
    if folder.is_dir():
        return ModelSpec(folder.name, "", "", int(folder.stat().st_mtime), folder=folder)
    for spec in MODELS:
        if model_id in (spec.id, *spec.aliases):
            return replace(spec, revision=revision or spec.revision)
    return ModelSpec(model_id, model_id, revision or "main", 0)


class ModelManager:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.spec = model_spec(settings.voxtral_model_id, settings.voxtral_model_revision)
        self.progress = Progress()
        self.error: str | None = None  # why the last download or load failed
        self._worker: Worker | None = None
        self._loading: asyncio.Task[Worker] | None = None
        self._download: threading.Thread | None = None

    # What is there.

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the served model answers to, its own first."""
        return tuple(dict.fromkeys((self.spec.id, *self.spec.aliases, *CLIENT_ALIASES)))

    def serves(self, name: str) -> bool:
        return name in self.names

    @property
    def folder(self) -> Path | None:
        """Where the model's files are, or None while they are not all on disk."""
        if self.spec.folder:
            return self.spec.folder
        try:
            found = Path(self._snapshot(local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        return None if missing_files(found) else found

    @property
    def state(self) -> Literal["absent", "downloading", "failed", "on_disk", "loading", "loaded"]:
        if self._worker and self._worker.alive:
            return "loaded"
        if self._loading and not self._loading.done():
            return "loading"
        if self.downloading:
            return "downloading"
        if self.error:
            return "failed"
        return "on_disk" if self.folder else "absent"

    @property
    def downloading(self) -> bool:
        return self._download is not None and self._download.is_alive()

    @property
    def loaded(self) -> Worker | None:
        return self._worker if self._worker and self._worker.alive else None

    def check_available(self) -> None:
        """Raise ModelUnavailable unless the model is loaded, loading, or on disk and able to load."""
        if self.state in ("loaded", "loading", "on_disk") or (self.state == "failed" and self.folder):
            return
        if self.downloading:
            done = f"{self.progress.completed / 1e9:.1f} of {self.progress.total / 1e9:.1f} GB are here"
            raise ModelUnavailable(
                "downloading", f"The model {self.spec.id} is being downloaded ({done}). Try again later."
            )
        why = f" The last try failed: {self.error}." if self.error else ""
        raise ModelUnavailable(
            "absent", f"The model {self.spec.id} is not on this machine.{why} Restart the server without --no-download."
        )

    # Loading.

    async def worker(self) -> Worker:
        """The running worker; loads the model first if need be, once for all who wait.

        Raises ModelUnavailable.
        """
        if self.loaded:
            return self.loaded
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        # Shielded: one client that goes away must not stop the loading that others wait for.
        return await asyncio.shield(self._loading)

    async def _load(self) -> Worker:
        folder = self.folder
        if folder is None:
            self.check_available()
            raise ModelUnavailable("absent", f"The model {self.spec.id} is not on this machine.")
        log.info("loading %s from %s", self.spec.id, folder)
        options = LoadOptions(
            self._settings.voxtral_device, self._settings.voxtral_dtype, self._settings.max_batch_size
        )
        try:
            backend = await asyncio.to_thread(load_backend, self.spec.backend, folder, options)
        except LOAD_ERRORS as error:
            self.error = f"{type(error).__name__}: {error}".split("\n")[0]
            log.error("cannot load %s: %s", self.spec.id, error)
            raise ModelUnavailable("failed", f"The model {self.spec.id} could not be loaded: {self.error}") from error
        self.error = None
        self._worker = Worker(backend)
        log.info("loaded %s: %s", self.spec.id, backend.description)
        return self._worker

    async def close(self) -> None:
        if self._loading and not self._loading.done():
            self._loading.cancel()
        if self._worker:
            await asyncio.to_thread(self._worker.close)

    # Downloading.

    def start_download(self, when_done: Callable[[], None]) -> None:
        """Fetch the model in a thread, with a progress bar in the terminal; `when_done` is called there on success."""
        if self.downloading:
            return
        self.error, self.progress = None, Progress()
        self._download = threading.Thread(target=self._fetch, args=(when_done,), name="download", daemon=True)
        self._download.start()

    def _fetch(self, when_done: Callable[[], None]) -> None:
        try:
            files = self._snapshot(dry_run=True, tqdm_class=_silent_bar(lambda _: None))
            total = sum(file.file_size for file in files)
            missing = sum(file.file_size for file in files if file.will_download)
            self._check_disk(missing)
            self.progress = Progress(total - missing, total)
            with tqdm(total=total, initial=total - missing, unit="B", unit_scale=True, desc=self.spec.id) as bar:
                self._snapshot(tqdm_class=_silent_bar(partial(self._arrived, bar)))
        except (OSError, httpx.HTTPError, HfHubHTTPError, ValueError) as error:
            # The Hub client says why in the cause of what it raises, and at length.
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            self.error = f"{reason} Check VOXTRAL_MODEL_ID, the network and the disk, and start again."
            log.error("cannot download %s: %s", self.spec.id, self.error)
            return
        log.info("downloaded %s", self.spec.id)
        when_done()

    def _arrived(self, bar: tqdm, size: int) -> None:
        bar.update(size)
        self.progress.completed += size

    def _check_disk(self, needed: int) -> None:
        place = self._settings.voxtral_cache_dir or Path.home()
        free = shutil.disk_usage(place if place.exists() else Path.home()).free
        if free < needed:
            raise OSError(f"{needed / 1e9:.1f} GB are needed in {place} and {free / 1e9:.1f} GB are free; make room")

    def _snapshot(self, **options: Any) -> Any:
        return snapshot_download(
            self.spec.repository,
            revision=self.spec.revision,
            allow_patterns=list(FILES),
            token=self._settings.hf_token,
            cache_dir=self._settings.voxtral_cache_dir,
            **options,
        )


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks; an interrupted download leaves it without some of its weights."""
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.exists():
        weights = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    needed = ["config.json", "preprocessor_config.json", "tekken.json", *weights]
    return [name for name in needed if not (folder / name).exists()]


def _silent_bar(arrived: Callable[[int], None]) -> type[tqdm]:
    """What huggingface-hub draws its bars with: draws none, and reports the bytes that have reached the disk.

    The Hub client counts bytes twice, in a bar for the network and in one for the disk, and files in a third.
    """

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = str(options.get("desc")).startswith("Reconstructing")
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and n:
                arrived(int(n))
            return super().update(n)

    return SilentBar


def process_memory() -> int:
    """Resident bytes of this process."""
    return psutil.Process().memory_info().rss
