"""Linear layers packed for CPUs, where a decode step takes as long as reading the weights.

FloatLinear Weights as they are, in the order in which they are multiplied.
Int8Linear  Weights in 8 bits with one scale for each output channel.
Int4Linear  Weights in 4 bits, in groups of 32 inputs with a scale and an offset each.

All are multiplied by kernels of our own (engine/kernels). The latter two multiply integers, for which activations are
brought to 8 bits, too (W8A8, W4A8): with one scale for each row, because with one for all of them a row of outliers
would leave its neighbours two or three levels.
"""

from __future__ import annotations

import ctypes

import torch

from engine import native
from engine.pages import in_huge_pages

VECTOR = 16  # inputs that are brought to levels at a time
TILE, TILE_4 = 64, 16  # output channels that are multiplied together
GROUP = 32  # inputs that share a scale and an offset in 4 bits
# Without VNNI a CPU adds two products in 16 bits, which 255 x 127 twice would overflow. Weights can spare the bit more
# easily than activations, which have outliers.
WEIGHT_LIMIT = 127 if torch.cpu._is_vnni_supported() else 63


class PackedLinear(torch.nn.Module):
    """A linear layer that gets its weights from `pack`; its bias is a parameter, as in torch.nn.Linear. It takes
    float32 or bfloat16, which its bias has, too."""

    kernel: str
    multiples: tuple[int, int]  # that its numbers of inputs and outputs have to be
    cpu = native.THIS_CPU  # that the kernel is compiled for

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        for name in ("packed", "scales", "middles"):
            self.register_buffer(name, None, persistent=False)
        native.begin(self.kernel)

    @classmethod
    def takes(cls, linear: torch.nn.Linear) -> bool:
        inputs, outputs = cls.multiples
        return linear.in_features % inputs == 0 and linear.out_features % outputs == 0

    def _take_room(self) -> None:
        """For what the kernel's file packs."""
        raise NotImplementedError

    def pack(self, weight: torch.Tensor) -> None:
        """Keep `weight` (out_features, in_features), of any float type."""
        weight = weight.contiguous() if weight.dtype == torch.bfloat16 else weight.float().contiguous()
        self._take_room()
        job = _Packing(
            weight.data_ptr(), *weight.shape, weight.dtype == torch.bfloat16, WEIGHT_LIMIT, self.packed.data_ptr(),
            _address(self.scales), _address(self.middles), 0,
        )  # fmt: skip
        native.run(self.kernel, "pack", job, self.cpu)

    def _scratch(self, rows: int) -> tuple[torch.Tensor | None, ...]:
        """For the levels of inputs, a step for each row, and sums."""
        return None, None, None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for own in (self.packed, self.bias):
            if own is not None and own.is_floating_point() and own.dtype != inputs.dtype:
                raise ValueError(f"a layer in {own.dtype} was given {inputs.dtype}")
        rows = inputs.reshape(-1, self.in_features).contiguous()
        products = rows.new_empty(len(rows), self.out_features)
        scratch = self._scratch(len(rows))
        job = _Job(
            self.packed.data_ptr(), _address(self.scales), _address(self.middles), _address(self.bias),
            rows.data_ptr(), products.data_ptr(), *rows.shape, self.out_features, rows.dtype == torch.bfloat16,
            *map(_address, scratch), 0,
        )  # fmt: skip
        native.run(self.kernel, self.kernel, job, self.cpu)
        return products.view(*inputs.shape[:-1], self.out_features)


class _Job(ctypes.Structure):
    """Job in engine/kernels/linear.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "middles", "bias", "inputs", "products")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "outputs")),
        ("is_bfloat16", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("levels", "steps", "sums")),
        ("taken", ctypes.c_int64),
    )


class _Packing(ctypes.Structure):
    """Packing in engine/kernels/linear.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("outputs", "width")),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "limit")),
        *((name, ctypes.c_void_p) for name in ("packed", "scales", "middles")),
        ("taken", ctypes.c_int64),
    )


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class FloatLinear(PackedLinear):
    """Of inputs in `dtype`, to which weights are brought."""

    kernel, multiples = "linear_float", (2, TILE)

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear)
        self._dtype = dtype

    def _take_room(self) -> None:
        together = 4 // self._dtype.itemsize  # inputs
        shape = (self.out_features // TILE, self.in_features // together, TILE, together)
        self.packed = in_huge_pages(shape, self._dtype)

    def pack(self, weight: torch.Tensor) -> None:
        super().pack(weight.to(self._dtype))


class QuantizedLinear(PackedLinear):
    sums_per_row = 0  # of activations, that the kernel makes

    def _scratch(self, rows: int) -> tuple[torch.Tensor | None, ...]:
        # torch's default type may be another, while a model is loaded.
        return (
            torch.empty(rows, self.in_features, dtype=torch.uint8),
            torch.empty(rows, dtype=torch.float32),
            torch.empty(rows, self.sums_per_row, 2, dtype=torch.float32),
        )


class Int8Linear(QuantizedLinear):
    kernel, multiples = "linear_int8", (VECTOR, TILE)

    def _take_room(self) -> None:
        self.packed = in_huge_pages((self.out_features // TILE, self.in_features // 4, TILE, 4), torch.int8)
        self.scales = in_huge_pages((self.out_features,), torch.float32)
        self.middles = in_huge_pages((self.out_features,), torch.int32)


class Int4Linear(QuantizedLinear):
    """A weight is (level - 8) * scale + offset. A byte has the level of one of the first four of eight inputs in its
    low half, and of one of the others in its high one.
    """

    kernel, multiples = "linear_int4", (GROUP, TILE_4)

    @property
    def sums_per_row(self) -> int:
        return self.in_features // GROUP

    def _take_room(self) -> None:
        tiles = (self.out_features // TILE_4, self.in_features // GROUP)
        self.packed = in_huge_pages((*tiles, GROUP // 8, TILE_4, 4), torch.uint8)
        self.scales = in_huge_pages((*tiles, 2, TILE_4), torch.bfloat16)
