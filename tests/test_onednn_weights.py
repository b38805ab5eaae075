"""Weights that are laid out by ourselves, against those that oneDNN laid out."""

from __future__ import annotations

import pytest
import torch

from engine import onednn_weights
from engine.linear import supported

pytestmark = pytest.mark.skipif(not supported(), reason="oneDNN's int8 weights need an x86 CPU")


def random_levels(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randint(-63, 64, (outputs, inputs), dtype=torch.int8)


def product(packed: torch.Tensor, levels: torch.Tensor, outputs: int) -> torch.Tensor:
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.long)
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (192, 128), (128, 320), (65, 64), (64, 40), (7, 5)])
def test_every_layer_of_a_shape_multiplies_as_oneDNN_laid_it_out(outputs: int, inputs: int) -> None:
    first, second, third = (random_levels(outputs, inputs) for _ in range(3))
    packed = [onednn_weights.pack(levels) for levels in (first, second, third)]
    activations = torch.randint(0, 256, (5, inputs), dtype=torch.uint8)
    for levels, ours in zip((first, second, third), packed, strict=True):
        exact = (activations.double() - 128) @ levels.double().T
        assert torch.equal(product(ours, activations, outputs).double(), exact)


def test_a_layer_outlives_the_first_of_its_shape() -> None:
    first, second = random_levels(128, 64), random_levels(128, 64)
    example = onednn_weights.pack(first)
    packed = onednn_weights.pack(second)
    del example
    activations = torch.randint(0, 256, (2, 64), dtype=torch.uint8)
    exact = (activations.double() - 128) @ second.double().T
    assert torch.equal(product(packed, activations, 128).double(), exact)
