"""Which log-probabilities of tokens a transcription is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api import fields
from api.errors import invalid, unsupported

MOST_ALTERNATIVES = 5  # as in live sessions; those of four hours take 50 MB of memory


@dataclass(frozen=True)
class Scores:
    logprobs: bool
    alternatives: int  # likeliest tokens that are told beside each


def asked_scores(values: Mapping[str, Any], response_format: str, stream: bool) -> Scores:
    wanted = fields.listed(values, "include")
    if any(value != "logprobs" for value in wanted):
        raise invalid("include", "include may only hold 'logprobs'.")
    if wanted and response_format != "json" and not stream:
        raise unsupported("include", f"{response_format} has no place for logprobs. Ask for response_format json.")
    alternatives = fields.integer(values, "top_logprobs") or 0
    if not 0 <= alternatives <= MOST_ALTERNATIVES:
        raise invalid("top_logprobs", f"top_logprobs must be from 0 to {MOST_ALTERNATIVES}, not {alternatives}.")
    if alternatives and not wanted:
        raise invalid("top_logprobs", "top_logprobs stand beside logprobs. Send include[]=logprobs with it.")
    return Scores(bool(wanted), alternatives)
