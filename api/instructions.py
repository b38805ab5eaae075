"""When an instruction means "write down what you hear", and how a prompt becomes an instruction."""

from __future__ import annotations

import re

import pycountry

from transcript import Message

# Instructions that ask for nothing but a transcript. Voxtral's own transcription mode does that better than its chat.
PLAIN_TRANSCRIPTION = re.compile(
    r"\s*(please\s+)?transcribe(\s+(this|the|my))?(\s+(following|attached))?(\s+(audio|recording|speech|file|clip))?"
    r"(\s+(in)?to\s+(natural\s+)?text)?(,?\s+please)?\s*[.!]?\s*",
    re.IGNORECASE,
)


def means_transcription(messages: tuple[Message, ...]) -> bool:
    """Whether a conversation is one user turn that says no more than "Transcribe this audio."."""
    if len(messages) != 1 or messages[0].role != "user":
        return False
    text = "\n".join(messages[0].parts)
    return not text.strip() or PLAIN_TRANSCRIPTION.fullmatch(text) is not None


def prompted_transcription(prompt: str, language: str | None) -> tuple[Message, ...]:
    """The instruction for a transcription with a prompt. Transcription mode has no place for one, chat mode has."""
    spoken = f" The speech is in {pycountry.languages.get(alpha_2=language).name}." if language else ""
    instruction = (
        f"Transcribe this audio word for word. Do not translate and do not answer.{spoken} "
        f"Names, spellings and style to expect: {prompt}"
    )
    return (Message("user", (instruction,), audio_at=0),)
