"""The use case: a request and an audio file become events, in the order of the audio.

Audio is decoded and cut while earlier chunks are with the model, at most one batch ahead, so memory does not grow with
the file. Chunks decode together; their text leaves in order. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import languages
from admission import Admission, TooManyRequests
from audio_processor import SAMPLE_RATE, AudioFile
from chunking import Chunk, chunks, milliseconds, speech_chunks
from config import Settings
from decoding import Asked, ChunkDecoding
from engine.core import Job, Prompt, Sampling
from engine.tokenizer import VoxtralTokenizer
from metrics import Metrics
from model_manager import Model, ModelManager
from replacements import read_replacements, replaced
from transcript import (
    Conversation,
    Event,
    Finished,
    Segment,
    SegmentDone,
    TextDelta,
    Transcript,
    Usage,
)
from voice_activity import AUTO, Detection

if TYPE_CHECKING:
    from engine.worker import Worker  # brings torch, which takes seconds


@dataclass(frozen=True)
class TranscriptionRequest:
    """What was asked, validated. With a conversation, in which one recording stands, the model follows its
    instruction for each chunk; without one it writes down what it hears (Voxtral's transcription mode)."""

    language: str | None  # ISO 639-1; None: the model recognises it
    conversation: Conversation | None
    sampling: Sampling
    max_tokens: int | None = None  # cap for each chunk, beside the cap by its length
    keywords: tuple[str, ...] = ()  # words to expect, spelled as they are to be written
    detection: Detection | None = None  # what counts as speech; None: AUTO


class Transcriber:
    def __init__(self, settings: Settings, models: ModelManager, admission: Admission, metrics: Metrics) -> None:
        """Raises ConfigError for a file of replacements that cannot be read."""
        self._settings, self._models = settings, models
        self.admission, self.metrics = admission, metrics
        file = settings.voxtral_replacements
        self.replacements = read_replacements(file) if file else None

    async def open(self, model: Model, request: TranscriptionRequest, audio: AudioFile) -> Transcription:
        """Check everything that can be wrong before the first byte of an answer; the result owns `audio`.

        Decodes the first chunk, so that empty, damaged and too short audio is known. Does not wait for a model that is
        still loading. Raises AudioError, ModelUnavailable, PromptInvalid, PromptTooLong, TooManyRequests.
        """
        try:
            self.admission.enter()
        except TooManyRequests:
            audio.close()
            raise
        transcription = Transcription(self, model, request, audio, self._settings)
        try:
            model.check_available()
            if worker := model.loaded:
                await transcription.check_prompt(worker)
            await transcription.decode_first_chunk()
        except BaseException:
            await transcription.close()
            raise
        return transcription

    def use(self, model: Model) -> AbstractAsyncContextManager[Worker]:
        return self._models.use(model)


class Transcription:
    """One request at work. Iterate `events()` once; `close()` in any case, which frees its places in the batch."""

    def __init__(
        self,
        transcriber: Transcriber,
        model: Model,
        request: TranscriptionRequest,
        audio: AudioFile,
        settings: Settings,
    ) -> None:
        self.model, self.request = model, request
        self._started = time.monotonic()
        self._transcriber, self._audio, self._settings = transcriber, audio, settings
        self._chunks = self._cut(settings.audio_chunk_size_seconds)
        self._first: Chunk | None = None
        self._decodings: list[ChunkDecoding] = []
        self._decoding = asyncio.Lock()
        self._producer: asyncio.Task[None] | None = None
        self._closed = False

    def _cut(self, longest_seconds: float) -> Iterator[Chunk]:
        if self._settings.voxtral_vad == "off":
            return chunks(self._audio.blocks(), longest_seconds)
        return speech_chunks(self._audio.blocks(), longest_seconds, self.request.detection or AUTO)

    async def check_prompt(self, worker: Worker) -> None:
        """Raises PromptInvalid or PromptTooLong: for a chunk of full length, the longest that will come."""
        prompt = await asyncio.to_thread(_prompt, worker.backend.tokenizer, self.request)
        seconds = self._settings.audio_chunk_size_seconds
        audio_tokens = worker.backend.audio_tokens(seconds * SAMPLE_RATE)
        worker.check(prompt, audio_tokens, self._token_cap(seconds), self.request.sampling)

    def _token_cap(self, seconds: float) -> int:
        cap = self._settings.token_cap(seconds)
        return min(cap, self.request.max_tokens or cap)

    async def decode_first_chunk(self) -> None:
        self._first = await self._next_chunk()

    async def _next_chunk(self) -> Chunk | None:
        """Decode up to the next cut in a thread. Cancelled, it still waits for the thread, which reads the file."""
        async with self._decoding:
            decoding = asyncio.ensure_future(asyncio.to_thread(next, self._chunks, None))
            try:
                return await asyncio.shield(decoding)
            finally:
                await asyncio.wait({decoding})

    async def events(self) -> AsyncGenerator[Event]:
        """TextDeltas and SegmentDones in the order of the audio, then Finished. Raises AudioError or EngineError."""
        metrics, silent = self._transcriber.metrics, True
        async with self._transcriber.use(self.model) as worker, aclosing(self._events(worker)) as events:
            async for event in events:
                if silent and isinstance(event, TextDelta):
                    metrics.first_text.observe(time.monotonic() - self._started)
                    silent = False
                elif isinstance(event, Finished):
                    self._count(event.transcript)
                yield event

    def _count(self, transcript: Transcript) -> None:
        metrics, seconds = self._transcriber.metrics, time.monotonic() - self._started
        usage, heard_ms = transcript.usage, sum(segment.usage.audio_ms for segment in transcript.segments)
        metrics.whole.observe(seconds)
        metrics.speed.observe(usage.audio_ms / 1000 / seconds)
        metrics.count(usage)
        metrics.silence_seconds.inc(max(usage.audio_ms - heard_ms, 0) / 1000)

    async def _events(self, worker: Worker) -> AsyncGenerator[Event]:
        ready: asyncio.Queue[ChunkDecoding | Exception | None] = asyncio.Queue(maxsize=worker.backend.limits.rows)
        self._producer = asyncio.create_task(self._submit_chunks(await self._asked(worker), ready))
        segments: list[Segment] = []
        text = ""
        while (item := await ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            async with aclosing(self._written(item, separate=bool(text))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        text += event.text
                    else:
                        segments.append(event.segment)
                    yield event
            self._decodings.remove(item)
        usage = sum((segment.usage for segment in segments), Usage())
        usage = replace(usage, audio_ms=milliseconds(self._audio.decoded))  # with what nobody spoke in
        language = self.request.language or await asyncio.to_thread(languages.detect, text, self.model.spec.languages)
        yield Finished(Transcript(text, language, tuple(segments), usage))

    async def _asked(self, worker: Worker) -> Asked:
        """What each chunk is asked."""
        request, tokenizer = self.request, worker.backend.tokenizer
        prompt = await asyncio.to_thread(_prompt, tokenizer, request)
        keywords = await asyncio.to_thread(tokenizer.keyword_tree, request.keywords)
        most = request.max_tokens or worker.backend.context_length
        job = Job(prompt, (), most, request.sampling, keywords=keywords, loops_end=True)
        return Asked(worker, self, job, self._settings.token_cap)

    async def _submit_chunks(self, asked: Asked, ready: asyncio.Queue[ChunkDecoding | Exception | None]) -> None:
        """Decode, submit and hand over chunk after chunk; an exception takes its place in the order."""
        chunk, self._first = self._first, None
        try:
            while chunk:
                decoding = ChunkDecoding(asked, chunk)
                self._decodings.append(decoding)
                await ready.put(decoding)
                chunk = await self._next_chunk()
            await ready.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by events(), after the chunks before it
            await ready.put(error)

    def _written(self, decoding: ChunkDecoding, separate: bool) -> AsyncGenerator[TextDelta | SegmentDone]:
        """The events of a chunk, with what is always written in one way."""
        events, replacements = decoding.events(separate), self._transcriber.replacements
        return replaced(events, replacements) if replacements else events

    async def close(self) -> None:
        """Give back the places in the batch, the file and the thread. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._transcriber.admission.leave()
        if self._producer:
            self._producer.cancel()
            await asyncio.gather(self._producer, return_exceptions=True)
        for decoding in self._decodings:
            decoding.cancel()
        async with self._decoding:
            self._audio.close()


def _prompt(tokenizer: VoxtralTokenizer, request: TranscriptionRequest) -> Prompt:
    if request.conversation:
        return tokenizer.chat_prompt(request.conversation)[0]
    return tokenizer.transcription_prompt(request.language)
