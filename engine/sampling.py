"""Choose the next token of every row from its logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from engine.biasing import BOOST, MARGIN, NOTHING, KeywordBias, KeywordTree
from engine.core import Sampling, Token

COLDEST = 1e-5  # temperature below which the likeliest token has all the probability, and logits would overflow


class Grammar(Protocol):
    """What a text may go on with."""

    def allowed(self) -> np.ndarray:
        """Bool (vocabulary,): True for the tokens that may come next."""

    def accept(self, token: int) -> None:
        """The text went on with `token`."""


class Sampler:
    """The choice for one job. Its random numbers are its own: neighbours in the batch do not change its text."""

    def __init__(
        self,
        sampling: Sampling,
        end_of_text: int,
        prompt: tuple[int, ...] = (),
        grammar: Grammar | None = None,
        keywords: KeywordTree | None = None,
        silent: frozenset[int] = frozenset(),
    ) -> None:
        """`silent`: tokens that are no text, which penalties and keywords do not see."""
        self.sampling, self._silent = sampling, silent
        self._asks_nothing = sampling.plain and not grammar
        self._keywords = KeywordBias(keywords) if keywords else None
        self._end_of_text, self._grammar = end_of_text, grammar
        self._prompt = torch.tensor(sorted(set(prompt)), dtype=torch.long)
        self._biased = torch.tensor([token for token, _ in sampling.logit_bias], dtype=torch.long)
        self._biases = torch.tensor([bias for _, bias in sampling.logit_bias])
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    @property
    def plain(self) -> bool:
        """Whether this takes the likeliest token whatever came before, and tells of no other."""
        return self._asks_nothing and not self._keywords

    @property
    def spells(self) -> bool:
        """Whether nothing but words to expect can turn this from the likeliest token."""
        return self._asks_nothing and bool(self._keywords)

    def expect(self, keywords: KeywordTree | None, after: int | None) -> None:
        """Other keywords from here on; `after`: the text's last token, None at its beginning."""
        self._keywords = KeywordBias(keywords) if keywords else None
        if self._keywords and after is not None:
            self._keywords.accept(after)

    def candidates(self, likeliest: int) -> np.ndarray:
        """Ids of tokens that may be written in the place of the likeliest one, where this `spells`."""
        return NOTHING if likeliest in self._silent else self._keywords.candidates(likeliest)

    def spell(self, likeliest: int, near: Mapping[int, float], highest: float, total: float) -> int:
        """The likeliest token or one of its candidates, by the logits of those within MARGIN, the highest one and the
        logsumexp."""
        return self._keywords.spelled(likeliest, near, highest, total)

    def wrote(self, token: int) -> None:
        """`token` was chosen by `spell`, or without it because no candidate came near."""
        if token not in self._silent:
            self._keywords.accept(token)

    def choose(self, logits: torch.Tensor, total: torch.Tensor | None = None) -> int:
        """A token id from logits (vocabulary,) on the CPU, and `total`, their logsumexp, where it is known already."""
        if self._keywords:
            logits = self._expecting(self._keywords, logits, logits.logsumexp(-1) if total is None else total)
        token = self._draw(self._adjusted(logits))
        if token not in self._silent:
            self._counts[token] += 1
            if self._keywords:
                self._keywords.accept(token)
        if self._grammar:
            self._grammar.accept(token)
        return token

    def _expecting(self, keywords: KeywordBias, logits: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        best = int(logits.argmax())
        if best in self._silent:  # the doubt is whether there is text
            return logits
        ids = keywords.candidates(best)
        values, highest = logits.numpy()[ids], float(logits[best])
        close = values >= highest - MARGIN
        near = dict(zip(ids[close].tolist(), values[close].tolist(), strict=True))
        if raised := keywords.raised(best, near, highest, float(total)):
            logits = logits.clone()
            logits[raised] += BOOST
        return logits

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits after penalties, bias, the least length and the grammar, in vLLM's and OpenAI's sense of each."""
        wanted = self.sampling
        if wanted == Sampling(wanted.temperature, wanted.top_p, seed=wanted.seed) and not self._grammar:
            return logits
        logits = logits.clone()
        seen = torch.tensor(list(self._counts), dtype=torch.long)
        if wanted.repetition_penalty != 1:  # Keskar et al., "CTRL", 2019; the prompt counts too
            known = torch.cat([self._prompt, seen]).unique()
            factor = torch.where(logits[known] > 0, 1 / wanted.repetition_penalty, wanted.repetition_penalty)
            logits[known] *= factor
        if self._counts:
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits[seen] -= wanted.frequency_penalty * counts + wanted.presence_penalty
        logits.index_add_(0, self._biased, self._biases)
        must_end = False
        if self._grammar:
            allowed = self._grammar.allowed()
            logits[torch.from_numpy(~allowed)] = -torch.inf
            must_end = allowed.sum() == 1  # where the end is forbidden too, nothing would be left
        if self._counts.total() < wanted.min_tokens and not must_end:
            logits[self._end_of_text] = -torch.inf
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        wanted = self.sampling
        if wanted.temperature < COLDEST:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / wanted.temperature, dim=-1)
        if 0 < wanted.top_k < len(probabilities):
            probabilities[probabilities < probabilities.topk(wanted.top_k).values[-1]] = 0
        if wanted.min_p:
            probabilities[probabilities < wanted.min_p * probabilities.max()] = 0
        return int(torch.multinomial(nucleus(probabilities, wanted.top_p), 1, generator=self._generator))


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens whose share of the probability reaches `top_p`; the others become 0.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019. The likeliest token always stays.
    """
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    ordered[ordered.cumsum(0) - ordered >= top_p * ordered.sum()] = 0
    return torch.zeros_like(probabilities).scatter(0, order, ordered)


def choose_tokens(logits: torch.Tensor, samplers: list[Sampler]) -> list[Token | Exception]:
    """One token for each row of logits (rows, vocabulary), or what its sampler raised: its neighbours go on.

    The likeliest are found where the logits are, and come to the CPU in one copy, as do the candidates of samplers that
    spell; other choices are made there, from whole rows.
    """
    logits = logits.float()
    likeliest, ids = logits.max(-1)
    totals = logits.logsumexp(-1)
    # One tensor, so that the device is waited for once: ids below 2^24 are whole numbers in float32, too.
    found = torch.stack([ids.float(), likeliest, totals]).T.cpu()
    tokens: list[Token | Exception] = [Token(int(token), value - total) for token, value, total in found.tolist()]
    spelling = [row for row, sampler in enumerate(samplers) if sampler.spells]
    if spelling:
        _spell(logits, found, samplers, spelling, tokens)
    others = [row for row, sampler in enumerate(samplers) if not (sampler.plain or sampler.spells)]
    if others:
        for row, own in zip(others, logits[others].cpu(), strict=True):
            tokens[row] = _attempt(_token, own, found[row, 2], samplers[row])
    return tokens


def _spell(
    logits: torch.Tensor, found: torch.Tensor, samplers: list[Sampler], rows: list[int], tokens: list[Token | Exception]
) -> None:
    """Where candidates of `rows` come near the likeliest tokens, choose between them. Few ever do, so all are looked at
    together. found (all rows, 3): the likeliest ids, their logits, the logsumexp."""
    asked = [samplers[row].candidates(tokens[row].id) for row in rows]
    at, ids = np.repeat(rows, [len(candidates) for candidates in asked]), np.concatenate(asked)
    places = (torch.from_numpy(part).to(logits.device) for part in (at, ids))
    values = logits[tuple(places)].cpu().numpy()
    near: dict[int, dict[int, float]] = {}
    for place in np.flatnonzero(values >= found[:, 1].numpy()[at] - MARGIN):
        near.setdefault(int(at[place]), {})[int(ids[place])] = float(values[place])
    for row, own in near.items():
        tokens[row] = _attempt(_spelled, samplers[row], own, *found[row].tolist())
    for row in rows:
        if isinstance(token := tokens[row], Token):
            samplers[row].wrote(token.id)


def _spelled(sampler: Sampler, near: Mapping[int, float], likeliest: float, highest: float, total: float) -> Token:
    token = sampler.spell(int(likeliest), near, highest, total)
    return Token(token, (highest if token == likeliest else near[token]) - total)


def _token(logits: torch.Tensor, total: torch.Tensor, sampler: Sampler) -> Token:
    chosen = sampler.choose(logits, total)
    most = sampler.sampling.top_logprobs
    return Token(chosen, float(logits[chosen] - total), likeliest(logits - total, most) if most else ())


def likeliest(logprobs: torch.Tensor, most: int) -> tuple[tuple[int, float], ...]:
    """Ids and log-probabilities of the `most` likeliest tokens, from those of all (vocabulary,)."""
    values, ids = logprobs.topk(most)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _attempt(choose: Callable[..., Token], *arguments: Any) -> Token | Exception:
    try:
        return choose(*arguments)
    except Exception as error:  # noqa: BLE001 - a border of the worker: the wishes of one job may fail that job only
        return error
