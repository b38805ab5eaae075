"""Attention by blocks of products against PyTorch's in float32, and who is served by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from engine import dense_attention


@given(
    batch=st.integers(1, 2), key_heads=st.integers(1, 5), groups=st.integers(1, 4), positions=st.integers(1, 40),
    causal=st.booleans(), block=st.sampled_from([1, 64, 2**21]), least=st.integers(1, 8), stride=st.integers(1, 20),
    strides=st.integers(1, 8),
)  # fmt: skip
@torch.inference_mode()
def test_blocks_of_any_size_see_what_pytorch_sees(
    causal: bool, block: int, least: int, stride: int, strides: int, **sizes: int
) -> None:
    """`sizes`: of the batch, key heads, the heads that share one, and positions."""
    torch.manual_seed(0)
    batch, key_heads, positions = sizes["batch"], sizes["key_heads"], sizes["positions"]
    heads = (key_heads * sizes["groups"], key_heads, key_heads)
    queries, keys, values = (torch.randn(batch, count, positions, 16).bfloat16() for count in heads)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BLOCK", block), ("LEAST_ROWS", least), ("STRIDE", stride), ("STRIDES", strides)):
            patch.setattr(dense_attention, name, value)
        found = dense_attention.attend(queries, keys, values, 0.25, causal)
    exact = F.scaled_dot_product_attention(
        queries.float(), keys.float(), values.float(), is_causal=causal, scale=0.25, enable_gqa=True
    )
    torch.testing.assert_close(found.float(), exact.transpose(1, 2), rtol=0.03, atol=0.03)


def test_only_bfloat16_on_a_cpu_is_served() -> None:
    cpu = torch.device("cpu")
    assert not dense_attention.serves(cpu, torch.float32)
    assert not dense_attention.serves(torch.device("meta"), torch.bfloat16)
    assert dense_attention.serves(cpu, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
