"""Attention of many queries on a CPU in bfloat16: a product, a softmax and a product for a block of queries.

PyTorch's kernel multiplies head by head in small pieces, at a fifth of what this CPU's products reach; over the 1,500
positions of a window that was half of the encoder's time. A block's scores are rounded to bfloat16, which on trained
weights changes what is heard by less than the rounding of everything else (docs/SPEED.md).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

DENSE = "dense"
BLOCK = 2**21  # scores that are made at once, 4 MB: they stay in the cache
HEADS = 4  # that are multiplied together; more leave room for fewer queries


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it is quicker there than PyTorch's attention."""
    return device.type == "cpu" and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, causal: bool
) -> torch.Tensor:
    """What `queries` (batch, heads, positions, dim) find in keys and values (batch, key_heads, positions, dim).

    Heads are a multiple of the key heads, each of which serves as many neighbours. With `causal` a position looks at
    itself and those before it. Returns (batch, positions, heads, dim).
    """
    batch, heads, positions, dim = queries.shape
    queries = queries.reshape(-1, heads // keys.shape[1], positions, dim)  # the heads of a key head are its groups
    keys, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    outputs = torch.empty_like(queries)
    at_once = max(1, BLOCK // (HEADS * queries.shape[1] * positions))
    for first in range(0, positions, at_once):
        rows = slice(first, min(first + at_once, positions))
        seen = slice(rows.stop if causal else None)
        later = _later(rows, queries) if causal else queries.new_zeros(1)
        for head in range(0, len(queries), HEADS):
            some = slice(head, head + HEADS)
            asked = queries[some, :, rows].flatten(1, 2)
            scores = torch.baddbmm(later, asked, keys[some, :, seen], beta=float(causal), alpha=scaling)
            found = torch.bmm(scores.softmax(-1), values[some, seen])
            outputs[some, :, rows] = found.unflatten(1, (queries.shape[1], -1))
    return outputs.view(batch, heads, positions, dim).transpose(1, 2)


def _later(rows: slice, queries: torch.Tensor) -> torch.Tensor:
    """(groups * rows, positions up to the last row): -inf where a position comes after the row's own, else 0."""
    hidden = queries.new_full((rows.stop - rows.start, rows.stop), -torch.inf).triu_(rows.start + 1)
    return hidden.repeat(queries.shape[1], 1)


def _dense(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float = 1.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' encoder calls it, whose windows are whole and have no mask."""
    return attend(query, key, value, scaling, causal=False), None


AttentionInterface.register(DENSE, _dense)
AttentionMaskInterface.register(DENSE, sdpa_mask)
