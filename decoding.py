"""One chunk of audio to its events. Where the model fails on it, it is decoded again.

A decoding has failed when it looped, wrote more tokens than its audio can need, told a long stretch twice, ended where
the model was not sure of that, or, where times are asked for, has no words where much is spoken or more than there is
time for. Then the audio is heard again in halves, and a half that fails in halves of its own, down to some seconds.
There a stretch that stands twice is believed, and so are ends and times; the others are decoded with temperature. What
fails to the end is kept as far as it is no repetition, and the segment says so. Of a decoding that failed some text may
have left already, if it is streamed; it stays, and the new text goes on behind it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from audio_processor import SAMPLE_RATE
from chunk_text import ChunkText, joined
from chunking import Chunk, halves
from continuation import begins_word
from engine.core import EngineError, Job, JobDone
from engine.job_stream import JobStream
from transcript import Lapse, Segment, SegmentDone, TextDelta, TextToken, Usage
from word_times import Timing, is_crowded, leaves_gap, needs_places, timed_segments

if TYPE_CHECKING:
    from aligner import Aligner
    from engine.worker import Worker  # brings torch, which takes seconds

log = logging.getLogger("voxtral.decoding")

LEAST_SECONDS = 8  # a shorter piece is not halved
DOUBT = 0.15  # probability of another word from which on the end of a text is not believed (decisions/016-loops.md)
TEMPERATURES = (0.2, 0.4, 0.8)  # that such a piece is tried with, where no higher one was asked for


@dataclass(frozen=True)
class Asked:
    """What all chunks of a recording are asked."""

    worker: Worker
    owner: Hashable  # whose turn in the batch they share
    job: Job  # without its audio; `max_tokens` is the client's cap for a chunk
    token_cap: Callable[[float], int]  # most tokens that so many seconds of audio can need
    timing: Timing = "chunks"
    aligner: Aligner | None = None  # what finds times, for texts that it covers; else the model's own attention
    streamed: bool = True  # whether text leaves as it is decoded
    begun: Callable[[], None] = lambda: None  # called where nothing leaves yet, when there is some of a chunk


@dataclass(frozen=True)
class _Heard:
    """What one decoding of one piece came to; its tokens without the repeats of a loop."""

    tokens: tuple[TextToken, ...]
    temperature: float
    done: JobDone
    fault: str  # why it is not believed; empty: it is


class ChunkDecoding:
    """One chunk at work, which waits for its place in the batch from the beginning. Iterate `events()` once."""

    def __init__(self, asked: Asked, chunk: Chunk) -> None:
        """Raises PromptTooLong, EngineStopped."""
        self.chunk = chunk
        self._asked = asked
        self._usage = Usage(audio_ms=chunk.duration_ms)
        self._decodings = 0
        self._stream = self._submit(chunk.samples, asked.job.sampling.temperature, self._is_read_again)

    def cancel(self) -> None:
        self._stream.cancel()

    async def events(self) -> AsyncGenerator[TextDelta | SegmentDone]:
        """Deltas as they are decoded, then the segments. Raises EngineError."""
        text = ChunkText(held=not self._asked.streamed)
        async for token in self._tokens():
            if not self._asked.streamed:
                self._asked.begun()
            if delta := text.add(token):
                yield delta
        first = self._heard(text, is_whole=True)
        kept, places = [first], first.done.spans
        if not first.fault:
            places = places or await self._places_if_timed(text.tokens)
        if fault := first.fault or self._misplaced(first, places):
            log.warning("%s: %s; it is heard again in pieces", self._place, fault)
            kept = await self._hear_again(self.chunk.samples, first)
            await asyncio.to_thread(text.go_on_as, joined([heard.tokens for heard in kept]))
            places = await self._places_if_timed(text.tokens)
        timed = self._is_timed([token.id for token in text.tokens])
        too_long = text.cut(self._asked.job.max_tokens)
        if delta := text.finish():
            yield delta
        lapses: list[Lapse] = [heard.done.reason for heard in kept if heard.done.reason != "stop"]
        lapses += ["length"] * too_long + ["untimed"] * (timed and not places)
        segment = self._segment(text, kept, tuple(dict.fromkeys(lapses)))
        for part in timed_segments(segment, places[: len(text.tokens)], self.chunk) if places else [segment]:
            yield SegmentDone(part, text.mixed)

    async def _hear_again(self, samples: np.ndarray, failed: _Heard) -> list[_Heard]:
        """What is heard in the pieces of audio that failed as a whole."""
        if _can_be_halved(samples):
            return [heard for half in halves(samples) for heard in await self._hear(half)]
        for temperature in TEMPERATURES:
            heard = await self._decode(samples, max(temperature, failed.temperature))
            if not heard.fault:
                return [heard]
        log.warning("%s: %s at every temperature; words may be missing", self._place, failed.fault)
        return [failed]

    def _is_timed(self, tokens: list[int]) -> bool:
        token_bytes = self._asked.worker.backend.tokenizer.token_bytes
        return bool(tokens) and needs_places(self._asked.timing, self.chunk, b"".join(map(token_bytes, tokens)))

    def _is_read_again(self, tokens: list[int]) -> bool:
        """Whether the model's attention is to tell where a text was spoken."""
        return self._is_timed(tokens) and not self._is_covered(tokens)

    def _is_covered(self, tokens: list[int]) -> bool:
        aligner, token_bytes = self._asked.aligner, self._asked.worker.backend.tokenizer.token_bytes
        return aligner is not None and aligner.covers([*map(token_bytes, tokens)])

    async def _places_if_timed(self, tokens: list[TextToken]) -> Sequence[tuple[int, int]]:
        return await self._places(tokens) if self._is_timed([token.id for token in tokens]) else ()

    def _misplaced(self, heard: _Heard, places: Sequence[tuple[int, int]]) -> str:
        if heard.done.reason != "stop" or not _can_be_halved(self.chunk.samples):
            return ""
        sent = self._asked.streamed  # what has left is not mended, only what is missing behind it
        if leaves_gap(places, self.chunk, at_end=sent):
            return "much is spoken where no word is"
        return "words stand where there is no time for them" if not sent and is_crowded(heard.tokens, places) else ""

    async def _places(self, tokens: list[TextToken]) -> Sequence[tuple[int, int]]:
        """Where tokens are in the audio of the whole chunk, which is not known from their decoding; () where it cannot
        be found."""
        ids = [token.id for token in tokens]
        if self._asked.aligner and self._is_covered(ids):
            spans = await self._asked.aligner.spans(self.chunk.samples, [token.bytes for token in tokens])
            if spans:
                return spans
        job = replace(self._asked.job, audio=(self.chunk.samples,), max_tokens=len(ids), answer=tuple(ids))
        try:
            self._stream = self._asked.worker.submit(job, self._asked.owner)
            async for _ in self._stream:
                pass
        except EngineError:  # the text is there
            return ()
        return self._stream.done.spans if self._stream.done else ()

    async def _hear(self, samples: np.ndarray) -> list[_Heard]:
        heard = await self._decode(samples, self._asked.job.sampling.temperature)
        return await self._hear_again(samples, heard) if heard.fault else [heard]

    async def _decode(self, samples: np.ndarray, temperature: float) -> _Heard:
        self._stream = self._submit(samples, temperature)
        text = ChunkText()
        async for token in self._tokens():
            text.add(token)
        return self._heard(text)

    def _submit(
        self, samples: np.ndarray, temperature: float, timed: Callable[[list[int]], bool] | None = None
    ) -> JobStream:
        # Each decoding draws its own random numbers: the same ones would make the same choices in every chunk. Where
        # nothing was to be drawn, a text that is drawn after all shall be the same each time.
        sampling = self._asked.job.sampling
        if sampling.seed is not None or sampling.temperature == 0:
            sampling = replace(sampling, seed=(sampling.seed or 0) + self.chunk.start + self._decodings)
        self._decodings += 1
        job = replace(
            self._asked.job,
            audio=(samples,),
            max_tokens=min(self._asked.job.max_tokens, self._asked.token_cap(len(samples) / SAMPLE_RATE)),
            sampling=replace(sampling, temperature=temperature),
            timed=timed,
        )
        return self._asked.worker.submit(job, self._asked.owner)

    async def _tokens(self) -> AsyncGenerator[TextToken]:
        token_bytes = self._asked.worker.backend.tokenizer.token_bytes
        async for token in self._stream:
            top = tuple((token_bytes(other), logprob) for other, logprob in token.top)
            yield TextToken(token.id, token_bytes(token.id), token.logprob, top)

    def _heard(self, text: ChunkText, is_whole: bool = False) -> _Heard:
        done, job = self._stream.done, self._stream.job
        assert done is not None
        self._usage += Usage(done.text_tokens, done.audio_tokens, done.output_tokens)
        fault = self._fault(text) or (self._doubted_end(text) if is_whole else "")
        tokens = text.tokens[: text.sound] if fault else text.tokens
        return _Heard(tuple(tokens), job.sampling.temperature, done, fault)

    def _fault(self, text: ChunkText) -> str:
        done, job = self._stream.done, self._stream.job
        assert done is not None
        if done.reason == "loop":
            return "the model repeated itself"
        if done.reason == "length":  # a cap that the client set is no failure
            capped = job.max_tokens < self._asked.job.max_tokens
            return "the model wrote more than the audio can hold" if capped else ""
        went_back = text.went_back and _can_be_halved(job.audio[0])
        return "a long stretch of the text stands twice" if went_back else ""

    def _doubted_end(self, text: ChunkText) -> str:
        """Asked of the whole chunk only, so that a model that is never sure is asked twice and not for ever. It is no
        doubt that a full stop was as likely."""
        done, token_bytes = self._stream.done, self._asked.worker.backend.tokenizer.token_bytes
        assert done is not None
        words = sum(math.exp(logprob) for token, logprob in done.rivals if begins_word(token_bytes(token)))
        doubted = bool(text.tokens) and words > DOUBT and _can_be_halved(self._stream.job.audio[0])
        return "another word was likely where the text ends" if doubted else ""

    def _segment(self, text: ChunkText, kept: list[_Heard], lapses: tuple[Lapse, ...]) -> Segment:
        start_ms, end_ms = self.chunk.speech_ms()
        return Segment(
            start_ms, end_ms, text.text, tuple(text.tokens),
            no_speech_prob=min(heard.done.no_speech_prob for heard in kept),
            temperature=max(heard.temperature for heard in kept),
            usage=self._usage, lapses=lapses,
        )  # fmt: skip

    @property
    def _place(self) -> str:
        return f"chunk {self.chunk.index}, {self.chunk.start / SAMPLE_RATE:.1f} s into the audio"


class ChunkAhead:
    """A chunk whose events come about whether or not it is its turn to tell them, so that one behind a longer one ends
    when it is done and is heard again at once if it must be. Iterate `events` once; `cancel` it if it is not to end."""

    def __init__(self, decoding: ChunkDecoding, events: AsyncGenerator[TextDelta | SegmentDone]) -> None:
        """`events`: of `decoding`, with what is done as they come."""
        self.chunk = decoding.chunk
        self._decoding = decoding
        self._come: asyncio.Queue[TextDelta | SegmentDone | Exception | None] = asyncio.Queue()
        self.work = asyncio.create_task(self._decode(events))

    async def _decode(self, events: AsyncGenerator[TextDelta | SegmentDone]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._come.put_nowait(event)
            self._come.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again by events()
            self._come.put_nowait(error)

    async def events(self, separate: bool) -> AsyncGenerator[TextDelta | SegmentDone]:
        """`separate`: text stands before, put a space. Raises EngineError."""
        while (event := await self._come.get()) is not None:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, TextDelta) and separate:
                event, separate = replace(event, text=f" {event.text}"), False
            yield event

    def cancel(self) -> None:
        self.work.cancel()
        self._decoding.cancel()


def _can_be_halved(samples: np.ndarray) -> bool:
    return len(samples) >= LEAST_SECONDS * SAMPLE_RATE
