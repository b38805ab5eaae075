"""Finished chunks on disk: a recording that is sent again, also to a server that was killed, goes on where it was.

A cache and nothing more: whatever is wrong with its file, a request goes on without it and the log has one warning. It
holds the text of what was said and never audio or keys of the API.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from chunking import Chunk
from metrics import Metrics
from transcript import Segment, SegmentDone, TextDelta

log = logging.getLogger("voxtral.store")

Result = TypeVar("Result")
VERSION = 3  # to be raised when the same request and audio are to give another text than before
BUSY_SECONDS = 0.2  # to wait for another process that writes
REST_SECONDS = 60.0  # without the file after a fault, of which time is no remedy
NO_SAMPLES = np.zeros(0, np.float32)
SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA secure_delete = ON;
    CREATE TABLE IF NOT EXISTS chunks (key BLOB PRIMARY KEY, saved REAL NOT NULL, content BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS chunks_saved ON chunks (saved);
"""
FIND = "SELECT content FROM chunks WHERE key = ? AND saved > ?"
SAVE = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)"
DROP_OLD = "DELETE FROM chunks WHERE saved <= ?"
DROP_OLDEST = """
    DELETE FROM chunks WHERE key IN
    (SELECT key FROM chunks ORDER BY saved LIMIT 1 + (SELECT count(*) FROM chunks) / 10)
"""
BYTES_USED = """
    SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""


@dataclass(frozen=True)
class StoredChunk:
    """What came of a chunk: its text as it was streamed, without the space to the text before, and its segments."""

    text: str
    segments: tuple[Segment, ...]

    def events(self, separate: bool) -> Iterator[TextDelta | SegmentDone]:
        """The text at once. `separate`: text stands before, put a space."""
        if self.text:
            tokens = tuple(token for segment in self.segments for token in segment.tokens)
            yield TextDelta(" " + self.text if separate else self.text, tokens)
        yield from map(SegmentDone, self.segments)


CONTENT = TypeAdapter(StoredChunk)


class ChunkStore:
    """A connection for each use: a file that is deleted or replaced under it is simply made again, and what is dropped
    does not stay in a WAL, which the last connection empties. One thread after the other: SQLite lets those that wait
    try at random, and gives up; and where the file is deleted between two connections of one process, the second cuts
    off what the first has mapped, which ends the process. Blocks."""

    def __init__(self, file: Path, most_bytes: int, most_seconds: float) -> None:
        self._file, self._most_bytes, self._most_seconds = file, most_bytes, most_seconds
        self._using = threading.Lock()
        self._failed_at = -math.inf  # when a write failed last, on the clock of `time.monotonic`
        self._rests_until = 0.0
        self._warned = False

    def find(self, key: bytes) -> StoredChunk | None:
        oldest = time.time() - self._most_seconds
        with self._using:
            row = self._attempt(lambda connection: connection.execute(FIND, (key, oldest)).fetchone())
        try:
            return CONTENT.validate_json(row[0]) if row else None
        except ValidationError:  # of another version, or damaged
            return None

    def save(self, key: bytes, chunk: StoredChunk) -> None:
        """Chunks that are too old, and the oldest of too many, make room for it."""
        content, now = CONTENT.dump_json(chunk), time.time()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(SAVE, (key, now, content))
            connection.execute(DROP_OLD, (now - self._most_seconds,))
            while connection.execute(BYTES_USED).fetchone()[0] > self._most_bytes:
                connection.execute(DROP_OLDEST)

        self._write(write)

    def drop_old(self) -> None:
        """What is too old to be found."""
        oldest = time.time() - self._most_seconds
        self._write(lambda connection: connection.execute(DROP_OLD, (oldest,)))

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Whoever stood in line while a write failed is not kept waiting for the same reason, so that no line grows."""
        since = time.monotonic()

        def whole(connection: sqlite3.Connection) -> bool:
            work(connection)
            return True

        with self._using:
            if self._failed_at > since:
                return
            if self._attempt(whole):
                self._warned = False
            else:
                self._failed_at = time.monotonic()

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """The result, or None where the file cannot be used."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            with closing(self._connect()) as connection, connection:
                return work(connection)
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return None

    def _connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.touch(mode=0o600)  # SQLite would let others of this machine read what was said
        connection = sqlite3.connect(self._file, timeout=BUSY_SECONDS)
        try:
            connection.executescript(SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _fail(self, error: sqlite3.Error | OSError) -> None:
        """Another process that writes will end; any other fault is likely to last, and is left alone for a while."""
        fault = getattr(error, "sqlite_errorname", "")
        if fault.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            try:
                self._delete()
            except OSError as other:
                error = other
            else:
                log.warning("%s was damaged (%s) and is begun anew", self._file, error)
                return
        if not fault.startswith("SQLITE_BUSY"):
            self._rests_until = time.monotonic() + REST_SECONDS
        if not self._warned:
            log.warning("finished chunks are not kept, because %s cannot be used: %s", self._file, error)
        self._warned = True

    def _delete(self) -> None:
        for ending in ("", "-wal", "-shm"):  # what SQLite writes beside it
            self._file.with_name(self._file.name + ending).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Replay:
    """A chunk that was decoded before, in the place of a ChunkAhead."""

    chunk: Chunk
    content: StoredChunk

    async def events(self, separate: bool) -> AsyncGenerator[TextDelta | SegmentDone]:
        for event in self.content.events(separate):
            yield event

    def cancel(self) -> None:
        """Nothing is at work."""


class Shelf:
    """The store as one request sees it: chunks with its key, its model and its options. Reads and writes in threads."""

    def __init__(self, store: ChunkStore, about: tuple[object, ...], metrics: Metrics) -> None:
        """`about`: everything but the chunk that its text follows from; their `repr` tells them apart. A text that
        would be another one if it were not streamed is not kept."""
        self._store, self._about, self._metrics = store, about, metrics

    async def find(self, chunk: Chunk) -> Replay | None:
        found = await asyncio.to_thread(lambda: self._store.find(self._key(chunk)))
        self._metrics.stored_chunks.labels("hit" if found else "miss").inc()
        return Replay(chunk, found) if found else None

    async def keep(
        self, chunk: Chunk, events: AsyncGenerator[TextDelta | SegmentDone]
    ) -> AsyncGenerator[TextDelta | SegmentDone]:
        """The events of a chunk, which are kept once all have come. A text that is not whole or mixed is not kept: the
        next request is to try again."""
        text, segments, mixed = "", [], False
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    text += event.text
                else:
                    segments.append(event.segment)
                    mixed |= event.mixed
                yield event
        if not mixed and not any(segment.lapses for segment in segments):
            content = StoredChunk(text, tuple(segments))
            saving = asyncio.to_thread(lambda: self._store.save(self._key(chunk), content))
            await asyncio.shield(saving)  # also where the client leaves meanwhile

    def _key(self, chunk: Chunk) -> bytes:
        """SHA-256. The chunk's place is part of it, so that times are right to the millisecond."""
        place = replace(chunk, samples=NO_SAMPLES)
        digest = hashlib.sha256(repr((VERSION, *self._about, place)).encode())
        digest.update(chunk.samples)
        return digest.digest()
