from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from engine.core import Sampling, Token
from engine.sampling import Sampler, choose_tokens, nucleus

END = 2
LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.1, 0.2, 4.0]])


def test_temperature_zero_takes_the_likeliest_token_of_each_row() -> None:
    tokens = choose_tokens(LOGITS, [Sampler(Sampling(), END), Sampler(Sampling(), END)])
    assert [token.id for token in tokens] == [1, 3]
    assert tokens[0].logprob == pytest.approx(float(torch.log_softmax(LOGITS[0], -1)[1]))


def test_a_seed_repeats_its_tokens_whatever_shares_the_batch() -> None:
    def draw(neighbours: int) -> list[int]:
        own = Sampler(Sampling(temperature=1.0, seed=7), END)
        others = [Sampler(Sampling(temperature=1.0), END) for _ in range(neighbours)]
        logits = LOGITS[:1].expand(1 + neighbours, -1)
        return [choose_tokens(logits, [own, *others])[0].id for _ in range(50)]

    assert draw(0) == draw(3)
    assert len(set(draw(0))) > 1


def test_samples_follow_the_softmax_at_their_temperature() -> None:
    sampler = Sampler(Sampling(temperature=2.0, seed=1), END)
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


def greedy(*fields: float, steps: int = 3, prompt: tuple[int, ...] = (), **wanted: float) -> list[int]:
    sampler = Sampler(Sampling(**wanted), END, prompt)
    return [sampler.choose(torch.tensor(fields)) for _ in range(steps)]


def test_a_frequency_penalty_grows_with_each_use_and_a_presence_penalty_does_not() -> None:
    assert greedy(1.0, 3.0, 0.0, frequency_penalty=1.5) == [1, 1, 0]
    assert greedy(1.0, 3.0, 0.0, presence_penalty=1.5) == [1, 1, 1]
    assert greedy(2.0, 3.0, 0.0, presence_penalty=1.5) == [1, 0, 1]


def test_a_repetition_penalty_counts_the_prompt_too() -> None:
    assert greedy(1.0, 1.5, 0.0, repetition_penalty=2.0, steps=1) == [1]
    assert greedy(1.0, 1.5, 0.0, repetition_penalty=2.0, steps=1, prompt=(1,)) == [0]
    assert greedy(-1.0, -1.5, -9.0, repetition_penalty=2.0, steps=1, prompt=(0,)) == [1]


def test_bias_and_the_least_length_change_what_is_likeliest() -> None:
    assert greedy(1.0, 2.0, 3.0, steps=1, logit_bias=((0, 5.0),)) == [0]
    assert greedy(1.0, 2.0, 3.0, min_tokens=2) == [1, 1, END]


def test_top_k_and_min_p_leave_only_the_likeliest() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    by_rank = Sampler(Sampling(temperature=5.0, top_k=2, seed=1), END)
    assert {by_rank.choose(logits) for _ in range(100)} == {2, 3}
    by_share = Sampler(Sampling(temperature=1.0, min_p=0.3, seed=1), END)
    assert {by_share.choose(logits) for _ in range(100)} == {2, 3}


def test_the_likeliest_tokens_are_told_with_the_one_that_was_chosen() -> None:
    token = choose_tokens(LOGITS[:1], [Sampler(Sampling(top_logprobs=2), END)])[0]
    assert [i for i, _ in token.top] == [1, 2]
    assert token.top[0][1] == pytest.approx(token.logprob)


@given(st.integers(0, 2**31), st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=6))
def test_a_row_gets_its_token_whatever_its_neighbours_ask_for(seed: int, wishes: list[int]) -> None:
    logits = torch.randn(len(wishes), 50, generator=torch.Generator().manual_seed(seed))
    kinds = (Sampling(), Sampling(top_logprobs=1), Sampling(logit_bias=((7, 100.0),)))
    tokens = choose_tokens(logits, [Sampler(kinds[wish], END) for wish in wishes])
    for row, (wish, token) in enumerate(zip(wishes, tokens, strict=True)):
        assert token.id == (7 if wish == 2 else int(logits[row].argmax()))
        assert token.logprob == pytest.approx(float(torch.log_softmax(logits[row], -1)[token.id]), abs=1e-5)
        assert len(token.top) == (wish == 1)


def test_a_grammar_has_the_last_word() -> None:
    class OnlyZeroThenEnd:
        def __init__(self) -> None:
            self.accepted: list[int] = []

        def allowed(self) -> np.ndarray:
            return np.array([not self.accepted, False, bool(self.accepted), False])

        def accept(self, token: int) -> None:
            self.accepted.append(token)

    sampler = Sampler(Sampling(), END, grammar=OnlyZeroThenEnd())
    assert [sampler.choose(LOGITS[0]) for _ in range(2)] == [0, END]


class OnlyTheEnd:
    def allowed(self) -> np.ndarray:
        return np.arange(4) == END

    def accept(self, token: int) -> None: ...


class Broken(OnlyTheEnd):
    def allowed(self) -> np.ndarray:
        raise ValueError("no such grammar")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_grammar_ends_may_be_shorter_than_the_least_length(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature, min_tokens=50), END, grammar=OnlyTheEnd())
    assert choose_tokens(LOGITS[:1], [sampler])[0].id == END


def test_what_one_sampler_raises_is_the_result_of_its_row_alone() -> None:
    samplers = [Sampler(Sampling(), END, grammar=Broken()), Sampler(Sampling(temperature=1.0), END)]
    failed, chosen = choose_tokens(LOGITS, samplers)
    assert isinstance(failed, ValueError)
    assert isinstance(chosen, Token)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_temperature_next_to_zero_takes_the_likeliest(temperature: float) -> None:
    assert Sampler(Sampling(temperature), END).choose(LOGITS[0]) == 1


def test_a_bias_of_all_tokens_takes_no_more_operations_than_that_of_one() -> None:
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return operator(*args, **(kwargs or {}))

    def operations(tokens: int) -> int:
        sampler = Sampler(Sampling(logit_bias=tuple((token, 1.0) for token in range(tokens))), END)
        with Counting() as counting:
            sampler.choose(torch.zeros(1000))
        return counting.count

    assert operations(1000) == operations(1)
