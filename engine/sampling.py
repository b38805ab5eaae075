"""Choose the next token of every row from its logits."""

from __future__ import annotations

import torch

from engine.core import Sampling, Token


class Sampler:
    """The choice for one job. Its random numbers are its own: neighbours in the batch do not change its text."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def choose(self, logprobs: torch.Tensor) -> int:
        """A token id from natural log-probabilities (vocabulary,) on the CPU, by temperature and nucleus."""
        if self._sampling.temperature == 0:
            return int(logprobs.argmax())
        probabilities = torch.softmax(logprobs / self._sampling.temperature, dim=-1)
        return int(torch.multinomial(nucleus(probabilities, self._sampling.top_p), 1, generator=self._generator))


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens whose probability reaches `top_p`; the others become 0.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019. The likeliest token always stays.
    """
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    ordered[ordered.cumsum(0) - ordered >= top_p] = 0
    return torch.zeros_like(probabilities).scatter(0, order, ordered)


def choose_tokens(logits: torch.Tensor, samplers: list[Sampler]) -> list[Token]:
    """One token for each row of logits (rows, vocabulary)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1).cpu()
    ids = [sampler.choose(row) for sampler, row in zip(samplers, logprobs, strict=True)]
    return [Token(token, float(row[token])) for token, row in zip(ids, logprobs, strict=True)]
