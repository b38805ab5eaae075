"""Flushes that wait for a pause, because one within a word would break it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voice_activity import AUTO, FRAME, HYSTERESIS

LEAST_PAUSE = 5 * FRAME  # samples; words have shorter ones, before a p or a t
QUIET_SECONDS = 0.6  # without audio, after which nobody is within a word: Mistral's own clients send 480 ms at once


class Flushes:
    """In a pause in which there was a flush already nothing is left to flush: those to come wait for the next one."""

    def __init__(self, flush: Callable[[int | None], None], quiet_since: Callable[[], float]) -> None:
        """`flush`: before a sample, or None: all that was fed. `quiet_since`: when audio came last, by the event loop's
        clock."""
        self._flush, self._quiet_since = flush, quiet_since
        self._loop = asyncio.get_running_loop()
        self._waiting = self._silent = 0  # flushes; samples since somebody spoke
        self._spoken = True  # since the last flush, for all that is known
        self._alarm: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        self._waiting += 1
        if self._due:
            self.carry_out()
        elif not self._alarm:
            self._watch()

    def judge(self, probability: float, end: int) -> None:
        """The next frame, which ends before sample `end`, is speech with this probability."""
        speaks = probability >= AUTO.threshold - HYSTERESIS
        self._silent = 0 if speaks else self._silent + FRAME
        self._spoken = self._spoken or speaks
        if self._due:
            self.carry_out(end)

    @property
    def _due(self) -> bool:
        return self._waiting > 0 and self._spoken and self._silent >= LEAST_PAUSE

    def _watch(self) -> None:
        quiet_at = self._quiet_since() + QUIET_SECONDS
        if self._loop.time() < quiet_at:
            self._alarm = self._loop.call_at(quiet_at, self._watch)
        else:
            self.carry_out()

    def carry_out(self, end: int | None = None) -> None:
        """All that wait, at once."""
        waiting = self._waiting
        self.forget()
        for _ in range(waiting):
            self._spoken = False
            self._flush(end)

    def forget(self) -> None:
        self._waiting = 0
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
