"""Backends by name, each in one file, and the worker that runs one.

Both are imported only when they are asked for, because torch takes seconds and the server is to answer before.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.backends.base import Backend, LoadOptions

if TYPE_CHECKING:
    from engine.worker import Worker

BACKENDS = {
    "transformers": ("engine.backends.voxtral", "VoxtralBackend"),
}


def load_backend(name: str, folder: Path, options: LoadOptions) -> Backend:
    """Load the model in `folder`. Takes seconds to minutes; raises OSError, ValueError or RuntimeError."""
    return _backend_class(name)(folder, options)


def start_worker(backend: Backend) -> Worker:
    """Give a loaded model its inference thread."""
    return importlib.import_module("engine.worker").Worker(backend)


def memory_needed(name: str, folder: Path, options: LoadOptions) -> int:
    """Bytes that the weights of the model in `folder` will take."""
    return _backend_class(name).memory_needed(folder, options)


def _backend_class(name: str) -> Any:
    module, class_name = BACKENDS[name]
    return getattr(importlib.import_module(module), class_name)
