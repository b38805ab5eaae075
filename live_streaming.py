"""Live sessions of a model that writes while it hears.

With turn detection the model hears turns only, so that nothing is computed while nobody speaks, and what else somebody
commits by hand. Where a turn ends it is flushed: the last words come at once and not after its delay. Where the delay
is long it is flushed in a pause that may end a turn, and what is in the pause waits, to be heard if the turn goes on.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

import languages
from audio_processor import SAMPLE_RATE
from chunking import Chunk, Tape, milliseconds
from engine.biasing import KeywordTree
from engine.live import STEP_MS, LiveOptions, LiveStream, LiveToken
from engine.tokenizer import TextDecoder
from live import LiveError, LiveFlushed, LiveRequest, LiveText, UtteranceDone
from live_listening import ListeningSession, Surroundings
from model_manager import Model
from replacements import Replacements, replaced
from stream_text import Mark, MarkKind, StreamText
from transcript import Segment, SegmentDone, TextDelta, TextToken, Transcript, Usage
from voice_activity import Span
from word_times import SENTENCE_END, timed_segments

if TYPE_CHECKING:
    from engine.live_worker import LiveWorker  # brings torch, which takes seconds

CATCHING_UP = SAMPLE_RATE  # samples that a model which is behind gets at once at least
# By which words must come sooner for a flush in a pause: the model hears more than a second of silence for it.
LEAST_GAIN_MS = 250


@dataclass
class _Utterance:
    """One that is being written. Without commits that goes on for hours: less than 200 bytes for each token, of which
    two hours have 30,000, because at its end the whole text is told, with its scores and times."""

    number: int
    tokens: list[TextToken] = field(default_factory=list)
    spans: array[int] = field(default_factory=lambda: array("q"))  # start and end of each token, samples of the session
    text: str = ""
    end: Mark | None = None


class StreamingSession(ListeningSession):
    always_listens = False

    def __init__(
        self, request: LiveRequest, around: Surroundings, model: Model, worker: LiveWorker,
        replacements: Replacements | None,
    ) -> None:  # fmt: skip
        """Call `begin` next."""
        self._model, self._worker, self._replacements = model, worker, replacements
        self._tokenizer = worker.backend.tokenizer
        self._tape = Tape()
        # Samples of what is in no turn, in case that it is committed by hand.
        self._kept = int(around.settings.realtime_backlog_seconds / 2 * SAMPLE_RATE)
        self._sent = self._flushed = 0  # up to where the stream was fed, and flushed, in samples of the session
        self._before = 0  # samples of the stream that are of utterances which have ended
        self._in_turn = False
        self._writing: _Utterance
        self._stream: LiveStream
        self._text: StreamText
        self._writer: asyncio.Task[None] | None = None  # on the stream and its text
        super().__init__(request, around)

    async def begin(self) -> None:
        """Raises LiveError prompt_unsupported, EngineStopped."""
        _refuse_prompt(self.request)
        self._open_stream(self.request, await self._keywords(self.request))

    def _open_stream(self, request: LiveRequest, keywords: KeywordTree | None) -> None:
        """In the place of one that there may be, of which nothing is written any more."""
        self._check()  # or nobody would close it
        delay = {} if request.delay_ms is None else {"delay_ms": request.delay_ms}
        options = LiveOptions(
            interval_ms=request.interval_ms, top_logprobs=request.top_logprobs, keywords=keywords, **delay
        )
        self._close_stream()
        self._stream = self._worker.open(options)
        self._text = StreamText(self._stream, self._sent)
        self._before, self._writing = 0, _Utterance(self._number)
        self._writer = asyncio.create_task(self._write(self._text))
        self._writer.add_done_callback(self._writer_ended)

    def _close_stream(self) -> None:
        if self._writer:
            self._text.cancel()
            self._writer.cancel()

    async def _keywords(self, request: LiveRequest) -> KeywordTree | None:
        return await asyncio.to_thread(self._tokenizer.keyword_tree, request.keywords)

    async def _updated(self, request: LiveRequest) -> None:
        _refuse_prompt(request)
        keywords = await self._keywords(request)
        if _fixed(request) == _fixed(self.request):
            self._stream.set_keywords(keywords)
        elif self.fed:
            raise LiveError(
                "delay_fixed", "The delay, the interval and logprobs can be chosen before audio comes only."
            )
        else:
            self._open_stream(request, keywords)

    async def update(self, request: LiveRequest) -> None:
        before = self.request.turn_detection
        await super().update(request)
        if request.turn_detection != before:
            self._go_on_at(self.fed)

    def _stop(self) -> None:
        self._close_stream()

    # What the stream is fed.

    @property
    def behind(self) -> float:
        """Less than two steps wait in the stream for what comes after them."""
        unsent = self.fed - self._sent if self._hears and not self._waits else 0
        return (self._late + unsent) / SAMPLE_RATE

    @property
    def _late(self) -> int:
        """Samples that the stream has beyond an interval, for the rest of which the model waits and not they for it."""
        interval_ms = self._stream.options.interval_ms or 0
        return max(0, self._stream.backlog - interval_ms * SAMPLE_RATE // 1000)

    @property
    def _earliest(self) -> int:
        return 0 if self._hears else self._tape.start

    @property
    def _hears(self) -> bool:
        """Whether what is spoken now is for the model."""
        return self._in_turn or not self._turns

    @property
    def _waits(self) -> bool:
        """Whether what is in a pause is kept from the model. Where it lasts longer than silence that ends a turn, it is
        no silence: sound between the bars of turn detection goes on for as long as it likes."""
        turns = self.request.turn_detection
        if not (turns and self._turns and self._turns.paused and self._sent == self._flushed):
            return False
        return self.fed - self._sent <= turns.silence_ms(sentence_ended=False) * SAMPLE_RATE / 1000

    def _add(self, samples: np.ndarray) -> None:
        self._tape.add(samples)

    def _heard_all(self) -> None:
        catches_up = self._late > self._settings.realtime_backlog_soft_seconds * SAMPLE_RATE
        if self._hears and not self._waits and (not catches_up or self.fed - self._sent >= CATCHING_UP):
            self._send(self.fed)
        if self._turns and self._turns.paused and self._writing.number == self._number:
            self._turns.sentence_ended = bool(SENTENCE_END.search(self._writing.text))
        self._tape.forget(self._sent if self._hears else min(self._turns.earliest, self.fed - self._kept))

    def _send(self, until: int) -> None:
        if until > self._sent:
            self._stream.feed(self._tape.read(self._sent, until))
            self._sent = until

    def _go_on_at(self, position: int) -> None:
        if position > self._sent:
            self._text.go_on_at(position)
            self._sent = position

    def _turn_started(self, start: int) -> None:
        self._go_on_at(start)
        self._in_turn = True

    def _turn_paused(self) -> None:
        turns = self.request.turn_detection
        without = min(self._stream.options.delay_ms, turns.silence_ms(sentence_ended=False))
        if without - turns.pause_ms >= LEAST_GAIN_MS:
            self._send(self._judged)
            self._set("paused", self._number)

    def _utterance_ended(self, number: int, start: int, end: int, last: int) -> None:
        """What is behind a pause is silence, unless `last` says that there was something after all."""
        if not self._hears:
            self._go_on_at(start)
        if last > self._flushed:
            self._send(end)
        self._set("ended", number, (start, end))
        self._leave_turn(end)

    async def _utterance_dropped(self, number: int) -> None:
        """What the model has of it is given up with the stream, which first writes what was committed before."""
        if self._stream.fed == self._before:
            self._set("dropped", number)
            self._leave_turn(self.fed)
            return
        self._in_turn = False
        await self._wait_while(lambda: self._writing.number < number)
        keywords = await self._keywords(self.request)
        self._sent = self._flushed = self.fed
        self._open_stream(self.request, keywords)

    def _leave_turn(self, at: int) -> None:
        """What was not sent by now is not for the model."""
        self._in_turn, self._before = False, self._stream.fed
        self._go_on_at(at)

    def _flush(self, end: int | None) -> None:
        if self._hears:
            self._send(self.fed if end is None else end)
        self._set("flushed", self._number)

    def _set(self, kind: MarkKind, number: int, bounds: tuple[int, int] = (0, 0)) -> None:
        self._flushed = self._sent
        self._text.set(Mark(kind, number, bounds, self._loop.time()))

    def _finish(self) -> None:
        self._stream.finish()

    # What it writes.

    async def _write(self, text: StreamText) -> None:
        while await self._write_utterance(self._writing, text):
            self._writing = _Utterance(self._writing.number + 1)

    async def _write_utterance(self, utterance: _Utterance, text: StreamText) -> bool:
        """False: the stream has ended."""
        events, written, segments = self._spoken(utterance, text), "", []
        if self._replacements:
            events = replaced(events, self._replacements)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    written += event.text
                    self._tell(LiveText(utterance.number, event.text, event.tokens))
                else:
                    segments.append(event.segment)
        if utterance.end and utterance.end.kind == "ended":
            await self._tell_done(utterance, utterance.end, written, tuple(segments))
        return utterance.end is not None

    async def _spoken(self, utterance: _Utterance, text: StreamText) -> AsyncGenerator[TextDelta | SegmentDone]:
        decoder, untold = TextDecoder(), 0
        while item := await text.next():
            if isinstance(item, LiveToken):
                piece = decoder.add(self._add_token(utterance, item))
                if piece := piece if utterance.text else piece.lstrip():
                    utterance.text += piece
                    yield TextDelta(piece, tuple(utterance.tokens[untold:]))
                    untold = len(utterance.tokens)
            elif self._pass(item, utterance):
                break
        if rest := decoder.finish():
            yield TextDelta(rest, tuple(utterance.tokens[untold:]))
        if utterance.end and utterance.text:
            for segment in await asyncio.to_thread(_segments, utterance, utterance.end):  # a second for 30,000 tokens
                yield SegmentDone(segment)

    def _add_token(self, utterance: _Utterance, token: LiveToken) -> bytes:
        token_bytes = self._tokenizer.token_bytes
        top = tuple((token_bytes(other), logprob) for other, logprob in token.top)
        utterance.tokens.append(TextToken(token.id, token_bytes(token.id), token.logprob, top))
        utterance.spans.extend((token.start, token.end))
        return utterance.tokens[-1].bytes

    def _pass(self, mark: Mark, utterance: _Utterance) -> bool:
        """Do what is to be done here. Whether the utterance ends."""
        if mark.kind == "flushed":
            self._tell(LiveFlushed(mark.number))
        if mark.kind in ("ended", "dropped"):
            utterance.end = mark
        return utterance.end is not None

    async def _tell_done(self, utterance: _Utterance, end: Mark, text: str, segments: tuple[Segment, ...]) -> None:
        language = self.request.language
        if language is None:
            language = await asyncio.to_thread(languages.detect, text, self._model.spec.languages)
        usage = _usage(utterance, end)
        self._around.metrics.count_tokens(usage)
        self._around.metrics.live_lag.observe(self._loop.time() - end.set_at)
        self._tell(UtteranceDone(utterance.number, Transcript(text, language, segments, usage)))

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled():
            error = writer.exception()
            self._end_session(error if isinstance(error, Exception) else None)


def _segments(utterance: _Utterance, end: Mark) -> list[Segment]:
    span = Span(*end.bounds, *end.bounds)
    segment = Segment(
        milliseconds(span.start), milliseconds(span.end), utterance.text, tuple(utterance.tokens),
        no_speech_prob=0.0, temperature=0.0, usage=_usage(utterance, end),
    )  # fmt: skip
    inside = (np.array(utterance.spans).clip(span.start, span.end) - span.start).reshape(-1, 2).tolist()
    return timed_segments(segment, inside, Chunk(utterance.number, span.start, np.zeros(0, np.float32), (span,)))


def _usage(utterance: _Utterance, end: Mark) -> Usage:
    """A token of audio for each step."""
    length_ms = milliseconds(end.bounds[1]) - milliseconds(end.bounds[0])
    return Usage(0, -(-length_ms // STEP_MS), len(utterance.tokens), length_ms)


def _fixed(request: LiveRequest) -> tuple[object, ...]:
    """What a stream cannot change."""
    return request.delay_ms, request.interval_ms, request.top_logprobs


def _refuse_prompt(request: LiveRequest) -> None:
    if request.prompt:
        raise LiveError(
            "prompt_unsupported", "This model writes down what it hears and reads no prompt. Send keywords instead."
        )
