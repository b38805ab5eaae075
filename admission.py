"""How many requests are at work; one more than the server takes is told to come again."""

from __future__ import annotations


class TooManyRequests(Exception):
    """As many requests as the server accepts are at work or waiting."""


class Admission:
    def __init__(self, most: int) -> None:
        self._most = most
        self.active = 0

    def enter(self) -> None:
        """Raises TooManyRequests. Whoever has entered must leave."""
        if self.active >= self._most:
            raise TooManyRequests(
                f"{self.active} requests are at work, the most that this server takes. Try again soon."
            )
        self.active += 1

    def leave(self) -> None:
        self.active -= 1
