"""The other use case: a conversation, with any number of recordings in it, is answered in one context of the model.

Where a transcription cuts its audio into chunks, an answer must hear all of it at once, so the recordings are decoded
whole, into files without names that end with the answer, and have to fit. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np

from answer import Answer, AnswerDone, AnswerEvent, Writer
from audio_processor import SAMPLE_RATE, AudioFile
from config import Settings
from engine.core import Job, PromptTooLong, Sampling
from engine.job_stream import JobStream
from metrics import Metrics
from model_manager import Model, ModelManager
from model_table import CONTEXT_LENGTH
from transcript import Conversation, Gap, Usage

if TYPE_CHECKING:
    from engine.worker import Worker  # brings torch, which takes seconds

LONGEST_SECONDS = CONTEXT_LENGTH * 0.08  # a token of audio is 80 ms


@dataclass(frozen=True)
class AnswerRequest:
    """What was asked, validated."""

    conversation: Conversation
    sampling: Sampling
    choices: int = 1  # answers to the same conversation, each with its own random numbers
    stop: tuple[str, ...] = ()  # texts that end an answer and are not part of it
    max_tokens: int | None = None
    keywords: tuple[str, ...] = ()  # words to expect, spelled as they are to be written


class Responder:
    def __init__(self, settings: Settings, models: ModelManager, metrics: Metrics) -> None:
        self.settings, self.models, self.metrics = settings, models, metrics

    async def open(self, model: Model, request: AnswerRequest, audio: list[AudioFile]) -> Reply:
        """Check everything that can be wrong before the first byte of an answer. Decodes and closes `audio`.

        Raises AudioError, ModelUnavailable, PromptInvalid, PromptTooLong.
        """
        try:
            reply = Reply(self, model, request)
            try:
                model.check_available()
                await reply.hear(audio)
                if worker := model.loaded:
                    await reply.job(worker)
            except BaseException:
                await reply.close()
                raise
        finally:
            for file in audio:
                file.close()
        return reply


class Reply:
    """One answer at work. Iterate `events()` once; `close()` in any case, which frees its places in the batch."""

    def __init__(self, responder: Responder, model: Model, request: AnswerRequest) -> None:
        self._responder, self._model, self._request = responder, model, request
        self._started = time.monotonic()
        self._samples: tuple[np.memmap, ...] = ()
        self._gaps: tuple[Gap, ...] = ()
        self._listening = True  # whether anybody waits for the recordings to be decoded
        self._streams: list[JobStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def hear(self, files: Iterable[AudioFile]) -> None:
        """Decode all recordings. Cancelled, it waits for the thread, which reads the files, to end at its next block.

        Raises AudioError, PromptTooLong.
        """
        decoding = asyncio.ensure_future(asyncio.to_thread(self._decode, files))
        try:
            await asyncio.shield(decoding)
        finally:
            self._listening = False
            await asyncio.gather(decoding, return_exceptions=True)

    def _decode(self, files: Iterable[AudioFile]) -> None:
        left = int(LONGEST_SECONDS * SAMPLE_RATE)
        for file in files:
            with TemporaryFile() as kept:
                for block in file.blocks():
                    if not self._listening:
                        return
                    left -= len(block)
                    if left < 0:
                        raise PromptTooLong(
                            f"The recordings are longer than {LONGEST_SECONDS / 60:.0f} minutes, more than the model's "
                            "context holds. /v1/audio/transcriptions takes them, in chunks."
                        )
                    kept.write(block)
                kept.flush()
                self._samples += (np.memmap(kept, np.float32, "r"),)
            self._gaps += file.gaps

    async def job(self, worker: Worker) -> Job:
        """What the engine is asked. Raises PromptInvalid, PromptTooLong."""
        request, tokenizer = self._request, worker.backend.tokenizer
        prompt, grammar = await asyncio.to_thread(tokenizer.chat_prompt, request.conversation)
        most = request.max_tokens or self._responder.settings.max_answer_tokens
        keywords = await asyncio.to_thread(tokenizer.keyword_tree, request.keywords)
        job = Job(prompt, self._samples, most, request.sampling, grammar, keywords)
        worker.check(prompt, worker.audio_tokens(job), most, job.sampling)
        return job

    async def events(self) -> AsyncGenerator[AnswerEvent]:
        """Deltas of all choices as they are decoded, and an AnswerDone for each. Raises EngineError."""
        metrics, silent = self._responder.metrics, True
        async with self._responder.models.use(self._model) as worker, aclosing(self._events(worker)) as events:
            async for event in events:
                if silent:
                    metrics.answer_first.observe(time.monotonic() - self._started)
                    silent = False
                yield event
        metrics.answer_whole.observe(time.monotonic() - self._started)

    async def _events(self, worker: Worker) -> AsyncGenerator[AnswerEvent]:
        job = await self.job(worker)
        ready: asyncio.Queue[AnswerEvent | Exception] = asyncio.Queue()
        for choice in range(self._request.choices):
            seed = None if job.sampling.seed is None else job.sampling.seed + choice
            stream = worker.submit(replace(job, sampling=replace(job.sampling, seed=seed)), self)
            self._streams.append(stream)
            writer = Writer(choice, worker.backend.tokenizer, self._request.stop)
            self._tasks.append(asyncio.create_task(self._write(stream, writer, ready)))
        unfinished = self._request.choices
        while unfinished:
            event = await ready.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, AnswerDone):
                unfinished -= 1
                self._responder.metrics.count(event.answer.usage)
            yield event

    async def _write(self, stream: JobStream, writer: Writer, ready: asyncio.Queue[AnswerEvent | Exception]) -> None:
        """Move the events of one choice into the queue that all choices share."""
        try:
            async for token in stream:
                for event in writer.add(token):
                    ready.put_nowait(event)
                if writer.stopped:
                    stream.cancel()
                    break
            reason = "length" if stream.done and stream.done.reason == "length" else "stop"
            for event in writer.finish(reason, self._usage(stream, writer), self._gaps):
                ready.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - raised again by events()
            ready.put_nowait(error)

    def _usage(self, stream: JobStream, writer: Writer) -> Usage:
        job = stream.job
        audio_ms = sum(len(samples) for samples in job.audio) * 1000 // SAMPLE_RATE
        output = stream.done.output_tokens if stream.done else len(writer.tokens)
        return Usage(job.prompt.text_tokens, stream.audio_tokens, output, audio_ms)

    async def close(self) -> None:
        """Give back the places in the batch. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            stream.cancel()


async def fold_answers(events: AsyncGenerator[AnswerEvent]) -> list[Answer]:
    """The whole answers, in the order of their choices."""
    answers: dict[int, Answer] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AnswerDone):
                answers[event.choice] = event.answer
    return [answers[choice] for choice in sorted(answers)]
