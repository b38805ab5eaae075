"""Rotations far into a stream, and caches that grow, against a cache that never forgets."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import VoxtralRealtimeTextConfig
from transformers.models.voxtral_realtime.modeling_voxtral_realtime import VoxtralRealtimeRotaryEmbedding

from engine.rolling import FAR, PackedForward, RollingCache, rotations

MOST = 5


def config(head_dim: int) -> VoxtralRealtimeTextConfig:
    return VoxtralRealtimeTextConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim,
        sliding_window=11, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


CONFIG = config(head_dim=8)


@pytest.mark.parametrize("head_dim", [8, 16, 64, 128])  # of the first, PyTorch's kernels take care; ours of the others
@hypothesis.settings(max_examples=20)
@given(
    steps=st.lists(st.tuples(st.integers(1, MOST), st.integers(0, MOST)), min_size=1, max_size=20),
    first=st.sampled_from([2, 100]),
)
def test_attention_over_a_window_is_the_same_however_it_is_fed_and_grows(
    head_dim: int, steps: list[tuple[int, int]], first: int
) -> None:
    """`steps`: positions in a call, and of them those that were guessed wrongly and are overwritten by the next."""
    cache = RollingCache(config(head_dim), MOST, torch.float32, torch.device("cpu"))
    cache._first = first
    at, keys, values = 0, torch.empty(2, 0, head_dim), torch.empty(2, 0, head_dim)
    for seed, (count, wrong) in enumerate(steps):
        generator = torch.Generator().manual_seed(seed)
        queries = torch.randn(1, 4, count, head_dim, generator=generator)
        new_keys, new_values = torch.randn(2, 1, 2, count, head_dim, generator=generator)
        packed = PackedForward([cache], [at], [count], torch.float32)
        attended = packed.attend(0, queries, new_keys, new_values, 0.5)[0].transpose(0, 1)
        keys, values = torch.cat([keys[:, :at], new_keys[0]], 1), torch.cat([values[:, :at], new_values[0]], 1)
        for i in range(count):
            seen = slice(max(0, at + i + 1 - CONFIG.sliding_window), at + i + 1)
            scores = queries[0, :, i, None] @ keys[:, seen].repeat_interleave(2, 0).transpose(1, 2) * 0.5
            expected = (scores.softmax(-1) @ values[:, seen].repeat_interleave(2, 0))[:, 0]
            torch.testing.assert_close(attended[:, i], expected, rtol=1e-4, atol=1e-5)
        at += count - min(wrong, count - 1)
    assert cache._memory.shape[3] <= CONFIG.sliding_window + MOST - 1
    cache.reserve(1000)
    assert cache._memory.nbytes == cache.most_bytes


def test_rotations_are_those_of_transformers_and_stay_exact_for_ever() -> None:
    rotary = VoxtralRealtimeRotaryEmbedding(CONFIG)
    near = torch.arange(0, FAR, 97)
    for ours, theirs in zip(rotations(rotary, near, torch.empty(1)), rotary(torch.empty(1), near[None]), strict=True):
        assert torch.equal(ours, theirs)
    far = torch.tensor([FAR, 10**8 + 12_345])  # three months
    angles = far[:, None].double() * rotary.inv_freq.double()
    cosines, sines = rotations(rotary, far, torch.empty(1))
    for ours, exact in ((cosines, angles.cos()), (sines, angles.sin())):
        torch.testing.assert_close(ours[0, :, :4], exact.float(), rtol=0, atol=3e-3)
