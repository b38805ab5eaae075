"""Words that are always written in one way: what was heard, and what is written for it. Pure.

A text is read once from left to right and what was written is not read again. At each place where a word may begin, the
longest entry that ends where a word may end is taken. Text that comes in pieces is held back as long as it may be the
beginning of an entry, so that the pieces do not matter.
"""

from __future__ import annotations

import asyncio
import csv
import unicodedata
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from config import ConfigError
from transcript import Segment, SegmentDone, TextDelta, Usage, Word
from word_times import spread, word_pieces


@dataclass
class _Node:
    """A place in the tree of entries, whose edges are letters without case; white space is one space."""

    children: dict[str, _Node] = field(default_factory=dict)
    written: str | None = None  # of the entry that ends here


class Replacements:
    """The entries of a file. They do not change when it is read, so all texts share them."""

    def __init__(self) -> None:
        self.root = _Node()

    def add(self, heard: str, written: str) -> None:
        """Raises ValueError for an entry that is empty or there already."""
        node = self.root
        if not heard.split() or not written.split():
            raise ValueError("both what is heard and what is written for it must be given")
        for character in _letters(" ".join(heard.split())):
            node = node.children.setdefault(character, _Node())
        if node.written is not None:
            raise ValueError(f"'{heard.strip()}' is there already")
        node.written = " ".join(written.split())


class Replacer:
    """One text, in pieces."""

    def __init__(self, replacements: Replacements) -> None:
        self._root = replacements.root
        self._held = ""
        self._before = " "  # the character before what is held

    def add(self, piece: str) -> str:
        """What can be told of the text by now."""
        return "".join(written for _, written in self.steps(piece))

    def finish(self) -> str:
        return "".join(written for _, written in self.steps("", final=True))

    def end_word(self) -> str:
        """What can be told when a space will follow, if anything does."""
        return "".join(written for _, written in self.steps("", ahead=" "))

    def steps(self, piece: str, final: bool = False, ahead: str = "") -> list[tuple[str, str]]:
        """As `add`, `finish` and `end_word`, what was heard and what is written for it: single characters, which stay,
        and entries."""
        text, at, steps = self._held + piece, 0, []
        while at < len(text):
            end, written = self._longest(text + ahead, at, final)
            if end is None:
                break
            steps.append((text[at:end], _like(text[at], written) if written else text[at:end]))
            self._before, at = text[end - 1], end
        self._held = text[at:]
        return steps

    def _longest(self, text: str, at: int, final: bool) -> tuple[int | None, str | None]:
        """The end of the longest entry that begins at `at` and what is written for it; the next character and None
        where none does; None and None where what comes decides."""
        found: tuple[int, str | None] = (at + 1, None)
        if not _is_border(self._before if at == 0 else text[at - 1], text[at]):
            return found
        node, end = self._root, at
        while node.children:
            if end == len(text) and not final:
                return None, None
            step = _step(node, text, end) if end < len(text) else None
            if step is None:
                return found
            node, end = step
            if node.written is None:
                continue
            if end == len(text) and not final:
                return None, None
            if end == len(text) or _is_border(text[end - 1], text[end]):
                found = end, node.written
        return found


def _step(node: _Node, text: str, at: int) -> tuple[_Node, int] | None:
    """One character of the text further down the tree, or all white space that stands there."""
    if text[at].isspace():
        end = at
        while end < len(text) and text[end].isspace():
            end += 1
        below = node.children.get(" ")
        return (below, end) if below else None
    for character in _letters(text[at]):
        below = node.children.get(character)
        if below is None:
            return None
        node = below
    return node, at + 1


def _letters(text: str) -> str:
    """Without case, and marks apart from the letters that they are written on, as either spelling may come."""
    return unicodedata.normalize("NFD", text.casefold())


def _is_border(before: str, after: str) -> bool:
    """Whether a word may begin or end between two characters."""
    return not (_is_of_word(before) and _is_of_word(after))


def _is_of_word(character: str) -> bool:
    """Letters, digits and the marks that are written on letters, in any script."""
    return unicodedata.category(character)[0] in "LNM"


def _like(heard: str, written: str) -> str:
    """Small letters get a capital where one was heard, as at the beginning of a sentence; others stay as they are."""
    return written[0].upper() + written[1:] if heard.isupper() and written.islower() else written


def read_replacements(path: Path) -> Replacements:
    """The entries of a CSV file in UTF-8, two columns: heard, written. Raises ConfigError, which names the line."""
    replacements = Replacements()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True, skipinitialspace=True)
            for row in rows:
                _add(replacements, row)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"VOXTRAL_REPLACEMENTS={path} cannot be read ({error}). Write it as UTF-8 text, one 'heard,written' a line."
        ) from None
    except (csv.Error, ValueError) as error:
        raise ConfigError(
            f"VOXTRAL_REPLACEMENTS={path}, line {rows.line_num}: {error}. Write 'heard,written', in quotes where there "
            "are commas."
        ) from None
    return replacements


def _add(replacements: Replacements, row: list[str]) -> None:
    if len(row) == 2:
        replacements.add(*row)
    elif row:  # an empty line is none
        raise ValueError(f"there are {len(row)} columns and not 2")


async def replaced(
    events: AsyncGenerator[TextDelta | SegmentDone], replacements: Replacements
) -> AsyncGenerator[TextDelta | SegmentDone]:
    """The events of one text, with the tokens that the model wrote and the text that is to be read. Where segments end
    a word does too. A segment comes behind its text, and later than it came where an entry may reach out of it."""
    replacer, segments, tokens = Replacer(replacements), _Segments(replacements), ()
    async with aclosing(events):
        async for event in events:
            done: list[Segment] = []
            if isinstance(event, TextDelta):
                text, tokens = replacer.add(event.text), tokens + event.tokens
            else:
                text, done = replacer.end_word(), await asyncio.to_thread(segments.add, event.segment)
            if text:
                yield TextDelta(text, tokens)
                tokens = ()
            for segment in done:
                yield SegmentDone(segment)
    if text := replacer.finish():
        yield TextDelta(text, tokens)
    for segment in await asyncio.to_thread(segments.finish):
        yield SegmentDone(segment)


class _Segments:
    """The segments of one text. Where an entry reaches from one into the next, they are one."""

    def __init__(self, replacements: Replacements) -> None:
        self._replacements, self._runs = replacements, _Runs(replacements)
        self._held: deque[Segment] = deque()

    def add(self, segment: Segment) -> list[Segment]:
        """Those that can be told by now."""
        self._held.append(segment)
        return [*self._told(self._runs.add(segment.text))]

    def finish(self) -> list[Segment]:
        return [*self._told(self._runs.finish())]

    def _told(self, runs: Sequence[tuple[int, str]]) -> Iterator[Segment]:
        for count, text in runs:
            segment = _joined([self._held.popleft() for _ in range(count)])
            yield replace(segment, text=text, words=tuple(_replaced_words(segment.words, self._replacements)))


def _joined(segments: Sequence[Segment]) -> Segment:
    """They may be of several chunks, of which one may have no words with times, and so has what they become."""
    timed = all(segment.words for segment in segments if segment.text)
    return replace(
        segments[0],
        end_ms=segments[-1].end_ms,
        tokens=tuple(token for segment in segments for token in segment.tokens),
        no_speech_prob=min(segment.no_speech_prob for segment in segments),
        temperature=max(segment.temperature for segment in segments),
        usage=sum((segment.usage for segment in segments), Usage()),
        lapses=tuple(dict.fromkeys(lapse for segment in segments for lapse in segment.lapses)),
        words=tuple(word for segment in segments for word in segment.words) if timed else (),
    )


def _replaced_words(words: Sequence[Word], replacements: Replacements) -> Iterator[Word]:
    """As many words as there were keep their times; others have their shares of the time of all that was heard."""
    left = iter(words)
    runs = _Runs(replacements)
    for count, text in [run for word in words for run in runs.add(word.text)] + runs.finish():
        heard, raw = [*islice(left, count)], text.encode()
        texts = [raw[start:end].decode() for start, end in word_pieces(raw)]
        if len(texts) == count:
            yield from (replace(word, text=written) for word, written in zip(heard, texts, strict=True))
        else:
            yield from spread(texts, heard[0].start_ms, heard[-1].end_ms)


class _Runs:
    """Texts with spaces between them, as they come: how many are one, because an entry reaches from each into the next,
    and what is written for them."""

    def __init__(self, replacements: Replacements) -> None:
        self._replacer = Replacer(replacements)
        self._borders: deque[int] = deque()  # behind each text that is not told yet, in characters of all
        self._added = self._read = 0  # characters
        self._count, self._written = 1, ""

    def add(self, text: str) -> list[tuple[int, str]]:
        """What can be told by now."""
        self._borders.append(self._added + len(text))
        self._added += len(text) + 1
        return [*self._told(self._replacer.steps(f"{text} "))]

    def finish(self) -> list[tuple[int, str]]:
        return [*self._told(self._replacer.steps("", final=True))]

    def _told(self, steps: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str]]:
        for heard, written in steps:
            if self._read == self._borders[0]:  # a space that no entry has taken
                self._borders.popleft()
                yield self._count, self._written
                self._count, self._written = 1, ""
            else:
                self._written += written
            self._read += len(heard)
            while self._borders and self._borders[0] < self._read:
                self._borders.popleft()
                self._count += 1
