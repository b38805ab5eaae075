"""Whose events a stream of transcription must send: OpenAI's and Mistral's cannot be told in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields that only Mistral's clients send. Theirs also write `timestamp_granularities` without brackets.
MISTRAL_FIELDS = (
    "diarize", "context_bias", "file_url", "file_id", "speaker_references", "return_language",
    "timestamp_granularities",
)  # fmt: skip
OPENAI_FIELDS = ("response_format", "include", "include[]")


def speaks_mistral(headers: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    """By what an SDK says of itself, else by the fields; OpenAI's dialect where neither tells."""
    if "x-stainless-lang" in headers:
        return False
    if headers.get("user-agent", "").startswith("mistral-client-"):
        return True
    return not any(name in values for name in OPENAI_FIELDS) and any(name in values for name in MISTRAL_FIELDS)
