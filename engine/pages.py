"""Memory by the page: large ones for weights, all of a file's at once, and back to the system what is free."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

POPULATE_READ = 22  # of Linux's madvise, which Python does not name


def in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that the system may keep in pages of 2 MB: a step that reads all weights then looks up fewer of them."""
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


def map_at_once(tensors: Sequence[torch.Tensor], *, huge: bool = False) -> None:
    """Map the pages of tensors that lie together in a file: by and by, as they are touched, takes thrice as long.

    `huge`: in pages of 2 MB, where the file system has them.
    """
    first = min(tensor.data_ptr() for tensor in tensors) // mmap.PAGESIZE * mmap.PAGESIZE
    length = max(tensor.data_ptr() + tensor.nbytes for tensor in tensors) - first
    advise = ctypes.CDLL(None).madvise
    # Linux may refuse both: pages then come as they are touched, which it could not before 5.14, and small.
    for advice in (mmap.MADV_HUGEPAGE, POPULATE_READ) if huge else (POPULATE_READ,):
        advise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)


def trim_heap() -> None:
    """Give the system what glibc keeps of freed memory, which is a tenth of the weights after a load of the 3B."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
