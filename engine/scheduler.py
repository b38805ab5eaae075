"""Which job runs in which row of the batch. Pure policy: no torch, no clock, no I/O, no threads.

Rows 0 to n-1 are always occupied, so that the batch is one contiguous slice of the cache. When a job leaves, the job of
the last row moves into its row; the caller moves the cache row likewise.
"""

from __future__ import annotations

from collections import deque
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

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, job: JobId) -> None:
        self.waiting.append(job)

    def admit(self) -> JobId | None:
        """The job to prefill next, now in the row after the last, or None. First come, first served.

        One at a time: the worker decodes a step for the running jobs between two prefills, so that no stream stands
        still for longer than one prefill however many jobs arrive together.
        """
        if not self.waiting or len(self.running) == self.rows:
            return None
        job = self.waiting.popleft()
        self.running.append(job)
        return job

    def row(self, job: JobId) -> int:
        return self.running.index(job)

    def remove(self, job: JobId) -> RowMove | None:
        """Forget a job, wherever it is. Returns the move of cache rows that this makes necessary."""
        if job in self.waiting:
            self.waiting.remove(job)
            return None
        if job not in self.running:
            return None
        row, last = self.row(job), len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return RowMove(last, row) if row != last else None
