"""Chunks that the model fails on, through the real worker: what is decoded again, what is kept, and what is told."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aligner import Aligner
from chunking import Chunk
from config import Settings
from decoding import LEAST_SECONDS, TEMPERATURES, Asked, ChunkDecoding
from engine.core import Job, Sampling
from engine.loops import FAR_SUSPECT
from engine.worker import Worker
from tests.scripted import DOUBTFUL, FULL_STOP, WORDS, ScriptedBackend, spoken, words_in
from tests.serving import Server
from tests.speech import SAMPLE_RATE, clip, word_errors
from transcript import Segment, TextDelta
from voice_activity import Span
from word_times import Timing

Script = Callable[[Job], str]
ROUNDS = 60


@dataclass(frozen=True)
class Told:
    deltas: list[TextDelta]
    segment: Segment
    mixed: bool
    begun: int  # how often it was said before anything was told
    jobs: list[Job]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


class ScriptedAligner:
    """Says that each word begins 50 ms late, or nothing; has the letters of some texts."""

    def __init__(self, covers: bool = True, hears: bool = True) -> None:
        self._covers, self._hears = covers, hears

    def covers(self, tokens: Sequence[bytes]) -> bool:
        return self._covers

    async def spans(self, samples: np.ndarray, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
        return [(i * SAMPLE_RATE + 800, i * SAMPLE_RATE + 8000) for i in range(len(tokens))] if self._hears else []


def tell(
    script: Script,
    seconds: int = 60,
    words: Sequence[str] = (),
    timing: Timing = "chunks",
    aligner: ScriptedAligner | Aligner | None = None,
    **asked: object,
) -> Told:
    """The events of a chunk in which `words` or the first `seconds` WORDS are spoken, one each second. `asked`: of the
    job, and whether it is `streamed`."""
    streamed = bool(asked.pop("streamed", True))
    samples = spoken(words or WORDS[:seconds])
    speech = Span(0, len(samples), 0, len(samples) - SAMPLE_RATE // 4)
    backend = ScriptedBackend(script)
    worker = Worker(backend)
    prompt = backend.tokenizer.transcription_prompt("en")
    job = replace(Job(prompt, (), backend.context_length, Sampling(), loops_end=True), **asked)

    async def events() -> Told:
        begun: list[None] = []
        all_asked = Asked(
            worker, "test", job, Settings().token_cap, timing, aligner, streamed, begun=lambda: begun.append(None)
        )
        decoding = ChunkDecoding(all_asked, Chunk(0, 0, samples, (speech,)))
        *deltas, done = [event async for event in decoding.events()]
        return Told(deltas, done.segment, done.mixed, len(begun), backend.jobs)

    try:
        told = asyncio.run(events())
    finally:
        worker.close()
    assert told.text == told.segment.text
    assert [token for delta in told.deltas for token in delta.tokens] == list(told.segment.tokens)
    return told


def seconds_of(job: Job) -> float:
    return len(job.audio[0]) / SAMPLE_RATE


def loops(job: Job, after: int = 3, phrase: int = 2) -> str:
    """The words of the audio up to some, of which the last are said again and again."""
    words = words_in(job.audio[0])
    return " ".join([*words[:after], *words[max(after - phrase, 0) : after] * ROUNDS])


def longer_than(seconds: float, failing: Script) -> Script:
    """A model that fails on longer audio, and hears every word of shorter."""
    return lambda job: failing(job) if seconds_of(job) > seconds else " ".join(words_in(job.audio[0]))


@pytest.mark.parametrize("longest", [90, 20])
def test_words_of_several_decodings_have_the_times_of_the_whole_chunk(longest: int) -> None:
    told = tell(longer_than(longest, loops), timing="words")
    assert [word.text for word in told.segment.words] == WORDS[:60]
    assert [(word.start_ms, word.end_ms) for word in told.segment.words] == [
        (i * 1000, i * 1000 + 700) for i in range(60)
    ]
    assert len(told.jobs) == (1 if longest == 90 else 8)  # of 60, 2 x 30 and 4 x 15 s, and one that finds the places
    assert len(told.jobs[-1].answer) == (0 if longest == 90 else 60)


@pytest.mark.parametrize("aligner", [None, ScriptedAligner()])
def test_words_that_were_skipped_are_heard_in_pieces_where_times_are_asked_for(aligner: ScriptedAligner | None) -> None:
    script = longer_than(40, lambda job: " ".join(words_in(job.audio[0])[:-4]))
    told = tell(script, timing="words", aligner=aligner)
    assert told.text.split() == WORDS[:60]
    assert [word.start_ms // 1000 for word in told.segment.words] == [*range(60)]
    assert tell(script, aligner=aligner).text.split() == WORDS[:56]  # nobody has looked for places


def test_words_told_more_often_than_there_is_time_for_are_heard_in_pieces_where_times_are_asked_for() -> None:
    class Doubling(ScriptedAligner):
        async def spans(self, samples: np.ndarray, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
            spans = await super().spans(samples, tokens[:60])
            return spans + [(spans[-1][1], spans[-1][1])] * (len(tokens) - 60)

    script = longer_than(40, lambda job: " ".join([*WORDS[:60], *WORDS[56:60]]))
    assert tell(script, timing="words", aligner=Doubling(), streamed=False).text.split() == WORDS[:60]
    for asked in ({"timing": "chunks", "streamed": False}, {"timing": "words"}):  # nobody looked; they have left
        told = tell(script, aligner=Doubling(), **asked)
        assert (told.text.split(), len(told.jobs)) == ([*WORDS[:60], *WORDS[56:60]], 1)


def test_a_text_that_the_client_cut_has_skipped_nothing() -> None:
    told = tell(longer_than(90, loops), timing="words", max_tokens=40)
    assert told.text.split() == WORDS[:40]
    assert len(told.jobs) == 1


@pytest.mark.parametrize("longest", [90, 40])
def test_an_aligner_finds_the_places_of_what_it_covers_and_hears_and_the_attention_all_others(longest: int) -> None:
    script = longer_than(longest, loops)

    def starts(**timed: Any) -> tuple[set[int], list[bool]]:
        told = tell(script, timing="words", **timed)
        assert [word.text for word in told.segment.words] == WORDS[:60]
        return {word.start_ms % 1000 for word in told.segment.words}, [bool(job.answer) for job in told.jobs]

    heard = [False] * (1 if longest == 90 else 3)
    assert starts(aligner=ScriptedAligner()) == ({50}, heard)
    assert starts(aligner=ScriptedAligner(hears=False)) == ({0}, [*heard, True])
    assert starts(aligner=ScriptedAligner(covers=False)) == ({0}, heard if longest == 90 else [*heard, True])


class FailingModel:
    """Has the letters of all texts, and no memory."""

    def covers(self, tokens: Sequence[bytes]) -> bool:
        return True

    def spans(self, samples: np.ndarray, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
        raise RuntimeError("CUDA out of memory")


def test_an_aligner_that_fails_leaves_the_places_to_the_attention_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = tell(longer_than(90, loops), timing="words", aligner=Aligner(FailingModel(), ("some/aligner",)))
    assert [(word.text, word.start_ms) for word in told.segment.words] == [(WORDS[i], i * 1000) for i in range(60)]
    assert (told.segment.lapses, [bool(job.answer) for job in told.jobs]) == ((), [False, True])
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "some/aligner failed on 60.0 s" in record.message
    assert "CUDA out of memory" in str(record.exc_info[1])


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), torch.AcceleratorError("the device is gone")])
def test_a_text_outlives_an_aligner_and_a_model_that_fail_when_they_look_for_its_places(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = ScriptedBackend.prefill

    def fail(backend: ScriptedBackend, jobs: list[Job], row: int) -> Any:
        if jobs[0].answer:
            raise error
        return prefill(backend, jobs, row)

    monkeypatch.setattr(ScriptedBackend, "prefill", fail)
    told = tell(longer_than(90, loops), timing="words", aligner=Aligner(FailingModel(), ("some/aligner",)))
    assert told.text.split() == list(WORDS[:60])
    assert (told.segment.words, told.segment.lapses) == ((), ("untimed",))


@pytest.mark.parametrize("failing", ["align", "prefill"])
def test_a_text_whose_places_cannot_be_found_is_told_and_said_to_have_none(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first not in the row of its decoding, then not in one of its own."""
    prefill = ScriptedBackend.prefill

    def fail(backend: ScriptedBackend, *args: Any) -> Any:
        if failing == "prefill" and not args[0][0].answer:
            return prefill(backend, *args)
        tries.append(failing)
        raise RuntimeError("out of memory")

    tries: list[str] = []
    monkeypatch.setattr(ScriptedBackend, failing, fail)
    aligner = ScriptedAligner(hears=False) if failing == "prefill" else None  # then the first try is its
    told = tell(longer_than(90, loops), timing="words", aligner=aligner)
    assert told.text.split() == list(WORDS[:60])
    assert (told.segment.words, told.segment.lapses) == ((), ("untimed",))
    assert len(tries) == (1 if aligner else 2)


def test_a_text_that_loops_and_whose_places_cannot_be_found_is_said_to_do_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ScriptedBackend, "align", fail)
    told = tell(longer_than(0, loops), seconds=6, timing="words")
    assert (told.text != "", told.segment.words, told.segment.lapses) == (True, (), ("loop", "untimed"))


def test_a_chunk_that_goes_well_is_decoded_once() -> None:
    told = tell(longer_than(90, loops))
    assert told.text == " ".join(WORDS[:60])
    assert len(told.jobs) == 1
    assert (told.segment.lapses, told.segment.temperature) == ((), 0)
    assert -0.02 < told.segment.avg_logprob < 0


def test_a_chunk_that_loops_is_decoded_again_in_halves_cut_in_pauses() -> None:
    told = tell(longer_than(40, loops))
    assert told.text == " ".join(WORDS[:60])
    whole, first, second = told.jobs
    assert seconds_of(first) + seconds_of(second) == seconds_of(whole) == 60
    assert not first.audio[0][-int(0.1 * SAMPLE_RATE) :].any()
    assert not second.audio[0][: int(0.1 * SAMPLE_RATE)].any()
    assert (told.segment.lapses, told.segment.temperature) == ((), 0)
    assert told.segment.usage.audio_ms == 60_000
    assert told.segment.usage.audio_tokens == 3 * 375
    assert told.segment.compression_ratio < 2


def test_a_loop_inside_a_word_is_left_out_too() -> None:
    told = tell(longer_than(40, lambda job: "alpha " + "ha" * 60))
    assert told.text.count("ha") < 8
    assert told.text.endswith(" ".join(WORDS[1:60]))


def test_texts_that_share_no_word_are_not_glued_together() -> None:
    def loops_elsewhere(job: Job) -> str:
        return "stop" + " play" * ROUNDS

    told = tell(longer_than(40, loops_elsewhere))
    assert told.text.split()[0] == "stop"
    assert told.text.endswith(" ".join(WORDS[:60]))
    assert set(told.text.split()) <= {*WORDS}


def test_where_nothing_has_left_a_second_hearing_takes_the_place_of_the_first() -> None:
    def mishears(job: Job) -> str:
        return "stop" + " play" * ROUNDS

    script = longer_than(40, mishears)
    whole, streamed = (tell(script, streamed=streamed) for streamed in (False, True))
    assert (whole.text, len(whole.deltas)) == (" ".join(WORDS[:60]), 1)
    assert (whole.mixed, streamed.mixed) == (False, True)
    assert streamed.text.startswith("stop")
    assert streamed.text.endswith(whole.text)


def test_what_does_not_leave_as_it_is_decoded_is_the_same_text() -> None:
    def hear(streamed: bool) -> Told:
        return tell(lambda job: " ".join(words_in(job.audio[0])), streamed=streamed)

    whole, streamed = hear(False), hear(True)
    assert (len(whole.deltas), len(streamed.deltas) > 30) == (1, True)
    assert (whole.begun, streamed.begun) == (60, 0)
    assert (whole.text, whole.segment.tokens) == (streamed.text, streamed.segment.tokens)


def test_a_stretch_that_is_told_twice_is_heard_again_before_it_leaves() -> None:
    def goes_back(job: Job) -> str:
        words = words_in(job.audio[0])
        return " ".join([*words[:30], *words[10:]])

    told = tell(longer_than(40, goes_back))
    assert word_errors(" ".join(WORDS[:60]), told.text) < FAR_SUSPECT
    assert (told.segment.lapses, len(told.jobs)) == ((), 3)


@pytest.mark.parametrize("sure", [True, False])
def test_a_text_that_ends_where_the_model_is_not_sure_of_it_is_heard_again(sure: bool) -> None:
    def without_last_words(job: Job) -> str:
        return " ".join(words_in(job.audio[0])[:-3]) + ("" if sure else DOUBTFUL)

    told = tell(longer_than(40, without_last_words))
    assert told.text.split() == (WORDS[:57] if sure else WORDS[:60])
    assert [round(seconds_of(job)) for job in told.jobs] == ([60] if sure else [60, 30, 30])
    assert told.segment.lapses == ()


def test_a_model_that_is_never_sure_of_an_end_is_asked_twice_and_believed() -> None:
    told = tell(lambda job: " ".join(words_in(job.audio[0])) + DOUBTFUL)
    assert (told.text.split(), [round(seconds_of(job)) for job in told.jobs]) == (WORDS[:60], [60, 30, 30])


def test_an_end_where_a_full_stop_was_as_likely_is_believed() -> None:
    told = tell(lambda job: " ".join(words_in(job.audio[0])) + FULL_STOP)
    assert (told.text.split(), len(told.jobs)) == (WORDS[:60], 1)


def test_an_end_of_short_audio_is_believed() -> None:
    told = tell(lambda job: " ".join(words_in(job.audio[0])) + DOUBTFUL, seconds=LEAST_SECONDS - 1)
    assert (told.text.split(), len(told.jobs)) == (WORDS[: LEAST_SECONDS - 1], 1)


def test_a_stretch_that_was_said_twice_is_told_twice() -> None:
    """Also within one half, and within a piece that is too short to be halved."""
    for words in ([*WORDS[:20], *WORDS[:20]], [*WORDS[:30], *WORDS[10:30], *WORDS[30:70]], [*WORDS[:13]] * 3):
        told = tell(lambda job: " ".join(words_in(job.audio[0])), words=words)
        assert told.text.split() == words
        assert (told.segment.lapses, len(told.jobs) > 1) == ((), True)


def test_halves_that_fail_are_halved_again_and_the_others_are_not() -> None:
    def fails_on_the_first_minute(job: Job) -> str:
        return loops(job) if WORDS[0] in words_in(job.audio[0]) and seconds_of(job) > 16 else clean(job)

    clean = longer_than(90, loops)
    told = tell(fails_on_the_first_minute)
    assert told.text == " ".join(WORDS[:60])
    assert [round(seconds_of(job) / 10) for job in told.jobs[:2]] == [6, 3]
    assert len(told.jobs) == 5  # 60, 30, 15 + 15, 30


def test_a_text_longer_than_its_audio_can_hold_is_a_failure_too() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"

    def babbles(job: Job) -> str:
        return " ".join(f"{a}{b}{c}" for a in letters for b in letters for c in letters[:3])

    told = tell(longer_than(10, babbles), seconds=14)
    assert len(told.jobs) == 3
    assert told.jobs[0].max_tokens == Settings().token_cap(14)
    assert told.text.endswith(" ".join(WORDS[4:14]))


def test_what_fails_in_short_pieces_too_is_drawn_with_temperature() -> None:
    def fails_unless_hot(job: Job) -> str:
        return clean(job) if job.sampling.temperature >= TEMPERATURES[1] else loops(job)

    clean = longer_than(90, loops)
    told = tell(fails_unless_hot, seconds=6)
    assert told.text == " ".join(WORDS[:6])
    assert [job.sampling.temperature for job in told.jobs] == [0, *TEMPERATURES[:2]]
    assert len({job.sampling.seed for job in told.jobs}) == 3
    assert (told.segment.temperature, told.segment.lapses) == (TEMPERATURES[1], ())


def test_what_still_fails_is_cut_to_what_is_no_repeat_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def fails_on_juliet(job: Job) -> str:
        return loops(job) if "juliet" in words_in(job.audio[0]) else " ".join(words_in(job.audio[0]))

    with caplog.at_level(logging.WARNING):
        told = tell(fails_on_juliet, seconds=24)
    assert told.segment.lapses == ("loop",)
    assert "words may be missing" in caplog.text
    assert set(WORDS[12:24]) <= set(told.text.split())  # the pieces around it are whole
    assert all(told.text.split().count(word) <= 2 for word in WORDS)
    assert told.segment.compression_ratio < 2
    assert all(seconds_of(job) >= LEAST_SECONDS / 4 for job in told.jobs)


def test_the_cap_of_a_client_is_no_failure_and_holds_for_all_pieces_together() -> None:
    told = tell(longer_than(90, loops), max_tokens=10)
    assert (told.text.split(), told.segment.lapses, len(told.jobs)) == (list(WORDS[:10]), ("length",), 1)
    told = tell(longer_than(40, loops), max_tokens=45)
    assert (told.text.split(), told.segment.lapses, len(told.jobs)) == (list(WORDS[:45]), ("length",), 3)


def test_a_loop_that_was_asked_for_is_left_alone() -> None:
    told = tell(longer_than(0, loops), seconds=60, loops_end=False)
    assert len(told.jobs) == 1
    assert len(told.segment.tokens) == 3 + 2 * ROUNDS


def test_a_word_that_is_said_again_and_again_is_told_as_often() -> None:
    for times in (2, 8, 20):
        told = tell(lambda job, times=times: "no " * times + "I said no", seconds=30)
        assert (told.text.split().count("no"), told.segment.lapses, len(told.jobs)) == (times + 1, (), 1)


@settings(max_examples=10)
@example(seconds=22, most=9, after=21, phrase=10)  # "mike" of the repeats is no other hearing of "whiskey"
@given(
    seconds=st.integers(20, len(WORDS)),
    most=st.integers(9, 40),
    after=st.integers(1, 25),
    phrase=st.integers(1, 20),
)
def test_whatever_loops_in_long_audio_every_word_is_told_and_repeats_do_not_leave(
    seconds: int, most: int, after: int, phrase: int
) -> None:
    told = tell(longer_than(most, lambda job: loops(job, after, phrase)), seconds=seconds)
    expected = " ".join(WORDS[:seconds])
    assert word_errors(expected, told.text) < FAR_SUSPECT
    assert set(expected.split()) <= set(told.text.split())
    assert told.segment.lapses == ()


def test_a_loop_that_nothing_ends_is_cut_off_and_the_client_is_told(server: Server) -> None:
    """The demo model, made to write one word for ever."""
    spoken, url = clip("voice_en-us"), "/v1/audio/transcriptions"
    heard = server.client.post(
        url, files={"file": spoken.data}, data={"model": "whisper-1", "response_format": "verbose_json"}
    )
    token = heard.json()["segments"][0]["tokens"][0]
    body = {"model": "whisper-1", "audio": base64.b64encode(spoken.data).decode(), "logit_bias": {str(token): 100}}
    body["messages"] = [{"role": "user", "content": "Transcribe this audio."}]
    (choice,) = server.client.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["content"] == heard.json()["text"].split()[0]
    assert choice["finish_reason"] == "length"


def test_a_text_that_a_client_cuts_short_is_warned_of_in_answers_and_streams(server: Server) -> None:
    def post(**fields: str) -> httpx.Response:
        data = {"model": "whisper-1", "max_completion_tokens": "3", **fields}
        return server.client.post("/v1/audio/transcriptions", files={"file": clip("voice_en-us").data}, data=data)

    verbose = post(response_format="verbose_json").json()
    (warning,) = verbose["warnings"]
    (segment,) = verbose["segments"]
    assert (warning["code"], warning["start"], warning["end"]) == ("length", segment["start"], segment["end"])
    assert post().json()["warnings"] == [warning]
    done = json.loads(post(stream="true").text.strip().splitlines()[-1].removeprefix("data: "))
    assert (done["text"], done["warnings"]) == (verbose["text"], [warning])
    (told,) = json.loads(post(response_format="srt").headers["x-voxtral-warnings"])
    assert told["code"] == "length"
