"""How many requests are at work, and how many a client may send; one more is told to come again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TooManyRequests(Exception):
    """As many requests as the server accepts are at work or waiting."""


class Admission:
    def __init__(self, most: int) -> None:
        self._most = most
        self.active = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for the length of the block. Raises TooManyRequests."""
        if self.active >= self._most:
            raise TooManyRequests(
                f"{self.active} requests are at work, the most that this server takes. Try again soon."
            )
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


class RequestRate:
    """A bucket of `per_minute` requests for each client, which fills up evenly within a minute.

    A bucket is one number, the time at which it will be full again; a client without one has a full bucket.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60 / per_minute  # that one request is worth
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._tidied = clock()

    def enter(self, client: str) -> float:
        """Take a request from the client's bucket and return 0, or the seconds until there is one in it."""
        now = self._clock()
        if now - self._tidied > 60:  # forget full buckets, so that they do not grow with all clients ever seen
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
            self._tidied = now
        full_at = max(self._full_at.get(client, 0), now) + self._seconds
        if full_at - now > 60 + self._seconds / 1000:  # which rounding cannot reach
            return full_at - now - 60
        self._full_at[client] = full_at
        return 0
