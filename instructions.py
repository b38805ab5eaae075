"""When an instruction means "write down what you hear", and how a prompt becomes an instruction."""

from __future__ import annotations

import re
from dataclasses import replace

import languages
from transcript import Conversation, Message, Slot

# Instructions that ask for nothing but a transcript. Voxtral's own transcription mode does that better than its chat.
# With one space between words: optional white space of any length would be tried in every way that it can be split.
PLAIN_TRANSCRIPTION = re.compile(
    r"(please )?transcribe( (this|the|my))?( (following|attached))?( (audio|recording|speech|file|clip))?"
    r"( (in)?to (natural )?text)?(,? please)? ?[.!]?",
    re.IGNORECASE,
)


def means_transcription(conversation: Conversation) -> bool:
    """Whether a conversation asks for a transcript of its one recording and for nothing else."""
    return conversation.recordings == 1 and not asks_for_more(conversation) and asks_for_transcript(conversation)


def asks_for_transcript(conversation: Conversation) -> bool:
    """Whether it is one turn of the user that says no more than "Transcribe this audio."."""
    first, *others = conversation.messages
    if others or first.role != "user":
        return False
    text = " ".join(" ".join(part for part in first.parts if isinstance(part, str)).split())
    return not text or PLAIN_TRANSCRIPTION.fullmatch(text) is not None


def says_no_more(text: str) -> bool:
    """Whether it is empty, or says no more than "Transcribe this audio."."""
    return asks_for_transcript(instructed(text))


def asks_for_more(conversation: Conversation) -> bool:
    """Whether the answer may be other than text."""
    return bool(conversation.tools) or conversation.response_format is not None


def spoken_in(conversation: Conversation, language: str | None) -> Conversation:
    """The conversation with a last word on what language the speech is in: chat mode has no other place for it."""
    if language is None:
        return conversation
    *turns, last = conversation.messages
    told = replace(last, parts=(*last.parts, f"The speech is in {languages.name_of(language)}."))
    return replace(conversation, messages=(*turns, told))


def translation(prompt: str, language: str | None) -> Conversation:
    """The instruction for a translation into English; `language` is what is spoken, if it is known."""
    return instructed(
        "Translate what is said in this audio into English. Write nothing but the translation."
        f"{_hints(prompt, language)}"
    )


def prompted_transcription(prompt: str, language: str | None) -> Conversation:
    """The instruction for a transcription with a prompt. Transcription mode has no place for one, chat mode has."""
    return instructed(
        f"Transcribe this audio word for word. Do not translate and do not answer.{_hints(prompt, language)}"
    )


def _hints(prompt: str, language: str | None) -> str:
    spoken = f" The speech is in {languages.name_of(language)}." if language else ""
    return spoken + (f" Names, spellings and style to expect: {prompt}" if prompt else "")


def instructed(instruction: str) -> Conversation:
    """A recording, then what to do with it."""
    return Conversation((Message("user", (Slot.AUDIO, instruction)),))
