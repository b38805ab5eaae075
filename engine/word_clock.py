"""When words were spoken, by the steps at which they are written. Pure arithmetic.

A stream's step is 80 ms of what was fed, and of the silence that a flush puts between. A word's mark is written one
delay after the word has ended (arXiv 2602.11298, section 3.1), its text right behind the mark. Words that end in the
same step may share a mark; those without one of their own are taken to end where they are written.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LONGEST_STEPS = 6  # that a word is taken to be long at most, where there is a pause before it: about half a second


@dataclass
class WordClock:
    step: int  # samples
    offset: int  # steps of silence before the audio, and of the delay
    _inserted: deque[tuple[int, int]] = field(default_factory=deque)  # (sample of the stream, samples of silence)
    _removed: int = 0  # samples of silence that lie further back
    _span: tuple[int, int] = (0, 0)  # of the word at hand
    _marked: bool = False  # and nothing of it is written yet

    def insert(self, at: int, count: int) -> None:
        """Silence of `count` samples stands at sample `at` of the stream, where nothing was fed."""
        self._inserted.append((at, count))

    def fed(self, at: int) -> int:
        """Samples that had been fed at sample `at` of the stream, which is not before what was written last."""
        silence = self._removed
        for first, count in self._inserted:
            if first >= at:  # there may be a thousand, of what waits for the model
                break
            silence += min(count, at - first)
        return at - silence

    def reach(self, written: int) -> None:
        """Token number `written` is written: what lies before the audio that it is of is only counted from now on."""
        at = self._sample(written)
        while self._inserted and sum(self._inserted[0]) <= at:
            self._removed += self._inserted.popleft()[1]

    def mark(self, written: int) -> None:
        """The mark of a word is token number `written`."""
        before, end = self._span[1], max(self._span[1], self.fed(self._sample(written)))
        self._span, self._marked = (max(before, end - LONGEST_STEPS * self.step), end), True

    def span(self, written: int, begins_word: bool) -> tuple[int, int]:
        """First sample that was fed, and the one after the last, of the word that the text's token is part of."""
        if begins_word and not self._marked:
            self.mark(written)
        self._marked = False
        return self._span

    def _sample(self, written: int) -> int:
        return max(0, (written - self.offset) * self.step)
