"""The nouns of a transcription: what was asked, the events that answer it, and the result that they fold into.

Times are integer milliseconds from the start of the audio. This module knows no HTTP, no model and no audio format.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal


class Slot(Enum):
    """Where something stands in a message that is not text."""

    AUDIO = "audio"


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # JSON


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[str | Slot, ...]
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str | None = None  # of a tool: the call that it answers

    @property
    def recordings(self) -> int:
        return self.parts.count(Slot.AUDIO)


@dataclass(frozen=True)
class Conversation:
    """Messages, and what the answer may be: text, calls of tools, JSON. Tools and formats are OpenAI's objects."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: Mapping[str, Any] | None = None

    @property
    def recordings(self) -> int:
        return sum(message.recordings for message in self.messages)


@dataclass(frozen=True)
class Usage:
    """Tokens that the model read and wrote, and the audio it heard."""

    text_tokens: int = 0
    audio_tokens: int = 0
    output_tokens: int = 0
    audio_ms: int = 0

    @property
    def input_tokens(self) -> int:
        return self.text_tokens + self.audio_tokens

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def audio_seconds(self) -> int:
        """Whole seconds, rounded up, as audio is billed everywhere."""
        return -(-self.audio_ms // 1000)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.text_tokens + other.text_tokens,
            self.audio_tokens + other.audio_tokens,
            self.output_tokens + other.output_tokens,
            self.audio_ms + other.audio_ms,
        )


@dataclass(frozen=True)
class TextToken:
    """A token of the answer. Its bytes may be a part of a character."""

    id: int
    bytes: bytes
    logprob: float  # natural logarithm
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest tokens there, if they were asked for

    # In JSON, as the store keeps it.
    __pydantic_config__: ClassVar = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}

    @property
    def text(self) -> str:
        return self.bytes.decode(errors="replace")


# A text that is not whole: the model repeated itself, or reached the cap on tokens before it had ended. Or one whose
# times were asked for and could not be found.
Lapse = Literal["loop", "length", "untimed"]


@dataclass(frozen=True)
class Word:
    """What stands between white space, with the punctuation around it."""

    start_ms: int
    end_ms: int
    text: str


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: what was heard at once, or a part of it where times were asked for. A segment without text
    is a chunk in which the model heard nobody speak."""

    start_ms: int
    end_ms: int
    text: str
    tokens: tuple[TextToken, ...]
    no_speech_prob: float  # the model's probability of ending before the first word
    temperature: float  # the highest that a part of it was drawn with
    usage: Usage  # of all that was heard at once and of what was decoded again, counted by the first of its parts
    lapses: tuple[Lapse, ...] = ()  # why words, or their times, may be missing; each once
    words: tuple[Word, ...] = ()  # where each was spoken, if that was found out

    @property
    def avg_logprob(self) -> float:
        return sum(token.logprob for token in self.tokens) / len(self.tokens) if self.tokens else 0.0

    @property
    def compression_ratio(self) -> float:
        """Length of the text over its zlib length, Whisper's measure of repetition."""
        raw = self.text.encode()
        return len(raw) / len(zlib.compress(raw)) if raw else 0.0


@dataclass(frozen=True)
class Gap:
    """A stretch of the recording of which its file has no audio."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class TextDelta:
    text: str
    tokens: tuple[TextToken, ...] = ()


@dataclass(frozen=True)
class SegmentDone:
    segment: Segment
    mixed: bool = False  # the text is that of two hearings, because some of the first had left already


@dataclass(frozen=True)
class Finished:
    transcript: Transcript


Event = TextDelta | SegmentDone | Finished


@dataclass(frozen=True)
class Transcript:
    text: str
    language: str | None  # ISO 639-1, as asked for or else recognised from the text; None: too little to tell
    segments: tuple[Segment, ...] = ()
    usage: Usage = field(default_factory=Usage)
    gaps: tuple[Gap, ...] = ()

    @property
    def tokens(self) -> tuple[TextToken, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def truncated(self) -> bool:
        return any({"loop", "length"} & {*segment.lapses} for segment in self.segments)


async def fold(events: AsyncGenerator[Event]) -> Transcript:
    """The whole result of a stream of events: what a request without streaming is answered with."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                return event.transcript
    raise RuntimeError("the events ended without Finished")
