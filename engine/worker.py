"""The one thread that owns the model.

One thread, because a model's cache and a GPU's stream are mutable state that every step of every request touches:
with one owner nothing needs a lock and the batch is simply what is there when a step begins. The loop is

    receive -> schedule -> forward -> emit

Requests join and leave between steps. Jobs and cancellations come in through a queue, and tokens go out through
`engine.job_stream` in one call to the event loop for each step.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import AcceleratorError, OutOfMemoryError

from engine.backends.base import Backend
from engine.core import (
    EngineStopped,
    Job,
    JobDone,
    JobFailed,
    Prompt,
    PromptTooLong,
    Sampling,
    Token,
)
from engine.grammar import GrammarMatcher
from engine.job_stream import JobStream, Outbox
from engine.loops import LoopDetector
from engine.sampling import Sampler, choose_tokens, likeliest
from engine.scheduler import Scheduler

log = logging.getLogger("voxtral.engine")

RIVALS = 8  # likeliest tokens that are looked at where a text ends
IDLE_SECONDS = 30.0  # after which memory that only running jobs need is given back


@dataclass(eq=False)
class _Active:
    """A job between its prefill and its end."""

    stream: JobStream
    sampler: Sampler
    no_speech_prob: float
    last: Token = field(init=False)
    count: int = 0
    loops: LoopDetector = field(default_factory=LoopDetector)
    written: list[int] = field(default_factory=list)  # without the end-of-text
    ended: Literal["stop", "length", "loop"] | None = None  # why; it only waits to be aligned
    rivals: tuple[tuple[int, float], ...] = ()  # of the end-of-text


class Worker:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._scheduler: Scheduler[JobStream] = Scheduler(backend.limits)
        self._active: dict[JobStream, _Active] = {}
        self._inbox: queue.SimpleQueue[tuple[Literal["submit", "cancel", "close"], JobStream | None]] = (
            queue.SimpleQueue()
        )
        self._outbox = Outbox()
        self._closing = False
        self.busy_seconds = 0.0  # spent on jobs, not on waiting for them
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    # What other threads call.

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    def submit(self, job: Job, owner: Hashable) -> JobStream:
        """Queue a job; call it from the event loop that will read the stream. Jobs of one `owner` share its turn.

        Raises PromptTooLong, PromptInvalid, or EngineStopped when the worker is no longer there.
        """
        self.check(job.prompt, self.audio_tokens(job), job.max_tokens, job.sampling)
        stream = JobStream(job, owner, self)
        self._inbox.put(("submit", stream))
        if not self.alive:  # asked last: a thread that ends later finds the job
            raise EngineStopped("The model is not running.")
        return stream

    def audio_tokens(self, job: Job) -> int:
        return sum(self.backend.audio_tokens(len(samples)) for samples in job.audio)

    def check(self, prompt: Prompt, audio_tokens: int, max_tokens: int, sampling: Sampling) -> None:
        """Raises PromptTooLong when prompt, audio and answer are more than the model's context, and PromptInvalid for
        a bias of a token that it does not have."""
        sampling.check_tokens(self.backend.tokenizer.vocabulary_size)
        needed = prompt.text_tokens + audio_tokens + max_tokens
        if needed > self.backend.context_length:
            raise PromptTooLong(
                f"{prompt.text_tokens} tokens of text, {audio_tokens} of audio and {max_tokens} for the answer are "
                f"{needed}, and the model takes {self.backend.context_length}. Shorten the text or the audio, or ask "
                "for fewer tokens."
            )

    def cancel(self, stream: JobStream) -> None:
        self._inbox.put(("cancel", stream))

    def close(self) -> None:
        """End the thread after its current step; jobs that are left end with EngineStopped."""
        self._closing = True
        self._inbox.put(("close", None))
        self._thread.join()

    # What the thread does.

    def _run(self) -> None:
        try:
            while self._receive():
                started = time.monotonic()
                if not self._align_next():
                    self._prefill_waiting()
                self._decode_step()
                self._outbox.send()
                self.busy_seconds += time.monotonic() - started
        except BaseException:
            log.exception("the inference thread died; the model is loaded again at the next request")
        finally:
            self._closing = True
            for stream in self._left():
                self._outbox.put(stream, EngineStopped("The model was unloaded while the request was at work."))
            self._outbox.send()

    def _left(self) -> list[JobStream]:
        """The jobs that have not ended, found without the backend, which may be what died."""
        arrived = [self._inbox.get() for _ in range(self._inbox.qsize())]
        submitted = [stream for kind, stream in arrived if kind == "submit" and stream]
        return [*self._scheduler.waiting, *self._scheduler.running, *submitted]

    def _receive(self) -> bool:
        """Take what has come in, waiting for it when there is nothing to do. False: it is time to end."""
        if self._scheduler.idle and self._inbox.empty():
            self._audit()
            try:
                self._handle(*self._inbox.get(timeout=IDLE_SECONDS))
            except queue.Empty:
                self.backend.release_memory()
                self._handle(*self._inbox.get())
        while not self._inbox.empty():
            self._handle(*self._inbox.get())
        return not self._closing

    def _handle(self, kind: str, stream: JobStream | None) -> None:
        if kind == "submit" and stream:
            self._scheduler.add(stream, stream.owner, self.backend.size(stream.job))
        elif kind == "cancel" and stream:
            self._retire(stream)

    def _audit(self) -> None:
        """Nothing runs, so nothing may be left: a leak must show itself here and not after a week."""
        if self._active or self._outbox:
            raise AssertionError(f"idle with {len(self._active)} active jobs, or with unsent results")

    def _prefill_waiting(self) -> None:
        streams = self._scheduler.admit()
        if not streams:
            return
        try:
            logits = self.backend.prefill([s.job for s in streams], self._scheduler.row(streams[0]))
            samplers = [self._sampler(stream.job) for stream in streams]
            tokens = choose_tokens(logits, samplers)
            silences = logits.float().softmax(-1)[:, self.backend.tokenizer.end_of_text].tolist()
        except Exception as error:  # noqa: BLE001 - the border of the worker: a failure stays in its job
            self._prefill_failed(streams, error)
            return
        for stream, sampler, silence in zip(streams, samplers, silences, strict=True):
            self._active[stream] = _Active(stream, sampler, silence)
        for stream, token in zip(streams, tokens, strict=True):
            self._advance(self._active[stream], token)

    def _prefill_failed(self, streams: list[JobStream], error: Exception) -> None:
        """Among several jobs one may be at fault, and memory that is short beside others will be there later."""
        beside_others = len(self._scheduler.running) > len(streams)
        if len(streams) > 1 or (beside_others and isinstance(error, OutOfMemoryError)):
            log.warning("%d jobs could not be prefilled and try again, fewer together: %s", len(streams), error)
            self._scheduler.postpone(streams)
        else:
            self._fail(streams, error)

    def _align_next(self) -> bool:
        """Find where the text of one job was spoken; it keeps its row until then. False: none waits for that.

        In place of a prefill, so that between two steps running jobs wait for one of them at most. Where it fails the
        text is still right, and goes without places.
        """
        row = next((row for row in self._active.values() if row.ended), None)
        if row is None:
            return False
        job, spans = row.stream.job, ()
        try:
            spans = self.backend.align(job, self._scheduler.row(row.stream), [*(job.answer or row.written)])
        except AcceleratorError:
            raise
        except Exception:  # as for a prefill
            log.exception("it was not found where a text was spoken")
        self._finish(row, spans)
        return True

    def _sampler(self, job: Job) -> Sampler:
        tokenizer = self.backend.tokenizer
        prompt = tuple(token for text in job.prompt.texts for token in text)
        grammar = GrammarMatcher(job.grammar, tokenizer.for_grammars) if job.grammar else None
        return Sampler(job.sampling, tokenizer.end_of_text, prompt, grammar, job.keywords)

    def _decode_step(self) -> None:
        rows = [self._active[stream] for stream in self._scheduler.running]
        if all(row.ended for row in rows):
            return
        try:
            logits = self.backend.decode([row.last.id for row in rows])
            tokens = choose_tokens(logits, [row.sampler for row in rows])
            self._look_at_ends(rows, tokens, logits)
        except Exception as error:  # noqa: BLE001 - as above, for all jobs that shared the step
            self._fail([row.stream for row in rows], error)
            return
        for row, token in zip(rows, tokens, strict=True):
            if not row.ended:  # those that have only fill their row of the step
                self._advance(row, token)

    def _look_at_ends(self, rows: list[_Active], tokens: list[Token | Exception], logits: torch.Tensor) -> None:
        """Keep what else was likely where a text ends now: whoever gave the job may doubt that it does."""
        end = self.backend.tokenizer.end_of_text
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.stream.job.loops_end and not row.ended and isinstance(token, Token) and token.id == end:
                row.rivals = likeliest(logits[place].float().log_softmax(-1), RIVALS)

    def _advance(self, row: _Active, chosen: Token | Exception) -> None:
        """Send the token that a row just chose, or its end."""
        if isinstance(chosen, Exception):
            self._fail([row.stream], chosen)
            return
        row.last, row.count = chosen, row.count + 1
        row.ended = self._reason_to_end(row)
        if row.ended != "stop":
            self._outbox.put(row.stream, row.last)
            row.written.append(row.last.id)
        if row.ended:
            self._finish_unless_timed(row)

    def _reason_to_end(self, row: _Active) -> Literal["stop", "length", "loop"] | None:
        tokenizer, job, token = self.backend.tokenizer, row.stream.job, row.last.id
        if job.answer or token == tokenizer.end_of_text:
            return "stop"
        if job.loops_end:
            row.loops.add(token, tokenizer.token_bytes(token))
            if row.loops.looping:
                return "loop"
        return "length" if row.count >= job.max_tokens else None

    def _finish_unless_timed(self, row: _Active) -> None:
        try:
            timed = self._is_timed(row)
        except Exception as error:  # noqa: BLE001 - as for a prefill: whoever gave the job is asked
            self._fail([row.stream], error)
            return
        if not timed:
            self._finish(row)

    def _is_timed(self, row: _Active) -> bool:
        job, text = row.stream.job, row.written
        return bool(job.answer or (job.timed and text and row.ended != "loop" and job.timed(text)))

    def _finish(self, row: _Active, spans: Sequence[tuple[int, int]] = ()) -> None:
        text_tokens, audio_tokens = row.stream.job.prompt.text_tokens, row.stream.audio_tokens
        assert row.ended
        done = JobDone(row.ended, text_tokens, audio_tokens, row.count, row.no_speech_prob, spans, row.rivals)
        self._outbox.put(row.stream, done)
        self._retire(row.stream)

    def _fail(self, streams: list[JobStream], error: Exception) -> None:
        """Raises what a device says that will never answer again: then the thread ends, and is missed."""
        if isinstance(error, AcceleratorError):
            raise error
        log.error("%d jobs failed", len(streams), exc_info=error)
        for stream in streams:
            self._outbox.put(stream, JobFailed.by(error))
            self._retire(stream)

    def _retire(self, stream: JobStream) -> None:
        self._active.pop(stream, None)
        move = self._scheduler.remove(stream)
        if move:
            self.backend.move_row(move.source, move.target)
