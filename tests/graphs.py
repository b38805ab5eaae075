"""CUDA graphs for machines without CUDA: what a capture calls is recorded, and replayed with the very same tensors.

So a captured step that keeps a number of its capture, or a tensor that moves, gives wrong results here too; and one
that would wait for the device fails.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class RecordedGraph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict, Any]] = []  # operator, arguments, keyword arguments, results

    def replay(self) -> None:
        for operator, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(operator(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """Stands for the context torch.cuda.graph."""

    def __init__(self, graph: RecordedGraph, pool: object, stream: object, capture_error_mode: str) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert operator not in WAITS
        results = operator(*args, **(kwargs or {}))
        self._graph.calls.append((operator, args, kwargs or {}, results))
        return results


def stand_in_for_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "CUDAGraph": RecordedGraph, "graph": Recording, "graph_pool_handle": object, "Stream": lambda device: stream,
        "current_stream": lambda: stream, "stream": lambda stream: nullcontext(),
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
