"""Segments and words with their times, as Whisper's and as Mistral's clients read them."""

from __future__ import annotations

from typing import Any, Literal

from transcript import Gap, Segment, Transcript, Word

Granularity = Literal["segment", "word"]
NONE: frozenset[Granularity] = frozenset()


def spoken(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.text.strip()]


def whisper_times(transcript: Transcript, granularities: frozenset[Granularity]) -> dict[str, Any]:
    """`segments` and `words`, of which there are those that were asked for."""
    times: dict[str, Any] = {}
    if "segment" in granularities:
        times["segments"] = [whisper_segment(i, segment) for i, segment in enumerate(spoken(transcript))]
    if "word" in granularities:
        times["words"] = [{"word": word.text, **seconds(word)} for word in transcript.words]
    return times


def whisper_segment(index: int, segment: Segment) -> dict[str, Any]:
    """Whisper's ten keys. `seek` counts 10-ms frames from the start of the audio to the segment."""
    return {
        "id": index,
        "seek": segment.start_ms // 10,
        **seconds(segment),
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens],
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def mistral_segments(segment: Segment, granularities: frozenset[Granularity]) -> list[dict[str, Any]]:
    """The segment in Mistral's keys, or each of its words: Mistral's answers have one place for both. Where words
    have no times, or segments were asked for too, it is the segment."""
    parts = segment.words if granularities == {"word"} and segment.words else [segment]
    return [{"text": part.text.strip(), **seconds(part), "speaker_id": None} for part in parts if part.text.strip()]


def seconds(span: Segment | Word | Gap) -> dict[str, float]:
    return {"start": span.start_ms / 1000, "end": span.end_ms / 1000}
