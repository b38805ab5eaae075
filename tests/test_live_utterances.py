"""Live sessions of models that hear recordings: utterances, their times, and what becomes of a session."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core import EngineStopped, Job, JobFailed
from live import (
    Committed,
    LiveError,
    LiveEvent,
    LiveFlushed,
    LiveRequest,
    LiveSession,
    LiveText,
    SpeechStarted,
    SpeechStopped,
    UtteranceDone,
    UtteranceFailed,
)
from tests.listening import SILENCE, Desk, ears, hear, of, told, until
from tests.scripted import WORDS, spoken, words_in
from tests.speech import SAMPLE_RATE
from turns import Eagerness, TurnDetection

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("ears")]
_ = ears

VAD = TurnDetection()
# Seven words of a second each, of which 0.7 s are spoken, around a pause of two seconds.
TALK = np.concatenate([SILENCE, spoken(WORDS[:4]), SILENCE, SILENCE, spoken(WORDS[4:7]), SILENCE])


async def said(samples: np.ndarray, piece: int = 1600, **asked: object) -> tuple[list, Desk]:
    """All events of a session that hears nothing else."""
    async with Desk() as desk:
        session = await desk.open(**asked)
        reading = asyncio.create_task(told(session))
        await hear(session, samples, piece)
        await session.finish()
        events = await reading
        await session.close()
        return events, desk


async def collect(session: LiveSession, events: list[LiveEvent]) -> None:
    async for event in session.events():
        events.append(event)


def texts(events: list) -> list[str]:
    return [done.transcript.text for done in of(events, UtteranceDone)]


async def test_turns_are_utterances_with_times_of_the_session_and_silence_costs_nothing() -> None:
    events, desk = await said(TALK, turn_detection=VAD, timing="words")
    assert texts(events) == [" ".join(WORDS[:4]), " ".join(WORDS[4:7])]
    starts, stops, commits = (of(events, kind) for kind in (SpeechStarted, SpeechStopped, Committed))
    assert [event.ms for event in starts] == pytest.approx([700, 6700], abs=50)
    assert [event.ms for event in stops] == pytest.approx([5200, 10_200], abs=50)
    assert [(e.start_ms, e.end_ms) for e in commits] == [(a.ms, b.ms) for a, b in zip(starts, stops, strict=True)]
    words = [word for done in of(events, UtteranceDone) for word in done.transcript.words]
    assert [word.text for word in words] == list(WORDS[:7])
    assert [word.start_ms for word in words] == pytest.approx([1000, 2000, 3000, 4000, 7000, 8000, 9000], abs=400)
    assert len(desk.backend.jobs) == 2
    assert sum(len(job.audio[0]) for job in desk.backend.jobs) < len(TALK) - 2 * SAMPLE_RATE
    assert [done.transcript.usage.audio_ms for done in of(events, UtteranceDone)] == pytest.approx([4500, 3500], abs=70)
    silent, desk = await said(np.tile(SILENCE, 8), turn_detection=VAD)
    assert (silent, desk.backend.jobs) == ([], [])


async def test_the_texts_that_come_are_the_text_of_the_utterance_and_come_in_order() -> None:
    events, _ = await said(TALK, turn_detection=VAD)
    for done in of(events, UtteranceDone):
        of_it = [event.text for event in of(events, LiveText) if event.utterance == done.utterance]
        assert "".join(of_it) == done.transcript.text
        assert len(of_it) > 1
    answers = [event.utterance for event in events if isinstance(event, LiveText | UtteranceDone)]
    assert answers == sorted(answers)


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(piece=st.integers(1, 12 * SAMPLE_RATE).filter(lambda n: n > 150))
def test_pieces_of_any_size_are_heard_alike(piece: int) -> None:
    def heard(size: int) -> list:
        events, _ = asyncio.run(said(TALK, size, turn_detection=VAD))
        return sorted((e for e in events if not isinstance(e, LiveText)), key=lambda e: (e.utterance, str(type(e))))

    assert heard(piece) == heard(1600)


async def test_who_never_commits_has_text_at_pauses_and_memory_holds_little() -> None:
    async with Desk(audio_chunk_size_seconds=5) as desk:
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        heard: list[str] = []
        for round in range(6):
            await hear(session, np.concatenate([spoken(WORDS[:12]), SILENCE]))
            heard += WORDS[:12]
            await until(lambda: session.behind == 0)
            assert session.fed > 0
            held = sum(len(block) for block in session._cutter._tape._blocks)
            assert held < 8 * SAMPLE_RATE, round
        await session.commit()
        await session.finish()
        events = await reading
        assert texts(events) == [" ".join(heard)]
        assert of(events, LiveText)[-1].text.strip() in heard
        assert max(len(job.audio[0]) for job in desk.backend.jobs) <= 5 * SAMPLE_RATE
        assert events.index(of(events, Committed)[0]) > events.index(of(events, LiveText)[20])
        await session.close()


async def test_commits_make_utterances_and_an_empty_one_is_refused() -> None:
    async with Desk() as desk:
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        for words in (WORDS[:2], WORDS[2:3]):
            await hear(session, spoken(words)[: -int(0.2 * SAMPLE_RATE)])
            await session.commit()
        await session.feed(SILENCE[:800])
        with pytest.raises(LiveError, match=r"only has 50\.00ms") as refused:
            await session.commit()
        assert refused.value.code == "input_audio_buffer_commit_empty"
        await hear(session, SILENCE)
        await session.commit()
        await session.finish()
        with pytest.raises(LiveError, match="has ended"):
            await session.feed(SILENCE)
        events = await reading
        assert texts(events) == [" ".join(WORDS[:2]), WORDS[2], ""]
        assert [(c.start_ms, c.end_ms) for c in of(events, Committed)] == [(0, 1800), (1800, 2600), (2600, 3650)]
        await session.close()


async def test_what_is_cleared_is_never_told_and_its_number_is_not_used_again() -> None:
    async with Desk() as desk:
        session = await desk.open(turn_detection=VAD)
        reading = asyncio.create_task(told(session))
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[:2])]))
        await session.clear()
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[2:3]), SILENCE]))
        await session.finish()
        events = await reading
        assert texts(events) == [WORDS[2]]
        assert {e.utterance for e in events if isinstance(e, Committed | LiveText | UtteranceDone)} == {1}
        await session.close()


async def test_a_flush_writes_what_is_pending_and_the_utterance_goes_on() -> None:
    async with Desk() as desk:
        session = await desk.open()
        reading = asyncio.create_task(told(session))
        await hear(session, spoken(WORDS[:2]))
        await session.flush()
        await hear(session, spoken(WORDS[2:3]))
        await session.finish()
        events = await reading
        flushed = events.index(LiveFlushed(0))
        assert "".join(e.text for e in of(events[:flushed], LiveText)) == " ".join(WORDS[:2])
        assert texts(events) == [" ".join(WORDS[:3])]
        await session.close()


async def silence_that_ends(eagerness: Eagerness, mark: str) -> int:
    """Milliseconds behind two words whose text ends with `mark`; the model has done with each piece before the next."""
    async with Desk(script=lambda job: " ".join(words_in(job.audio[0])) + mark) as desk:
        session = await desk.open(turn_detection=TurnDetection("semantic_vad", eagerness=eagerness))
        await hear(session, spoken(WORDS[:2]))
        for _ in range(50):
            await session.feed(SILENCE[:1600])
            await until(lambda: session.behind == 0)
        await session.close()
        (stopped,) = of(await told(session), SpeechStopped)
        return stopped.ms - 1700


@pytest.mark.parametrize(("eagerness", "after_sentence", "elsewhere"), [
    ("low", 1100, 4000), ("medium", 1100, 2000), ("high", 1000, 1000),
])  # fmt: skip
async def test_a_sentence_that_has_ended_ends_a_semantic_turn_sooner_but_not_before_there_is_text(
    eagerness: Eagerness, after_sentence: int, elsewhere: int
) -> None:
    assert await silence_that_ends(eagerness, ".") == pytest.approx(after_sentence, abs=50)
    assert await silence_that_ends(eagerness, "") == pytest.approx(elsewhere, abs=50)


async def test_an_update_holds_for_the_next_utterance() -> None:
    async with Desk() as desk:
        session = await desk.open(language="en", turn_detection=VAD)
        reading = asyncio.create_task(told(session))
        talk = np.concatenate([spoken(WORDS[:1]), SILENCE])
        await hear(session, talk)
        await session.update(LiveRequest("de", "names of ships", ("alpha",), top_logprobs=2, turn_detection=VAD))
        await hear(session, talk)
        await session.finish()
        events = await reading
        first, second = desk.backend.jobs
        assert (first.keywords, second.sampling.top_logprobs) == (None, 2)
        assert second.keywords is not None
        assert second.prompt.text_tokens > first.prompt.text_tokens
        assert [done.transcript.language for done in of(events, UtteranceDone)] == ["en", "de"]
        assert all(len(token.top) == 2 for event in of(events, LiveText)[-1:] for token in event.tokens)
        await session.close()


async def test_an_utterance_that_fails_is_said_and_the_next_one_is_heard() -> None:
    def fails_on_alpha(job: Job) -> str:
        if "alpha" in words_in(job.audio[0]):
            raise ValueError("no alpha")
        return " ".join(words_in(job.audio[0]))

    async with Desk(script=fails_on_alpha) as desk:
        session = await desk.open(turn_detection=VAD)
        reading = asyncio.create_task(told(session))
        await hear(session, np.concatenate([spoken(WORDS[:1]), SILENCE, spoken(WORDS[1:2]), SILENCE]))
        await session.finish()
        events = await reading
        (failed,) = of(events, UtteranceFailed)
        assert failed.utterance == 0
        assert isinstance(failed.error, JobFailed)
        assert texts(events) == [WORDS[1]]
        await session.close()


@pytest.mark.parametrize("turns", [None, VAD], ids=["by hand", "turns"])
async def test_an_utterance_that_fails_while_it_goes_on_is_said_at_once_and_the_rest_is_the_next(
    turns: TurnDetection | None,
) -> None:
    goes_on = threading.Event()

    def fails_on_alpha(job: Job) -> str:
        assert goes_on.wait(30)
        assert "alpha" not in words_in(job.audio[0])
        return " ".join(words_in(job.audio[0]))

    async with Desk(script=fails_on_alpha, audio_chunk_size_seconds=5) as desk:
        session = await desk.open(turn_detection=turns)
        events: list[LiveEvent] = []
        reading = asyncio.create_task(collect(session, events))
        await hear(session, spoken(WORDS[:12]))
        goes_on.set()
        await until(lambda: of(events, UtteranceFailed))
        assert events[-2:] == [Committed(0, 0, 12_000), UtteranceFailed(0, events[-1].error)]
        assert session.behind == 0
        await hear(session, np.concatenate([SILENCE, spoken(WORDS[12:14]), SILENCE]))
        await session.finish()
        await reading
        assert texts(events) == [" ".join(WORDS[12:14])]
        assert {event.utterance for event in of(events, LiveText)} == {1}
        await session.close()


async def test_a_session_that_is_closed_frees_its_jobs_and_its_model_at_once() -> None:
    async with Desk(script=lambda job: "alpha bravo " * 2000, max_answer_tokens=32_768) as desk:
        one, other = [await desk.open(turn_detection=VAD) for _ in range(2)]
        assert (desk.live.count, desk.models.users) == (2, 2)
        await hear(one, np.concatenate([spoken(WORDS[:8]), SILENCE]))
        await until(lambda: desk.worker.running)
        assert desk.live.behind > 1
        await one.close()
        await one.close()
        await until(lambda: not desk.worker.running and not desk.worker.waiting)
        assert (desk.live.count, desk.models.users, desk.live.behind) == (1, 1, 0)
        assert [type(event) for event in await told(one)][:1] == [SpeechStarted]
        await other.close()


async def test_a_model_that_is_unloaded_ends_the_session_with_an_error() -> None:
    async with Desk() as desk:
        session = await desk.open(turn_detection=VAD)
        desk.worker.close()
        await session.feed(np.concatenate([spoken(WORDS[:1]), SILENCE]))
        with pytest.raises(EngineStopped):
            await told(session)
        with pytest.raises(EngineStopped):
            await session.feed(SILENCE)
        await session.close()
