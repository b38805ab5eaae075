"""Linear layers packed for CPUs, where a decode step takes as long as reading the weights.

FloatLinear Weights as they are, in the order in which oneDNN multiplies by them.
Int8Linear  Weights and activations in 8 bits (W8A8), multiplied by oneDNN in integers. Weights have one scale for each
            output channel. Activations have one for each row: with one for all rows, a row of outliers would leave its
            neighbours two or three levels.
Int4Linear  Weights in 4 bits, in groups of 32 inputs with a scale and an offset each, activations in bfloat16. Few rows
            go to ATen's kernel, which reads the packed weights; many rows are multiplied by weights unpacked for them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from engine import onednn_weights

ROWS_IN_CACHE = 64  # output channels that are packed or unpacked at a time: what that takes stays in the CPU's cache
GROUP = 32  # inputs that share a scale and an offset in 4 bits
FEW_ROWS = 24  # up to here ATen's 4-bit kernel beats unpacking
# Without VNNI a CPU adds two products in 16 bits, which 255 x 127 twice would overflow. Weights can spare the bit more
# easily than activations, which have outliers.
WEIGHT_LIMIT = 127 if torch.cpu._is_vnni_supported() else 63
ACTIVATION_LIMIT = 127
MIDDLE = 128  # the level of activation 0


def supported() -> bool:
    """Whether this machine has the kernels that this module calls."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies floats of this type here; in bfloat16 it wants AVX-512 or more."""
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedLinear(torch.nn.Module):
    """A linear layer that gets its weights from `pack`; its bias is a parameter, as in torch.nn.Linear."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def pack(self, weight: torch.Tensor) -> None:
        """Keep `weight` (out_features, in_features), of any float type."""
        raise NotImplementedError


class FloatLinear(PackedLinear):
    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear)
        self._dtype = dtype

    def pack(self, weight: torch.Tensor) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self._dtype), None)
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


class Int8Linear(PackedLinear):
    def __init__(self, linear: torch.nn.Linear, activations: Activations | None = None) -> None:
        """`activations`: what all layers of a model share; None for a layer that stands alone."""
        super().__init__(linear)
        self._activations = activations or Activations()

    def pack(self, weight: torch.Tensor) -> None:
        levels = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(self.out_features)
        for first in range(0, self.out_features, ROWS_IN_CACHE):
            rows = slice(first, first + ROWS_IN_CACHE)
            levels[rows], scales[rows] = _to_int8(weight[rows])
        self.register_buffer("packed", onednn_weights.pack(levels), persistent=False)
        self.register_buffer("scales", scales / ACTIVATION_LIMIT, persistent=False)
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.long), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        levels, peaks = self._activations.quantized(inputs)
        products = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, MIDDLE, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        products *= peaks
        if self.bias is not None:
            products += self.bias
        return products.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


class Activations:
    """The activations that were quantized last, because layers that stand side by side get the same ones.

    For one thread, and for models that change no activations in place.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None

    def quantized(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (rows, inputs) as uint8, and what ACTIVATION_LIMIT levels are worth in each row (rows, 1)."""
        if inputs is not self._inputs:
            rows = inputs.reshape(-1, inputs.shape[-1]).float()
            # Two passes of amax and amin are quicker than one of aminmax, abs or a norm.
            peaks = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
            peaks.clamp_(min=1e-12)  # a row of zeros gets a peak too, and stays zeros
            # Conversion cuts off, so half a level more rounds.
            levels = (rows * (ACTIVATION_LIMIT / peaks)).add_(MIDDLE + 0.5).to(torch.uint8)
            self._inputs, self._quantized = inputs, (levels, peaks)
        return self._quantized


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels -WEIGHT_LIMIT to WEIGHT_LIMIT (rows, inputs), and the scale of each row."""
    levels = weight.to(torch.float32, copy=True)
    scales = levels.abs().amax(1, keepdim=True).clamp(min=1e-12) / WEIGHT_LIMIT
    return levels.div_(scales).round_().to(torch.int8), scales[:, 0]


class Int4Linear(PackedLinear):
    def pack(self, weight: torch.Tensor) -> None:
        parts = [_to_int4(rows) for rows in weight.split(ROWS_IN_CACHE)]
        packed = torch.cat([torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1) for levels, _ in parts])
        self.register_buffer("packed", packed, persistent=False)
        groups = torch.cat([scales for _, scales in parts], 1)  # (groups, out_features, 2)
        self.register_buffer("groups", groups.to(torch.bfloat16), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if len(rows) <= FEW_ROWS:
            few = rows.to(torch.bfloat16).contiguous()
            outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(few, self.packed, GROUP, self.groups)
        else:
            outputs = torch.cat([F.linear(rows, weight) for weight in self._unpacked(inputs.dtype)], 1)
        outputs = outputs.to(inputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def _unpacked(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The weights again, in parts of ROWS_IN_CACHE output channels."""
        for first in range(0, self.out_features, ROWS_IN_CACHE):
            levels = unpack_int4(self.packed[first : first + ROWS_IN_CACHE])
            scales, offsets = self.groups[:, first : first + len(levels), :, None].float().transpose(0, 1).unbind(2)
            grouped = levels.float().unflatten(1, (-1, GROUP))
            yield torch.addcmul(offsets - 8 * scales, grouped, scales).flatten(1).to(dtype)


def _to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels 0 to 15 (rows, inputs) as int32, and (groups, rows, 2): a weight is (level - 8) * scale + offset."""
    grouped = weight.float().unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1), grouped.amax(-1)
    # Rounded to what is stored before the levels are chosen, so that they make up for it.
    scales = ((high - low) / 15).clamp(min=1e-12).bfloat16().float()
    offsets = (low + 8 * scales).bfloat16().float()
    levels = ((grouped - offsets[..., None]) / scales[..., None] + 8).round_().clamp_(0, 15).to(torch.int32).flatten(1)
    return levels, torch.stack([scales, offsets], -1).transpose(0, 1)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Levels (rows, inputs) of ATen's packed weights (rows, inputs / 2).

    ATen packs blocks of rows, input by input; a byte holds two rows that are half a block apart.
    """
    block = _block_rows()
    pairs = packed.view(-1, 2 * packed.shape[1], block // 2)  # (blocks, inputs, half a block)
    return torch.cat([pairs & 15, pairs >> 4], 2).transpose(1, 2).flatten(0, 1)


def _block_rows() -> int:
    """Rows in a block, which ATen chooses by the vector width of the CPU."""
    return {"AVX512": 64, "AVX2": 32}[torch.backends.cpu.get_cpu_capability()]
