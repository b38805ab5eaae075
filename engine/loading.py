"""Where a model is loaded to, in which precision, and what memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engine import native
from engine.backends.base import LoadOptions
from engine.weights import load_packed, packed_bytes


@dataclass(frozen=True)
class Placement:
    device: str  # cuda, mps or cpu
    dtype: torch.dtype
    quantization: str  # none, int8 or int4
    packed: bool  # whether linear layers are laid out for this machine's CPU
    kept: bool = False  # on disk, too

    @staticmethod
    def of(options: LoadOptions) -> Placement:
        """What the options ask for, with this machine's choice where they leave it. Raises ValueError for what the
        machine has not."""
        device = pick_device(options.device)
        # A capture of a step sees PyTorch's operators, and not our kernels.
        packed = device == "cpu" and native.supported() and not options.positions
        quantization = _pick_quantization(options.quantization, device, packed)
        return Placement(device, _pick_dtype(options.dtype, device), quantization, packed, options.keep)

    def __str__(self) -> str:
        return f"{self.device}, {self.dtype}, quantization {self.quantization}"


def load_model(kind: type[PreTrainedModel], folder: Path, placement: Placement) -> Any:
    """The model of class `kind` in `folder`, ready to be asked."""
    if placement.packed:
        return load_packed(kind, folder, placement.quantization, placement.dtype, keep=placement.kept)
    if placement.device == "cuda":
        # It makes a plan for each length that it meets, which takes longer than a step, and here nearly all are new.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = kind.from_pretrained(folder, dtype=placement.dtype, attn_implementation="sdpa", local_files_only=True)
    return model.eval().to(torch.device(placement.device))


def memory_needed(folder: Path, options: LoadOptions) -> int:
    """Bytes of the weights once loaded, a little too many where they are quantized. On disk they are bfloat16."""
    placement = Placement.of(options)
    if placement.packed:
        return packed_bytes(folder, placement.quantization, placement.dtype)
    stored = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return stored * placement.dtype.itemsize // 2


def memory_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def pick_device(wanted: str) -> str:
    """CUDA, else MPS, else CPU; or the one that is wanted, if it is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if not there[wanted]:
            raise ValueError(f"VOXTRAL_DEVICE={wanted}, but this machine has none. Set it to auto.")
        return wanted
    return next(device for device, present in there.items() if present)


def _pick_dtype(wanted: str, device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it, else float32: emulated bfloat16 is several times slower."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device == "mps":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _pick_quantization(wanted: str, device: str, possible: bool) -> str:
    """int8 where it is possible, else none; or what is wanted, if it can be had."""
    if wanted == "auto":
        return "int8" if possible else "none"
    if wanted != "none" and not possible:
        raise ValueError(
            f"VOXTRAL_QUANTIZATION={wanted} is for x86 CPUs under Linux, and the model is on {device}. Set it to none."
        )
    return wanted
