"""Live sessions of models that hear recordings: each utterance is transcribed as one, while it is spoken.

Speech goes to the model in chunks, which end at pauses of a second, where turns end, and where they grow too long; so
memory is bounded however long somebody speaks, and silence never reaches the model. Utterances that wait for the model
wait together and share its batch; their texts come in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np

from audio_processor import SAMPLE_RATE
from chunking import LONGEST_PAUSE, Chunk, SpeechCutter, milliseconds
from engine.core import EngineError, EngineStopped, Sampling
from instructions import prompted_transcription
from live import LiveFlushed, LiveRequest, LiveText, UtteranceDone, UtteranceFailed
from live_listening import ListeningSession, Surroundings
from model_manager import Model
from progress import Caller, Progress
from transcriber import Transcriber, Transcription, TranscriptionRequest
from transcript import Event, Finished, TextDelta
from voice_activity import AUTO, Detection
from word_times import SENTENCE_END

if TYPE_CHECKING:
    from engine.worker import Worker  # brings torch, which takes seconds

# With what is kept around speech, a pause of a second ends a chunk.
SHORT_PAUSE = SAMPLE_RATE - int((AUTO.silence_duration_ms + AUTO.prefix_padding_ms) * SAMPLE_RATE / 1000)


class _Utterance:
    """One utterance: the Source of its Transcription, and how far that is."""

    gaps = ()  # what is sent live is whole
    task: asyncio.Task[None]

    def __init__(self, number: int, chunk_done: Callable[[_Utterance], None]) -> None:
        self.number = number
        self.text = ""
        self.decoded_ms = 0
        self.ended = asyncio.Event()
        self.ended_at = 0.0  # on the event loop's clock
        self.progress = _ChunkProgress(self._finish_chunk)
        self.flushes: list[tuple[int, int]] = []  # chunks that must be done, and the utterance that was at hand
        self.done = 0  # chunks
        self.failed = False  # and nothing of it is heard any more
        self.given: list[int] = []  # samples of each chunk
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._chunk_done = chunk_done

    @property
    def waiting(self) -> int:
        """Samples."""
        return sum(self.given[self.done :])

    def give(self, chunk: Chunk) -> None:
        if self.failed:
            return
        self.given.append(len(chunk.samples))
        self._chunks.put_nowait(chunk)

    def fail(self) -> None:
        self.failed, self.done = True, len(self.given)

    def flush(self, number: int) -> None:
        self.flushes.append((len(self.given), number))

    def end(self, length_ms: int, now: float) -> None:
        self.decoded_ms, self.ended_at = length_ms, now
        self.ended.set()
        self._chunks.put_nowait(None)

    def _finish_chunk(self) -> None:
        self.done += 1
        self._chunk_done(self)

    async def next(self) -> Chunk | None:
        return await self._chunks.get()

    async def close(self) -> None: ...


class _ChunkProgress(Progress):
    """Says when a chunk is done."""

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__(None)
        self._done = done

    def finish_chunk(self, stored: bool) -> None:
        super().finish_chunk(stored)
        self._done()


class UtteranceSession(ListeningSession):
    always_listens = True

    def __init__(
        self,
        request: LiveRequest,
        around: Surroundings,
        transcriber: Transcriber,
        model: Model,
        worker: Worker,
        caller: Caller,
    ) -> None:
        self._transcriber, self._model, self._worker, self._caller = transcriber, model, worker, caller
        self._cutter = SpeechCutter(around.settings.audio_chunk_size_seconds * SAMPLE_RATE, _detection(request))
        self._utterances: list[_Utterance] = []  # that are not done, in their order
        super().__init__(request, around)
        self._set_longest_pause()

    @property
    def behind(self) -> float:
        return sum(utterance.waiting for utterance in self._utterances) / SAMPLE_RATE

    async def update(self, request: LiveRequest) -> None:
        before = self.request.turn_detection
        await super().update(request)
        if request.turn_detection != before:
            self._cutter.detect(_detection(request))

    async def _updated(self, request: LiveRequest) -> None:
        await self._transcriber.check(self._worker, asked(request))

    # How it hears.

    def _add(self, samples: np.ndarray) -> None:
        self._cutter.add(samples)

    def _judge(self, probability: float) -> None:
        hears_all = self._settings.voxtral_vad == "off" and self._turns is None
        self._give(self._cutter.judge(np.array([1.0 if hears_all else probability])))

    def _heard_all(self) -> None:
        self._set_longest_pause()

    def _set_longest_pause(self) -> None:
        """A model that is behind hears more at once, which costs less."""
        is_behind = self.behind > self._settings.realtime_backlog_soft_seconds
        self._cutter.packer.longest_pause = LONGEST_PAUSE if is_behind else SHORT_PAUSE

    def _give(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._at_work().give(chunk)

    def _at_work(self) -> _Utterance:
        """The utterance at hand, which begins with its first chunk."""
        if not self._utterances or self._utterances[-1].number != self._number:
            previous = self._utterances[-1].task if self._utterances else None
            utterance = _Utterance(self._number, self._chunk_done)
            utterance.task = asyncio.create_task(self._answer(utterance, self.request, previous))
            utterance.task.add_done_callback(lambda task: self._answered(utterance, task))
            self._utterances.append(utterance)
        return self._utterances[-1]

    def _utterance_ended(self, number: int, start: int, end: int, last: int) -> None:
        self._give(self._cutter.cut(end))
        self._at_work().end(milliseconds(end) - milliseconds(start), self._loop.time())

    async def _utterance_dropped(self, number: int) -> None:
        list(self._cutter.cut(self.fed))  # speech that is in no chunk yet is dropped too
        for utterance in self._utterances:
            utterance.flushes = [flush for flush in utterance.flushes if flush[1] != number]
            if utterance.number == number:
                utterance.task.cancel()

    def _flush(self, end: int | None) -> None:
        self._give(self._cutter.cut(self.fed if end is None else end))
        if self._utterances:
            self._utterances[-1].flush(self._number)
        else:
            self._tell(LiveFlushed(self._number))

    def _finish(self) -> None:
        if not self._utterances:
            self._end_session()

    def _stop(self) -> None:
        for utterance in self._utterances:
            utterance.task.cancel()

    # How it answers.

    async def _answer(self, utterance: _Utterance, request: LiveRequest, previous: asyncio.Task[None] | None) -> None:
        transcription = Transcription(
            self._transcriber, self._model, asked(request), utterance, self._caller, utterance.progress
        )
        try:
            await transcription.begin(self._worker)
            if previous:
                await asyncio.wait([previous])
            async with aclosing(transcription.heard()) as events:
                async for event in events:
                    self._tell_event(utterance, event)
        except EngineStopped:
            raise
        except EngineError as error:
            self._fail(utterance, error)
        finally:
            await transcription.close()

    def _fail(self, utterance: _Utterance, error: EngineError) -> None:
        """What is said from now on is of the next one."""
        utterance.fail()
        if utterance.number == self._number:
            self._cut()
        self._tell(UtteranceFailed(utterance.number, error))

    def _tell_event(self, utterance: _Utterance, event: Event) -> None:
        if isinstance(event, TextDelta):
            utterance.text += event.text
            self._tell(LiveText(utterance.number, event.text, event.tokens))
        elif isinstance(event, Finished):
            self._around.metrics.live_lag.observe(self._loop.time() - utterance.ended_at)
            self._tell(UtteranceDone(utterance.number, event.transcript))

    def _chunk_done(self, utterance: _Utterance) -> None:
        self._tell_flushes(utterance)
        whole = utterance.number == self._number and not utterance.waiting and self._cutter.is_empty
        if self._turns and self._turns.paused and whole:
            self._turns.sentence_ended = bool(SENTENCE_END.search(utterance.text))

    def _tell_flushes(self, utterance: _Utterance) -> None:
        while utterance.flushes and utterance.flushes[0][0] <= utterance.done:
            self._tell(LiveFlushed(utterance.flushes.pop(0)[1]))

    def _answered(self, utterance: _Utterance, task: asyncio.Task[None]) -> None:
        utterance.done = len(utterance.given)
        self._tell_flushes(utterance)
        self._utterances.remove(utterance)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._end_session(error)
        elif self._over and not self._utterances:
            self._end_session()


def asked(request: LiveRequest) -> TranscriptionRequest:
    """What each utterance is asked."""
    prompt, language = request.prompt, request.language
    return TranscriptionRequest(
        language,
        prompted_transcription(prompt, language) if prompt else None,
        Sampling(top_logprobs=request.top_logprobs),
        keywords=request.keywords,
        timing=request.timing,
    )


def _detection(request: LiveRequest) -> Detection:
    """What counts as speech: what begins a turn, and pauses that AUTO would leave out, or shorter ones that end one."""
    turns = request.turn_detection
    if turns is None:
        return AUTO
    silence = min(turns.silence_ms(sentence_ended=True), AUTO.silence_duration_ms)
    return Detection(turns.threshold, turns.prefix_padding_ms, silence)
