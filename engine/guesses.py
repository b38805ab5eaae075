"""Guesses of what the model writes next, so that it can read several steps at once and only say where they are wrong.

Most steps are pads. Beyond that, what followed the last two tokens before is what follows them again: the rest of a
word after its beginning, and the pad or the mark behind it. Nothing depends on a guess but speed.
"""

from __future__ import annotations

MOST = 2**16  # pairs that are remembered


class Guesses:
    def __init__(self, pad: int) -> None:
        self._pad = pad
        self._followed: dict[tuple[int, int], int] = {}  # latest last

    def learn(self, before: tuple[int, int], token: int) -> None:
        """`token` was written behind the two tokens `before`."""
        if before == (self._pad, self._pad):
            return
        self._followed.pop(before, None)
        self._followed[before] = token
        if len(self._followed) > MOST:
            del self._followed[next(iter(self._followed))]

    def next(self, before: tuple[int, int], count: int) -> list[int]:
        """Guesses of the next `count` tokens."""
        guesses: list[int] = []
        for _ in range(count):
            guesses.append(self._followed.get(before, self._pad))
            before = before[1], guesses[-1]
        return guesses
