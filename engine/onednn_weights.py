"""Weights of 8 bits in the layout that oneDNN multiplies by, written by ourselves.

oneDNN finds the layout and can fill it, but by a reference loop: 0.25 s for a layer of the 3B, which would be most of
a start. So it fills the first layer of each shape. Where that turns out as this module would have filled it, further
layers are copies of the first, filled here; where another CPU wants another layout, oneDNN fills them all.

The layout, which oneDNN calls BA16a64b4a: blocks of 64 outputs, in each blocks of 64 inputs, in these 16 times 64
outputs with 4 inputs each, as one instruction takes them. Behind it stands for each output what a zero point of the
activations takes away for each of its steps: the negative sum of the output's levels, as int32.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from weakref import WeakValueDictionary

import torch

BLOCK = 64
SUMMED_ROWS = 256  # outputs that are summed at a time, in the CPU's cache; torch's sum of int8 takes twice as long
USUAL_ROWS = 16  # what oneDNN is told to lay out weights for; the layout is good for more and for fewer

_examples: WeakValueDictionary[tuple[int, ...], torch.Tensor] = WeakValueDictionary()  # by shape, filled by oneDNN


def pack(levels: torch.Tensor) -> torch.Tensor:
    """Opaque weights for `torch.ops.onednn.qlinear_pointwise` from int8 levels (outputs, inputs)."""
    example = _examples.get(tuple(levels.shape))
    if example is not None:
        packed = example.clone()
        _fill(_memory(packed), levels)
        return packed
    packed = torch.ops.onednn.qlinear_prepack(levels, [USUAL_ROWS, levels.shape[1]])
    if _has_our_layout(packed, levels):
        _examples[tuple(levels.shape)] = packed
    return packed


def _has_our_layout(packed: torch.Tensor, levels: torch.Tensor) -> bool:
    outputs, inputs = levels.shape
    memory = _memory(packed)
    if outputs % BLOCK or inputs % BLOCK or len(memory) != outputs * inputs + 4 * outputs:
        return False
    ours = torch.empty_like(memory)
    _fill(ours, levels)
    return torch.equal(memory, ours)


def _fill(memory: torch.Tensor, levels: torch.Tensor) -> None:
    outputs, inputs = levels.shape
    blocks = memory[: levels.numel()].view(torch.int8).view(outputs // BLOCK, inputs // BLOCK, BLOCK // 4, BLOCK, 4)
    blocks.copy_(levels.view(outputs // BLOCK, BLOCK, inputs // BLOCK, BLOCK // 4, 4).permute(0, 2, 3, 1, 4))
    sums = torch.cat([rows.float() @ torch.ones(inputs) for rows in levels.split(SUMMED_ROWS)])  # exact, below 2^24
    memory[levels.numel() :].view(torch.int32).copy_(sums.neg_())


def _memory(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of opaque weights (n,), which are theirs: read and written only while `packed` lives.

    Python has no way to them, but the C interface of torch that compiled models use has.
    """
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    to_address = ctypes.pythonapi.PyCapsule_GetPointer
    to_address.restype, to_address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    handle = ctypes.c_void_p(to_address(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(packed), None))
    address = ctypes.c_void_p()
    try:
        if torch_cpu.aoti_torch_get_data_ptr(handle, ctypes.byref(address)):
            raise RuntimeError("torch does not tell where oneDNN's weights are")
    finally:
        torch_cpu.aoti_torch_delete_tensor_object(handle)
    size = int(torch.ops.mkldnn._nbytes(packed))
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address.value), dtype=torch.uint8)
