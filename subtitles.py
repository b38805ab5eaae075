"""Words with times become subtitles: cues of few short lines that stand long enough to be read. Pure.

Where one cue ends and the next begins is the cheapest of all ways to cut: a cut costs most within a clause and least
behind a sentence or before a pause, and so does a cue that nobody has the time to read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transcript import Segment, Word
from word_times import begins_sentence, spread

LONGEST_PAUSE_MS = 2000  # under which a cue stays; a longer one always ends it
PAUSE_MS = 300  # from which on a pause is as good a place to cut as a comma
CLAUSE_END = re.compile(r"[,;:–—]\W*$")
# Costs. A cue by itself costs something too, or every clause would have its own.
CUE, WITHIN_CLAUSE, AT_CLAUSE, TOO_SHORT = 1.0, 2.0, 0.5, 3.0


@dataclass(frozen=True)
class SubtitleLimits:
    """What a cue may be. The defaults are what broadcasters and streaming services ask of translators."""

    line_length: int = 42  # characters
    lines: int = 2
    shortest_ms: int = 1000  # where the next cue lets it
    longest_ms: int = 7000


TRADE_LIMITS = SubtitleLimits()


@dataclass(frozen=True)
class Cue:
    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def shown_words(segments: Iterable[Segment]) -> list[Word]:
    """All words, in order. Where it could not be found when they were spoken, each has its share of the time of its
    segment: nothing that was said may be missing."""
    return [
        word
        for segment in segments
        for word in segment.words or spread(segment.text.split(), segment.start_ms, segment.end_ms)
    ]


def subtitles(words: Sequence[Word], audio_ms: int, limits: SubtitleLimits) -> list[Cue]:
    """All words, in order. No cue is over its limits, over another, or past the end of the audio."""
    words = [part for word in words for part in _parts(word, limits)]
    groups = _cut(words, limits)
    ends = [*(group[0].start_ms for group in groups[1:]), audio_ms]
    return [
        Cue(group[0].start_ms, _end(group, next_ms, limits), wrapped([word.text for word in group], limits))
        for group, next_ms in zip(groups, ends, strict=False)  # there is an end also where nothing is said
    ]


def _end(group: Sequence[Word], next_ms: int, limits: SubtitleLimits) -> int:
    """Its last word's end, or later if the cue would be too short to be read and the next one lets it."""
    end = max(group[-1].end_ms, min(group[0].start_ms + limits.shortest_ms, next_ms))
    return min(end, group[0].start_ms + limits.longest_ms)


def _parts(word: Word, limits: SubtitleLimits) -> Iterator[Word]:
    """The word, or pieces of one line of a text that has no spaces, each with its share of the time."""
    count = math.ceil(len(word.text) / limits.line_length)
    length = math.ceil(len(word.text) / count)
    duration = word.end_ms - word.start_ms
    for first in range(0, len(word.text), length):
        end = min(first + length, len(word.text))
        start_ms, end_ms = (word.start_ms + duration * at // len(word.text) for at in (first, end))
        yield Word(start_ms, end_ms, word.text[first:end])


def _cut(words: Sequence[Word], limits: SubtitleLimits) -> list[Sequence[Word]]:
    """The cheapest way to cut `words`, by dynamic programming over where the last cue begins."""
    cheapest = [0.0]  # of the first n words
    begins = [0]  # their last cue
    for end in range(1, len(words) + 1):
        following = words[end] if end < len(words) else None
        candidates = []
        for first in range(end - 1, -1, -1):
            if first < end - 1 and not _fits(words[first:end], limits):
                break
            candidates.append((cheapest[first] + _cost(words[first:end], following, limits), first))
        cost, first = min(candidates)
        cheapest.append(cost)
        begins.append(first)
    groups: list[Sequence[Word]] = []
    end = len(words)
    while end:
        groups.append(words[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def _fits(group: Sequence[Word], limits: SubtitleLimits) -> bool:
    first, second = group[:2]
    return (
        group[-1].end_ms - first.start_ms <= limits.longest_ms
        and second.start_ms - first.end_ms <= LONGEST_PAUSE_MS
        and len(filled([word.text for word in group], limits.line_length)) <= limits.lines
    )


def _cost(group: Sequence[Word], following: Word | None, limits: SubtitleLimits) -> float:
    """Of a cue and of the cut behind it."""
    first, last = group[0], group[-1]
    next_ms = following.start_ms if following else math.inf
    lasts = min(max(last.end_ms, next_ms) - first.start_ms, limits.shortest_ms)
    cost = CUE + TOO_SHORT * (1 - lasts / limits.shortest_ms if limits.shortest_ms else 0)
    if following is None or begins_sentence(following.text, last.text) or next_ms - last.end_ms > LONGEST_PAUSE_MS:
        return cost
    if CLAUSE_END.search(last.text) or next_ms - last.end_ms >= PAUSE_MS:
        return cost + AT_CLAUSE
    return cost + WITHIN_CLAUSE


def filled(words: Sequence[str], length: int) -> list[str]:
    """Lines with as many words as they take, none of which is longer than a line."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= length:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def wrapped(words: Sequence[str], limits: SubtitleLimits) -> tuple[str, ...]:
    """As few lines as it takes, of as equal a length as can be."""
    fewest = len(filled(words, limits.line_length))
    for length in range(max(map(len, words)), limits.line_length + 1):
        if len(lines := filled(words, length)) == fewest:
            return tuple(lines)
    raise ValueError("a word is longer than a line")
