from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import Sampling
from engine.sampling import Sampler, choose_tokens, nucleus

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.1, 0.2, 4.0]])


def test_temperature_zero_takes_the_likeliest_token_of_each_row() -> None:
    tokens = choose_tokens(LOGITS, [Sampler(Sampling()), Sampler(Sampling())])
    assert [token.id for token in tokens] == [1, 3]
    assert tokens[0].logprob == pytest.approx(float(torch.log_softmax(LOGITS[0], -1)[1]))


def test_a_seed_repeats_its_tokens_whatever_shares_the_batch() -> None:
    def draw(neighbours: int) -> list[int]:
        own = Sampler(Sampling(temperature=1.0, seed=7))
        others = [Sampler(Sampling(temperature=1.0)) for _ in range(neighbours)]
        logits = LOGITS[:1].expand(1 + neighbours, -1)
        return [choose_tokens(logits, [own, *others])[0].id for _ in range(50)]

    assert draw(0) == draw(3)
    assert len(set(draw(0))) > 1


def test_samples_follow_the_softmax_at_their_temperature() -> None:
    sampler = Sampler(Sampling(temperature=2.0, seed=1))
    logprobs = torch.log_softmax(LOGITS[0], -1)
    counts = torch.bincount(torch.tensor([sampler.choose(logprobs) for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(counts, torch.softmax(LOGITS[0] / 2, -1), atol=0.03)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_likeliest_set_that_reaches_top_p(logits: list[float], top_p: float) -> None:
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64), -1)
    kept = nucleus(probabilities.clone(), top_p)
    inside, outside = probabilities[kept > 0], probabilities[kept == 0]
    assert len(inside) >= 1
    assert not len(outside) or inside.min() >= outside.max()
    assert inside.sum() >= top_p - 1e-9
    assert inside.sum() - inside.min() < top_p + 1e-9
