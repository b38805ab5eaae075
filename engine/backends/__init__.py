"""Backends by name. Each is one file; its class is imported only when it is asked for, because torch takes seconds."""

from __future__ import annotations

import importlib
from pathlib import Path

from engine.backends.base import Backend, LoadOptions

BACKENDS = {
    "transformers": ("engine.backends.voxtral", "VoxtralBackend"),
}


def load_backend(name: str, folder: Path, options: LoadOptions) -> Backend:
    """Load the model in `folder`. Takes seconds to minutes; raises OSError, ValueError or RuntimeError."""
    module, class_name = BACKENDS[name]
    return getattr(importlib.import_module(module), class_name)(folder, options)
