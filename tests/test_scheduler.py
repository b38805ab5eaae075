from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.scheduler import Limits, Scheduler, Size

LIMITS = Limits(rows=3, prefill_tokens=20, positions=60)
SIZES = st.builds(lambda prompt, answer: Size(prompt, prompt + answer), st.integers(1, 30), st.integers(0, 30))


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals of three owners, admissions that fail or not, ends and cancellations. `cache`: what the
    rows would hold."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[int] = Scheduler(LIMITS)
        self.cache: list[int | None] = [None] * 3
        self.arrived: list[int] = []
        self.gone: set[int] = set()
        self.owners: dict[int, str] = {}
        self.sizes: dict[int, Size] = {}
        self.together = 3  # jobs that may be admitted together

    @rule(target=jobs, owner=st.sampled_from("abc"), size=SIZES)
    def arrive(self, owner: str, size: Size) -> int:
        job = len(self.arrived)
        self.arrived.append(job)
        self.owners[job], self.sizes[job] = owner, size
        self.scheduler.add(job, owner, size)
        return job

    @rule(fails=st.booleans())
    def admit(self, fails: bool) -> None:
        before, waiting = [*self.scheduler.running], [*self.scheduler.waiting]
        admitted = self.scheduler.admit()
        self.assert_fair(admitted, [*before], [*waiting])
        assert admitted or before or not waiting  # nothing waits for ever
        assert len(admitted) <= self.together
        longest = max((self.sizes[job].prompt for job in admitted), default=0)
        assert len(admitted) <= 1 or len(admitted) * longest <= LIMITS.prefill_tokens
        if fails and (len(admitted) > 1 or (admitted and before)):
            self.scheduler.postpone(admitted)
            self.together = len(admitted) // 2
            assert self.scheduler.running == before
            assert sorted(self.scheduler.waiting) == sorted(waiting)
            assert list(self.scheduler.waiting)[: len(admitted)] == admitted
        for job in self.scheduler.running[len(before) :]:
            self.cache[self.scheduler.row(job)] = job

    def assert_fair(self, admitted: list[int], running: list[int], waiting: list[int]) -> None:
        """Each was of the owner with the least, and of its jobs the first; and the next one in turn found no room."""
        held = Counter(self.owners[job] for job in running)
        for job in admitted:
            assert job == min(waiting, key=lambda other: held[self.owners[other]])
            held[self.owners[job]] += 1
            waiting.remove(job)
            running.append(job)
        if waiting and self.together == 3 and not admitted:
            turn = min(waiting, key=lambda other: held[self.owners[other]])
            longest = max(self.sizes[job].most for job in [*running, turn])
            assert len(running) == 3 or (len(running) + 1) * longest > LIMITS.positions

    @rule(job=consumes(jobs))
    def leave(self, job: int) -> None:
        if job in self.scheduler.running:
            self.together = 3
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
    def all_rows_fit_into_the_cache_when_each_is_as_long_as_the_longest(self) -> None:
        running = self.scheduler.running
        assert len(running) * max((self.sizes[job].most for job in running), default=0) <= LIMITS.positions

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        there = [*self.scheduler.waiting, *self.scheduler.running]
        assert sorted([*there, *self.gone]) == self.arrived
        assert self.scheduler.idle == (not there)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
