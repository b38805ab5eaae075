from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from engine import kv_cache, native
from engine.kv_cache import DecodeView, FixedKVCache, KernelView, KVCache, PrefillView
from engine.scheduler import Limits, Scheduler, Size

ROWS, POSITIONS = 3, 3 * 64
CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=4, head_dim=2)
PLACE = (torch.float32, torch.device("cpu"))
# A job that comes, by its prompt and its answer; or the row whose job leaves.
EVENTS = st.lists(st.builds(lambda p, a: Size(p, p + a), st.integers(1, 50), st.integers(0, 50)) | st.integers(0, 2))


def numbers(job: int, first: int, last: int) -> torch.Tensor:
    """What a job stores at positions `first` to `last` - 1: (1, heads, positions, dim)."""
    return (1000.0 * job + torch.arange(first, last))[None, None, :, None].expand(1, 2, -1, 2)


def write_prompts(cache: KVCache, row: int, jobs: list[int], sizes: dict[int, Size]) -> None:
    longest = max(sizes[job].prompt for job in jobs)
    prompts = torch.cat([numbers(job, 0, longest) for job in jobs])
    cache.begin(row, [sizes[job] for job in jobs])
    for layer in range(2):
        PrefillView(cache, row).update(prompts, -prompts, layer)
    cache.lengths[row : row + len(jobs)] = torch.tensor([sizes[job].prompt for job in jobs])


def assert_held(cache: KVCache, running: list[int]) -> None:
    for row, job in enumerate(running):
        length = int(cache.lengths[row])
        held = numbers(job, 0, length)[0]
        for layer in range(2):
            assert torch.equal(cache.keys[layer][row, :, :length], held)
            assert torch.equal(cache.values[layer][row, :, :length], -held)


@pytest.mark.parametrize("fixed", [False, True])
@given(events=EVENTS)
def test_rows_keep_what_they_hold_however_slots_are_moved_and_divided(fixed: bool, events: list[Size | int]) -> None:
    cache = FixedKVCache(CONFIG, ROWS, *PLACE, POSITIONS) if fixed else KVCache(CONFIG, ROWS, *PLACE)
    scheduler: Scheduler[int] = Scheduler(Limits(ROWS, 100, POSITIONS if fixed else math.inf))
    sizes: dict[int, Size] = {}
    for job, event in enumerate(events):
        if isinstance(event, Size):
            sizes[job] = event
            scheduler.add(job, "owner", event)
        elif event < len(scheduler.running):
            move = scheduler.remove(scheduler.running[event])
            if move:
                cache.move_row(move.source, move.target)
        if admitted := scheduler.admit():
            write_prompts(cache, scheduler.row(admitted[0]), admitted, sizes)
        assert_held(cache, scheduler.running)
        assert len(scheduler.running) <= cache.slots
        assert all(sizes[job].most <= cache.capacity for job in scheduler.running) or not fixed


def test_a_step_writes_one_position_of_each_row_and_looks_at_what_is_before_it() -> None:
    cache = KVCache(CONFIG, ROWS, *PLACE)
    sizes = {1: Size(3, 9), 2: Size(5, 9)}
    write_prompts(cache, 0, [1, 2], sizes)
    cache.reserve(6, 2)
    view = DecodeView(cache, cache.lengths[:2], 6)
    new = torch.cat([numbers(1, 3, 4), numbers(2, 5, 6)])
    keys, _ = view.update(new, -new, 0)
    assert torch.equal(keys[0, :, :4], numbers(1, 0, 4)[0])
    assert torch.equal(keys[1], numbers(2, 0, 6)[0])
    assert view.mask[:, 0, 0].isfinite().tolist() == [[True] * 4 + [False] * 2, [True] * 6]


@pytest.mark.skipif(not native.supported(), reason="the kernel needs an x86 CPU under Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_attends_as_pytorch_does_though_a_growth_left_keys_and_values_of_different_lengths(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    heads = LlamaConfig(num_hidden_layers=1, hidden_size=384, num_attention_heads=6, num_key_value_heads=2, head_dim=64)
    lengths = [3, 200]
    cache, theirs = (KVCache(heads, ROWS, dtype, torch.device("cpu")) for _ in range(2))
    for each in (cache, theirs):
        each.begin(0, [Size(100, 300), Size(200, 300)])
        each.reserve(300, 2)
    cache.values[0] = torch.zeros(3, 2, 999, 64, dtype=dtype)
    for both in (cache.keys[0], cache.values[0]):
        both[:2, :, :300] = torch.randn(2, 2, 300, 64)
    theirs.keys[0], theirs.values[0] = cache.keys[0].clone(), cache.values[0][:, :, :300].clone()
    at = torch.tensor(lengths)
    queries, keys, values = (torch.randn(2, 1, count, 64, dtype=dtype).transpose(1, 2) for count in (6, 2, 2))
    view = DecodeView(theirs, at, 201)
    seen = view.update(keys, values, 0)
    expected = F.scaled_dot_product_attention(queries, *seen, view.mask, scale=0.1, enable_gqa=True)
    found = KernelView(cache, at).attend(0, queries, keys, values, 0.1)
    torch.testing.assert_close(
        found, expected.transpose(1, 2), rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=1e-2
    )
    for row, length in enumerate(lengths):
        assert torch.equal(cache.keys[0][row, :, length], keys[row, :, 0])
        assert torch.equal(cache.values[0][row, :, length], values[row, :, 0])


def test_a_fixed_cache_never_moves() -> None:
    cache = FixedKVCache(CONFIG, ROWS, *PLACE, POSITIONS)
    place = cache.keys[0].data_ptr()
    assert (cache.slots, cache.capacity) == (3, 64)
    cache.begin(0, [Size(1, 192)])
    assert (cache.slots, cache.capacity) == (1, 192)
    cache.release()
    cache.begin(0, [Size(1, 2), Size(1, 65)])
    assert (cache.slots, cache.capacity, cache.keys[0].data_ptr()) == (2, 65, place)


def test_slots_that_grow_take_memory_only_for_what_is_written() -> None:
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8, hidden_size=1024)
    cache, before = KVCache(config, 8, *PLACE), psutil.Process().memory_info().rss
    long, short = Size(10_000, 10_000), Size(100, 1000)
    for row, size in enumerate([long, *[short] * 7]):
        cache.begin(row, [size])
        prompt = torch.ones(1, 8, size.prompt, 128)
        for layer in range(2):
            PrefillView(cache, row).update(prompt, prompt, layer)
        cache.lengths[row] = size.prompt
    written = 4 * 8 * 128 * 4 * (10_000 + 7 * 100)
    assert psutil.Process().memory_info().rss - before < 1.4 * written  # 7 times, were all slots as long as the first
    assert not cache.keys[0][1, :, 100:].any()


def test_there_are_as_many_slots_as_jobs_have_come_to_run() -> None:
    cache = KVCache(CONFIG, ROWS, *PLACE)
    cache.begin(0, [Size(9, 9)])
    assert (cache.slots, cache.capacity) == (1, 256)
    write_prompts(cache, 0, [1], sizes := {1: Size(300, 400), 2: Size(5, 9)})
    write_prompts(cache, 1, [2], sizes)
    assert (cache.slots, cache.capacity) == (2, 512)
    assert_held(cache, [1, 2])


def test_a_growth_that_finds_no_memory_halfway_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, sizes = KVCache(CONFIG, ROWS, *PLACE), {1: Size(3, 9), 2: Size(300, 300), 3: Size(5, 9)}
    write_prompts(cache, 0, [1], sizes)
    monkeypatch.setattr(kv_cache, "zeros", failing_after(3, kv_cache.zeros))
    with pytest.raises(MemoryError):
        cache.begin(1, [sizes[2]])
    assert (cache.slots, cache.capacity) == (1, 256)
    monkeypatch.undo()
    write_prompts(cache, 1, [3], sizes)
    assert_held(cache, [1, 3])
    write_prompts(cache, 1, [2], sizes)
    assert_held(cache, [1, 2])


def failing_after(times: int, work: Callable[..., Any]) -> Callable[..., Any]:
    left = iter(range(times))

    def failing(*args: Any) -> Any:
        if next(left, None) is None:
            raise MemoryError
        return work(*args)

    return failing
