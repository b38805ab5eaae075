"""Which jobs run in which rows of the batch. Pure policy: no torch, no clock, no I/O, no threads.

Rows 0 to n-1 are always occupied, so that the batch is one contiguous slice of the cache. When a job leaves, the job of
the last row moves into its row; the caller moves the cache row likewise.

Rows are shared fairly among the owners of jobs, which are requests: a short recording that comes while the many chunks
of a long one wait gets the next row that falls free.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

JobId = TypeVar("JobId", bound=Hashable)


@dataclass(frozen=True)
class Limits:
    """What a backend can hold and may take on at once."""

    rows: int  # jobs that run together
    prefill_tokens: int  # in one prefill of several jobs, padding included; a single job may be longer
    positions: float = math.inf  # of the cache, for all rows together; each takes as many as the longest


@dataclass(frozen=True)
class Size:
    """What a job takes of that."""

    prompt: int  # tokens of its prefill
    most: int  # positions that it may come to fill


@dataclass(frozen=True)
class RowMove:
    source: int
    target: int


class Scheduler(Generic[JobId]):
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[JobId] = deque()
        self.running: list[JobId] = []  # index = row
        self._owners: dict[JobId, Hashable] = {}
        self._sizes: dict[JobId, Size] = {}
        self._together = limits.rows  # jobs in one prefill; fewer after one that failed

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, job: JobId, owner: Hashable, size: Size) -> None:
        self.waiting.append(job)
        self._owners[job], self._sizes[job] = owner, size

    def admit(self) -> list[JobId]:
        """The jobs to prefill next, now in the rows after the last; none when nobody waits or there is no room.

        The owner with the fewest jobs running comes first; among equals, and within an owner, who came first. Whoever's
        turn it is holds up the others until there is room, or a long job would wait for ever behind short ones.

        Not all at once: the worker decodes a step for the running jobs between two prefills, so that no stream stands
        still for longer than one prefill however many jobs arrive together.
        """
        admitted: list[JobId] = []
        while self.waiting and self._fits(job := self._next(), admitted):
            self.waiting.remove(job)
            self.running.append(job)
            admitted.append(job)
        return admitted

    def _next(self) -> JobId:
        held = Counter(self._owners[job] for job in self.running)
        return min(self.waiting, key=lambda job: held[self._owners[job]])

    def _fits(self, job: JobId, admitted: list[JobId]) -> bool:
        """Whether `job` finds room beside those that run, and in one prefill with those that were just admitted."""
        if len(self.running) >= self.limits.rows or len(admitted) == self._together:
            return False
        longest = max(self._sizes[other].most for other in (*self.running, job))
        if (len(self.running) + 1) * longest > self.limits.positions:
            return False
        longest = max(self._sizes[other].prompt for other in (*admitted, job))
        return not admitted or (len(admitted) + 1) * longest <= self.limits.prefill_tokens

    def postpone(self, jobs: list[JobId]) -> None:
        """Jobs that were admitted last, but could not be prefilled, wait again.

        Until another job leaves, at most half as many are admitted together; after a single one, none.
        """
        del self.running[-len(jobs) :]
        self.waiting.extendleft(reversed(jobs))
        self._together = len(jobs) // 2

    def row(self, job: JobId) -> int:
        return self.running.index(job)

    def remove(self, job: JobId) -> RowMove | None:
        """Forget a job, wherever it is. Returns the move of cache rows that this makes necessary."""
        if self._owners.pop(job, None) is None:
            return None
        del self._sizes[job]
        if job in self.waiting:
            self.waiting.remove(job)
            return None
        self._together = self.limits.rows
        row, last = self.row(job), len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return RowMove(last, row) if row != last else None
