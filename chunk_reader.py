"""A recording's chunks, decoded and cut in a thread while others are with the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np

from audio_processor import SAMPLE_RATE, AudioFile
from chunking import Chunk, milliseconds
from transcript import Gap

# Decoded before an answer may begin. Most of what can be wrong with a file shows by then, and no client waits for its
# first byte while hours of silence are searched for speech.
PROBED_SECONDS = 60


class ChunkReader:
    """Gives chunk after chunk to one reader at a time. It owns the file; `close()` in any case."""

    def __init__(self, audio: AudioFile, cut: Callable[[Iterator[np.ndarray]], Iterator[Chunk]]) -> None:
        self._audio = audio
        self._chunks = cut(self._blocks())
        self._loop = asyncio.get_running_loop()
        self._probed: asyncio.Future[None] = self._loop.create_future()
        self._upcoming: asyncio.Future[Chunk | None] | None = None
        self._closed = False

    @property
    def decoded_ms(self) -> int:
        return milliseconds(self._audio.decoded)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return self._audio.gaps

    def _blocks(self) -> Iterator[np.ndarray]:
        """In the thread: the audio's blocks, until there is nobody who waits for a chunk."""
        for block in self._audio.blocks():
            if self._closed:
                return
            if self._audio.decoded > PROBED_SECONDS * SAMPLE_RATE and not self._probed.done():
                self._loop.call_soon_threadsafe(self._set_probed)
            yield block

    def _set_probed(self) -> None:
        if not self._probed.done():
            self._probed.set_result(None)

    async def probe(self) -> None:
        """Decode up to the first chunk, or PROBED_SECONDS where they hold none. Raises AudioError."""
        first = self._decoding()
        await asyncio.wait({first, self._probed}, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            first.result()

    async def next(self) -> Chunk | None:
        """The next chunk; None after the last. Raises AudioError. Cancelled, it leaves the thread at work."""
        chunk = await asyncio.shield(self._decoding())
        self._upcoming = None
        return chunk

    def _decoding(self) -> asyncio.Future[Chunk | None]:
        if self._upcoming is None:
            self._upcoming = asyncio.ensure_future(asyncio.to_thread(next, self._chunks, None))
        return self._upcoming

    async def close(self) -> None:
        """Waits for the thread, which reads the file, at most as long as it takes for a block."""
        self._closed = True
        if self._upcoming:
            await asyncio.gather(self._upcoming, return_exceptions=True)
        self._audio.close()
