"""Which job runs in which row of the batch. Pure policy: no torch, no clock, no I/O, no threads.

Rows 0 to n-1 are always occupied, so that the batch is one contiguous slice of the cache. When a job leaves, the job of
the last row moves into its row; the caller moves the cache row likewise.

Rows are shared fairly among the owners of jobs, which are requests: a short recording that comes while the many chunks
of a long one wait gets the next row that falls free.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

JobId = TypeVar("JobId", bound=Hashable)


@dataclass(frozen=True)
class RowMove:
    source: int
    target: int


class Scheduler(Generic[JobId]):
    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.waiting: deque[JobId] = deque()
        self.running: list[JobId] = []  # index = row
        self._owners: dict[JobId, Hashable] = {}

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, job: JobId, owner: Hashable) -> None:
        self.waiting.append(job)
        self._owners[job] = owner

    def admit(self) -> JobId | None:
        """The job to prefill next, now in the row after the last, or None.

        The owner with the fewest jobs running comes first; among equals, and within an owner, who came first.

        One at a time: the worker decodes a step for the running jobs between two prefills, so that no stream stands
        still for longer than one prefill however many jobs arrive together.
        """
        if not self.waiting or len(self.running) == self.rows:
            return None
        held = Counter(self._owners[job] for job in self.running)
        job = min(self.waiting, key=lambda job: held[self._owners[job]])
        self.waiting.remove(job)
        self.running.append(job)
        return job

    def row(self, job: JobId) -> int:
        return self.running.index(job)

    def remove(self, job: JobId) -> RowMove | None:
        """Forget a job, wherever it is. Returns the move of cache rows that this makes necessary."""
        if self._owners.pop(job, None) is None:
            return None
        if job in self.waiting:
            self.waiting.remove(job)
            return None
        row, last = self.row(job), len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return RowMove(last, row) if row != last else None
