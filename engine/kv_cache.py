"""Keys and values of all running jobs, one row for each, in tensors that transformers' attention reads in place.

transformers' decoder layers call `update(keys, values, layer)` and attend to what it returns. A prefill writes the
prompt into one row; a decode step writes one position into each of the first n rows.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig

GROWTH = 256  # positions that the cache grows by at least, so that it is not copied at every step


class KVCache:
    """`capacity` positions for up to `rows` jobs. `lengths` (rows,) says how many positions of a row are filled."""

    def __init__(self, config: LlamaConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = config.num_hidden_layers
        self._shape = (rows, config.num_key_value_heads, 0, config.head_dim)
        self._dtype, self._device = dtype, device
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.release()

    def release(self) -> None:
        """Give the memory back; all rows are empty after it."""
        empty = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        self.keys = [empty for _ in range(self._layers)]  # each (rows, key_value_heads, capacity, head_dim)
        self.values = [empty for _ in range(self._layers)]
        self.lengths.zero_()

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in every row, keeping what is there."""
        if positions <= self.capacity:
            return
        grown = max(positions, self.capacity + GROWTH)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                rows, heads, capacity, dim = old.shape
                new = old.new_zeros((rows, heads, grown, dim))
                new[:, :, :capacity] = old
                tensors[layer] = new

    def move_row(self, source: int, target: int) -> None:
        filled = int(self.lengths[source])
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :, :filled] = tensor[source, :, :filled]
        self.lengths[target] = filled

    def prefill_view(self, row: int) -> PrefillView:
        return PrefillView(self, row)

    def decode_view(self, rows: int) -> DecodeView:
        return DecodeView(self, rows)


class PrefillView:
    """The cache as one prefill sees it: an empty row that takes the whole prompt at once."""

    def __init__(self, cache: KVCache, row: int) -> None:
        self._cache, self._row = cache, row

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (1, heads, prompt, dim); attention reads them as they came."""
        length = keys.shape[2]
        self._cache.keys[layer][self._row, :, :length] = keys[0]
        self._cache.values[layer][self._row, :, :length] = values[0]
        return keys, values


class DecodeView:
    """The cache as one decode step sees it: `rows` jobs of different lengths, one new position each.

    `mask` (rows, 1, 1, longest) is True where a row may look; `positions` (rows, 1) is where the new token stands.
    """

    def __init__(self, cache: KVCache, rows: int) -> None:
        self._cache = cache
        lengths = cache.lengths[:rows]
        self._longest = int(lengths.max()) + 1
        self._rows = torch.arange(rows, device=cache.keys[0].device)
        self._at = lengths.to(self._rows.device)
        self.positions = self._at[:, None]
        self.mask = (torch.arange(self._longest, device=self._at.device) <= self.positions)[:, None, None, :]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._longest - 1

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (rows, heads, 1, dim) and return views of all that the rows hold."""
        all_keys, all_values = self._cache.keys[layer], self._cache.values[layer]
        all_keys[self._rows, :, self._at] = keys[:, :, 0]
        all_values[self._rows, :, self._at] = values[:, :, 0]
        rows = len(self._rows)
        return all_keys[:rows, :, : self._longest], all_values[:rows, :, : self._longest]
