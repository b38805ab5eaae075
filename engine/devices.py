"""What differs between devices beside the mathematics: copies and memory."""

from __future__ import annotations

import psutil
import torch

from engine.pages import trim_heap

CACHE_SHARE = 0.8  # of the memory that is free beside the weights; the rest is for what is computed


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`; to a GPU without waiting for the work that it still has to do."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take, what torch keeps for its next tensors included."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    # Linux would give up pages of files for it, which this process needs: its weights may be among them.
    mapped = getattr(psutil.Process().memory_info(), "shared", 0)
    return max(0, psutil.virtual_memory().available - mapped)


def release_unused(device: torch.device) -> None:
    """Give back what torch and the heap keep for what comes next."""
    trim_heap()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
