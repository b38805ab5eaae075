"""Attention of a few new positions of each stream to what its cache holds, by a kernel of our own, for CPUs.

PyTorch's kernels call a matrix product for each head and stream, which for a few queries takes several times as long
as reading the keys: engine/kernels/cached_attention.c reads them once, and stores the new ones on the way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine import native

KERNEL = "cached_attention"
VECTOR, LONGEST = 16, 256  # numbers of a key: a multiple, and at most
EVERYTHING = 2**62  # a window that ends nowhere


def serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel can be had for keys (.., head_dim) there."""
    kernel = native.supported() and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return kernel and head_dim % VECTOR == 0 and head_dim <= LONGEST


@dataclass(frozen=True)
class New:
    """Of one stream: `count` new positions from `start` on, the first at `offset` among the new ones of all."""

    start: int
    count: int
    offset: int


class _Part(ctypes.Structure):
    """Part in cached_attention.c."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("key_stride", "value_stride", "slots", "start", "count", "offset")),
    )


class _Heads(ctypes.Structure):
    """Heads in cached_attention.c."""

    _fields_ = (
        ("numbers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("head_stride", "position_stride")),
    )

    @staticmethod
    def of(tensor: torch.Tensor) -> _Heads:
        """Of (heads, positions, dim), however its heads and positions lie."""
        if tensor.stride(2) != 1:
            raise ValueError("the numbers of a head have to lie together")
        return _Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class _Job(ctypes.Structure):
    """Job in cached_attention.c."""

    _fields_ = (
        ("parts", ctypes.POINTER(_Part)),
        *((name, _Heads) for name in ("queries", "keys", "values")),
        ("outputs", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("part_count", "key_heads", "groups", "dim", "window")),
        ("scaling", ctypes.c_float),
        ("is_bfloat16", ctypes.c_int32),
        ("taken", ctypes.c_int64),
    )


class CachedAttention:
    """Of a forward through all layers, each of which has the same new positions."""

    def __init__(self, new: Sequence[New], window: int = EVERYTHING) -> None:
        """`window`: positions that a query sees, its own included."""
        self._window = window
        self._parts = (_Part * len(new))()
        for part, each in zip(self._parts, new, strict=True):
            part.start, part.count, part.offset = each.start, each.count, each.offset

    def attend(
        self,
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Stores `keys` and `values` (key_heads, positions, dim) in the caches; attends from `queries` (heads,
        positions, dim), each to its stream's positions up to its own.

        A cache is keys and values (key_heads, slots, dim), contiguous but for its heads, with position p at p % slots;
        one of the two may have more slots than are in use. All are of one type, and a row's numbers lie together.
        Returns (positions, heads, dim).
        """
        heads, positions, dim = queries.shape
        for part, (cached_keys, cached_values) in zip(self._parts, caches, strict=True):
            part.keys, part.values = cached_keys.data_ptr(), cached_values.data_ptr()
            part.key_stride, part.value_stride = cached_keys.stride(0), cached_values.stride(0)
            part.slots = min(cached_keys.shape[1], cached_values.shape[1])
        outputs = queries.new_empty(positions, heads, dim)
        job = _Job(
            self._parts, _Heads.of(queries), _Heads.of(keys), _Heads.of(values), outputs.data_ptr(), len(self._parts),
            len(keys), heads // len(keys), dim, self._window, scaling, queries.dtype == torch.bfloat16, 0,
        )  # fmt: skip
        native.run(KERNEL, KERNEL, job)
        return outputs
