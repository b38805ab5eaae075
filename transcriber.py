"""The use case: a request and an audio file become events, in the order of the audio.

Audio is decoded and cut while earlier chunks are with the model, at most one batch ahead, so memory does not grow with
the file. Chunks decode together; their text leaves in order. What the store has of an earlier request goes to no model.
This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

import languages
from audio_processor import SAMPLE_RATE, AudioFile
from chunk_reader import ChunkReader
from chunking import Chunk, chunks, speech_chunks
from config import Settings
from decoding import Asked, ChunkAhead, ChunkDecoding
from engine.core import Job, Prompt, Sampling
from engine.tokenizer import VoxtralTokenizer
from metrics import Metrics
from model_manager import Model, ModelManager
from progress import Caller, Progress, ProgressBoard
from replacements import read_replacements, replaced
from store import ChunkStore, Replay, Shelf
from transcript import (
    Conversation,
    Event,
    Finished,
    Gap,
    Segment,
    SegmentDone,
    TextDelta,
    Transcript,
    Usage,
)
from voice_activity import AUTO, Detection
from word_times import Timing

if TYPE_CHECKING:
    from aligner import Aligner
    from engine.worker import Worker  # brings torch, which takes seconds

HOUSEKEEPING_SECONDS = 3600  # after which texts are dropped that have become too old

Ready = asyncio.Queue[ChunkAhead | Replay | Exception | None]  # chunks in their order, at last an error or None


@dataclass(frozen=True)
class TranscriptionRequest:
    """What was asked, validated. With a conversation, in which one recording stands, the model follows its
    instruction for each chunk; without one it writes down what it hears (Voxtral's transcription mode)."""

    language: str | None  # ISO 639-1; None: the model recognises it
    conversation: Conversation | None
    sampling: Sampling
    _: KW_ONLY
    words_only: bool = False  # the conversation says no more than which words to expect
    max_tokens: int | None = None  # cap for each chunk, beside the cap by its length
    keywords: tuple[str, ...] = ()  # words to expect, spelled as they are to be written
    detection: Detection | None = None  # what counts as speech; None: AUTO
    streamed: bool = True  # whether text is wanted as it is decoded; what is told may then not be taken back
    timing: Timing = "chunks"


class Transcriber:
    def __init__(self, settings: Settings, models: ModelManager, metrics: Metrics) -> None:
        """Raises ConfigError for a file of replacements that cannot be read."""
        self.settings, self._models = settings, models
        self.metrics = metrics
        self.progress = ProgressBoard()
        file = settings.voxtral_replacements
        self.replacements = read_replacements(file) if file else None
        most_bytes, most_seconds = settings.chunk_store_mb * 1_000_000, settings.chunk_store_days * 86_400
        self.store = ChunkStore(settings.chunk_store_file, most_bytes, most_seconds) if most_bytes else None

    async def open(
        self, model: Model, request: TranscriptionRequest, audio: AudioFile, caller: Caller
    ) -> Transcription:
        """Check everything that can be wrong before the first byte of an answer; the result owns `audio`.

        Decodes the first chunk, or a minute, so that empty, damaged and too short audio is known. Does not wait for a
        model that is still loading. Raises AudioError, ModelUnavailable, PromptInvalid, PromptTooLong.
        """
        progress = self.progress.begin(caller, audio.declared_ms)
        reader = ChunkReader(audio, partial(self._cut, request.detection or AUTO, progress.search))
        transcription = Transcription(self, model, request, reader, caller, progress)
        try:
            model.check_available()
            if worker := model.loaded:
                await self.check(worker, request)
            await reader.probe()
        except BaseException:
            transcription.progress.end("failed")
            await transcription.close()
            raise
        return transcription

    def _cut(
        self, detection: Detection, searched: Callable[[int], None], blocks: Iterator[np.ndarray]
    ) -> Iterator[Chunk]:
        longest_seconds = self.settings.audio_chunk_size_seconds
        if self.settings.voxtral_vad == "off":
            return chunks(blocks, longest_seconds)
        return speech_chunks(blocks, longest_seconds, detection, searched)

    async def check(self, worker: Worker, request: TranscriptionRequest) -> None:
        """Raises PromptInvalid or PromptTooLong: for a chunk of full length, the longest that will come."""
        prompt = await asyncio.to_thread(_prompt, worker.backend.tokenizer, request)
        seconds = self.settings.audio_chunk_size_seconds
        cap = self.settings.token_cap(seconds)
        audio_tokens = worker.backend.audio_tokens(seconds * SAMPLE_RATE)
        worker.check(prompt, audio_tokens, min(cap, request.max_tokens or cap), request.sampling)

    async def keep_house(self) -> None:
        """Drop what the store has kept for too long, also where nobody asks for anything. Runs for ever."""
        while self.store:
            await asyncio.to_thread(self.store.drop_old)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    def use(self, model: Model) -> AbstractAsyncContextManager[Worker]:
        return self._models.use(model)

    async def aligner(self) -> Aligner | None:
        return await self._models.aligner.use() if self._models.aligner else None


class Source(Protocol):
    """Where chunks come from: a file, or an utterance that is being spoken."""

    @property
    def decoded_ms(self) -> int:
        """Audio that was looked at for them so far."""
        ...

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Where there was none, though the recording went on."""
        ...

    async def next(self) -> Chunk | None:
        """The next one; None after the last. Raises AudioError."""
        ...

    async def close(self) -> None: ...


class Transcription:
    """One request at work. Iterate `events()` once; `close()` in any case, which frees its places in the batch."""

    def __init__(
        self,
        transcriber: Transcriber,
        model: Model,
        request: TranscriptionRequest,
        source: Source,
        caller: Caller,
        progress: Progress,
    ) -> None:
        self.model, self.request, self.progress = model, request, progress
        self._started = time.monotonic()
        self._transcriber, self._source, self._caller = transcriber, source, caller
        self._settings = transcriber.settings
        self._ready: Ready | None = None
        self._shelf: Shelf | None = None
        self._decodings: list[ChunkAhead | Replay] = []
        self._producer: asyncio.Task[None] | None = None
        self._silent = False  # whether there is no text yet of what is to be told as a whole, in `events`
        self._closed = False

    async def events(self) -> AsyncGenerator[Event]:
        """TextDeltas and SegmentDones in the order of the audio, then Finished. Raises AudioError or EngineError."""
        self._silent = True
        try:
            async with self._transcriber.use(self.model) as worker:
                await self.begin(worker)
                async with aclosing(self.heard()) as events:
                    async for event in events:
                        if isinstance(event, TextDelta):
                            self._begun()
                        elif isinstance(event, Finished):
                            self._count(event.transcript)
                            self.progress.end("finished")
                        yield event
        except Exception:
            self.progress.end("failed")
            raise

    def _begun(self) -> None:
        """There is text, of which a client that does not stream sees nothing yet."""
        if self._silent:
            self._transcriber.metrics.first_text.observe(time.monotonic() - self._started)
        self._silent = False

    def _count(self, transcript: Transcript) -> None:
        metrics, seconds = self._transcriber.metrics, time.monotonic() - self._started
        usage, heard_ms = transcript.usage, sum(segment.usage.audio_ms for segment in transcript.segments)
        metrics.whole.observe(seconds)
        metrics.speed.observe(usage.audio_ms / 1000 / seconds)
        metrics.audio_seconds.inc(usage.audio_ms / 1000)
        metrics.silence_seconds.inc(max(usage.audio_ms - heard_ms, 0) / 1000)

    async def begin(self, worker: Worker) -> None:
        """Give chunks to the model as they come, ahead of whoever iterates `heard`."""
        asked = await self._asked(worker)
        self._shelf = self._open_shelf(asked)
        self._ready = asyncio.Queue(maxsize=worker.backend.limits.rows)
        self.progress.run()
        self._producer = asyncio.create_task(self._submit_chunks(asked, self._ready))

    async def heard(self) -> AsyncGenerator[Event]:
        """As `events`, of a transcription that has begun with a worker that is held."""
        segments: list[Segment] = []
        text = ""
        events, replacements = self._of_chunks(), self._transcriber.replacements
        async with aclosing(replaced(events, replacements) if replacements else events) as written:
            async for event in written:
                if isinstance(event, TextDelta):
                    text += event.text
                else:
                    segments.append(event.segment)
                yield event
        usage = sum((segment.usage for segment in segments), Usage())
        usage = replace(usage, audio_ms=self._source.decoded_ms)  # with what nobody spoke in
        language = self.request.language or await asyncio.to_thread(languages.detect, text, self.model.spec.languages)
        yield Finished(Transcript(text, language, tuple(segments), usage, self._source.gaps))

    async def _of_chunks(self) -> AsyncGenerator[TextDelta | SegmentDone]:
        """What the model wrote, chunk after chunk."""
        assert self._ready
        has_text = False
        while (item := await self._ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            async with aclosing(item.events(separate=has_text)) as events:
                async for event in events:
                    has_text |= isinstance(event, TextDelta)
                    yield event
            self._decodings.remove(item)
            self.progress.finish_chunk(stored=isinstance(item, Replay))

    async def _asked(self, worker: Worker) -> Asked:
        """What each chunk is asked."""
        request, tokenizer = self.request, worker.backend.tokenizer
        prompt = await asyncio.to_thread(_prompt, tokenizer, request)
        keywords = await asyncio.to_thread(tokenizer.keyword_tree, request.keywords)
        most = request.max_tokens or worker.backend.context_length
        job = Job(prompt, (), most, request.sampling, keywords=keywords, loops_end=True)
        aligner = await self._transcriber.aligner() if request.timing != "chunks" else None
        cap = self._settings.token_cap
        return Asked(worker, self, job, cap, request.timing, aligner, request.streamed, self._begun)

    def _open_shelf(self, asked: Asked) -> Shelf | None:
        """Finished chunks of such requests; None where none may be kept. What is drawn is drawn anew each time."""
        request, spec, store = self.request, self.model.spec, self._transcriber.store
        drawn = request.sampling.temperature > 0 and request.sampling.seed is None
        if store is None or drawn or not self._caller.keep:
            return None
        model = (spec.id, spec.revision, self.model.fingerprint, asked.worker.backend.description)
        aligner = asked.aligner and asked.aligner.identity
        same_text = replace(request, streamed=True)
        about = (self._caller.key, model, same_text, asked.job.prompt, self._settings.tokens_per_second, aligner)
        return Shelf(store, about, self._transcriber.metrics)

    async def _submit_chunks(self, asked: Asked, ready: Ready) -> None:
        """Decode, find or submit, and hand over chunk after chunk; an exception takes its place in the order."""
        try:
            while chunk := await self._source.next():
                found = await self._shelf.find(chunk) if self._shelf else None
                self._decodings.append(found or self._ahead(ChunkDecoding(asked, chunk)))
                self.progress.take(chunk.start_ms, chunk.end_ms, stored=found is not None)
                await ready.put(self._decodings[-1])
            self.progress.take_all(self._source.decoded_ms)
            await ready.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by events(), after the chunks before it
            await ready.put(error)

    def _ahead(self, decoding: ChunkDecoding) -> ChunkAhead:
        """Kept and counted when it is done, even where its text does not leave any more."""
        events = self._counted(decoding.events())
        return ChunkAhead(decoding, self._shelf.keep(decoding.chunk, events) if self._shelf else events)

    async def _counted(
        self, events: AsyncGenerator[TextDelta | SegmentDone]
    ) -> AsyncGenerator[TextDelta | SegmentDone]:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, SegmentDone):
                    self._transcriber.metrics.count_tokens(event.segment.usage)
                yield event

    async def close(self) -> None:
        """Give back the places in the batch, the file and the thread. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.progress.end("cancelled")  # unless it has ended
        if self._producer:
            self._producer.cancel()
            await asyncio.gather(self._producer, return_exceptions=True)
        for decoding in self._decodings:
            decoding.cancel()
        works = [decoding.work for decoding in self._decodings if isinstance(decoding, ChunkAhead)]
        await asyncio.gather(*works, return_exceptions=True)
        await self._source.close()


def _prompt(tokenizer: VoxtralTokenizer, request: TranscriptionRequest) -> Prompt:
    if request.conversation and (tokenizer.follows_instructions or not request.words_only):
        return tokenizer.chat_prompt(request.conversation)[0]
    return tokenizer.transcription_prompt(request.language)
