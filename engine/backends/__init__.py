"""Backends by name, each in one file, and the worker that runs one.

Both are imported only when they are asked for, because torch takes seconds and the server is to answer before.
"""

from __future__ import annotations

import gc
import importlib
import json
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.backends.base import Backend, LoadOptions

if TYPE_CHECKING:
    from engine.backends.voxtral_realtime import RealtimeBackend
    from engine.ctc import CTCModel
    from engine.live_worker import LiveWorker
    from engine.worker import Worker

BACKENDS = {
    "transformers": ("engine.backends.voxtral", "VoxtralBackend"),
    "realtime": ("engine.backends.voxtral_realtime", "RealtimeBackend"),
}
# Which of them runs a model, by the `model_type` in its config.json.
MODEL_TYPES = {"voxtral": "transformers", "voxtral_realtime": "realtime"}

# Architectures in config.json of models that can find when words were spoken; all are loaded in one way.
ALIGNERS = ("Wav2Vec2ForCTC", "HubertForCTC", "WavLMForCTC")


def backend_of(folder: Path) -> str | None:
    """The backend that runs the model in `folder`; None for a folder that holds no Voxtral."""
    try:
        return MODEL_TYPES.get(json.loads((folder / "config.json").read_text()).get("model_type"))
    except (OSError, ValueError, AttributeError):
        return None


def is_aligner(folder: Path) -> bool:
    try:
        return not set(ALIGNERS).isdisjoint(json.loads((folder / "config.json").read_text())["architectures"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_backend(name: str | None, folder: Path, options: LoadOptions) -> Backend | RealtimeBackend:
    """Load the model in `folder`. Takes seconds to minutes; raises OSError, ValueError or RuntimeError."""
    if name is None:
        raise ValueError(f"config.json names none of the model types {', '.join(MODEL_TYPES)}")
    kind = _imported(*BACKENDS[name])
    try:
        return in_a_thread_that_ends(lambda: kind(folder, options))
    except Exception as error:
        _forget(error)
        raise


def _forget(error: BaseException | None) -> None:
    """Let go of what the calls held that an error ended, a whole model perhaps; the error itself may be kept."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()  # modules hold each other in cycles


def start_worker(backend: Backend | RealtimeBackend) -> Worker | LiveWorker:
    """Give a loaded model its inference thread. One that has `open` hears live."""
    live = hasattr(backend, "hear")
    return (
        _imported("engine.live_worker", "LiveWorker")(backend)
        if live
        else _imported("engine.worker", "Worker")(backend)
    )


def load_aligner(folder: Path, device: str) -> CTCModel:
    """Load the CTC model in `folder`. Takes seconds; raises OSError, ValueError or RuntimeError."""
    kind = _imported("engine.ctc", "CTCModel")
    return in_a_thread_that_ends(lambda: kind(folder, device))


def memory_needed(folder: Path, options: LoadOptions) -> int:
    """Bytes that the weights of the model in `folder` will take."""
    return _imported("engine.loading", "memory_needed")(folder, options)


def in_a_thread_that_ends(calculate: Callable[[], Any]) -> Any:
    """One that stays would keep the OpenMP threads that it calculated with, and once all of them are more than there
    are CPUs, each sleeps at the end of every layer: a step of the 3B then takes a sixth longer."""
    with ThreadPoolExecutor(1, "calculating") as thread:
        return thread.submit(calculate).result()


def _imported(module: str, name: str) -> Any:
    """A name of a module that may bring torch. Looking for garbage meanwhile would take a tenth of the time."""
    gc.disable()
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        gc.enable()
