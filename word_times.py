"""Where tokens were spoken becomes where words were, and where a chunk is divided into segments. Pure.

Places in a chunk are samples of the chunk. Its spans lead from them to the recording, of which pauses were left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np

from audio_processor import SAMPLE_RATE
from chunking import Chunk, milliseconds
from transcript import Segment, TextToken, Usage, Word
from voice_activity import Span

Timing = Literal["chunks", "segments", "words"]  # the smallest that shall have times of its own
SHORTEST_MS = 40  # of a word, where there is room
LONGEST_GAP = 2.5  # seconds of speech from the beginning of a token to that of the next; more, and words were skipped
CROWD, CROWD_SECONDS = 3, 0.2  # words that nobody says in so short a time
SENTENCE_END = re.compile(r"[.?!…。？！।][\"'”’»)\]]*$")


def begins_sentence(word: str, before: str) -> bool:
    """Whether a sentence ended with the word `before`; not with "etc." in the midst of one."""
    return bool(SENTENCE_END.search(before)) and not word[:1].islower()


def needs_places(timing: Timing, chunk: Chunk, text: bytes) -> bool:
    """Whether a chunk's text must be aligned, which costs a pass of the model. A single sentence that is spoken without
    a pause is as long as its chunk."""
    if timing != "segments" or len(chunk.regions) > 1:
        return timing != "chunks"
    words = text.decode(errors="replace").split()
    return any(begins_sentence(word, before) for before, word in pairwise(words))


def leaves_gap(token_spans: Sequence[tuple[int, int]], chunk: Chunk, at_end: bool = False) -> bool:
    """Whether so much speech lies between two tokens, or at an end, that words must be missing; `at_end`: only behind
    the last. Where nobody looked for speech, nobody knows. token_spans: as in `timed_segments`."""
    if not chunk.regions or not token_spans:
        return False
    begins = np.cumsum([0, *(region.end - region.start for region in chunk.regions)])[:-1]
    edges = [(at + r.first - r.start, at + r.last - r.start) for at, r in zip(begins, chunk.regions, strict=True)]
    spoken = np.cumsum([step for first, last in edges for step in (0, last - first)])  # up to each edge
    starts = np.array([0, *(start for start, _ in token_spans), len(chunk.samples)])
    gaps = np.diff(np.interp(starts, np.ravel(edges), spoken))
    return bool(gaps[-1 if at_end else 0 :].max() > LONGEST_GAP * SAMPLE_RATE)


def is_crowded(tokens: Sequence[TextToken], token_spans: Sequence[tuple[int, int]]) -> bool:
    """Whether some words have so little time that they were never said. token_spans: as in `timed_segments`."""
    # Characters of words without spaces share the time of their word, so these are not looked at.
    starts = [start for token, (start, _) in zip(tokens, token_spans, strict=False) if token.bytes[:1].isspace()]
    edges = np.array([*starts, *(end for _, end in token_spans[-1:])])
    return bool((edges[CROWD:] - edges[:-CROWD] < CROWD_SECONDS * SAMPLE_RATE).any())


def timed_segments(segment: Segment, token_spans: Sequence[tuple[int, int]], chunk: Chunk) -> list[Segment]:
    """The segment of a whole chunk, divided where the speaker pauses and where sentences end, with times for its words.
    One that may lack words stays whole, because nobody knows where.

    token_spans: of each token of the segment the first sample in the chunk, and the one after its last.
    """
    raw = b"".join(token.bytes for token in segment.tokens)
    pieces, spans = word_pieces(raw), chunk.spans()
    if not pieces:
        return [segment]
    first_ms, last_ms = milliseconds(spans[0].start), milliseconds(spans[-1].end)
    if len(pieces) > last_ms - first_ms:  # more words than milliseconds, which nobody has spoken
        pieces = [(pieces[0][0], pieces[-1][1])]
    regions, times = in_recording(places(pieces, segment.tokens, token_spans), spans)
    texts = [raw[start:end].decode(errors="replace") for start, end in pieces]
    words = tuple(Word(*ms, text) for ms, text in zip(apart(times, first_ms, last_ms), texts, strict=True))
    inner = range(1, 1 if segment.lapses else len(words))
    cuts = [i for i in inner if regions[i] != regions[i - 1] or begins_sentence(texts[i], texts[i - 1])]
    return _divided(segment, raw, pieces, words, cuts)


def _divided(
    segment: Segment, raw: bytes, pieces: list[tuple[int, int]], words: tuple[Word, ...], cuts: list[int]
) -> list[Segment]:
    """`segment`, whose text is `raw`, cut before the words of these numbers."""
    ends = np.cumsum([len(token.bytes) for token in segment.tokens])
    token_cuts = np.searchsorted(ends, [pieces[cut][0] for cut in cuts], side="right").tolist()
    return [
        replace(
            segment,
            start_ms=words[first].start_ms,
            end_ms=words[end - 1].end_ms,
            text=raw[pieces[first][0] : pieces[end - 1][1]].decode(errors="replace"),
            tokens=segment.tokens[first_token:end_token],
            usage=Usage() if first else segment.usage,
            words=words[first:end],
        )
        for (first, end), (first_token, end_token) in zip(
            pairwise([0, *cuts, len(words)]), pairwise([0, *token_cuts, len(segment.tokens)]), strict=True
        )
    ]


def word_pieces(raw: bytes) -> list[tuple[int, int]]:
    """First byte of each word and the one after its last. Punctuation that stands alone belongs to the word before."""
    pieces: list[tuple[int, int]] = []
    for match in re.finditer(rb"\S+", raw):
        if pieces and not (_is_word(match[0]) and _is_word(raw[slice(*pieces[-1])])):
            pieces[-1] = pieces[-1][0], match.end()
        else:
            pieces.append(match.span())
    return pieces


def _is_word(raw: bytes) -> bool:
    return any(map(str.isalnum, raw.decode(errors="replace")))


def places(
    pieces: list[tuple[int, int]], tokens: Sequence[TextToken], token_spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Samples (words, 2) of the chunk; inside a token each of its bytes takes as long, but the space before none."""
    known_bytes: list[float] = []
    ends = accumulate(len(token.bytes) for token in tokens)
    for token, end in zip(tokens, ends, strict=True):
        known_bytes += [end - len(token.bytes.lstrip()), end]
    known_samples = [sample for span in token_spans for sample in span]
    just_inside = np.add(pieces, (1e-6, -1e-6))  # where a token ends and the next begins there are two answers
    return np.interp(just_inside, known_bytes, known_samples)


def in_recording(where: np.ndarray, spans: Sequence[Span]) -> tuple[list[int], list[tuple[int, int]]]:
    """For `where` (words, 2), places in a chunk: in which of its spans each word lies, and its milliseconds in the
    recording, from the first to the last speech of that span."""
    starts = np.cumsum([0, *(span.end - span.start for span in spans)])
    regions = np.searchsorted(starts[1:-1], where.mean(axis=1), side="right").tolist()
    times = []
    for (first, last), region in zip(where.tolist(), regions, strict=True):
        span, shift = spans[region], spans[region].start - starts[region]
        begin, end = (min(max(round(place + shift), span.first), span.last) for place in (first, last))
        times.append((milliseconds(begin), milliseconds(end)))
    return regions, times


def apart(times: list[tuple[int, int]], first_ms: int, last_ms: int) -> list[tuple[int, int]]:
    """Times in order, from `first_ms` to `last_ms`, none empty and none over another, moved as little as that takes.

    `times` increase, but may be empty. There must be a millisecond for each.
    """
    shortest = min(SHORTEST_MS, (last_ms - first_ms) // len(times))
    moved, earliest, latest = [], first_ms, last_ms
    for start, end in times:
        start = max(start, earliest)
        earliest = max(end, start + shortest)
        moved.append((start, earliest))
    for i, (start, end) in reversed([*enumerate(moved)]):
        end = min(end, latest)
        latest = min(start, end - shortest)
        moved[i] = latest, end
    return moved


def spread(texts: Sequence[str], start_ms: int, end_ms: int) -> Iterator[Word]:
    """Words with their shares of a time, by their letters."""
    ends = [0, *accumulate(map(len, texts))]  # in characters
    times = [start_ms + (end_ms - start_ms) * end // max(ends[-1], 1) for end in ends]
    for text, (start, end) in zip(texts, pairwise(times), strict=True):
        yield Word(start, end, text)
