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
# Positions that ask together, however much they see: products of fewer are slow. Blocks of a question about 43 minutes
# have 67 MB then.
LEAST_ROWS = 64
# Positions by which what is seen grows at least, and most times that it does: oneDNN compiles a product for each shape
# and keeps it.
STRIDE, STRIDES = 128, 32
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
    at_once = min(positions, max(LEAST_ROWS, BLOCK // (HEADS * queries.shape[1] * positions)))
    stride = max(STRIDE, positions // STRIDES)
    # One piece of memory for all blocks: of one for each, ever larger, the heap would keep the holes.
    memory = queries.new_empty(2, min(HEADS, len(queries)) * queries.shape[1] * at_once * positions)
    for first in range(0, positions, at_once):
        rows = slice(first, min(first + at_once, positions))
        seen = slice(min(-(-rows.stop // stride) * stride, positions) if causal else positions)
        later = _later(rows, seen.stop, queries) if causal else queries.new_zeros(1)
        for head in range(0, len(queries), HEADS):
            some = slice(head, head + HEADS)
            asked = queries[some, :, rows].flatten(1, 2)
            scores, shares = memory[:, : asked[..., 0].numel() * seen.stop].view(2, *asked.shape[:2], seen.stop)
            torch.baddbmm(later, asked, keys[some, :, seen], beta=float(causal), alpha=scaling, out=scores)
            found = torch.bmm(torch.softmax(scores, -1, out=shares), values[some, seen])
            outputs[some, :, rows] = found.unflatten(1, (queries.shape[1], -1))
    return outputs.view(batch, heads, positions, dim).transpose(1, 2)


def _later(rows: slice, seen: int, queries: torch.Tensor) -> torch.Tensor:
    """(groups * rows, seen): -inf where a position comes after the row's own, else 0."""
    hidden = queries.new_full((rows.stop - rows.start, seen), -torch.inf).triu_(rows.start + 1)
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
