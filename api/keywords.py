"""Words to expect, in the ways that clients write them: as a list, as a prompt, or inside of an instruction."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from api import fields
from api.errors import invalid
from transcript import Conversation

KEYWORDS = ("keywords", "context_bias", "hotwords")  # OpenAI's, Mistral's and vLLM's name for words to expect
MOST_KEYWORDS = 1000  # by one name
LONGEST_KEYWORD = 100  # characters
# Lotti's dictionary, a JSON array of strings in the middle of its instruction.
REQUIRED_SPELLINGS = re.compile(r'Required spellings:\s*(\[(?:"(?:[^"\\]|\\.)*"|[\s,])*\])', re.IGNORECASE)
# A prompt that is a list: up to three words at a time, commas between, and nothing that ends a sentence.
WORD_LIST = re.compile(r"[^,.!?:;\s]+( [^,.!?:;\s]+){0,2}(,\s*[^,.!?:;\s]+( [^,.!?:;\s]+){0,2})*")


def named_words(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a form or a JSON body by all their names. Raises ApiError as `fields.listed` and `keywords_of` do."""
    found = [word for name in KEYWORDS for word in keywords_of(fields.listed(values, name), name)]
    return tuple(dict.fromkeys(found))


def keywords_of(words: list[str], param: str) -> tuple[str, ...]:
    """The words, once each. Raises ApiError, naming `param`, when there are too many or one is no word any more."""
    found = tuple(dict.fromkeys(word for word in map(str.strip, words) if word))
    if len(found) > MOST_KEYWORDS:
        raise invalid(param, f"{param} names {len(found)} words; {MOST_KEYWORDS} are taken. Leave out the rest.")
    for word in found:
        if len(word) > LONGEST_KEYWORD:
            raise invalid(
                param, f"{param} names a word of {len(word)} characters; {LONGEST_KEYWORD} are taken. Shorten it."
            )
    return found


def _fitting(words: Iterable[str]) -> tuple[str, ...]:
    """The words, once each, of a text that need not be a list: what is too long or too many, the model still reads."""
    found = dict.fromkeys(word for word in map(str.strip, words) if 0 < len(word) <= LONGEST_KEYWORD)
    return tuple(islice(found, MOST_KEYWORDS))


def listed_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt that is nothing but a list of them; none of any other prompt."""
    prompt = prompt.strip()
    return _fitting(prompt.split(",")) if WORD_LIST.fullmatch(prompt) else ()


def required_spellings(conversation: Conversation) -> tuple[str, ...]:
    """The words of `Required spellings: ["macOS", ...]` in what the user or the system says about a recording."""
    if not conversation.recordings:
        return ()
    words: list[str] = []
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, str) and message.role in ("user", "system"):
                words += [word for found in REQUIRED_SPELLINGS.findall(part) for word in _strings(found)]
    return _fitting(words)


def _strings(text: str) -> list[str]:
    with suppress(ValueError):
        return json.loads(text)
    return []  # nearly a JSON array: the model still reads it
