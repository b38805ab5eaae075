"""Live sessions of a model that writes while it hears: what it is fed, when its text comes, and whose it is."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import live_streaming
import replacements
from engine.backends import load_backend, start_worker
from engine.backends.base import LoadOptions
from engine.core import JobFailed
from engine.live import LiveOptions, LiveToken
from live import (
    Committed,
    LiveError,
    LiveFlushed,
    LiveRequest,
    LiveSession,
    LiveText,
    SpeechPaused,
    SpeechStopped,
    UtteranceDone,
)
from live_streaming import _Utterance
from replacements import Replacements
from tests.listening import SILENCE, Clock, Desk, ScriptedStreams, ears, hear, of, told, until
from tests.realtime import noise, write_random_model
from tests.scripted import WORDS, spoken, tokenizer
from tests.speech import SAMPLE_RATE
from turns import TurnDetection
from voice_activity import FRAME

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("ears")]
_ = ears

VAD = TurnDetection()
TALK = np.concatenate([SILENCE, spoken(WORDS[:4]), SILENCE, SILENCE, spoken(WORDS[4:7]), SILENCE])


async def said(streams: ScriptedStreams, samples: np.ndarray, piece: int = 1600, **asked: object) -> list:
    """All events of a session that hears nothing else."""
    async with Desk(streams) as desk:
        session = await desk.open(**asked)
        reading = asyncio.create_task(told(session))
        await hear(session, samples, piece)
        await session.finish()
        events = await reading
        await session.close()
        return events


def texts(events: list) -> list[str]:
    return [done.transcript.text for done in of(events, UtteranceDone)]


async def test_text_comes_while_it_is_spoken_and_only_turns_are_heard() -> None:
    streams = ScriptedStreams()
    events = await said(streams, TALK, turn_detection=VAD)
    assert texts(events) == [" ".join(WORDS[:4]), " ".join(WORDS[4:7])]
    first = [event for event in events if event.utterance == 0]
    assert [type(event) for event in first].index(LiveText) < [type(event) for event in first].index(Committed)
    for done in of(events, UtteranceDone):
        of_it = [event for event in of(events, LiveText) if event.utterance == done.utterance]
        assert "".join(event.text for event in of_it) == done.transcript.text
        assert [token for event in of_it for token in event.tokens] == list(done.transcript.tokens)
    assert len(streams.heard.audio) < len(TALK) - 2.5 * SAMPLE_RATE


async def test_times_are_those_of_the_session_and_not_of_what_was_fed() -> None:
    for detection in (VAD, None):
        events = await said(ScriptedStreams(), TALK, turn_detection=detection)
        transcripts = [done.transcript for done in of(events, UtteranceDone)]
        words = [word for transcript in transcripts for word in transcript.words]
        assert [word.text for word in words] == list(WORDS[:7])
        assert [(word.start_ms, word.end_ms) for word in words] == [
            (second * 1000, second * 1000 + 700) for second in (1, 2, 3, 4, 7, 8, 9)
        ]
        bounds = [(event.start_ms, event.end_ms) for event in of(events, Committed)]
        assert [transcript.usage.audio_ms for transcript in transcripts] == [b - a for a, b in bounds]
        assert transcripts[0].usage.audio_tokens == -(-(bounds[0][1] - bounds[0][0]) // 80)


async def test_in_a_pause_the_last_words_come_at_once_and_not_after_the_delay() -> None:
    streams = ScriptedStreams()
    events = await said(streams, TALK, turn_detection=VAD, delay_ms=2400)
    words = [event.text.strip() for event in of(events, LiveText)]
    assert words == list(WORDS[:7])
    last = next(event for event in of(events, LiveText) if event.text.strip() == WORDS[3])
    assert events.index(last) < events.index(of(events, SpeechStopped)[0])


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(piece=st.integers(400, 12 * SAMPLE_RATE), manual=st.booleans())
def test_pieces_of_any_size_are_heard_alike(piece: int, manual: bool) -> None:
    def heard(size: int) -> list:
        events = asyncio.run(said(ScriptedStreams(), TALK, size, turn_detection=None if manual else VAD))
        told_of = Committed | UtteranceDone | SpeechPaused | SpeechStopped
        return sorted((e for e in events if isinstance(e, told_of)), key=lambda e: (e.utterance, str(type(e))))

    assert heard(piece) == heard(1600)


async def commit_two(session: LiveSession) -> None:
    for words in (WORDS[:2], WORDS[2:3]):
        await hear(session, spoken(words))
        await session.commit()


async def test_commits_end_utterances_and_an_empty_one_is_refused() -> None:
    async with Desk(ScriptedStreams()) as desk:
        session = await desk.open(language="en")
        reading = asyncio.create_task(told(session))
        await commit_two(session)
        with pytest.raises(LiveError, match=r"only has 0\.00ms"):
            await session.commit()
        await hear(session, SILENCE)
        await session.finish()
        events = await reading
        assert texts(events) == [" ".join(WORDS[:2]), WORDS[2], ""]
        assert [done.transcript.language for done in of(events, UtteranceDone)] == ["en"] * 3
        assert [(c.start_ms, c.end_ms) for c in of(events, Committed)] == [(0, 2000), (2000, 3000), (3000, 4000)]
        await session.close()


async def test_a_commit_within_a_turn_and_a_switch_to_manual_end_it_there() -> None:
    async with Desk(ScriptedStreams()) as desk:
        session = await desk.open(turn_detection=VAD)
        reading = asyncio.create_task(told(session))
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[:1])]))
        await session.commit()
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[1:2])]))
        await session.update(LiveRequest())
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[2:3])]))
        await session.update(LiveRequest(turn_detection=VAD))
        await hear(session, np.concatenate([spoken(WORDS[3:4]), SILENCE]))
        await session.finish()
        events = await reading
        assert texts(events) == list(WORDS[:4])
        starts = [done.transcript.words[0].start_ms for done in of(events, UtteranceDone)]
        assert starts == [1000, 3000, 5000, 6000]
        await session.close()


@pytest.mark.parametrize(("silent", "heard_ms"), [(0, 3000), (8, 10_000)])
async def test_what_is_in_no_turn_is_heard_when_it_is_committed_by_hand(silent: int, heard_ms: int) -> None:
    """Of long silence only the end: so much audio waits for the model as may wait."""
    murmur = np.pad(spoken(["window"])[: 21 * FRAME], (0, 3 * SAMPLE_RATE - 21 * FRAME))  # no frame is half of it
    async with Desk(ScriptedStreams(), realtime_backlog_seconds=20) as desk:
        session = await desk.open(turn_detection=TurnDetection(threshold=0.8))
        reading = asyncio.create_task(told(session))
        await hear(session, np.concatenate([np.tile(SILENCE, silent), murmur]))
        await session.commit()
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[:1]), SILENCE]))
        await session.finish()
        events = await reading
        assert texts(events) == ["window", WORDS[0]]
        by_hand, _ = of(events, Committed)
        assert by_hand.end_ms == 1000 * (silent + 3)
        assert by_hand.end_ms - by_hand.start_ms == heard_ms
        assert of(events, UtteranceDone)[0].transcript.usage.audio_ms == heard_ms
        (word,), (later,) = (done.transcript.words for done in of(events, UtteranceDone))
        assert (word.start_ms, later.start_ms) == (1000 * silent, 1000 * (silent + 4))
        await session.close()


@pytest.mark.parametrize("detection", [None, VAD])
async def test_what_is_cleared_is_told_of_no_more_and_the_next_words_have_their_times(
    detection: TurnDetection | None,
) -> None:
    streams = ScriptedStreams()
    async with Desk(streams) as desk:
        session = await desk.open(turn_detection=detection)
        await session.clear()
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[:2])]))
        await session.clear()  # of which nobody has read anything yet
        await session.clear()
        await session.update(LiveRequest(turn_detection=detection, keywords=("zulu",)))
        await hear(session, spoken(WORDS[2:4]))
        await session.clear()
        assert streams.heard.audio.size == 0
        assert next(reversed(streams.streams)).options.keywords is not None
        await hear(session, spoken(WORDS[4:5]))
        await session.finish()
        events = await told(session)
        assert {event.utterance for event in events} == {4}
        (done,) = of(events, UtteranceDone)
        assert [(word.text, word.start_ms) for word in done.transcript.words] == [(WORDS[4], 5000)]
        await session.close()


async def test_what_was_committed_is_written_before_what_follows_it_is_cleared() -> None:
    async with Desk(ScriptedStreams()) as desk:
        session = await desk.open()
        await hear(session, spoken(WORDS[:1]))
        await session.commit()
        await hear(session, spoken(WORDS[1:2]))
        await session.clear()
        await hear(session, spoken(WORDS[2:3]))
        await session.finish()
        done = of(await told(session), UtteranceDone)
        assert [(each.utterance, each.transcript.text) for each in done] == [(0, WORDS[0]), (2, WORDS[2])]
        await session.close()


async def test_a_flush_writes_what_was_fed_and_the_utterance_goes_on() -> None:
    async with Desk(ScriptedStreams()) as desk:
        session = await desk.open(delay_ms=2400)
        reading = asyncio.create_task(told(session))
        await hear(session, spoken(WORDS[:2]))
        await session.flush()
        await session.flush()
        await hear(session, spoken(WORDS[2:3]))
        await session.finish()
        events = await reading
        flushed = events.index(LiveFlushed(0))
        assert [event.text for event in of(events[:flushed], LiveText)] == [WORDS[0], f" {WORDS[1]}"]
        assert len(of(events, LiveFlushed)) == 2
        assert texts(events) == [" ".join(WORDS[:3])]
        await session.close()


@pytest.mark.parametrize("end", [".", ""])
async def test_a_sentence_that_has_ended_ends_a_semantic_turn_sooner(end: str) -> None:
    streams = ScriptedStreams(lambda word: word + (end if word == WORDS[1] else ""))
    detection = TurnDetection("semantic_vad", eagerness="medium")
    async with Desk(streams) as desk:
        session = await desk.open(turn_detection=detection)
        reading = asyncio.create_task(told(session))
        for second in np.split(np.concatenate([spoken(WORDS[:2]), np.tile(SILENCE, 3)]), 50):
            await session.feed(second)
            await asyncio.sleep(0.001)  # in which the text of a flush comes
        await session.finish()
        (stopped,) = of(await reading, SpeechStopped)
        assert stopped.ms == pytest.approx(1700 + (500 if end else 2000), abs=120)
        await session.close()


async def test_what_is_murmured_in_a_pause_is_heard_before_a_timeout_ends_the_turn() -> None:
    detection = TurnDetection(silence_duration_ms=3000, eager_end_threshold=0.9, end_threshold=0.1, end_timeout_ms=1600)
    async with Desk(ScriptedStreams()) as desk:
        session = await desk.open(turn_detection=detection)
        reading = asyncio.create_task(told(session))
        await hear(session, np.concatenate([spoken(WORDS[:1]), spoken(["window"]), np.tile(SILENCE, 3)]))
        await session.finish()
        events = await reading
        assert texts(events) == [f"{WORDS[0]} window"]
        assert of(events, SpeechStopped)[0].reason == "timeout"
        await session.close()


async def test_what_is_murmured_without_end_is_heard_while_the_turn_is_paused_and_nobody_waits() -> None:
    detection = TurnDetection(silence_duration_ms=1000, eager_end_threshold=0.9, end_threshold=0.1)
    streams, murmur = ScriptedStreams(), np.tile(spoken(["window"])[: SAMPLE_RATE // 2], 16)
    async with Desk(streams, realtime_backlog_seconds=3) as desk:
        session = await desk.open(turn_detection=detection, delay_ms=960)
        reading = asyncio.create_task(told(session))
        async with asyncio.timeout(20):
            await hear(session, np.concatenate([spoken(WORDS[:1]), murmur]))
        assert (session._turns.paused, session.behind) == (True, 0)
        assert np.count_nonzero(streams.heard.audio) == np.count_nonzero(spoken(WORDS[:1])) + len(murmur)
        await session.finish()
        assert texts(await reading) == [f"{WORDS[0]} window"]
        await session.close()


async def test_one_session_more_than_there_is_memory_for_is_refused_until_one_is_closed() -> None:
    async with Desk(ScriptedStreams()) as desk:
        desk.worker.backend.most_streams = 2
        one, other = await asyncio.gather(desk.open(), desk.open())
        with pytest.raises(LiveError, match="enough for 2 sessions") as caught:
            await desk.open()
        assert (caught.value.code, desk.live.count, desk.models.users) == ("too_many_sessions", 2, 2)
        await one.close()
        third = await desk.open()
        for session in (other, third):
            await session.close()
        assert (desk.live.count, desk.models.users) == (0, 0)


async def test_keywords_change_while_somebody_speaks_and_the_delay_does_not() -> None:
    streams = ScriptedStreams()
    async with Desk(streams) as desk:
        with pytest.raises(LiveError, match="no prompt"):
            await desk.open(prompt="names of ships")
        assert desk.live.count == 0
        session = await desk.open(keywords=("alpha",))
        reading = asyncio.create_task(told(session))
        await session.update(LiveRequest(delay_ms=960, top_logprobs=2))
        assert [stream.options.delay_ms for stream in streams.streams] == [480, 960]
        assert [heard.cancelled for heard in streams.streams.values()] == [True, False]
        await hear(session, spoken(WORDS[:1]))
        await session.update(LiveRequest(keywords=("bravo",), delay_ms=960, top_logprobs=2))
        assert len(streams.heard.keywords) == 1
        assert streams.heard.keywords[0] is not None
        with pytest.raises(LiveError, match="before audio comes only") as caught:
            await session.update(LiveRequest(delay_ms=80))
        assert caught.value.code == "delay_fixed"
        await session.finish()
        assert texts(await reading) == [WORDS[0]]
        await session.close()


async def test_words_that_are_always_written_in_one_way_are_so_live_too() -> None:
    async with Desk(ScriptedStreams()) as desk:
        entries = Replacements()
        entries.add("alpha bravo", "AB")
        desk.live._transcriber.replacements = entries
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        await hear(session, spoken(WORDS[:3]))
        await session.finish()
        events = await reading
        assert texts(events) == ["AB charlie"] == ["".join(event.text for event in of(events, LiveText))]
        assert [word.text for word in of(events, UtteranceDone)[0].transcript.words] == ["AB", "charlie"]
        await session.close()


async def test_the_end_of_a_long_text_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second for a text of two hours is done in a thread."""
    threads: dict[str, threading.Thread] = {}

    def note(module: ModuleType, name: str) -> None:
        work = getattr(module, name)

        def noted(*args: object) -> object:
            threads[name] = threading.current_thread()
            return work(*args)

        monkeypatch.setattr(module, name, noted)

    note(live_streaming, "timed_segments")
    note(replacements, "_replaced_words")
    async with Desk(ScriptedStreams()) as desk:
        desk.live._transcriber.replacements = Replacements()
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        await hear(session, spoken(WORDS[:2]))
        await session.finish()
        assert texts(await reading) == [" ".join(WORDS[:2])]
        await session.close()
    assert set(threads) == {"timed_segments", "_replaced_words"}
    assert threading.main_thread() not in threads.values()


async def test_what_nobody_commits_takes_little_memory_for_each_token() -> None:
    async with Desk(ScriptedStreams()) as desk:
        session, utterance = await desk.open(), _Utterance(0)
        ids = tokenizer()._tekken.encode(" ".join(WORDS), bos=False, eos=False)
        tokens = [LiveToken(ids[i % len(ids)], -i / 1000, (), i * 2000, i * 2000 + 900) for i in range(5000)]
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for token in tokens:
            session._add_token(utterance, token)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(utterance.tokens) == 5000
        assert held < 170 * len(tokens)
        await session.close()


async def test_a_model_that_is_behind_hears_more_at_once() -> None:
    streams = ScriptedStreams()
    async with Desk(streams, realtime_backlog_soft_seconds=2) as desk:
        session = await desk.open()
        streams.hears = False
        await hear(session, np.tile(SILENCE, 6))
        assert streams.heard.pieces[:20] == [1600] * 20
        assert set(streams.heard.pieces[22:]) == {SAMPLE_RATE}
        assert session.behind == 6
        await session.close()
        assert streams.streams.popitem()[1].cancelled


@pytest.mark.parametrize("paced", [False, True])
async def test_a_model_that_waits_for_its_interval_is_not_behind(paced: bool) -> None:
    async with Desk(ScriptedStreams(), realtime_backlog_seconds=3) as desk:
        session = await desk.open(interval_ms=5000)
        clock, reading = Clock(session), asyncio.create_task(told(session))
        async with asyncio.timeout(20):
            for piece in np.split(spoken(WORDS[:9]), 90):
                clock.turn(0.1 if paced else 0)
                await session.feed(piece)
        assert session.behind == 0
        await session.finish()
        assert texts(await reading) == [" ".join(WORDS[:9])]
        await session.close()


async def test_a_stream_that_fails_ends_the_session_after_what_was_heard() -> None:
    streams = ScriptedStreams()
    async with Desk(streams) as desk:
        session = await desk.open()
        await hear(session, np.concatenate([spoken(WORDS[:1]), SILENCE]))
        streams.fail(JobFailed("no more"))
        await until(lambda: session.error)
        events = session.events()
        assert (await anext(events)).text == WORDS[0]
        with pytest.raises(JobFailed):
            await anext(events)
        with pytest.raises(JobFailed):
            await session.commit()
        await session.close()
        assert desk.models.users == 0


async def test_the_real_engine_writes_in_a_session_what_it_writes_in_a_stream(tmp_path: Path) -> None:
    """A model of random weights, which writes something or other of some of it."""
    folder, said = write_random_model(tmp_path), [noise(2, seed) for seed in range(4)]
    async with Desk(start_worker(load_backend("realtime", folder, LoadOptions("cpu", "float32")))) as desk:
        session, stream = await desk.open(), desk.worker.open(LiveOptions())
        reading = asyncio.create_task(told(session))
        for samples in said:
            stream.feed(samples)
            stream.flush()
            await hear(session, samples)
            await session.commit()
        stream.finish()
        await session.finish()
        token_bytes, expected = desk.worker.backend.tokenizer.token_bytes, [b""]
        async for item in stream:
            if isinstance(item, LiveToken):
                expected[-1] += token_bytes(item.id)
            else:
                expected.append(b"")
        assert texts(await reading) == [text.decode(errors="replace").lstrip() for text in expected[:-1]]
        assert any(expected)
        await session.close()
