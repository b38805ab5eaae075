"""Answers held to a grammar, by llguidance: which tokens may come next."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

# JSON without spaces to choose from: a model that is not sure would write spaces for ever.
COMPACT_JSON = '%json {{"x-guidance": {{"whitespace_flexible": false, "lenient": {}}}, '


def compact(grammar: str, lenient: bool) -> str:
    """The grammar for JSON without spaces; `lenient`: keywords of a schema that llguidance cannot hold are let go."""
    return re.sub(r"%json \{(?=\")", COMPACT_JSON.format(str(lenient).lower()), grammar)


class GrammarMatcher:
    """Which tokens a grammar allows after those that it has accepted (see engine.sampling.Grammar)."""

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        self._matcher = LLMatcher(tokenizer, grammar)
        self._size = tokenizer.vocab_size
        self._bits = allocate_token_bitmask(1, self._size)

    def allowed(self) -> np.ndarray:
        """Bool (vocabulary,)."""
        fill_next_token_bitmask(self._matcher, self._bits)
        bits = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._size]
        return bits.astype(bool)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
