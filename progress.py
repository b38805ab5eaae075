"""How far transcriptions are: each writes its own figures, and its client may ask for them while and after it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

KEPT_SECONDS = 3600.0  # for which an ended request is remembered
MOST_KEPT = 1000  # ended requests

State = Literal["queued", "running", "finished", "failed", "cancelled"]


@dataclass(frozen=True)
class Caller:
    """Who asks. What one key has made is never shown to another."""

    request_id: str
    key: str = ""  # SHA-256 of the API key; empty where none is asked for
    keep: bool = True  # False: the client wants nothing of this request stored, or answered from what is


class Progress:
    """The figures of one transcription. Times are milliseconds of the recording, or seconds on the clock."""

    def __init__(self, duration_ms: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`duration_ms`: what the container says of it; None: nothing."""
        self.state: State = "queued"  # until there is text, or a chunk in which there is none
        self.chunks_done = 0
        self.chunks_stored = 0  # of these, found in the store
        self.done_ms = 0  # up to where the transcript is whole
        self.ended: float | None = None
        self._duration_ms = duration_ms
        self._taken_ms = 0  # up to where chunks were taken into work
        self._all_taken = False
        self._model_began: tuple[float, int] | None = None  # when the model got its first chunk, and from where on
        self._clock = clock
        self._begun = clock()

    def take(self, end_ms: int, stored: bool) -> None:
        """A chunk that ends at `end_ms` was found in the store or given to the model."""
        if not stored and self._model_began is None:
            self._model_began = self._clock(), self._taken_ms
        self._taken_ms = end_ms

    def take_all(self, decoded_ms: int) -> None:
        """There are no more chunks, and the recording is so long."""
        self._all_taken, self._duration_ms = True, decoded_ms

    def run(self) -> None:
        if self.state == "queued":
            self.state = "running"

    def finish_chunk(self, end_ms: int, stored: bool) -> None:
        self.run()
        self.done_ms = end_ms
        self.chunks_done += 1
        self.chunks_stored += stored

    def end(self, state: Literal["finished", "failed", "cancelled"]) -> None:
        """The first end counts."""
        if self.ended is None:
            self.state, self.ended = state, self._clock()
            if state == "finished":
                self.done_ms = self._duration_ms or self.done_ms

    @property
    def duration_ms(self) -> int | None:
        """None where the container does not say and the end is not decoded yet. A container that says too little is
        corrected as the chunks come."""
        return self._duration_ms and max(self._duration_ms, self._taken_ms)

    @property
    def share(self) -> float | None:
        return self.done_ms / self.duration_ms if self.duration_ms else None

    @property
    def elapsed_seconds(self) -> float:
        return (self._clock() if self.ended is None else self.ended) - self._begun

    @property
    def remaining_seconds(self) -> float | None:
        """At the pace since the model got its first chunk; None until it has finished one.

        Chunks that are at work count as half done: without them, a batch that is about to end would look eight times
        as slow as it is.
        """
        if self.state == "finished":
            return 0.0
        until_ms = self._taken_ms if self._all_taken else self.duration_ms
        if self.ended is not None or self._model_began is None or until_ms is None:
            return None
        since, from_ms = self._model_began
        if self.done_ms <= from_ms:
            return None
        half_ms = (self.done_ms + self._taken_ms) / 2
        return (until_ms - half_ms) * (self._clock() - since) / (half_ms - from_ms)


class ProgressBoard:
    """The figures of all requests that are at work, and of those that ended not long ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[tuple[str, str], Progress] = {}

    def begin(self, caller: Caller, duration_ms: int | None) -> Progress:
        """An id that is used again means the newer request."""
        self._tidy()
        place = (caller.key, caller.request_id)
        self._requests.pop(place, None)
        self._requests[place] = progress = Progress(duration_ms, self._clock)
        return progress

    def find(self, caller: Caller) -> Progress | None:
        self._tidy()
        return self._requests.get((caller.key, caller.request_id))

    def _tidy(self) -> None:
        oldest = self._clock() - KEPT_SECONDS
        ended = [(place, progress.ended) for place, progress in self._requests.items() if progress.ended is not None]
        for index, (place, when) in enumerate(ended):
            if when < oldest or index < len(ended) - MOST_KEPT:
                del self._requests[place]
