"""The use case: a request and an audio file become events, in the order of the audio.

Audio is decoded and cut while earlier chunks are with the model, at most one batch ahead, so memory does not grow with
the file. Chunks decode together; their text leaves in order. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from audio_processor import SAMPLE_RATE, AudioFile
from chunking import Chunk, chunks
from config import Settings
from engine.core import Job, Prompt, Sampling
from engine.tokenizer import TextDecoder, VoxtralTokenizer
from engine.worker import JobStream, Worker
from model_manager import ModelManager
from transcript import Event, Finished, Segment, SegmentDone, TextDelta, Transcript, TranscriptionRequest, Usage

log = logging.getLogger("voxtral.transcriber")


class TooManyRequests(Exception):
    """As many requests as the server accepts are at work or waiting."""


@dataclass(frozen=True)
class _Submitted:
    chunk: Chunk
    stream: JobStream


class Transcriber:
    def __init__(self, settings: Settings, models: ModelManager) -> None:
        self._settings, self._models = settings, models
        self.active = 0

    async def open(self, request: TranscriptionRequest, audio: AudioFile) -> Transcription:
        """Check everything that can be wrong before the first byte of an answer; the result owns `audio`.

        Decodes the first chunk, so that empty, damaged and too short audio is known. Does not wait for a model that is
        still loading. Raises AudioError, ModelUnavailable, PromptInvalid, PromptTooLong, TooManyRequests.
        """
        if self.active >= self._settings.max_concurrent_requests:
            audio.close()
            raise TooManyRequests(
                f"{self.active} requests are at work, the most that this server takes. Try again soon."
            )
        transcription = Transcription(self, request, audio, self._settings)
        self.active += 1
        try:
            self._models.check_available()
            if worker := self._models.loaded:
                await transcription.check_prompt(worker)
            await transcription.decode_first_chunk()
        except BaseException:
            await transcription.close()
            raise
        return transcription

    async def worker(self) -> Worker:
        return await self._models.worker()


class Transcription:
    """One request at work. Iterate `events()` once; `close()` in any case, which frees its places in the batch."""

    def __init__(
        self, transcriber: Transcriber, request: TranscriptionRequest, audio: AudioFile, settings: Settings
    ) -> None:
        self.request = request
        self._transcriber, self._audio, self._settings = transcriber, audio, settings
        self._chunks: Iterator[Chunk] = chunks(audio.blocks(), settings.audio_chunk_size_seconds)
        self._first: Chunk | None = None
        self._submitted: list[JobStream] = []
        self._decoding = asyncio.Lock()
        self._producer: asyncio.Task[None] | None = None
        self._closed = False

    async def check_prompt(self, worker: Worker) -> None:
        """Raises PromptInvalid or PromptTooLong: for a chunk of full length, the longest that will come."""
        prompt = await asyncio.to_thread(_prompt, worker.backend.tokenizer, self.request)
        seconds = self._settings.audio_chunk_size_seconds
        worker.check_fits(prompt, seconds * SAMPLE_RATE, self._token_cap(seconds))

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
        worker = await self._transcriber.worker()
        prompt = await asyncio.to_thread(_prompt, worker.backend.tokenizer, self.request)
        ready: asyncio.Queue[_Submitted | Exception | None] = asyncio.Queue(maxsize=worker.backend.rows)
        self._producer = asyncio.create_task(self._submit_chunks(worker, prompt, ready))
        segments: list[Segment] = []
        text = ""
        while (item := await ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            async for event in self._chunk_events(item, worker.backend.tokenizer, separate=bool(text)):
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, SegmentDone):
                    segments.append(event.segment)
                yield event
        usage = sum((segment.usage for segment in segments), Usage())
        yield Finished(Transcript(text, self.request.language, tuple(segments), usage))

    async def _submit_chunks(
        self, worker: Worker, prompt: Prompt, ready: asyncio.Queue[_Submitted | Exception | None]
    ) -> None:
        """Decode, submit and hand over chunk after chunk; an exception takes its place in the order."""
        chunk, self._first = self._first, None
        try:
            while chunk:
                stream = worker.submit(self._job(chunk, prompt))
                self._submitted.append(stream)
                await ready.put(_Submitted(chunk, stream))
                chunk = await self._next_chunk()
            await ready.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by events(), after the chunks before it
            await ready.put(error)

    def _job(self, chunk: Chunk, prompt: Prompt) -> Job:
        request = self.request
        # Each chunk draws its own random numbers: the same ones would make the same choices in every chunk.
        seed = None if request.seed is None else request.seed + chunk.index
        sampling = Sampling(request.temperature, request.top_p, seed)
        return Job(prompt, chunk.samples, self._token_cap(chunk.seconds), sampling)

    async def _chunk_events(
        self, item: _Submitted, tokenizer: VoxtralTokenizer, separate: bool
    ) -> AsyncGenerator[TextDelta | SegmentDone]:
        """Deltas of one chunk as they are decoded, then its segment. `separate`: text stands before, put a space."""
        decoder = TextDecoder(tokenizer)
        tokens, logprobs, text = [], [], ""
        async for token in item.stream:
            tokens.append(token.id)
            logprobs.append(token.logprob)
            piece = decoder.add(token.id)
            piece = piece if text else piece.lstrip()
            if piece:
                yield TextDelta(" " + piece if separate and not text else piece)
                text += piece
        if tail := decoder.finish():
            yield TextDelta(tail)
            text += tail
        yield SegmentDone(self._segment(item, text, tuple(tokens), tuple(logprobs)))

    def _segment(self, item: _Submitted, text: str, tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Segment:
        done = item.stream.done
        assert done is not None
        self._submitted.remove(item.stream)
        start_ms, end_ms = item.chunk.speech_ms()
        if done.reason == "length":
            log.warning("chunk %d reached its cap of %d tokens", item.chunk.index, done.output_tokens)
        return Segment(
            start_ms, end_ms, text, tokens, logprobs, done.no_speech_prob, self.request.temperature,
            Usage(done.text_tokens, done.audio_tokens, done.output_tokens, item.chunk.duration_ms),
            truncated=done.reason == "length",
        )  # fmt: skip

    async def close(self) -> None:
        """Give back the places in the batch, the file and the thread. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._transcriber.active -= 1
        if self._producer:
            self._producer.cancel()
            await asyncio.gather(self._producer, return_exceptions=True)
        for stream in self._submitted:
            stream.cancel()
        async with self._decoding:
            self._audio.close()


def _prompt(tokenizer: VoxtralTokenizer, request: TranscriptionRequest) -> Prompt:
    return (
        tokenizer.chat_prompt(request.messages)
        if request.messages
        else tokenizer.transcription_prompt(request.language)
    )
