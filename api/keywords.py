"""Words to expect, in the ways that clients write them: as a list, as a prompt, or inside of an instruction."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from api import fields
from api.errors import invalid
from transcript import Conversation, Message, Slot

KEYWORDS = ("keywords", "context_bias", "hotwords")  # OpenAI's, Mistral's and vLLM's name for words to expect
MOST_KEYWORDS = 1000  # by one name
LONGEST_KEYWORD = 100  # characters
# Lotti's dictionary, a JSON array of strings in the middle of its instruction.
REQUIRED_SPELLINGS = re.compile(r'Required spellings:\s*(\[(?:"(?:[^"\\]|\\.)*"|[\s,])*\])\.?', re.IGNORECASE)
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


def prompted_words(prompt: str) -> tuple[tuple[str, ...], str]:
    """The words to expect of a prompt that is nothing but a list of them, or that has `Required spellings: ["macOS",
    ...]`; and what else it says, which is all of it where not all the words could be taken."""
    is_list = WORD_LIST.fullmatch(prompt.strip()) is not None
    words, rest = (prompt.split(","), "") if is_list else _spellings(prompt)
    taken, all_taken = _fitting(words)
    return taken, rest if all_taken else prompt


def required_spellings(conversation: Conversation) -> tuple[tuple[str, ...], Conversation]:
    """The words of `Required spellings: ["macOS", ...]` in what the user or the system says about a recording; and the
    conversation without these lists, unless not all the words could be taken."""
    words: list[str] = []
    turns: list[Message] = []
    for message in conversation.messages:
        parts: list[str | Slot] = []
        for part in message.parts:
            said, rest = (
                _spellings(part) if isinstance(part, str) and message.role in ("user", "system") else ([], part)
            )
            words += said
            parts.append(rest)
        turns.append(replace(message, parts=tuple(parts)))
    taken, all_taken = _fitting(words)
    beside = replace(conversation, messages=tuple(turns)) if all_taken else conversation
    return taken if conversation.recordings else (), beside


def _fitting(words: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """The words, once each, of a text that need not be a list, and whether these are all: what is too long or too many,
    the model may still read."""
    found = dict.fromkeys(word for word in map(str.strip, words) if word)
    fitting = tuple(islice((word for word in found if len(word) <= LONGEST_KEYWORD), MOST_KEYWORDS))
    return fitting, len(fitting) == len(found)


def _spellings(text: str) -> tuple[list[str], str]:
    """The words of all lists of required spellings, and the text without these lists."""
    words: list[str] = []

    def take(found: re.Match[str]) -> str:
        try:
            words.extend(json.loads(found[1]))
        except ValueError:
            return found[0]  # nearly a JSON array: the model still reads it
        return ""

    return words, REQUIRED_SPELLINGS.sub(take, text)
