"""POST /chat/completions: as Lotti sends it, and with the content parts and options of OpenAI, Mistral and vLLM.

A recording that is only to be written down is transcribed in chunks, however long it is; anything else is a
conversation that the model answers in one context.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from answer import Answer, AnswerDelta, AnswerDone, AnswerEvent
from api import fields
from api.chat_messages import Recording, conversation_of
from api.chat_schema import ChatBody
from api.chat_wire import ChatCompletion
from api.errors import ApiError, from_validation, invalid, unsupported
from api.keywords import named_words, required_spellings
from api.openapi import EVENTS, FLAC, answers, json_body
from api.schemas import Completion
from api.service import AdmittedRoute, Service, service_of
from api.uploads import base64_file, is_address, read_json
from instructions import asks_for_more, asks_for_transcript, means_transcription, spoken_in
from responder import AnswerRequest, fold_answers
from transcriber import TranscriptionRequest
from transcript import Conversation, Event, Finished, TextDelta

router = APIRouter(route_class=AdmittedRoute)

MOST_ADDRESSES = 8  # that one chat may have fetched, each as large and as slow as is allowed
REFUSED = {
    "modalities": (None, ["text"]), "functions": (None, []), "function_call": (None,), "prediction": (None,),
    "web_search_options": (None,), "prompt_logprobs": (None,), "prompt": (None, ""),
    "chunking_strategy": (None, "auto"), "timestamp_granularities": (None, []), "include": (None, []),
    "diarize": (None, False),
}  # fmt: skip
REMEDIES = {
    "prompt": "Write it into a message, and words to expect into keywords.",
    "chunking_strategy": "Send the recording to /v1/audio/transcriptions.",
    "timestamp_granularities": "Send the recording to /v1/audio/transcriptions.",
    "include": "Send logprobs: true.",
}  # in place of "Leave it out."


EXAMPLES: dict[str, dict[str, Any]] = {
    "transcript": {
        "model": "whisper-1", "audio": FLAC, "messages": [{"role": "user", "content": "Transcribe this audio."}],
    },
    "question": {
        "model": "whisper-1", "max_tokens": 50, "messages": [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": FLAC, "format": "flac"}},
            {"type": "text", "text": "What is said in this recording?"},
        ]}],
    },
    "text": {"model": "whisper-1", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello."}]},
}  # fmt: skip


@router.post(
    "/chat/completions",
    openapi_extra=json_body(ChatBody, **EXAMPLES),
    responses=answers(Completion, refused=(404, 408, 413, 503), events=EVENTS),
)
async def complete(request: Request) -> Response:
    """A transcript, an answer about recordings, or plain chat. Streams text as it is decoded when `stream` is true."""
    service = service_of(request)
    values = await read_json(request)
    words = named_words(values)
    try:
        body = ChatBody.model_validate(values)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from None
    for name, neutral in REFUSED.items():
        if values.get(name) not in neutral:
            raise unsupported(name, f"{name} is not supported here. {REMEDIES.get(name, 'Leave it out.')}")
    language = fields.language(values)
    model = service.model(body.model)
    conversation, recordings = conversation_of(body)
    spellings, asked = required_spellings(conversation)
    keywords = tuple(dict.fromkeys(words + spellings))
    if not recordings:
        _check_without_audio(asked, language)
    in_chunks, wants_usage = _in_chunks(body, asked), body.wants_usage
    values.clear()
    body.messages.clear()
    body.audio = None  # from here on, base64 is only where it is decoded from
    files = await _files(service, recordings)
    if in_chunks:
        instructed = None if means_transcription(asked) else spoken_in(conversation, language)
        to_write = TranscriptionRequest(
            language,
            instructed,
            body.sampling,
            max_tokens=body.token_limit,
            keywords=keywords,
            streamed=bool(body.stream),
        )
        transcription = await service.open(request, model, to_write, files[0])
        events, close = _answered(transcription.events()), transcription.close
        progress = transcription.progress
    else:
        question = spoken_in(conversation, language)
        wanted = AnswerRequest(question, body.sampling, body.n, body.stops, body.token_limit, keywords)
        reply = await service.reply(model, wanted, files)
        events, close, progress = reply.events(), reply.close, None
    completion = ChatCompletion(body.model, bool(body.logprobs))
    if body.stream:
        return service.stream(completion.frames(events, wants_usage), close, progress=progress)
    return await service.whole(request, fold_answers(events), close, partial(_answer, completion))


def _check_without_audio(conversation: Conversation, language: str | None) -> None:
    """Plain chat is fine, but not where the client has forgotten to send what it speaks of."""
    if asks_for_transcript(conversation):
        raise ApiError(
            400,
            "There is no audio to transcribe. Put base64 into 'audio' or a content part of type input_audio.",
            param="audio",
            code="missing_audio",
        )
    if language:
        raise invalid("language", "language is that of a recording, and there is none. Leave it out.")


def _answer(completion: ChatCompletion, answers: list[Answer]) -> Response:
    return JSONResponse(completion.body(answers))


async def _files(service: Service, recordings: list[Recording]) -> list[BinaryIO]:
    """The recordings as files, in their order. Takes each out of the list, so that its text is not kept beside it."""
    remote = [recording for recording in recordings if recording.may_be_address and is_address(recording.data)]
    if len(remote) > MOST_ADDRESSES:
        raise invalid(remote[-1].param, f"More than {MOST_ADDRESSES} recordings by address. Send the audio itself.")
    files: list[BinaryIO] = []
    try:
        while recordings:
            recording = recordings.pop(0)
            if recording.may_be_address and is_address(recording.data):
                files.append(await service.remote.fetch(recording.data, recording.param))
            else:
                limit_mb = service.settings.max_audio_size_mb
                files.append(await base64_file(recording.data, recording.param, limit_mb, recording.raw_rate))
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


async def _answered(events: AsyncGenerator[Event]) -> AsyncGenerator[AnswerEvent]:
    """A transcription as the only choice of an answer."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield AnswerDelta(0, event.text, event.tokens)
            elif isinstance(event, Finished):
                heard = event.transcript
                reason = "length" if heard.truncated else "stop"
                answer = Answer(heard.text, (), reason, heard.tokens, heard.usage, heard.segments, heard.gaps)
                yield AnswerDone(0, answer)


def _in_chunks(body: ChatBody, conversation: Conversation) -> bool:
    """Lotti's field `audio` always means a transcript, whatever its instruction says about punctuation or names."""
    one_text = not (body.n > 1 or body.stops or asks_for_more(conversation))
    if body.recording is not None and not one_text:
        raise unsupported(
            "audio",
            "The recording in 'audio' is transcribed in chunks, so n, stop, tools and response_format cannot be "
            "obeyed. Send it as a content part of type input_audio.",
        )
    return body.recording is not None or (one_text and means_transcription(conversation))
