"""How a decode step is run: as large as it must be, or in one of a few sizes that can be captured as a CUDA graph.

A step of a few rows is a thousand small kernels, which take longer to launch than to run. A graph launches them all at
once, but with the sizes and addresses that they had when it was captured. So rows and lengths are rounded up, and what
goes in and comes out has fixed places. All of that runs without a graph too, and so on any device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import torch

from engine.devices import to_device
from engine.kv_cache import KVCache

log = logging.getLogger("voxtral.engine")

SHORTEST = 512  # positions that a rounded step attends to at least: a prompt of 30 s alone has 384
# Logits (rows, vocabulary) from the token of each row (rows,), where it stands (rows,), and the positions to attend to.
Step = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def rounded(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on: at most half more, in few sizes."""
    power = 1 << (count - 1).bit_length()
    between = power * 3 // 4
    return between if count <= between else power


class ExactSteps:
    """Every step has as many rows, and attends to as many positions, as there are."""

    def __init__(self, step: Step, cache: KVCache, device: torch.device) -> None:
        self._step, self._cache, self._device = step, cache, device

    def __call__(self, tokens: list[int]) -> torch.Tensor:
        """Logits (rows, vocabulary), given the last token of each row; they stand until the next step."""
        at = self._cache.lengths[: len(tokens)]
        length = int(at.max()) + 1
        self._cache.reserve(length, len(tokens))
        return self._step(to_device(torch.tensor(tokens), self._device), to_device(at, self._device), length)


class RoundedSteps:
    """Every step has rounded sizes and fixed places for tokens, positions and logits. The cache's place is fixed, too.

    Rows beyond those that run write their first position, which nobody reads.
    """

    def __init__(self, step: Step, cache: KVCache, logits: torch.Tensor) -> None:
        """`logits` (rows, vocabulary): where the results go."""
        self._step, self._cache, self._logits = step, cache, logits
        self._inputs = torch.zeros(len(logits), 2, dtype=torch.long, device=logits.device)  # token, position

    def __call__(self, tokens: list[int]) -> torch.Tensor:
        """As in ExactSteps."""
        at = self._cache.lengths[: len(tokens)]
        rows = min(rounded(len(tokens)), self._cache.slots)
        length = min(max(rounded(int(at.max()) + 1), SHORTEST), self._cache.capacity)
        inputs = torch.zeros(rows, 2, dtype=torch.long)
        inputs[: len(tokens)] = torch.stack([torch.tensor(tokens), at], 1)
        self._inputs[:rows].copy_(to_device(inputs, self._inputs.device))
        self._run(rows, length)
        return self._logits[: len(tokens)]

    def _run(self, rows: int, length: int) -> None:
        tokens, at = self._inputs[:rows].unbind(1)
        self._logits[:rows] = self._step(tokens, at, length)


class GraphSteps(RoundedSteps):
    """The same on CUDA: each size is captured when it is first met, and replayed from then on; where there is no memory
    for that, it goes on without a graph."""

    _capturing = threading.Lock()  # of all models: a capture waits for the whole device, which another one forbids

    def __init__(self, step: Step, cache: KVCache, logits: torch.Tensor) -> None:
        super().__init__(step, cache, logits)
        self._captured: dict[tuple[int, int, int], Callable[[], None]] = {}
        self._memory = torch.cuda.graph_pool_handle()  # shared: what a graph computes in between, no other reads
        self._stream = torch.cuda.Stream(logits.device)

    def _run(self, rows: int, length: int) -> None:
        size = (rows, length, self._cache.capacity)  # the capacity decides where a row begins
        if size not in self._captured:
            try:
                with self._capturing:
                    self._captured[size] = self._capture(rows, length).replay
            except torch.OutOfMemoryError:
                log.warning("no memory to capture a step of %d rows and %d positions: it is run as it is", rows, length)
                self._captured[size] = partial(super()._run, rows, length)
        self._captured[size]()

    def _capture(self, rows: int, length: int) -> torch.cuda.CUDAGraph:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # libraries set themselves up in a first run, which cannot be captured
            super()._run(rows, length)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: to load a model, or to ask for free memory.
        with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
            super()._run(rows, length)
        return graph
