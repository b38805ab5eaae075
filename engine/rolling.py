"""Keys and values of streams that never end, and attention to them where streams of different lengths go together.

A stream's forward has some new positions, another's has more. They lie one behind another in one batch row, so that
linear layers see a single matrix without padding; attention alone goes stream by stream, on a CPU within one kernel.
It is called in place of SDPA (`PACKED_SDPA`), and stores and reads the keys itself.
"""

from __future__ import annotations

import copy
import math
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine import cached_attention
from engine.cached_attention import CachedAttention, New
from engine.devices import to_device
from engine.kv_cache import zeros

PACKED_SDPA = "packed_sdpa"
FIRST_CAPACITY = 256  # positions; where memory is taken at once, it doubles from here
FAR = 2**15  # positions beyond which float32 tells rotations apart too coarsely


class RollingCache:
    """The last positions of one stream in all layers of one stack, at `position % slots`. Memory is bounded.

    `most`: positions that are written at once. So many slots more than the window has are needed, because a forward's
    first position sees a whole window before it, and because what was guessed wrongly has overwritten as many.
    """

    def __init__(self, config: PreTrainedConfig, most: int, dtype: torch.dtype, device: torch.device) -> None:
        self.window = config.sliding_window
        self.slots = self.window + most - 1
        # Query heads that share a key head; they go as more queries of it, so that no key is copied.
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self._shape = (2, config.num_hidden_layers, config.num_key_value_heads, 0, config.head_dim)
        self._memory = torch.empty(self._shape, dtype=dtype, device=device)
        self._first = self.slots if device.type == "cpu" else FIRST_CAPACITY  # there, memory is taken as it is written

    @property
    def most_bytes(self) -> int:
        """What it takes once a whole window was written."""
        return math.prod(self._shape[:3]) * self.slots * self._shape[4] * self._memory.itemsize

    def copy(self, positions: int) -> RollingCache:
        """Another cache that holds the same first `positions`, which are all that were written."""
        other = copy.copy(self)
        other._memory = self._memory[:, :, :, :0]
        other.reserve(positions)
        other._memory[:, :, :, :positions] = self._memory[:, :, :, :positions]
        return other

    def reserve(self, positions: int) -> None:
        """Make room for the first `positions`, or as many as there are slots."""
        capacity, needed = self._memory.shape[3], min(positions, self.slots)
        if needed <= capacity:
            return
        # Nothing has rolled over before all slots are there.
        size = min(self.slots, max(2 * capacity, needed, self._first))
        shape = (*self._shape[:3], size, self._shape[4])
        grown = zeros(shape, self._memory.dtype, self._memory.device)
        grown[:, :, :, :capacity] = self._memory
        self._memory = grown

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (key_value_heads, capacity, dim)."""
        return self._memory[0, layer], self._memory[1, layer]


class PackedForward:
    """New positions of several streams, one behind another, and their keys."""

    def __init__(self, caches: list[RollingCache], starts: list[int], counts: list[int], dtype: torch.dtype) -> None:
        self.positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        offsets = [0, *accumulate(counts[:-1])]
        self._caches, self._new = caches, [New(*each) for each in zip(starts, counts, offsets, strict=True)]
        for cache, new in zip(caches, self._new, strict=True):
            cache.reserve(new.start + new.count)
        keys, _ = caches[0].layer(0)
        self._kernel = self._places = None
        if cached_attention.serves(keys.device, dtype, keys.shape[2]):
            self._kernel = CachedAttention(self._new, caches[0].window)
        else:
            pairs = [*zip(caches, self._new, strict=True)]
            self._places = [(_slots(cache, new), _mask(cache, new, dtype, keys.device)) for cache, new in pairs]

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Stores keys and values (1, key_heads, positions, dim); attends from queries (1, heads, positions, dim).

        Returns (1, positions, heads, dim).
        """
        stored = [cache.layer(layer) for cache in self._caches]
        if self._kernel:
            return self._kernel.attend(stored, queries[0], keys[0], values[0], scaling)[None]
        outputs = torch.empty_like(queries)
        _, heads, _, dim = queries.shape
        for new, (all_keys, all_values), (slots, mask) in zip(self._new, stored, self._places, strict=True):
            here = slice(new.offset, new.offset + new.count)
            all_keys[:, slots], all_values[:, slots] = keys[0, :, here], values[0, :, here]
            seen = min(new.start + new.count, self._caches[0].slots)
            grouped = queries[:, :, here].reshape(1, len(all_keys), -1, dim)
            attended = F.scaled_dot_product_attention(
                grouped, all_keys[None, :, :seen], all_values[None, :, :seen], mask, scale=scaling
            )
            outputs[:, :, here] = attended.view(1, heads, new.count, dim)
        return outputs.transpose(1, 2)


def _slots(cache: RollingCache, new: New) -> slice | torch.Tensor:
    first = new.start % cache.slots
    if first + new.count <= cache.slots:
        return slice(first, first + new.count)
    return torch.arange(first, first + new.count) % cache.slots


def _mask(cache: RollingCache, new: New, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """(groups * count, slots seen): 0 where a query may look, else -inf; None where one position sees all there are."""
    end = new.start + new.count
    if new.count == 1 and end <= cache.window:
        return None
    slot = torch.arange(min(end, cache.slots))
    held = end - 1 - (end - 1 - slot) % cache.slots  # the last position that was written to each slot
    at = torch.arange(new.start, end)[:, None]
    hidden = (held > at) | (held <= at - cache.window)
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    return to_device(mask.repeat(cache.groups, 1), device)


def rotations(rotary: torch.nn.Module, positions: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cosines and sines (1, positions, dim) as transformers' `rotary`, which is on the CPU, has them, and as exact
    however far it is; in the place and precision of `like`."""
    frequencies = rotary.inv_freq
    far = positions // FAR * FAR
    turned = (far[:, None].double() * frequencies.double()).remainder(2 * torch.pi).float()
    angles = (positions - far)[:, None].float() * frequencies + turned
    angles = torch.cat([angles, angles], -1)[None]
    parts = ((part * rotary.attention_scaling).to(like.dtype) for part in (angles.cos(), angles.sin()))
    return tuple(to_device(part, like.device) for part in parts)


def _packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    packed: PackedForward | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA as it is, unless there is a packed forward, which is an argument that layers hand down."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    return packed.attend(module.layer_idx, query, key, value, module.scaling), None


AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
