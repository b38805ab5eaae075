"""Text in which a token that may as well be another one stands with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def shown(text: str, entries: list[dict[str, Any]], cutoff: float) -> str:
    """`text` with such tokens as `[this|other]`; `entries` are its tokens as the API tells of them. It stays as it is
    where they do not spell it, because words were replaced or a character began in the piece before.

    `cutoff`, 0 to 1: another token is shown where its probability p and this one's, q, have 1 - p/q <= cutoff.
    """
    body = text.lstrip()
    if _text(bytes(entry["bytes"]) for entry in entries).lstrip() != body:
        return text
    space = text[: len(text) - len(body)]
    return space + _text(_marked(entry, cutoff) for entry in entries).lstrip()


def _text(parts: Iterable[bytes]) -> str:
    """A character that is not whole yet comes with the next piece."""
    return b"".join(parts).decode(errors="ignore")


def _marked(entry: dict[str, Any], cutoff: float) -> bytes:
    token, word, top = bytes(entry["bytes"]), _word(entry), entry.get("top_logprobs", ())
    near = [other for other in top if 1 - math.exp(min(other["logprob"] - entry["logprob"], 0)) <= cutoff]
    others = [other for other in map(_word, near) if other and other != word]
    return token.replace(word.encode(), f"[{'|'.join([word, *others])}]".encode()) if word and others else token


def _word(entry: dict[str, Any]) -> str:
    """Empty for a token that is a part of a character."""
    try:
        return bytes(entry["bytes"]).decode().strip()
    except UnicodeDecodeError:
        return ""
