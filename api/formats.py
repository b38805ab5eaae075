"""How a transcript is written down: one function and one row in FORMATS for each `response_format`.

Times are integer milliseconds until the last moment, because a float 1.001 s prints as 1.000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from starlette.responses import JSONResponse, PlainTextResponse, Response

from api.times import NONE, Granularity, whisper_times
from api.transcription_wire import Task, language_codes, logprobs, mistral_body, warnings, warnings_header, whisper_head
from subtitles import TRADE_LIMITS, Cue, SubtitleLimits, shown_words, subtitles
from transcript import Transcript

MISTRALS_OWN = {"type": "transcription_segment", "speaker_id": None}


@dataclass(frozen=True)
class Shape:
    """What the request said about the answer."""

    model: str
    task: Task = "transcribe"
    logprobs: bool = False
    granularities: frozenset[Granularity] = NONE  # what has times
    subtitles: SubtitleLimits = TRADE_LIMITS


def as_json(transcript: Transcript, shape: Shape) -> Response:
    """One body that the SDKs of OpenAI and Mistral both read. Its segments have Mistral's keys and Whisper's."""
    times = whisper_times(transcript, shape.granularities)
    if "segments" in times:
        times["segments"] = [MISTRALS_OWN | segment for segment in times["segments"]]
    body = mistral_body(transcript, shape.model, shape.granularities) | times
    body["languages"] = language_codes(transcript.language)
    if not shape.granularities:
        del body["segments"]
    if shape.logprobs:
        body["logprobs"] = logprobs(transcript.tokens)
    return JSONResponse(body)


def as_text(transcript: Transcript, shape: Shape) -> Response:
    return PlainTextResponse(transcript.text + "\n")


def as_verbose_json(transcript: Transcript, shape: Shape) -> Response:
    return JSONResponse(
        {
            **whisper_head(transcript, shape.task),
            "text": transcript.text,
            **whisper_times(transcript, shape.granularities),
            "usage": {"type": "duration", "seconds": transcript.usage.audio_seconds},
            "warnings": warnings(transcript),
        }
    )


def as_srt(transcript: Transcript, shape: Shape) -> Response:
    cues = enumerate(_cues(transcript, shape, mark=","), start=1)
    return PlainTextResponse("".join(f"{i}\n{times}\n{text}\n\n" for i, (times, text) in cues))


def as_vtt(transcript: Transcript, shape: Shape) -> Response:
    """Its text is markup, in which `<`, `&` and `-->` mean something."""
    cues = _cues(transcript, shape, mark=".")
    body = "".join(f"{times}\n{escape(text, quote=False)}\n\n" for times, text in cues)
    return PlainTextResponse(f"WEBVTT\n\n{body}", media_type="text/vtt")


FORMATS: dict[str, Callable[[Transcript, Shape], Response]] = {
    "json": as_json,
    "text": as_text,
    "srt": as_srt,
    "verbose_json": as_verbose_json,
    "vtt": as_vtt,
}


def written(transcript: Transcript, response_format: str, shape: Shape) -> Response:
    """With a header that says where it may not be whole, since most formats have no place for that."""
    response = FORMATS[response_format](transcript, shape)
    response.headers.update(warnings_header(transcript))
    return response


def _cues(transcript: Transcript, shape: Shape, mark: str) -> list[tuple[str, str]]:
    """Times and text of subtitles; of each word by itself where times of words were asked for."""
    words = shown_words(transcript.segments)
    if "word" in shape.granularities:
        cues = [Cue(word.start_ms, word.end_ms, (word.text,)) for word in words]
    else:
        cues = subtitles(words, transcript.usage.audio_ms, shape.subtitles)
    return [(f"{clock(cue.start_ms, mark)} --> {clock(cue.end_ms, mark)}", "\n".join(cue.lines)) for cue in cues]


def clock(ms: int, mark: str) -> str:
    """`hh:mm:ss` and milliseconds behind `mark`; hours grow past 99 if they must."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{ms:03}"
