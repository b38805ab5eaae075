"""A model that writes in circles, noticed by what it writes while it writes it. Pure.

Two tests, because a loop may repeat itself to the token or with small changes. Their bounds leave room for speech that
really repeats itself: a word eight times, a refrain, digits. What goes over them all the same in a long piece of audio
cannot in one of a few seconds, so decoding again in halves also puts a false alarm right. What was measured is in
docs/decisions/016-loops.md.
"""

from __future__ import annotations

import zlib
from collections import deque

LONGEST_PERIOD = 128  # tokens of what is repeated
# Tokens in a row that stood so before, from which on text is suspect: a single one if it stood among the last few.
NEAR, NEAR_SUSPECT, FAR_SUSPECT = 8, 1, 3
# Tokens in a row that are told a second time, which a place lost in the audio may explain; not so a short word, of
# these tokens at most, that are said again and again.
LONG_REPEAT, WORD = 8, 2
# Repeats that are a loop: two and, so that short words may be said often, as many more as have these tokens.
LOOP_REPEATS, LOOP_TOKENS = 2, 24
WINDOW = 128  # newest tokens, whose text is compressed ...
EVERY = 16  # ... each time that so many were added
COMPRESSION = 4.0  # length over zlib length: prose 2.3, digits read aloud 3.7, loops with changes 4.4 and more


class LoopDetector:
    """The tokens of one text, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.looping = False
        self.went_back = False  # a long stretch was told twice; perhaps it was also said twice
        self._places: dict[int, deque[int]] = {}  # token -> where it stands among the newest
        self._runs: dict[int, int] = {}  # period -> newest tokens in a row that equal the one a period before
        self._window: deque[bytes] = deque(maxlen=WINDOW)

    def add(self, token: int, text: bytes) -> None:
        """`text`: the token's bytes."""
        places = self._places.setdefault(token, deque())
        while places and self.count - places[0] > LONGEST_PERIOD:
            places.popleft()
        periods = (self.count - place for place in places)
        self._runs = {period: self._runs.get(period, 0) + 1 for period in periods}
        places.append(self.count)
        self._window.append(text)
        self.count += 1
        repeated = max(self._runs.values(), default=0) >= LONG_REPEAT  # few texts come further
        self.looping = (repeated and self._is_periodic()) or self._is_compressible()
        self.went_back |= repeated and self._is_long_repeat()

    def _is_periodic(self) -> bool:
        return any(run >= LOOP_REPEATS * period + LOOP_TOKENS for period, run in self._runs.items())

    def _is_long_repeat(self) -> bool:
        stretch = max((run for period, run in self._runs.items() if period > WORD), default=0)
        words = max((run for period, run in self._runs.items() if period <= WORD), default=0)
        return stretch >= LONG_REPEAT and stretch > words  # which repeat at every multiple of their own period too

    def _is_compressible(self) -> bool:
        if len(self._window) < WINDOW or self.count % EVERY:
            return False
        text = b"".join(self._window)
        return len(text) > COMPRESSION * len(zlib.compress(text))

    @property
    def suspect(self) -> bool:
        """Whether the newest tokens repeat what stands before them, be it a loop that begins or not."""
        return bool(self._repeats())

    @property
    def sound(self) -> int:
        """Tokens from the first on that are no repeats; where a loop changes as it goes, those before its window."""
        if self.looping and not self._is_periodic():
            return self.count - WINDOW
        return self.count - self._repeats()

    def _repeats(self) -> int:
        """How many of the newest tokens only say again what stood before them."""
        runs = self._runs.items()
        return max((n for period, n in runs if n >= (NEAR_SUSPECT if period <= NEAR else FAR_SUSPECT)), default=0)
