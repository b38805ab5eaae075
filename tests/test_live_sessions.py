"""What limits live sessions, each with its own error, and what a server shows of them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import numpy as np
import pytest

import live_events
import live_listening
from engine.core import Job
from live import LiveError, SpeechStarted
from tests.listening import SILENCE, Clock, Desk, clean, ears, hear, of, told, until
from tests.scripted import WORDS, spoken
from tests.speech import SAMPLE_RATE
from turns import TurnDetection
from voice_activity import Listener

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("ears")]
_ = ears

VAD = TurnDetection()
WORD = np.concatenate([spoken(WORDS[:1]), SILENCE])


def code(caught: pytest.ExceptionInfo[LiveError]) -> str:
    return caught.value.code


class Slow:
    """A script that waits until it may go on."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def __call__(self, job: Job) -> str:
        assert self.goes_on.wait(30)
        return clean(job)


async def test_one_session_more_than_the_limit_is_refused_until_one_is_closed() -> None:
    async with Desk(realtime_max_sessions=2) as desk:
        one, other = await desk.open(), await desk.open()
        with pytest.raises(LiveError, match="2 sessions") as caught:
            await desk.open()
        assert (code(caught), desk.live.count, desk.models.users) == ("too_many_sessions", 2, 2)
        await one.close()
        third = await desk.open()
        for session in (other, third):
            await session.close()
        assert (desk.live.count, desk.models.users) == (0, 0)


@pytest.mark.parametrize("limit", ["idle", "too_long"])
async def test_a_session_that_says_nothing_or_is_too_old_ends_with_its_own_error(limit: str) -> None:
    setting = {"idle": "realtime_idle_seconds", "too_long": "realtime_session_seconds"}[limit]
    async with Desk(**{setting: 1}) as desk:
        session = await desk.open(turn_detection=VAD)
        await hear(session, WORD[:12_000])
        with pytest.raises(LiveError, match=setting.upper()) as caught:
            await told(session)
        assert code(caught) == limit
        with pytest.raises(LiveError, match=setting.upper()):
            await session.feed(SILENCE)
        await session.close()


@pytest.mark.parametrize("where", ["between feeds", "in them"])
async def test_who_speaks_to_a_slow_model_is_told_and_no_audio_is_dropped_in_silence(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paced as speech by a clock that the test turns, while nothing is said yet or while a piece is judged."""
    slow = Slow()
    async with Desk(script=slow, realtime_backlog_seconds=5) as desk, asyncio.timeout(60):
        session = await desk.open(turn_detection=VAD)
        reading, clock = asyncio.create_task(told(session)), Clock(session)
        judged = live_listening._judged

        def judge(ears: Listener, samples: np.ndarray) -> list[float]:
            clock.turn(len(samples) / SAMPLE_RATE)
            return judged(ears, samples)

        async def speak() -> None:
            for _ in range(20):
                if where == "between feeds":
                    clock.turn(len(WORD) / SAMPLE_RATE)
                await session.feed(WORD)

        if where == "in them":
            monkeypatch.setattr(live_listening, "_judged", judge)

        with pytest.raises(LiveError, match="behind, and this audio was not taken") as caught:
            await speak()
        assert code(caught) == "backlog_full"
        taken = session.fed // len(WORD)
        assert 5 <= session.behind <= 10
        slow.goes_on.set()
        await until(lambda: session.behind == 0)
        clock.turn(2)
        await session.feed(WORD)
        await session.finish()
        assert len(of(await reading, SpeechStarted)) == taken + 1
        await session.close()


async def test_a_file_that_is_sent_faster_than_speech_waits_for_the_model() -> None:
    slow = Slow()
    async with Desk(script=slow, realtime_backlog_seconds=5) as desk:
        session = await desk.open(turn_detection=VAD)
        reading = asyncio.create_task(told(session))
        sending = asyncio.create_task(hear(session, np.tile(WORD, 30), 30 * len(WORD)))
        await until(lambda: session.behind > 5)
        fed = session.fed
        await asyncio.sleep(0.2)
        assert session.fed == fed < 15 * len(WORD)
        slow.goes_on.set()
        await sending
        await session.finish()
        assert len(of(await reading, SpeechStarted)) == 30
        await session.close()


async def test_who_may_wait_is_never_told_to_speak_less_however_slow_the_model_is() -> None:
    """Paced as speech by a clock that the test turns."""
    slow = Slow()
    async with Desk(script=slow, realtime_backlog_seconds=5) as desk, asyncio.timeout(60):
        session = await desk.open(turn_detection=VAD, may_wait=True)
        reading, clock = asyncio.create_task(told(session)), Clock(session)

        async def speak() -> None:
            for _ in range(20):
                clock.turn(len(WORD) / SAMPLE_RATE)
                await session.feed(WORD)
            await session.finish()

        speaking = asyncio.create_task(speak())
        await until(lambda: session.behind > 5)
        slow.goes_on.set()
        await speaking
        assert len(of(await reading, SpeechStarted)) == 20
        await session.close()


async def test_a_model_that_is_behind_hears_more_at_once() -> None:
    slow = Slow()
    talk = np.concatenate([spoken(WORDS[:2]), SILENCE])
    async with Desk(script=slow, realtime_backlog_soft_seconds=1) as desk:
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        await hear(session, np.tile(talk, 6))
        slow.goes_on.set()
        await session.finish()
        await reading
        await session.close()
    assert len(desk.backend.jobs) == 2


async def test_who_does_not_read_ends_and_stalls_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_events, "MOST_EVENTS", 20)
    async with Desk() as desk:
        deaf, other = [await desk.open(turn_detection=VAD) for _ in range(2)]
        reading = asyncio.create_task(told(other))
        for _ in range(20):
            await other.feed(WORD)
            with suppress(LiveError):
                await deaf.feed(WORD)
        await other.finish()
        assert len(of(await reading, SpeechStarted)) == 20
        with pytest.raises(LiveError, match="20 events") as caught:
            await told(deaf)
        assert (code(caught), deaf.fed < other.fed) == ("reader_too_slow", True)
        for session in (deaf, other):
            await session.close()


async def test_metrics_tell_what_was_heard_and_how_late_its_text_was() -> None:
    async with Desk() as desk:
        session = await desk.open(turn_detection=VAD)
        await hear(session, np.tile(WORD, 2))
        await session.finish()
        await told(session)
        await session.close()
        page = desk.metrics.render().decode()
    assert "voxtral_live_audio_seconds_total 4.0" in page
    assert "voxtral_live_lag_seconds_count 2.0" in page
    assert 'voxtral_tokens_total{kind="audio"} 750.0' in page
