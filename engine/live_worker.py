"""The one thread that owns a realtime model, and hears all live sessions and recordings together.

    receive -> schedule -> hear and read -> emit

Each turn of that loop is a tick: of every stream that has audio waiting, the encoder hears some of it in one call, and
the decoder reads some steps in another. How much waits is how much a tick takes on, so under load steps come in larger
portions, which cost less each. Sessions join and leave between ticks. What fails in company is tried alone, so that a
failure stays in its stream; a thread that dies ends all of them with EngineStopped.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.backends.voxtral_realtime import RealtimeBackend
from engine.core import EngineStopped, Job, JobFailed, Prompt, Sampling, Token
from engine.guesses import Guesses
from engine.job_stream import JobStream, Outbox
from engine.listeners import FILE_DELAY_MS, JobListener, Listener, LiveListener
from engine.live import LiveOptions, LiveStream
from engine.sampling import choose_tokens
from engine.scheduler import Scheduler, Size

log = logging.getLogger("voxtral.engine")

# Steps that a stream may take on in a tick, however many streams there are. Where they fall behind, what each of them
# costs beside its positions is shared by as many steps.
LEAST_PORTION = 4
IDLE_SECONDS = 30.0  # after which memory that only streams need is given back


@dataclass
class Counters:
    """Since the worker began."""

    forwards: int = 0  # of the decoder
    reads: int = 0  # of one stream in a forward
    tokens: int = 0  # written, pads included; without guesses each would be a read
    guessed: int = 0
    accepted: int = 0  # of the guesses


class LiveWorker:
    def __init__(self, backend: RealtimeBackend) -> None:
        self.backend, self.counters = backend, Counters()
        self.busy_seconds = 0.0  # spent on streams, not on waiting for them
        self._jobs: Scheduler[JobStream] = Scheduler(backend.limits)
        self._listeners: dict[LiveStream | JobStream, Listener] = {}
        self._guesses = Guesses(backend.tokenizer.pad)
        self._inbox: queue.SimpleQueue[tuple[str, LiveStream | JobStream | None, Any]] = queue.SimpleQueue()
        self._outbox = Outbox()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    # What other threads call.

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def running(self) -> int:
        return len(self._listeners)

    @property
    def waiting(self) -> int:
        return len(self._jobs.waiting)

    def open(self, options: LiveOptions) -> LiveStream:
        """A new session; call it from the event loop that will read it. Raises EngineStopped."""
        stream = LiveStream(options, self._post)
        self._post("open", stream, None)
        self._check_alive()
        return stream

    def submit(self, job: Job, owner: Hashable) -> JobStream:
        """As engine.worker.Worker.submit. The model recognises the language by itself, whatever the prompt says."""
        self.check(job.prompt, self.audio_tokens(job), job.max_tokens, job.sampling)
        stream = JobStream(job, owner, self)
        self._post("submit", stream, None)
        self._check_alive()
        return stream

    def audio_tokens(self, job: Job) -> int:
        return sum(self.backend.audio_tokens(len(samples)) for samples in job.audio)

    def check(self, prompt: Prompt, audio_tokens: int, max_tokens: int, sampling: Sampling) -> None:
        """Raises PromptInvalid for a bias of a token that the model does not have. No recording is too long for it."""
        sampling.check_tokens(self.backend.tokenizer.vocabulary_size)

    def cancel(self, stream: JobStream) -> None:
        self._post("cancel", stream, None)

    def close(self) -> None:
        """End the thread after its current tick; streams that are left end with EngineStopped."""
        self._closing = True
        self._post("close", None, None)
        self._thread.join()

    def _post(self, kind: str, stream: LiveStream | JobStream | None, value: Any) -> None:
        self._inbox.put((kind, stream, value))

    def _check_alive(self) -> None:
        """Asked after posting: a thread that ends later finds the stream."""
        if not self.alive:
            raise EngineStopped("The model is not running.")

    # What the thread does.

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._receive():
                started = time.monotonic()
                self._admit()
                self._tick()
                self._outbox.send()
                self.busy_seconds += time.monotonic() - started
        except BaseException:
            log.exception("the inference thread died; the model is loaded again at the next request")
        finally:
            self._closing = True
            for stream in self._left():
                self._outbox.put(stream, EngineStopped("The model was unloaded while the request was at work."))
            self._outbox.send()

    def _left(self) -> list[LiveStream | JobStream]:
        arrived = [self._inbox.get() for _ in range(self._inbox.qsize())]
        new = [stream for kind, stream, _ in arrived if kind in ("submit", "open") and stream]
        return [*self._listeners, *self._jobs.waiting, *new]

    def _receive(self) -> bool:
        """Take what has come in, waiting for it when there is nothing to do. False: it is time to end."""
        if not self._jobs.waiting and not any(listener.due for listener in self._listeners.values()):
            self._wait()
        while not self._inbox.empty():
            self._handle(*self._inbox.get())
        return not self._closing

    def _wait(self) -> None:
        try:
            self._handle(*self._inbox.get(timeout=IDLE_SECONDS))
        except queue.Empty:
            self.backend.release_memory()
            self._handle(*self._inbox.get())

    def _handle(self, kind: str, stream: Any, value: Any) -> None:
        if kind == "open":
            self._begin(stream, self._live_listener)
        elif kind == "submit":
            self._jobs.add(stream, stream.owner, Size(0, 0))
        elif kind == "cancel":
            self._retire(stream)
        elif listener := self._listeners.get(stream):  # unless it failed meanwhile
            {
                "feed": lambda: listener.feed(value),
                "keywords": lambda: listener.expect(value),
                "flush": listener.flush,
                "finish": listener.finish,
            }[kind]()
            self._retire_ended()

    def _admit(self) -> None:
        sessions = len(self._listeners) - len(self._jobs.running)
        # Beside sessions there is memory for fewer; one is heard at any time, or it might wait for hours.
        rows = max(1, min(self.backend.limits.rows, self.backend.most_streams - sessions))
        self._jobs.limits = replace(self._jobs.limits, rows=rows)
        for stream in self._jobs.admit():
            self._begin(stream, self._job_listener)
        self._retire_ended()

    def _begin(self, stream: Any, listener: Callable[[Any], Listener]) -> None:
        try:
            self._listeners[stream] = listener(stream)
        except Exception as error:  # noqa: BLE001 - the border of the worker: a failure stays in its stream
            self._fail(stream, error)

    def _live_listener(self, stream: LiveStream) -> LiveListener:
        model = self.backend.open(stream.options.delay_ms)
        return LiveListener(self.backend.tokenizer, model, stream, self._outbox)

    def _job_listener(self, stream: JobStream) -> JobListener:
        return JobListener(self.backend.tokenizer, self.backend.open(FILE_DELAY_MS), stream, self._outbox)

    def _tick(self) -> None:
        due = [listener for listener in self._listeners.values() if listener.due]
        if due:
            self._hear(due)
            self._read([listener for listener in due if not listener.ended and len(listener.model.audio)])
            self._retire_ended()

    def _hear(self, due: list[Listener]) -> None:
        batching = self.backend.batching
        soon, most = batching.read // len(due), max(LEAST_PORTION, batching.heard // len(due))
        hungry = [listener for listener in due if listener.audible and len(listener.model.audio) <= soon]

        def hear(some: Sequence[Listener]) -> None:
            audio = [listener.audio(most) for listener in some]
            self.backend.hear([listener.model for listener in some], audio)
            for listener, samples in zip(some, audio, strict=True):
                listener.drop(len(samples))

        self._together(hungry, hear)

    def _read(self, due: list[Listener]) -> None:
        most = max(LEAST_PORTION, self.backend.batching.read // max(1, len(due)))
        plans = {listener: listener.plan(most, self._guesses) for listener in due}
        logits: dict[Listener, torch.Tensor] = {}

        def read(some: Sequence[Listener]) -> None:
            answers = [listener.answers(len(plans[listener])) for listener in some]
            streams, tokens = [listener.model for listener in some], [plans[listener] for listener in some]
            found = self.backend.read(streams, tokens, answers)
            logits.update(zip(some, found.split(answers), strict=True))
            self.counters.forwards += 1

        self._together(due, read)
        written = self._write({listener: plans[listener] for listener in logits}, logits)
        for listener, tokens in written.items():
            self._keep(listener, plans[listener], tokens)

    def _write(
        self, plans: dict[Listener, list[int]], logits: dict[Listener, torch.Tensor]
    ) -> dict[Listener, list[int]]:
        """The tokens that each chose, as far as its guesses were right. One that could not choose is not there."""
        for listener in plans:
            if listener.endless:
                logits[listener][:, self.backend.tokenizer.end_of_text] = -torch.inf
        written: dict[Listener, list[int]] = {listener: [] for listener in plans}
        choosing = [listener for listener in plans if len(logits[listener])]
        while choosing:
            chosen = self._choose({listener: logits[listener][len(written[listener])] for listener in choosing})
            for listener in choosing:
                if listener not in chosen:
                    del written[listener]
            for listener, token in chosen.items():
                first = len(plans[listener]) - len(logits[listener])
                listener.wrote(listener.model.read + first + len(written[listener]), token, self._guesses)
                written[listener].append(token.id)
            choosing = [listener for listener in chosen if not listener.ended]
            choosing = [other for other in choosing if _guessed(plans[other], written[other], len(logits[other]))]
        return written

    def _choose(self, logits: dict[Listener, torch.Tensor]) -> dict[Listener, Token]:
        """One token from the logits (vocabulary,) of each. One that could not choose has failed and is not there."""
        chosen: dict[Listener, Token] = {}

        def choose(some: Sequence[Listener]) -> None:
            rows = torch.stack([logits[listener] for listener in some])
            for listener, token in zip(some, choose_tokens(rows, [each.sampler for each in some]), strict=True):
                if isinstance(token, Exception):
                    self._fail(listener.stream, token)
                else:
                    chosen[listener] = token

        self._together([*logits], choose)
        return chosen

    def _keep(self, listener: Listener, plan: list[int], written: list[int]) -> None:
        unread = listener.answers(len(plan)) - len(written)
        count = len(plan) - unread
        certain = listener.certain(len(plan))
        self.counters.reads += 1
        self.counters.tokens += len(written)
        self.counters.guessed += len(plan) - certain
        self.counters.accepted += max(0, count - certain)
        self.backend.keep(listener.model, count)
        listener.kept(count, written[-1] if written else None)

    def _together(self, listeners: Sequence[Listener], action: Callable[[Sequence[Listener]], None]) -> None:
        """Where that fails, each for itself: it changes nothing unless it succeeds."""
        if not listeners:
            return
        try:
            action(listeners)
        except Exception as error:  # noqa: BLE001 - as in _begin
            if len(listeners) == 1:
                self._fail(listeners[0].stream, error)
                return
            log.warning("%d streams failed together and are tried alone: %s", len(listeners), error)
            for listener in listeners:
                self._together([listener], action)

    def _fail(self, stream: LiveStream | JobStream, error: Exception) -> None:
        """Raises what a device says that will never answer again: then the thread ends, and is missed."""
        if isinstance(error, torch.AcceleratorError):
            raise error
        log.error("a stream failed", exc_info=error)
        self._outbox.put(stream, JobFailed.by(error))
        self._retire(stream)

    def _retire(self, stream: Any) -> None:
        self._listeners.pop(stream, None)
        self._jobs.remove(stream)

    def _retire_ended(self) -> None:
        for stream in [stream for stream, listener in self._listeners.items() if listener.ended]:
            self._retire(stream)


def _guessed(plan: list[int], written: list[int], answers: int) -> bool:
    """Whether what was written last is what was then read."""
    left = answers - len(written)
    return left > 0 and plan[-left] == written[-1]
