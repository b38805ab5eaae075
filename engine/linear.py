"""Linear layers packed for CPUs, where a decode step takes as long as reading the weights.

FloatLinear Weights as they are, in the order in which oneDNN multiplies by them.
Int8Linear  Weights and activations in 8 bits (W8A8), multiplied by oneDNN in integers. Weights have one scale for each
            output channel. Activations have one for each row: with one for all rows, a row of outliers would leave its
            neighbours two or three levels.
Int4Linear  Weights in 4 bits, in groups of 32 inputs with a scale and an offset each, and activations in 8 for each row
            (W4A8), multiplied in integers by a kernel of our own (engine/kernels/linear_int4.c).
"""

from __future__ import annotations

import ctypes
import platform

import torch

from engine import native, onednn_weights

ROWS_IN_CACHE = 64  # output channels that are packed at a time: what that takes stays in the CPU's cache
POSITIONS_IN_CACHE = 256  # that are quantized and multiplied at a time, for the same reason
GROUP = 32  # inputs that share a scale and an offset in 4 bits
TILE = 16  # output channels that are multiplied together in 4 bits
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
        outputs = inputs.new_empty(*inputs.shape[:-1], self.out_features)
        parts = (*self._activations.quantized(inputs), outputs.view(-1, self.out_features))
        for levels, peaks, target in zip(*(part.split(POSITIONS_IN_CACHE) for part in parts), strict=True):
            products = torch.ops.onednn.qlinear_pointwise(
                levels, 1.0, MIDDLE, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
            products *= peaks
            if self.bias is not None:
                products += self.bias
            target.copy_(products)
        return outputs


class Activations:
    """The activations that were quantized last, because layers that stand side by side get the same ones.

    For one thread, and for models that change no activations in place.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None

    def quantized(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (rows, inputs) as uint8, and what ACTIVATION_LIMIT levels are worth in each row (rows, 1)."""
        if inputs is not self._inputs:
            rows = inputs.reshape(-1, inputs.shape[-1])
            levels, peaks = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(len(rows), 1)
            for some in zip(*(part.split(POSITIONS_IN_CACHE) for part in (rows, levels, peaks)), strict=True):
                _quantize(*some)
            self._inputs, self._quantized = inputs, (levels, peaks)
        return self._quantized


def _quantize(rows: torch.Tensor, levels: torch.Tensor, peaks: torch.Tensor) -> None:
    """Fill `levels` (rows, inputs) and `peaks` (rows, 1), as Activations has them."""
    rows = rows.float()
    # Two passes of amax and amin are quicker than one of aminmax, abs or a norm.
    torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_(), out=peaks)
    peaks.clamp_(min=1e-12)  # a row of zeros gets a peak too, and stays zeros
    # Conversion cuts off, so half a level more rounds.
    levels.copy_((rows * (ACTIVATION_LIMIT / peaks)).add_(MIDDLE + 0.5))


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels -WEIGHT_LIMIT to WEIGHT_LIMIT (rows, inputs), and the scale of each row."""
    levels = weight.to(torch.float32, copy=True)
    scales = levels.abs().amax(1, keepdim=True).clamp(min=1e-12) / WEIGHT_LIMIT
    return levels.div_(scales).round_().to(torch.int8), scales[:, 0]


class Int4Linear(PackedLinear):
    def pack(self, weight: torch.Tensor) -> None:
        """Raises ValueError for sizes that do not fill tiles and groups."""
        if self.out_features % TILE or self.in_features % GROUP:
            raise ValueError(
                f"a layer of {self.in_features} inputs and {self.out_features} outputs does not go into 4 bits: "
                f"multiples of {GROUP} and {TILE} do. Set VOXTRAL_QUANTIZATION=int8."
            )
        parts = [_to_int4(rows) for rows in weight.split(ROWS_IN_CACHE)]
        self.register_buffer("packed", torch.cat([levels for levels, _ in parts]), persistent=False)
        self.register_buffer("scales", torch.cat([scales for _, scales in parts]), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features).contiguous()
        outputs = multiply_int4(rows, self.packed, self.scales)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features)


def _to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels 0 to 15 in bytes of two (tiles, groups, pairs of 4 inputs, TILE, 4), of which one has 4 inputs in its low
    halves and the next 4 in its high ones; and scales and offsets (tiles, groups, 2, TILE) in bfloat16.

    A weight is (level - 8) * scale + offset.
    """
    grouped = (
        weight.float().view(-1, TILE, weight.shape[1] // GROUP, GROUP).transpose(1, 2)
    )  # (tiles, groups, TILE, 32)
    low, high = grouped.amin(-1), grouped.amax(-1)
    # Rounded to what is stored before the levels are chosen, so that they make up for it.
    scales = ((high - low) / 15).clamp(min=1e-12).bfloat16()
    offsets = (low + 8 * scales.float()).bfloat16()
    levels = ((grouped - offsets.float()[..., None]) / scales.float()[..., None] + 8).round_().clamp_(0, 15)
    pairs = levels.to(torch.uint8).unflatten(3, (-1, 2, 4)).permute(4, 0, 1, 3, 2, 5)
    return pairs[0] + 16 * pairs[1], torch.stack([scales, offsets], 2)


class _Int4Job(ctypes.Structure):
    """Job in linear_int4.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "tiles")),
        ("is_bfloat16", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("levels", "steps", "sums")),
        ("taken", ctypes.c_int64),
    )


def multiply_int4(
    inputs: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, cpu: str = native.THIS_CPU
) -> torch.Tensor:
    """Products (rows, outputs) of inputs (rows, width), contiguous in float32 or bfloat16, and what _to_int4 made."""
    rows, width = inputs.shape
    tiles, groups = packed.shape[:2]
    outputs = inputs.new_empty(rows, tiles * TILE)
    levels, steps = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows)
    sums = torch.empty(rows, groups, 2)
    job = _Int4Job(
        packed.data_ptr(), scales.data_ptr(), inputs.data_ptr(), outputs.data_ptr(), rows, width, tiles,
        inputs.dtype == torch.bfloat16, levels.data_ptr(), steps.data_ptr(), sums.data_ptr(), 0,
    )  # fmt: skip
    library = native.library("linear_int4", cpu)
    library.linear_int4(ctypes.byref(job), native.parallel(), ctypes.c_uint32(torch.get_num_threads()))
    return outputs
