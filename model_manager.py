"""Which models are loaded: one ModelManager lives in a process and knows every model that clients can ask for.

A model is loaded once however many ask at once, and again when its inference thread has died. It is unloaded when
nobody has used it for a while, when memory runs short, or when another one needs its place; never while it is in use.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from aligner import AlignerModel
from config import Settings
from engine.backends import backend_of, load_backend, memory_needed, start_worker
from engine.backends.base import LoadOptions
from model_store import LOAD_ERRORS, Download, ModelStore, State, fingerprint, valid_repository
from model_table import MODELS, ModelSpec, Names, aligner_spec, model_spec

if TYPE_CHECKING:
    from engine.worker import Worker  # brings torch, which takes seconds

log = logging.getLogger("voxtral.models")

HOUSEKEEPING_SECONDS = 1.0
AFTER_FAILURE_SECONDS = 30.0  # so that a fault that stays does not fill the log
POLL_SECONDS = 0.1


class ModelUnavailable(Exception):
    """The model cannot answer now. `reason` says why: absent, downloading, no room beside models in use, or failed."""

    def __init__(self, reason: Literal["absent", "downloading", "busy", "failed"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Model:
    """One model: where its files are, who is using it, and the worker that runs it."""

    def __init__(self, spec: ModelSpec, store: ModelStore) -> None:
        self.spec = spec
        self.download: Download | None = None  # the last one
        self.users = 0
        self.last_used = time.monotonic()
        self.loading: asyncio.Task[Worker] | None = None
        self._store = store
        self._worker: Worker | None = None
        self.fingerprint = ""  # of the files that were loaded last
        self.load_error: str | None = None

    @property
    def folder(self) -> Path | None:
        return self._store.folder(self.spec)

    @property
    def downloading(self) -> bool:
        return self.download is not None and not self.download.finished.is_set()

    @property
    def error(self) -> str | None:
        """Why the last download or load failed."""
        failed = self.download.error if self.download and not self.downloading else None
        return self.load_error or (str(failed) if failed else None)

    @property
    def loaded(self) -> Worker | None:
        return self._worker if self._worker and self._worker.alive else None

    @property
    def hears_live(self) -> bool:
        """Whether it is loaded, and a model that writes while it hears."""
        return hasattr(self.loaded, "open")

    @property
    def is_loading(self) -> bool:
        return self.loading is not None and not self.loading.done()

    @property
    def state(self) -> State:
        if self.loaded:
            return "loaded"
        if self.is_loading:
            return "loading"
        if self.downloading:
            return "downloading"
        if self.error:
            return "failed"
        return "on_disk" if self.folder else "absent"

    def check_available(self) -> None:
        """Raise ModelUnavailable unless the model is loaded, loading, or on disk and able to load."""
        state = self.state
        if state in ("loaded", "loading", "on_disk") or (state == "failed" and self.folder):
            return
        if self.download and self.downloading:
            done = f"{self.download.completed / 1e9:.1f} of {self.download.total / 1e9:.1f} GB are here"
            raise ModelUnavailable(
                "downloading", f"The model {self.spec.id} is being downloaded ({done}). Try again later."
            )
        why = f" The last try failed: {self.error}" if self.error else ""
        raise ModelUnavailable(
            "absent",
            f"The model {self.spec.id} is not on this machine.{why} Fetch it with POST /v1/models/pull and "
            f'{{"model_name": "{self.spec.id}"}}.',
        )

    async def load(self, options: LoadOptions) -> Worker:
        folder = await asyncio.to_thread(lambda: self.folder)
        if folder is None:
            self.check_available()
            raise ModelUnavailable("absent", f"The model {self.spec.id} is not on this machine.")
        log.info("loading %s from %s", self.spec.id, folder)
        with _explained(self.spec):
            await self.unload()  # a worker that died holds its memory still
            self.fingerprint = await asyncio.to_thread(fingerprint, folder)
            kind = await asyncio.to_thread(backend_of, folder)
            backend = await asyncio.to_thread(load_backend, kind, folder, options)
        self.load_error = None
        self._worker = start_worker(backend)
        self.last_used = time.monotonic()
        log.info("loaded %s: %s", self.spec.id, backend.description)
        return self._worker

    async def unload(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            await asyncio.to_thread(worker.close)
            await asyncio.to_thread(worker.backend.close)
            log.info("unloaded %s", self.spec.id)


class ModelManager:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options = LoadOptions(
            settings.voxtral_device, settings.voxtral_dtype, settings.max_batch_size, settings.voxtral_quantization,
            keep=settings.voxtral_keep_quantized == "on",
        )  # fmt: skip
        self.store = ModelStore(settings)
        default = model_spec(settings.voxtral_model_id, settings.voxtral_model_revision)
        self.names = Names(default, settings.model_aliases)
        self.default = Model(default, self.store)
        others = [*MODELS, *(model_spec(target) for target in settings.model_aliases.values())]
        self._models = {spec.id: Model(spec, self.store) for spec in others if spec.id != default.id}
        self._models = {default.id: self.default, **self._models}
        self._making_room = asyncio.Lock()
        name = settings.voxtral_aligner
        self.aligner = AlignerModel(aligner_spec(name), self.store, settings.voxtral_device) if name else None

    # Which models there are.

    def find(self, name: str) -> Model | None:
        """The model that a client means by `name`, if it is one that this server knows or has on disk."""
        meant = self.names.meant(name)
        if meant in self._models:
            return self._models[meant]
        if valid_repository(meant) and (model := Model(model_spec_of_repository(meant), self.store)).folder:
            return self._models.setdefault(meant, model)
        return None

    def listed(self) -> list[Model]:
        """The default model, and all others that are on disk. Reads the disk."""
        for repository in self.store.cached():
            self.find(repository)
        return [model for model in self._models.values() if model is self.default or model.folder]

    @property
    def loaded(self) -> list[Model]:
        return [model for model in self._models.values() if model.loaded]

    # Loading.

    @asynccontextmanager
    async def use(self, model: Model) -> AsyncIterator[Worker]:
        """The running worker of a model, which stays loaded until the block is left. Raises ModelUnavailable."""
        model.users += 1
        try:
            yield await self.worker(model)
        finally:
            model.users -= 1
            model.last_used = time.monotonic()

    async def worker(self, model: Model) -> Worker:
        """Load the model if need be, once for all who wait. Raises ModelUnavailable."""
        if model.loaded:
            return model.loaded
        if not model.is_loading:
            model.loading = asyncio.create_task(self._load(model))
        # Shielded: one client that goes away must not stop the loading that others wait for.
        return await asyncio.shield(model.loading)

    async def _load(self, model: Model) -> Worker:
        async with self._making_room:
            try:
                await self._make_room(model)
                return await model.load(self._options)
            except ModelUnavailable as error:
                if error.reason == "failed":  # a model that found no room beside those in use will find it later
                    model.load_error = str(error)
                log.error("%s", error)
                raise

    async def _make_room(self, model: Model) -> None:
        """Unload models that nobody uses, longest unused first, until `model` fits into MODEL_MEMORY_GB."""
        if not self._settings.model_memory_gb or not (folder := model.folder):
            return
        with _explained(model.spec):
            needed = await asyncio.to_thread(memory_needed, folder, self._options)
        budget = self._settings.model_memory_gb * 1e9
        while needed + sum(other.loaded.backend.memory_bytes for other in self.loaded if other.loaded) > budget:
            idle = self._longest_unused()
            if idle is None:
                raise ModelUnavailable(
                    "busy" if self.loaded else "failed",
                    f"The model {model.spec.id} needs {needed / 1e9:.1f} GB beside what is in use, and "
                    f"MODEL_MEMORY_GB is {self._settings.model_memory_gb:g}.",
                )
            await idle.unload()

    def _longest_unused(self) -> Model | None:
        idle = [model for model in self.loaded if not model.users]
        return min(idle, key=lambda model: model.last_used, default=None)

    async def keep_house(self) -> None:
        """Unload what has been idle for MODEL_IDLE_TIMEOUT, and under memory pressure what is idle. Runs for ever: a
        round is a task of its own, so that what goes wrong in it is logged and ends only that round."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            (problem,) = await asyncio.gather(self._unload_idle(), return_exceptions=True)
            if problem:
                log.error("housekeeping failed, and is tried again later", exc_info=problem)
                await asyncio.sleep(AFTER_FAILURE_SECONDS)

    async def _unload_idle(self) -> None:
        if self.aligner and not self.loaded:
            self.aligner.unload()  # nobody uses it without a model
        idle = self._longest_unused()
        if idle is None or idle.loaded is None:
            return
        waited = time.monotonic() - idle.last_used
        free = idle.loaded.backend.free_memory()
        if 0 < self._settings.model_idle_timeout <= waited:
            await idle.unload()
        elif free < self._settings.memory_reserve_gb * 1e9:
            log.warning("%.1f GB of memory are free: unloading %s, which is idle", free / 1e9, idle.spec.id)
            await idle.unload()

    # Downloading.

    def download(self, model: Model) -> Download:
        """Fetch a model, or join the download that is at work."""
        if model.download is None or not model.downloading:
            model.download = self.store.start_download(model.spec)
        return model.download

    def to_download(self, name: str) -> Model:
        """The model of that very id, else the one that `name` means, else a new one for any repository of the Hub.

        The id comes first, because the demo model answers to the names of those that can be fetched.
        """
        model = self._models.get(name) or self.find(name)
        return model or self._models.setdefault(name, Model(model_spec_of_repository(name), self.store))

    async def delete(self, model: Model) -> int:
        """Unload a model that is not loading and remove its files. Returns the bytes that this freed.

        Raises ModelUnavailable when it has no files.
        """
        await model.unload()
        freed = await asyncio.to_thread(self.store.delete, model.spec)
        if model.spec not in MODELS and model is not self.default:
            self._models.pop(model.spec.id, None)
        if freed is None:
            raise ModelUnavailable("absent", f"The model {model.spec.id} is not on this machine.")
        return freed

    async def close(self) -> None:
        for model in self._models.values():
            if model.loading:
                model.loading.cancel()
            await model.unload()


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Whatever keeps a model from being loaded, as ModelUnavailable."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ModelUnavailable("failed", f"The model {spec.id} could not be loaded: {reason}") from error


def model_spec_of_repository(name: str) -> ModelSpec:
    """Never a folder: the name comes from a client, who may not choose what is read from this machine's disk."""
    return ModelSpec(name, name, "main", 0)


async def until_finished(download: Download) -> None:
    """Polls, because a thread that waited would keep the process from ending for as long as the download."""
    while not download.finished.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(POLL_SECONDS)


def process_memory() -> int:
    """Resident bytes of this process."""
    return psutil.Process().memory_info().rss
