"""Backends by name. Each is one file; its class is imported only when it is asked for, because torch takes seconds."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from engine.backends.base import Backend, LoadOptions

BACKENDS = {
    "transformers": ("engine.backends.voxtral", "VoxtralBackend"),
}


def load_backend(name: str, folder: Path, options: LoadOptions) -> Backend:
    """Load the model in `folder`. Takes seconds to minutes; raises OSError, ValueError or RuntimeError."""
    return _backend_class(name)(folder, options)


def memory_needed(name: str, folder: Path, options: LoadOptions) -> int:
    """Bytes that the weights of the model in `folder` will take."""
    return _backend_class(name).memory_needed(folder, options)


def _backend_class(name: str) -> Any:
    module, class_name = BACKENDS[name]
    return getattr(importlib.import_module(module), class_name)
