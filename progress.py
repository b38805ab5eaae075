"""How far transcriptions are: each writes its own figures, and its client may ask for them while and after it runs."""

from __future__ import annotations

import time
from collections import deque
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
        self.state: State = "queued"  # until the model is there
        self.chunks_done = 0
        self.chunks_stored = 0  # of these, found in the store
        self.ended: float | None = None
        self._duration_ms = duration_ms
        self._searched_ms = 0  # before it, all speech is in chunks that were taken into work
        self._at_work: deque[tuple[int, int]] = deque()  # starts of chunks, and what the model got, with pauses
        self._model_ms = self._model_done_ms = 0  # of all that the model got, and of what it is done with
        # When, and from where on: the recording was searched for chunks, and the model got its first one.
        self._search_began: tuple[float, int] | None = None
        self._model_began: tuple[float, int] | None = None
        self._clock = clock
        self._begun = clock()

    def run(self) -> None:
        """The model is there, and the recording is read for it."""
        if self.ended is None:
            self.state, self._search_began = "running", (self._clock(), self._searched_ms)

    def search(self, end_ms: int) -> None:
        """Before `end_ms` there is no speech but in chunks that were taken. May be called in another thread, while no
        chunk is being taken."""
        self._searched_ms = max(self._searched_ms, end_ms)

    def take(self, start_ms: int, end_ms: int, stored: bool) -> None:
        """A chunk was found in the store or given to the model."""
        if not stored and self._model_began is None:
            self._model_began = self._clock(), start_ms
        length_ms = 0 if stored else end_ms - start_ms
        self._model_ms += length_ms
        self._at_work.append((start_ms, length_ms))
        self.search(end_ms)

    def take_all(self, decoded_ms: int) -> None:
        """There are no more chunks, and the recording is so long."""
        self._duration_ms = decoded_ms
        self.search(decoded_ms)

    def finish_chunk(self, stored: bool) -> None:
        """The first of those at work is done."""
        self._model_done_ms += self._at_work.popleft()[1]
        self.chunks_done += 1
        self.chunks_stored += stored

    def end(self, state: Literal["finished", "failed", "cancelled"]) -> None:
        """The first end counts."""
        if self.ended is None:
            self.state, self.ended = state, self._clock()

    @property
    def done_ms(self) -> int:
        """Up to where the transcript is whole, with silence in which there is nothing to write."""
        return self._at_work[0][0] if self._at_work else self._searched_ms

    @property
    def duration_ms(self) -> int | None:
        """None where the container does not say and the end is not decoded yet. A container that says too little is
        corrected as the recording is searched."""
        return self._duration_ms and max(self._duration_ms, self._searched_ms)

    @property
    def share(self) -> float | None:
        return self.done_ms / self.duration_ms if self.duration_ms else None

    @property
    def elapsed_seconds(self) -> float:
        return (self._clock() if self.ended is None else self.ended) - self._begun

    @property
    def remaining_seconds(self) -> float | None:
        """At the pace since the model got its first chunk, if as much of the rest is for the model as of what was
        searched since; None until it has finished one. Before, while nothing was found, at the pace of the search.

        Chunks that are at work count as half done: without them, a batch that is about to end would look eight times
        as slow as it is.
        """
        if self.state == "finished":
            return 0.0
        if self.ended is not None or self._duration_ms is None:
            return None
        searched_ms = self._searched_ms  # once, since it moves
        rest_ms = max(self._duration_ms - searched_ms, 0)
        if self._model_began and self._model_done_ms:
            since, from_ms = self._model_began
            half_ms = (self._model_done_ms + self._model_ms) / 2
            share = self._model_ms / (searched_ms - from_ms)
            return self._at_pace(since, half_ms, self._model_ms - half_ms + share * rest_ms)
        if self._search_began and not self._at_work and not self.chunks_done:
            since, from_ms = self._search_began
            return self._at_pace(since, searched_ms - from_ms, rest_ms)
        return None

    def _at_pace(self, since: float, done_ms: float, rest_ms: float) -> float | None:
        return rest_ms * (self._clock() - since) / done_ms if done_ms else None


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
