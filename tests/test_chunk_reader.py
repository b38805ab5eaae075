"""Chunks of a file, decoded in a thread: what is known before an answer begins, and how it ends."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from audio_processor import SAMPLE_RATE, AudioError, AudioFile, AudioLimits
from chunk_reader import PROBED_SECONDS, ChunkReader
from chunking import Chunk, chunks
from tests.speech import browser_recording, clip, wav

pytestmark = pytest.mark.anyio


def audio(seconds: float) -> AudioFile:
    return AudioFile(io.BytesIO(wav(np.zeros(int(seconds * SAMPLE_RATE), np.float32))), AudioLimits(3600))


def at_the_end(blocks: Iterator[np.ndarray]) -> Iterator[Chunk]:
    """One chunk, which takes the whole file to find."""
    length = sum(len(block) for block in blocks)
    yield Chunk(0, 0, np.zeros(length, np.float32))


async def test_chunks_come_in_order_and_then_none() -> None:
    reader = ChunkReader(audio(25), lambda blocks: chunks(blocks, 10))
    await reader.probe()
    found = []
    while chunk := await reader.next():
        found.append(chunk)
    assert [chunk.index for chunk in found] == [0, 1, 2]
    assert sum(len(chunk.samples) for chunk in found) == 25 * SAMPLE_RATE
    assert reader.decoded_ms == 25_000
    await reader.close()


async def test_what_is_wrong_with_the_first_chunk_is_known_before_the_answer() -> None:
    reader = ChunkReader(audio(0.05), lambda blocks: chunks(blocks, 10))
    with pytest.raises(AudioError, match="too short"):
        await reader.probe()
    await reader.close()


async def test_a_long_search_does_not_hold_up_the_answer_and_goes_on_in_it() -> None:
    """After PROBED_SECONDS the rest waits here until the answer has begun."""
    begun = threading.Event()

    def slowly(blocks: Iterator[np.ndarray]) -> Iterator[Chunk]:
        length = 0
        for block in blocks:
            length += len(block)
            if length > (PROBED_SECONDS + 5) * SAMPLE_RATE:
                assert begun.wait(30)
        yield Chunk(0, 0, np.zeros(length, np.float32))

    reader = ChunkReader(audio(90), slowly)
    await reader.probe()
    assert PROBED_SECONDS * 1000 < reader.decoded_ms < 90_000
    begun.set()
    chunk = await reader.next()
    assert len(chunk.samples) == 90 * SAMPLE_RATE
    assert await reader.next() is None
    await reader.close()


async def test_a_chunk_that_nobody_waited_for_to_the_end_is_not_lost() -> None:
    reader = ChunkReader(audio(5), at_the_end)
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert len((await reader.next()).samples) == 5 * SAMPLE_RATE
    await reader.close()


async def test_closing_ends_a_search_that_is_under_way() -> None:
    file = audio(1800)
    reader = ChunkReader(file, at_the_end)
    await reader.probe()
    await reader.close()
    assert file.decoded < 1800 * SAMPLE_RATE


def test_a_browsers_recording_declares_no_length() -> None:
    data = browser_recording(clip("short_0").samples())
    recorded, whole = AudioFile(io.BytesIO(data), AudioLimits(3600)), audio(25)
    assert (recorded.declared_ms, whole.declared_ms) == (None, 25_000)
    recorded.close()
    whole.close()
