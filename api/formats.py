"""How a transcript is written down: one function and one row in FORMATS for each `response_format`.

Times are integer milliseconds until the last moment, because a float 1.001 s prints as 1.000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import JSONResponse, PlainTextResponse, Response

import languages
from api.transcription_wire import language_codes, logprobs, mistral_body, warnings
from transcript import Segment, Transcript

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class Shape:
    """What the request said about the answer."""

    model: str
    task: Task = "transcribe"
    logprobs: bool = False
    segments: bool = False  # in `json` too, as Mistral's clients ask for them


def as_json(transcript: Transcript, shape: Shape) -> Response:
    """One body that the SDKs of OpenAI and Mistral both read. Its segments have Mistral's keys and Whisper's."""
    body = mistral_body(transcript, shape.model) | {"languages": language_codes(transcript.language)}
    body["segments"] = [
        {"type": "transcription_segment", "speaker_id": None, **whisper} for whisper in _whisper_segments(transcript)
    ]
    if not shape.segments:
        del body["segments"]
    if shape.logprobs:
        body["logprobs"] = logprobs(transcript.tokens)
    return JSONResponse(body)


def as_text(transcript: Transcript, shape: Shape) -> Response:
    return PlainTextResponse(transcript.text + "\n")


def as_verbose_json(transcript: Transcript, shape: Shape) -> Response:
    usage = transcript.usage
    return JSONResponse(
        {
            "task": shape.task,
            "language": language_name(transcript.language),
            "duration": usage.audio_ms / 1000,
            "text": transcript.text,
            "segments": _whisper_segments(transcript),
            "usage": {"type": "duration", "seconds": usage.audio_seconds},
            "warnings": warnings(transcript),
        }
    )


def as_srt(transcript: Transcript, shape: Shape) -> Response:
    cues = [
        f"{i}\n{clock(s.start_ms, ',')} --> {clock(s.end_ms, ',')}\n{s.text.strip()}\n\n"
        for i, s in enumerate(spoken(transcript), start=1)
    ]
    return PlainTextResponse("".join(cues))


def as_vtt(transcript: Transcript, shape: Shape) -> Response:
    cues = [f"{clock(s.start_ms, '.')} --> {clock(s.end_ms, '.')}\n{s.text.strip()}\n\n" for s in spoken(transcript)]
    return PlainTextResponse("WEBVTT\n\n" + "".join(cues), media_type="text/vtt")


FORMATS: dict[str, Callable[[Transcript, Shape], Response]] = {
    "json": as_json,
    "text": as_text,
    "srt": as_srt,
    "verbose_json": as_verbose_json,
    "vtt": as_vtt,
}


def spoken(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.text.strip()]


def clock(ms: int, mark: str) -> str:
    """`hh:mm:ss` and milliseconds behind `mark`; hours grow past 99 if they must."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{ms:03}"


def language_name(code: str | None) -> str:
    """The English name in lower case, as Whisper says it; `unknown` where nothing tells."""
    return languages.name_of(code).lower() if code else "unknown"


def _whisper_segments(transcript: Transcript) -> list[dict[str, Any]]:
    return [_whisper_segment(i, segment) for i, segment in enumerate(spoken(transcript))]


def _whisper_segment(index: int, segment: Segment) -> dict[str, Any]:
    """Whisper's ten keys. `seek` counts 10-ms frames from the start of the audio to the segment."""
    return {
        "id": index,
        "seek": segment.start_ms // 10,
        "start": segment.start_ms / 1000,
        "end": segment.end_ms / 1000,
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens],
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }
