"""A transcription as OpenAI's and Mistral's clients read it: the parts of a body, and the events of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from streaming import sse
from transcript import Event, Finished, Lapse, Segment, SegmentDone, TextDelta, TextToken, Transcript, Usage


def token_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's token usage of a transcription, with Mistral's names beside, whose SDK insists on them."""
    return {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "input_token_details": {"text_tokens": usage.text_tokens, "audio_tokens": usage.audio_tokens},
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "prompt_audio_seconds": usage.audio_seconds,
    }


def logprobs(tokens: tuple[TextToken, ...]) -> list[dict[str, Any]]:
    return [{"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)} for token in tokens]


def language_codes(language: str | None) -> list[dict[str, str]]:
    return [{"code": language}] if language else []


# What is said of a segment whose text may not be whole.
LAPSES: dict[Lapse, str] = {
    "loop": "The model repeated itself here, also in shorter pieces. The repeats were left out; words may be missing.",
    "length": "The model reached its cap on tokens here before it had ended; words may be missing.",
}


def warnings(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {"code": s.lapse, "message": LAPSES[s.lapse], "start": s.start_ms / 1000, "end": s.end_ms / 1000}
        for s in transcript.segments
        if s.lapse
    ]


async def openai_frames(events: AsyncGenerator[Event], with_logprobs: bool) -> AsyncGenerator[bytes]:
    """OpenAI's `transcript.text.*` events. The stream ends by its end: `[DONE]` would break other SDKs."""

    def scores(tokens: tuple[TextToken, ...]) -> dict[str, Any]:
        return {"logprobs": logprobs(tokens)} if with_logprobs else {}

    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield sse({"type": "transcript.text.delta", "delta": event.text, **scores(event.tokens)})
            elif isinstance(event, Finished):
                transcript = event.transcript
                done = {"type": "transcript.text.done", "text": transcript.text, **scores(transcript.tokens)}
                found = language_codes(transcript.language)
                more = {"languages": found, "usage": token_usage(transcript.usage), "warnings": warnings(transcript)}
                yield sse({**done, **more})


def mistral_error(body: dict[str, Any]) -> bytes:
    """Mistral's SDKs know no error event: they raise over one, and say what was in it."""
    return sse({"object": "error", **body["error"]}, event="error")


async def mistral_frames(events: AsyncGenerator[Event], model: str) -> AsyncGenerator[bytes]:
    """Mistral's `transcription.*` events, whose SDKs read the type from the `event:` line and break on `[DONE]`."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield _mistral_event({"type": "transcription.text.delta", "text": event.text})
            elif isinstance(event, SegmentDone) and event.segment.text.strip():
                yield _mistral_event({"type": "transcription.segment", **mistral_segment(event.segment)})
            elif isinstance(event, Finished):
                if event.transcript.language:
                    language = event.transcript.language
                    yield _mistral_event({"type": "transcription.language", "audio_language": language})
                yield _mistral_event({"type": "transcription.done", **mistral_body(event.transcript, model)})


def _mistral_event(payload: dict[str, Any]) -> bytes:
    return sse(payload, event=payload["type"])


def mistral_segment(segment: Segment) -> dict[str, Any]:
    times = {"start": segment.start_ms / 1000, "end": segment.end_ms / 1000}
    return {"text": segment.text.strip(), **times, "speaker_id": None}


def mistral_body(transcript: Transcript, model: str) -> dict[str, Any]:
    said = [segment for segment in transcript.segments if segment.text.strip()]
    return {
        "model": model,
        "text": transcript.text,
        "language": transcript.language,
        "segments": [{"type": "transcription_segment", **mistral_segment(segment)} for segment in said],
        "usage": token_usage(transcript.usage),
        "finish_reason": "length" if transcript.truncated else "stop",
        "warnings": warnings(transcript),
    }
