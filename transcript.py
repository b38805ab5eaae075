"""The nouns of a transcription: what was asked, the events that answer it, and the result that they fold into.

Times are integer milliseconds from the start of the audio. This module knows no HTTP, no model and no audio format.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. In the user's last turn, `audio_at` says before which part the audio was placed."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str, ...]
    audio_at: int | None = None


@dataclass(frozen=True)
class TranscriptionRequest:
    """What was asked, validated. With `messages` the model follows an instruction, without it writes down what it
    hears (Voxtral's transcription mode)."""

    language: str | None = None  # ISO 639-1; None: the model recognises it
    messages: tuple[Message, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None  # cap for each chunk, beside the cap by its length


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
class Segment:
    """A stretch of speech. A segment without text is a chunk in which the model heard nobody speak."""

    start_ms: int
    end_ms: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural logarithms, one for each token
    no_speech_prob: float  # the model's probability of ending before the first word
    temperature: float
    usage: Usage
    truncated: bool  # the token cap was reached before the model had ended

    @property
    def avg_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0

    @property
    def compression_ratio(self) -> float:
        """Length of the text over its zlib length, Whisper's measure of repetition."""
        raw = self.text.encode()
        return len(raw) / len(zlib.compress(raw)) if raw else 0.0


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class SegmentDone:
    segment: Segment


@dataclass(frozen=True)
class Finished:
    transcript: Transcript


Event = TextDelta | SegmentDone | Finished


@dataclass(frozen=True)
class Transcript:
    text: str
    language: str | None
    segments: tuple[Segment, ...] = ()
    usage: Usage = field(default_factory=Usage)

    @property
    def truncated(self) -> bool:
        return any(segment.truncated for segment in self.segments)


async def fold(events: AsyncIterator[Event]) -> Transcript:
    """The whole result of a stream of events: what a request without streaming is answered with."""
    async for event in events:
        if isinstance(event, Finished):
            return event.transcript
    raise RuntimeError("the events ended without Finished")
