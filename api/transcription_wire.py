"""A transcription as OpenAI's and Mistral's clients read it: the parts of a body, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import languages
from answer import Answer
from api.times import NONE, Granularity, mistral_segments, seconds, whisper_times
from streaming import sse
from transcript import Event, Finished, Lapse, SegmentDone, TextDelta, TextToken, Transcript, Usage

Task = Literal["transcribe", "translate"]


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
    """With the likeliest tokens beside each where those were asked for, which OpenAI has in chats only."""

    def entry(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def beside(token: TextToken) -> dict[str, Any]:
        return {"top_logprobs": [entry(*other) for other in token.top]} if token.top else {}

    return [entry(token.bytes, token.logprob) | beside(token) for token in tokens]


def language_codes(language: str | None) -> list[dict[str, str]]:
    return [{"code": language}] if language else []


def language_name(code: str | None) -> str:
    """The English name in lower case, as Whisper says it; `unknown` where nothing tells."""
    return languages.name_of(code).lower() if code else "unknown"


def whisper_head(transcript: Transcript, task: Task) -> dict[str, Any]:
    """What `verbose_json` says beside text and times."""
    duration = transcript.usage.audio_ms / 1000
    return {"task": task, "language": language_name(transcript.language), "duration": duration}


WARNINGS_HEADER = "x-voxtral-warnings"
# What is said of a segment whose text, or what was to be found out of it, may not be whole.
LAPSES: dict[Lapse, str] = {
    "loop": "The model repeated itself here, also in shorter pieces. The repeats were left out; words may be missing.",
    "length": "The model reached its cap on tokens here before it had ended; words may be missing.",
    "untimed": "The text is whole, but where its words were spoken could not be found.",
}
INCOMPLETE = "The file has no audio here: it was cut or is damaged, or nothing was recorded. Words may be missing."
MOST_IN_HEADER = 8  # warnings; with 4 KB of headers some proxies refuse an answer


def warnings(heard: Transcript | Answer) -> list[dict[str, Any]]:
    lapses = [
        {"code": lapse, "message": LAPSES[lapse], **seconds(segment)}
        for segment in heard.segments
        for lapse in segment.lapses
    ]
    gaps = [{"code": "audio_incomplete", "message": INCOMPLETE, **seconds(gap)} for gap in heard.gaps]
    return sorted(lapses + gaps, key=lambda warning: warning["start"])


def warnings_if_any(heard: Transcript | Answer) -> dict[str, Any]:
    """`warnings` for answers in which no client expects them."""
    found = warnings(heard)
    return {"warnings": found} if found else {}


def warnings_header(transcript: Transcript) -> dict[str, str]:
    """The first of `warnings` in ASCII, where there are any; the last of many says how many more there are."""
    found = warnings(transcript)
    told, left = found[:MOST_IN_HEADER], found[MOST_IN_HEADER:]
    if left:
        message = f"{len(left)} more warnings. Ask for json or verbose_json, which have all."
        told.append(
            {"code": "more", "message": message, "start": left[0]["start"], "end": max(one["end"] for one in left)}
        )
    return {WARNINGS_HEADER: json.dumps(told)} if told else {}


async def openai_frames(
    events: AsyncGenerator[Event],
    with_logprobs: bool,
    granularities: frozenset[Granularity] = NONE,
    verbose: Task | None = None,
) -> AsyncGenerator[bytes]:
    """OpenAI's `transcript.text.*` events. The stream ends by its end: `[DONE]` would break other SDKs.

    Times stand in the last event, under the names that `verbose_json` has for them: OpenAI's own events of segments are
    those of speakers. `verbose`: the task, where the rest of that format is to stand there too.
    """

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
                head = whisper_head(transcript, verbose) if verbose else {}
                yield sse({**done, **head, **whisper_times(transcript, granularities), **more})


def mistral_error(body: dict[str, Any]) -> bytes:
    """Mistral's SDKs know no error event: they raise over one, and say what was in it."""
    return sse({"object": "error", **body["error"]}, event="error")


async def mistral_frames(
    events: AsyncGenerator[Event], model: str, granularities: frozenset[Granularity] = NONE
) -> AsyncGenerator[bytes]:
    """Mistral's `transcription.*` events, whose SDKs read the type from the `event:` line and break on `[DONE]`.

    Words stand in the last event too, under Whisper's name for them, since segments may have taken their place.
    """
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield _mistral_event({"type": "transcription.text.delta", "text": event.text})
            elif isinstance(event, SegmentDone):
                for segment in mistral_segments(event.segment, granularities):
                    yield _mistral_event({"type": "transcription.segment", **segment})
            elif isinstance(event, Finished):
                if event.transcript.language:
                    language = event.transcript.language
                    yield _mistral_event({"type": "transcription.language", "audio_language": language})
                body = mistral_body(event.transcript, model, granularities)
                words = whisper_times(event.transcript, granularities & {"word"})
                yield _mistral_event({"type": "transcription.done", **body, **words})


def _mistral_event(payload: dict[str, Any]) -> bytes:
    return sse(payload, event=payload["type"])


def mistral_body(transcript: Transcript, model: str, granularities: frozenset[Granularity]) -> dict[str, Any]:
    segments = (part for segment in transcript.segments for part in mistral_segments(segment, granularities))
    return {
        "model": model,
        "text": transcript.text,
        "language": transcript.language,
        "segments": [{"type": "transcription_segment", **segment} for segment in segments],
        "usage": token_usage(transcript.usage),
        "finish_reason": "length" if transcript.truncated else "stop",
        "warnings": warnings(transcript),
    }
