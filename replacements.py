"""Words that are always written in one way: what was heard, and what is written for it. Pure.

A text is read once from left to right and what was written is not read again. At each place where a word may begin, the
longest entry that ends where a word may end is taken. Text that comes in pieces is held back as long as it may be the
beginning of an entry, so that the pieces do not matter.
"""

from __future__ import annotations

import asyncio
import csv
import unicodedata
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from config import ConfigError
from transcript import Segment, SegmentDone, TextDelta, Word


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

    def apply(self, text: str) -> str:
        replacer = Replacer(self)
        return replacer.add(text) + replacer.finish()


class Replacer:
    """One text, in pieces."""

    def __init__(self, replacements: Replacements) -> None:
        self._root = replacements.root
        self._held = ""
        self._before = " "  # the character before what is held

    def add(self, piece: str) -> str:
        """What can be told of the text by now."""
        self._held += piece
        return "".join(self._decided(final=False))

    def finish(self) -> str:
        return "".join(self._decided(final=True))

    @property
    def holds(self) -> bool:
        """Whether the text may end within an entry."""
        return bool(self._held)

    def _decided(self, final: bool) -> Iterator[str]:
        text, at = self._held, 0
        while at < len(text):
            end, written = self._longest(text, at, final)
            if end is None:
                break
            yield _like(text[at], written) if written else text[at:end]
            self._before, at = text[end - 1], end
        self._held = text[at:]

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
    """The events of one chunk, with the tokens that the model wrote and the text that is to be read."""
    replacer, tokens, segments = Replacer(replacements), (), []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                text, tokens = replacer.add(event.text), tokens + event.tokens
            else:
                text = replacer.finish()
                segments.append(event.segment)
            if text:
                yield TextDelta(text, tokens)
                tokens = ()
    for segment in await asyncio.to_thread(_replaced_segments, segments, replacements):  # a live text may have hours
        yield SegmentDone(segment)


def _replaced_segments(segments: Sequence[Segment], replacements: Replacements) -> list[Segment]:
    return [
        replace(
            segment,
            text=replacements.apply(segment.text),
            words=tuple(_replaced_words(segment.words, replacements)),
        )
        for segment in _undivided(segments, replacements)
    ]


def _undivided(segments: Sequence[Segment], replacements: Replacements) -> Iterator[Segment]:
    """The segments of one text. Where an entry reaches from one into the next, they are one."""
    held: Segment | None = None
    for segment in segments:
        if held is None:
            held = segment
            continue
        text = f"{held.text} {segment.text}"
        if replacements.apply(text) == f"{replacements.apply(held.text)} {replacements.apply(segment.text)}":
            yield held
            held = segment
        else:
            held = replace(
                held, end_ms=segment.end_ms, text=text, tokens=held.tokens + segment.tokens,
                usage=held.usage + segment.usage, words=held.words + segment.words,
            )  # fmt: skip
    if held:
        yield held


def _replaced_words(words: Sequence[Word], replacements: Replacements) -> Iterator[Word]:
    """As many words as there were keep their times; what else is written for some has the time of all of them."""
    replacer, read, text = Replacer(replacements), [], ""
    for word in words:
        read.append(word)
        text += replacer.add(f"{word.text} ")
        if replacer.holds and word is not words[-1]:
            continue
        texts = (text + replacer.finish()).split()
        if len(read) == len(texts):
            yield from (replace(each, text=written) for each, written in zip(read, texts, strict=True))
        else:
            yield Word(read[0].start_ms, word.end_ms, " ".join(texts))
        read, text = [], ""
