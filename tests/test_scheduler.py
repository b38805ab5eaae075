from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.scheduler import Scheduler


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals of three owners, admissions, ends and cancellations. `cache`: what the rows would hold."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[int] = Scheduler(rows=3)
        self.cache: list[int | None] = [None] * 3
        self.arrived: list[int] = []
        self.gone: set[int] = set()
        self.admitted: list[int] = []
        self.owners: dict[int, str] = {}

    @rule(target=jobs, owner=st.sampled_from("abc"))
    def arrive(self, owner: str) -> int:
        job = len(self.arrived)
        self.arrived.append(job)
        self.owners[job] = owner
        self.scheduler.add(job, owner)
        return job

    @rule()
    def admit(self) -> None:
        free = len(self.scheduler.running) < 3
        held = Counter(self.owners[job] for job in self.scheduler.running)
        turns = {job: (held[self.owners[job]], job) for job in self.scheduler.waiting}
        job = self.scheduler.admit()
        assert (job is not None) == (free and len(self.admitted) < len(self.arrived) - self.cancelled_waiting())
        if job is not None:
            assert turns[job] == min(turns.values())  # the owner with the least, and of its jobs the first
            self.admitted.append(job)
            self.cache[self.scheduler.row(job)] = job

    def cancelled_waiting(self) -> int:
        return len(self.gone - set(self.admitted))

    @rule(job=consumes(jobs))
    def leave(self, job: int) -> None:
        move = self.scheduler.remove(job)
        self.gone.add(job)
        if move:
            self.cache[move.target] = self.cache[move.source]

    @rule(job=st.integers(1000, 2000))
    def leave_unknown(self, job: int) -> None:
        assert self.scheduler.remove(job) is None

    @invariant()
    def rows_are_contiguous_and_hold_their_own_job(self) -> None:
        running = self.scheduler.running
        assert self.cache[: len(running)] == running
        assert len(set(running)) == len(running) <= 3

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        there = [*self.scheduler.waiting, *self.scheduler.running]
        assert sorted([*there, *self.gone]) == self.arrived
        assert self.scheduler.idle == (not there)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
