"""POST /audio/transcriptions: OpenAI's multipart form, and the same fields as JSON with base64 audio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

import languages
from api import fields, schemas
from api.dialects import speaks_mistral
from api.errors import ApiError, about, invalid, unsupported
from api.formats import FORMATS, Shape, written
from api.keywords import named_words, prompted_words
from api.openapi import EVENTS, FLAC, TEXT, answers
from api.scores import MOST_ALTERNATIVES, asked_scores
from api.service import AdmittedRoute, service_of
from api.times import Granularity
from api.transcription_wire import WARNINGS_HEADER, Task, mistral_error, mistral_frames, openai_frames
from api.uploads import read_fields
from engine.core import Sampling
from instructions import prompted_transcription, says_no_more, translation
from transcriber import Transcription, TranscriptionRequest
from transcript import Conversation, Event, fold
from voice_activity import Detection
from word_times import Timing

router = APIRouter(route_class=AdmittedRoute)

WORDS = {"type": "array", "items": {"type": "string"}}
SERVER_VAD = {
    "type": "object", "required": ["type"], "additionalProperties": False, "properties": {
        "type": {"type": "string", "enum": ["server_vad"]},
        "threshold": {
            "type": "number", "minimum": 0, "maximum": 1, "default": Detection.threshold,
            "description": "probability from which on somebody speaks",
        },
        "prefix_padding_ms": {
            "type": "integer", "minimum": 0, "default": Detection.prefix_padding_ms,
            "description": "kept before speech",
        },
        "silence_duration_ms": {
            "type": "integer", "minimum": 0, "default": Detection.silence_duration_ms,
            "description": "without speech end a stretch of it, and are kept behind it",
        },
    },
}  # fmt: skip
# What /docs says of each field; nested objects and lists may be spelled in every way that `fields` reads.
FIELDS: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "an id or alias of GET /v1/models", "examples": ["whisper-1"]},
    "language": {
        "type": "string", "examples": ["en"],
        "description": "what is spoken, ISO 639-1 or an English name; left out: recognised; also alone in `languages`",
    },
    "prompt": {
        "type": "string", "examples": ["Lotti, macOS"],
        "description": "names, spellings and style to expect. The words of one that is nothing but words with commas "
        "between, or that has `Required spellings: [\"Lotti\", \"macOS\"]`, are expected as `keywords` are",
    },
    "keywords": {**WORDS, "description": "spellings of words that may be said; also `context_bias` and `hotwords`"},
    "response_format": {
        "type": "string", "enum": list(FORMATS), "default": "json", "description": "how the transcript is written down",
    },
    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "description": "0: always the likeliest token"},
    "seed": {"type": "integer", "description": "the same seed makes the same choices at a temperature above 0"},
    "include": {
        "type": "array", "items": {"type": "string", "enum": ["logprobs"]},
        "description": "log-probability of each token, in `json` and in streams",
    },
    "top_logprobs": {
        "type": "integer", "minimum": 0, "maximum": MOST_ALTERNATIVES, "default": 0,
        "description": "so many likeliest tokens beside each of `logprobs`, which `include` must ask for",
    },
    "timestamp_granularities": {
        "type": "array", "items": {"type": "string", "enum": ["segment", "word"]},
        "description": "what has times: segments by default in `verbose_json`, also streamed, else nothing. "
        "`word` alone leaves segments out, and gives `srt` and `vtt` a cue for each word",
    },
    "chunking_strategy": {
        "anyOf": [{"type": "string", "enum": ["auto"]}, SERVER_VAD],
        "description": "audio is cut where nobody speaks; `server_vad` says what counts as speech",
    },
    "stream": {"type": "boolean", "default": False, "description": "server-sent events, text as it is decoded"},
    "max_completion_tokens": {
        "type": "integer", "minimum": 1, "description": "tokens for each chunk of the audio at most",
    },
    "top_p": {"type": "number", "description": "share of the probability that is drawn from"},
    "top_k": {"type": "integer", "description": "likeliest tokens that are drawn from; 0: all"},
    "min_p": {"type": "number", "description": "least share of the likeliest token's probability"},
    "frequency_penalty": {"type": "number", "description": "for each time that a token was written"},
    "presence_penalty": {"type": "number", "description": "for a token that was written"},
    "repetition_penalty": {"type": "number", "description": "divides the logits of tokens in prompt and text; 1: none"},
    "file_url": {
        "type": "string", "format": "uri", "description": "in place of a file: https, on a host of REMOTE_AUDIO_HOSTS",
    },
}  # fmt: skip
TO_LANGUAGE = {"to_language": {"type": "string", "enum": ["en"], "description": "translations are into English"}}
FILE = {"type": "string", "format": "binary", "description": "audio or video in any format of FFmpeg"}
BASE64 = {"type": "string", "description": "base64 of the file or a data URL; also `audio`", "examples": [FLAC]}
# How tokens are drawn, as vLLM's clients spell it: by the names of Sampling, with the least and the most.
DRAWING = {
    "top_p": (0.01, 1), "min_p": (0, 1), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),
}  # fmt: skip
# The parameters of `server_vad`, with the most that they may be.
VAD_PARAMETERS = {"threshold": 1, "prefix_padding_ms": 60_000, "silence_duration_ms": 60_000}


def audio_route(**more_fields: dict[str, Any]) -> dict[str, Any]:
    """What /docs says of a route that takes audio and the fields of a transcription."""

    def form(required: str, **fields: dict[str, Any]) -> dict[str, Any]:
        properties = {**fields, **FIELDS, **more_fields}
        return {"schema": {"type": "object", "required": ["model", required], "properties": properties}}

    in_json = form("file", file=BASE64)
    del in_json["schema"]["required"][1]  # it may be `audio` or `file_url` as well
    in_json["examples"] = {"base64": {"value": {"model": "whisper-1", "file": FLAC, "response_format": "json"}}}
    content = {
        "multipart/form-data": form("file", file=FILE),
        "application/x-www-form-urlencoded": form("file_url"),
        "application/json": in_json,
    }
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": answers(
            schemas.Transcription,
            schemas.VerboseTranscription,
            refused=(404, 408, 413, 415, 503),
            headers={
                WARNINGS_HEADER: "where the text may not be whole: JSON of the first of `warnings`, if there are any"
            },
            text=TEXT,
            vtt=TEXT,
            events=EVENTS,
        ),
    }


@dataclass(frozen=True)
class AudioCall:
    response_format: str
    stream: bool
    shape: Shape
    request: TranscriptionRequest


@router.post("/audio/transcriptions", **audio_route())
async def transcribe(request: Request) -> Response:
    """Audio to text. Answers in `response_format`, or with server-sent events when `stream` is true."""
    return await answer_audio(request, "transcribe")


async def answer_audio(request: Request, task: Task) -> Response:
    """The one way from a form with audio to an answer, for both tasks."""
    service = service_of(request)
    async with read_fields(request) as values:
        call = parse(values, task)
        if call.request.detection and service.settings.voxtral_vad == "off":
            raise unsupported("chunking_strategy", "This server does not look for speech. Leave chunking_strategy out.")
        model = service.model(call.shape.model)
        file = await service.recording(values)
    param = "prompt" if values.get("prompt") else "model"
    with about(param):
        transcription = await service.open(request, model, call.request, file)
    events, close, progress = _events(transcription, param), transcription.close, transcription.progress
    if not call.stream:
        shape = replace(call.shape, subtitles=service.subtitle_limits)
        shaped = partial(written, response_format=call.response_format, shape=shape)
        return await service.whole(request, fold(events), close, shaped)
    if speaks_mistral(request.headers, values):
        frames = mistral_frames(events, call.shape.model, call.shape.granularities)
        return service.stream(frames, close, mistral_error, progress)
    verbose = task if call.response_format == "verbose_json" else None
    frames = openai_frames(events, call.shape.logprobs, call.shape.granularities, verbose)
    return service.stream(frames, close, progress=progress)


async def _events(transcription: Transcription, param: str) -> AsyncGenerator[Event]:
    """A model that was not loaded yet finds only now what it cannot be told with `param`."""
    with about(param):
        async with aclosing(transcription.events()) as events:
            async for event in events:
                yield event


def parse(values: Mapping[str, Any], task: Task) -> AudioCall:
    """Every field that is known is obeyed or refused here."""
    response_format = _response_format(values)
    stream = fields.boolean(values, "stream")
    if stream and response_format in ("srt", "vtt"):
        raise unsupported(
            "response_format", f"{response_format} cannot be streamed. Leave out stream, or ask for json."
        )
    _refuse_speakers(values)
    spoken = fields.language(values)
    granularities = _granularities(values, task, response_format, stream)
    scores = asked_scores(values, response_format, stream)
    request = TranscriptionRequest(
        language="en" if task == "translate" else spoken,
        conversation=_instruction(values, task, spoken),
        words_only=task == "transcribe" and says_no_more(prompted_words(fields.text(values, "prompt") or "")[1]),
        sampling=replace(_sampling(values), top_logprobs=scores.alternatives),
        max_tokens=_token_limit(values),
        keywords=_keywords(values),
        detection=_detection(values),
        timing=_timing(granularities, response_format, stream),
        streamed=stream,
    )
    shape = Shape(_model_name(values), task, scores.logprobs, granularities)
    return AudioCall(response_format, stream, shape, request)


def _sampling(values: Mapping[str, Any]) -> Sampling:
    drawing = {name: fields.number(values, name, *bounds) for name, bounds in DRAWING.items()}
    return Sampling(
        fields.steady_temperature(fields.number(values, "temperature", 0, 1)),
        seed=fields.integer(values, "seed"),
        top_k=max(fields.integer(values, "top_k") or 0, 0),
        **{name: value for name, value in drawing.items() if value is not None},
    )


def _token_limit(values: Mapping[str, Any]) -> int | None:
    limit = fields.integer(values, "max_completion_tokens")
    if limit is not None and limit < 1:
        raise invalid("max_completion_tokens", "max_completion_tokens must be 1 or more. Leave it out for no limit.")
    return limit


def _keywords(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Words to expect by all their names, and those of a prompt."""
    listed, _ = prompted_words(fields.text(values, "prompt") or "")
    return tuple(dict.fromkeys(named_words(values) + listed))


def _instruction(values: Mapping[str, Any], task: Task, language: str | None) -> Conversation | None:
    """For what transcription mode cannot do: a prompt, and translations, which then also name the words to expect."""
    prompt = fields.text(values, "prompt") or ""
    if task == "translate":
        _check_target(values)
        return translation(", ".join(filter(None, [prompt, *named_words(values)])), language)
    return prompted_transcription(prompt, language) if prompt else None


def _check_target(values: Mapping[str, Any]) -> None:
    """vLLM's clients can ask for other languages than English."""
    target = fields.text(values, "to_language")
    if target and languages.code_of(target) != "en":
        raise unsupported("to_language", "Translations are into English. Leave to_language out, or use chat.")


def _model_name(values: Mapping[str, Any]) -> str:
    name = fields.text(values, "model")
    if name is None:
        raise ApiError(
            400, "model is missing. GET /v1/models lists what is served.", param="model", code="missing_model"
        )
    return name


def _response_format(values: Mapping[str, Any]) -> str:
    if fields.text(values, "response_format") == "diarized_json":
        raise unsupported(
            "response_format", "diarized_json needs speaker labels, which Voxtral does not give. Use json."
        )
    return fields.choice(values, "response_format", tuple(FORMATS), "json")


def _granularities(values: Mapping[str, Any], task: Task, response_format: str, stream: bool) -> frozenset[Granularity]:
    wanted = fields.listed(values, "timestamp_granularities")
    if not set(wanted) <= {"segment", "word"}:
        raise invalid("timestamp_granularities", "timestamp_granularities may only hold 'segment' and 'word'.")
    if "word" in wanted and task == "translate":
        raise unsupported(
            "timestamp_granularities", "The words of a translation are not those that were said. Ask for 'segment'."
        )
    if "word" in wanted and response_format == "text" and not stream:
        raise unsupported(
            "timestamp_granularities", "text has no place for times of words. Ask for response_format verbose_json."
        )
    return frozenset(wanted or (["segment"] if response_format == "verbose_json" else []))


def _timing(granularities: frozenset[Granularity], response_format: str, stream: bool) -> Timing:
    """What the answer shows the times of, for which a text by itself has no place."""
    if "word" in granularities or response_format in ("srt", "vtt"):
        return "words"
    return "segments" if granularities and (stream or response_format != "text") else "chunks"


def _detection(values: Mapping[str, Any]) -> Detection | None:
    """What counts as speech, where the client says it; else the server decides."""
    strategy = fields.nested(values, "chunking_strategy")
    given = {"type": strategy} if isinstance(strategy, str) else strategy or {}
    if given and given.get("type") not in ("auto", "server_vad"):
        raise invalid("chunking_strategy", "chunking_strategy must be 'auto' or an object of type 'server_vad'.")
    if unknown := [name for name in given if name not in ("type", *VAD_PARAMETERS)]:
        raise unsupported(
            f"chunking_strategy.{unknown[0]}",
            f"Beside type, chunking_strategy may hold {', '.join(VAD_PARAMETERS)}. Leave {unknown[0]} out.",
        )
    named = {f"chunking_strategy.{name}": value for name, value in given.items()}
    read = {name: fields.number(named, f"chunking_strategy.{name}", 0, most) for name, most in VAD_PARAMETERS.items()}
    chosen = {name: value for name, value in read.items() if value is not None}
    return Detection(**chosen) if chosen or given.get("type") == "server_vad" else None


def _refuse_speakers(values: Mapping[str, Any]) -> None:
    """What would need to know who speaks, or to have kept something."""
    if fields.boolean(values, "diarize"):
        raise unsupported("diarize", "Voxtral does not tell speakers apart. Send diarize=false.")
    fields.refuse(
        values,
        ("known_speaker_names", "known_speaker_references", "speaker_references"),
        "needs speaker labels, which Voxtral does not give.",
    )
    fields.refuse(values, ("file_id",), "is not supported: this server keeps no files. Send 'file'.")
    if len(fields.listed(values, "languages")) > 1:
        raise unsupported("languages", "Voxtral can be told one language at most. Send one, or leave languages out.")
