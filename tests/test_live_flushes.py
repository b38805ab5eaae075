"""Flushes of both kinds of sessions: within a word, in a pause, and where no audio comes any more."""

from __future__ import annotations

import asyncio

import pytest

from live import LiveFlushed, LiveText
from tests.listening import SILENCE, Desk, ScriptedStreams, ears, hear, of, told
from tests.scripted import WORDS, spoken
from tests.speech import SAMPLE_RATE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("ears")]
_ = ears

KINDS = pytest.mark.parametrize("streams", [None, ScriptedStreams], ids=["recordings", "streams"])


@KINDS
async def test_a_flush_within_a_word_waits_for_its_end(streams: type[ScriptedStreams] | None) -> None:
    async with Desk(streams and streams()) as desk:
        session = await desk.open(delay_ms=2400)
        word, half = spoken(WORDS[:1]), SAMPLE_RATE // 2
        for flush_at in (1600, half):
            await hear(session, word[:flush_at])
            await session.flush()
            await hear(session, word[flush_at:])
        await session.commit()
        await hear(session, word[:half])
        await session.flush()
        await session.clear()
        await session.finish()
        events = await told(session)
        await session.close()
    order = [type(event) for event in events if isinstance(event, LiveText | LiveFlushed)]
    assert order == [LiveText, LiveFlushed] * 2
    assert "".join(event.text for event in of(events, LiveText)) == f"{WORDS[0]} {WORDS[0]}"


@KINDS
async def test_a_flush_within_a_word_is_done_where_no_more_audio_comes(streams: type[ScriptedStreams] | None) -> None:
    async with Desk(streams and streams()) as desk:
        session = await desk.open(delay_ms=2400)
        events = session.events()
        await hear(session, spoken(WORDS[:1])[: int(0.6 * SAMPLE_RATE)])
        await session.flush()
        await session.flush()
        async with asyncio.timeout(20):
            assert [type(await anext(events)) for _ in range(3)] == [LiveText, LiveFlushed, LiveFlushed]
        await session.close()


@KINDS
async def test_flushes_in_one_pause_are_one(streams: type[ScriptedStreams] | None) -> None:
    async with Desk(streams and streams()) as desk:
        session = await desk.open(delay_ms=2400)
        await hear(session, spoken(WORDS[:1]))
        for _ in range(5):
            await session.flush()
            await hear(session, SILENCE[:1600])
        await hear(session, spoken(WORDS[1:2]))
        await session.finish()
        events = await told(session)
        await session.close()
    order = [type(event) for event in events if isinstance(event, LiveText | LiveFlushed)]
    assert order == [LiveText, LiveFlushed, LiveText, *[LiveFlushed] * 4]
