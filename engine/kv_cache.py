"""Keys and values of all running jobs, one slot for each, in tensors that transformers' attention reads in place.

transformers' decoder layers call `update(keys, values, layer)` and attend to what it returns. A prefill writes the
prompts of some rows; a decode step writes one position into each of the first n rows.
"""

from __future__ import annotations

import math
import mmap

import torch
from transformers import LlamaConfig

from engine.cached_attention import CachedAttention, New
from engine.scheduler import Size

GROWTH = 256  # positions that slots grow by at least, so that they are not copied at every step
BLOCK = 64  # positions; usual slots have a multiple of it, because attention kernels read aligned masks
# Pages that are only read share one page of zeros, unless they could be shared with other processes.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU in pages that take memory once something is written there, as torch's own zeros are at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **PRIVATE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


class KVCache:
    """Slots that grow, in number and in length, with what is written into them.

    `keys` and `values`: one tensor (slots, key_value_heads, capacity, head_dim) for each layer; after a growth that
    found no memory, some may be larger than others. `lengths` (rows,): how many positions of a row are filled.
    """

    def __init__(self, config: LlamaConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (0, config.num_key_value_heads, 0, config.head_dim)
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.keys = [torch.empty(self._shape, dtype=dtype, device=device)] * config.num_hidden_layers
        self.values = list(self.keys)

    @property
    def slots(self) -> int:
        return min(tensor.shape[0] for tensor in (*self.keys, *self.values))

    @property
    def capacity(self) -> int:
        return min(tensor.shape[2] for tensor in (*self.keys, *self.values))

    def release(self) -> None:
        """Give back the memory that only running jobs need; none runs."""
        self.keys = [self.keys[0].new_empty(self._shape)] * len(self.keys)
        self.values = list(self.keys)

    def begin(self, row: int, sizes: list[Size]) -> None:
        """Make room for the prompts of new jobs in `row` and those after it; those before it run."""
        self.lengths[row:] = 0
        self.reserve(max(size.prompt for size in sizes), row + len(sizes))

    def reserve(self, positions: int, rows: int) -> None:
        """Make room for `positions` in each of the first `rows` slots, keeping what these hold."""
        slots, capacity = self.slots, self.capacity
        if positions <= capacity and rows <= slots:
            return
        if positions > capacity:
            capacity = max(positions, capacity + GROWTH)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = self._grown(old, max(rows, slots), capacity, rows)

    def _grown(self, old: torch.Tensor, slots: int, capacity: int, rows: int) -> torch.Tensor:
        if old.shape[0] >= slots and old.shape[2] >= capacity:
            return old
        # Zeros: attention multiplies what it masks by 0, which a NaN would survive.
        new = zeros((slots, old.shape[1], capacity, old.shape[3]), old.dtype, old.device)
        for target, source, filled in zip(new, old, self.lengths[:rows].tolist(), strict=False):
            target[:, :filled] = source[:, :filled]
        return new

    def advance(self, rows: int) -> None:
        """A step has written a position of the first `rows`."""
        self.lengths[:rows] += 1

    def move_row(self, source: int, target: int) -> None:
        filled = int(self.lengths[source])
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :filled] = tensor[source, :, :filled]
        self.lengths[target] = filled


class FixedKVCache(KVCache):
    """Slots in memory that is taken once and stays where it is, as captured graphs need it.

    It holds `positions` for all rows together: a slot for each row as a rule; while a job runs that may come to more,
    fewer and longer ones. The scheduler admits only jobs that fit.
    """

    def __init__(
        self, config: LlamaConfig, rows: int, dtype: torch.dtype, device: torch.device, positions: int
    ) -> None:
        super().__init__(config, rows, dtype, device)
        self._positions, self._most = positions, torch.zeros(rows, dtype=torch.long)
        size = positions * config.num_key_value_heads * config.head_dim
        # Zeros, as where slots grow.
        self._memory = [torch.zeros(size, dtype=dtype, device=device) for _ in (*self.keys, *self.values)]
        self._usual = positions // rows // BLOCK * BLOCK
        self._divide(self._usual, 0)

    def release(self) -> None:
        """Nothing: graphs know where the memory is."""

    def begin(self, row: int, sizes: list[Size]) -> None:
        self._most[row : row + len(sizes)] = torch.tensor([size.most for size in sizes])
        self._divide(max(self._usual, int(self._most[: row + len(sizes)].max())), row)

    def advance(self, rows: int) -> None:
        """Whatever a job does, it stays in its slot."""
        self.lengths[:rows] = torch.minimum(self.lengths[:rows] + 1, self._most[:rows] - 1)

    def move_row(self, source: int, target: int) -> None:
        super().move_row(source, target)
        self._most[target] = self._most[source]

    def _divide(self, capacity: int, rows: int) -> None:
        """Slots of `capacity`, the first `rows` of which hold what they held."""
        if capacity == self.capacity:
            return
        _, heads, _, dim = self._shape
        slots = min(self._positions // capacity, len(self._most))
        filled = int(self.lengths[:rows].max()) if rows else 0
        places = [memory[: slots * heads * capacity * dim].view(slots, heads, capacity, dim) for memory in self._memory]
        spare = torch.empty_like(self.keys[0][:rows, :, :filled])  # first of all: half way, nothing may fail
        for old, new in zip((*self.keys, *self.values), places, strict=True):
            new[:rows, :, :filled] = spare.copy_(old[:rows, :, :filled])  # old and new share memory
        self.keys, self.values = places[: len(self.keys)], places[len(self.keys) :]


class PrefillView:
    """The cache as one prefill sees it: empty rows from `row` on, each of which takes a whole prompt at once."""

    def __init__(self, cache: KVCache, row: int) -> None:
        self._cache, self._row = cache, row

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (jobs, heads, longest, dim); attention reads them as they came.

        What is stored beyond a shorter prompt is overwritten, position by position, before anything attends to it.
        """
        rows, length = slice(self._row, self._row + len(keys)), keys.shape[2]
        self._cache.keys[layer][rows, :, :length] = keys
        self._cache.values[layer][rows, :, :length] = values
        return keys, values


class TextView:
    """One row as a text sees it that is read at once behind the first `start` positions; later ones are overwritten."""

    def __init__(self, cache: KVCache, row: int, start: int) -> None:
        self._cache, self._row, self._start = cache, row, start

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (1, heads, text, dim) and return views of all that the row holds up to them."""
        end = self._start + keys.shape[2]
        row = slice(self._row, self._row + 1)
        all_keys, all_values = self._cache.keys[layer][row, :, :end], self._cache.values[layer][row, :, :end]
        all_keys[:, :, self._start :] = keys
        all_values[:, :, self._start :] = values
        return all_keys, all_values


class DecodeView:
    """The cache as one decode step sees it: a row for each job, of different lengths, with one new position each.

    `at` (rows,): where the new token stands. `mask` (rows, 1, 1, length): 0 where a row may look, else -inf.
    """

    def __init__(self, cache: KVCache, at: torch.Tensor, length: int) -> None:
        self._cache, self._at, self._length = cache, at, length
        self._rows = torch.arange(len(at), device=at.device)
        unseen = torch.arange(length, device=at.device) > at[:, None]
        mask = torch.zeros(unseen.shape, dtype=cache.keys[0].dtype, device=at.device)
        self.mask = mask.masked_fill_(unseen, -torch.inf)[:, None, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (rows, heads, 1, dim) and return views of what the rows may look at."""
        all_keys, all_values = self._cache.keys[layer], self._cache.values[layer]
        all_keys[self._rows, :, self._at] = keys[:, :, 0]
        all_values[self._rows, :, self._at] = values[:, :, 0]
        rows = len(self._rows)
        return all_keys[:rows, :, : self._length], all_values[:rows, :, : self._length]


class KernelView:
    """As DecodeView, for the kernel that stores and attends in one: it stands in no graph."""

    def __init__(self, cache: KVCache, at: torch.Tensor) -> None:
        self._cache = cache
        self._kernel = CachedAttention([New(start, 1, row) for row, start in enumerate(at.tolist())])

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Stores keys and values (rows, key_heads, 1, dim); attends from queries (rows, heads, 1, dim).

        Returns (rows, 1, heads, dim).
        """
        rows = len(queries)
        slots = zip(self._cache.keys[layer][:rows].unbind(), self._cache.values[layer][:rows].unbind(), strict=True)
        new = [tensor[:, :, 0].transpose(0, 1) for tensor in (queries, keys, values)]
        return self._kernel.attend([*slots], *new, scaling)[:, None]
