"""The CTC model that finds when words were spoken, where VOXTRAL_ALIGNER names one: fetched, loaded once, and asked in
a thread of its own, so that neither the event loop nor the batch waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audio_processor import SAMPLE_RATE
from engine.backends import in_a_thread_that_ends, load_aligner
from model_store import LOAD_ERRORS, Download, ModelStore, State, fingerprint
from model_table import ModelSpec

if TYPE_CHECKING:
    from engine.ctc import CTCModel  # brings torch, which takes seconds

log = logging.getLogger("voxtral.aligner")


class Aligner:
    """A loaded one."""

    def __init__(self, model: CTCModel, identity: tuple[str, ...]) -> None:
        """`identity`: what tells its times from those of others."""
        self.identity = identity
        self._model = model
        self._thread = ThreadPoolExecutor(1, "aligner")
        self._told: set[str] = set()

    def covers(self, tokens: Sequence[bytes]) -> bool:
        """Whether the model has the letters of a text."""
        covers = self._model.covers(tokens)
        if not covers:
            self._tell_once("lacks the letters of a text")
        return covers

    async def spans(self, samples: np.ndarray, tokens: Sequence[bytes]) -> Sequence[tuple[int, int]]:
        """As CTCModel.spans; none also where the model failed, for want of memory perhaps: the text is there anyway."""
        loop, find = asyncio.get_running_loop(), partial(self._model.spans, samples, tokens)
        try:
            found = await loop.run_in_executor(self._thread, in_a_thread_that_ends, find)
        except Exception:
            seconds = len(samples) / SAMPLE_RATE
            log.exception(
                "the aligner %s failed on %.1f s: Voxtral's attention finds the times", self.identity[0], seconds
            )
            return []
        if not found:
            self._tell_once("heard something else than a text says, which may be a translation")
        return found

    def _tell_once(self, what: str) -> None:
        if what not in self._told:
            log.warning("the aligner %s %s: Voxtral's attention finds the times of such", self.identity[0], what)
        self._told.add(what)


class AlignerModel:
    """Where it is on its way from the Hub to memory."""

    def __init__(self, spec: ModelSpec, store: ModelStore, device: str) -> None:
        self.spec = spec
        self.download: Download | None = None
        self._store, self._device = store, device
        self._loading: asyncio.Task[None] | None = None
        self._loaded: Aligner | None = None
        self._load_error: str | None = None

    @property
    def folder(self) -> Path | None:
        return self._store.folder(self.spec)

    @property
    def error(self) -> str | None:
        """Why it could not be fetched or loaded."""
        failed = self.download.error if self.download else None
        return self._load_error or (str(failed) if failed else None)

    @property
    def state(self) -> State:
        if self._loaded:
            return "loaded"
        if self._loading and not self._loading.done():
            return "loading"
        if self.download and not self.download.finished.is_set():
            return "downloading"
        if self.error:
            return "failed"
        return "on_disk" if self.folder else "absent"

    def fetch(self) -> None:
        """Begin to download it."""
        self.download = self._store.start_download(self.spec)

    async def use(self) -> Aligner | None:
        """Loaded, once for all who ask; None while it is not here, or cannot be loaded."""
        if self._loaded is None and self.state == "on_disk":
            self._loading = asyncio.create_task(self._load())
        if self._loading:
            # Shielded: one client that goes away must not stop the loading that others wait for.
            await asyncio.shield(self._loading)
        return self._loaded

    async def _load(self) -> None:
        folder = await asyncio.to_thread(lambda: self.folder)
        try:
            identity = (self.spec.id, self.spec.revision, await asyncio.to_thread(fingerprint, folder, "aligner"))
            self._loaded = Aligner(await asyncio.to_thread(load_aligner, folder, self._device), identity)
        except LOAD_ERRORS as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            self._load_error = f"The aligner {self.spec.id} could not be loaded: {reason}"
            log.error("%s", self._load_error)
            return
        log.info("loaded the aligner %s from %s", self.spec.id, folder)

    def unload(self) -> None:
        """Whoever uses it may go on."""
        if self._loaded:
            self._loaded = None
            log.info("unloaded the aligner %s", self.spec.id)
