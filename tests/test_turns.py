"""Turns as a pure function of probabilities, and of real recordings in pieces of any size."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunking import speech_chunks
from tests.speech import SAMPLE_RATE, clip
from turns import PAUSES_MS, TurnDetection, TurnEnded, TurnEvent, TurnPaused, TurnResumed, TurnStarted, TurnTracker
from voice_activity import FRAME, LIVE_BATCH, Detection, Listener

FRAME_MS = FRAME * 1000 / SAMPLE_RATE
DETECTIONS = st.builds(
    TurnDetection,
    kind=st.sampled_from(["server_vad", "semantic_vad"]),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    prefix_padding_ms=st.integers(0, 2000),
    silence_duration_ms=st.integers(0, 2000),
    eagerness=st.sampled_from(sorted(PAUSES_MS)),
    end_threshold=st.sampled_from([None, 0.1, 0.33]),
    eager_end_threshold=st.sampled_from([None, 0.5]),
    end_timeout_ms=st.sampled_from([None, 300, 1500]),
)


def turns_of(probabilities: list[float], detection: TurnDetection, sentence_ended: bool = False) -> list[TurnEvent]:
    tracker, events = TurnTracker(detection), []
    for probability in probabilities:
        events += tracker.add(probability)
        tracker.sentence_ended = sentence_ended and tracker.paused
    return events


def frames(milliseconds: float) -> int:
    return round(milliseconds / FRAME_MS)


@given(probabilities=st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=200), detection=DETECTIONS)
def test_turns_lie_in_order_and_every_frame_of_speech_is_in_one(
    probabilities: list[float], detection: TurnDetection
) -> None:
    events = turns_of(probabilities, detection)
    starts = [event.start for event in events if isinstance(event, TurnStarted)]
    ends = [event.end for event in events if isinstance(event, TurnEnded)]
    kinds = [type(event) for event in events if isinstance(event, TurnStarted | TurnEnded)]
    assert all(a is not b for a, b in pairwise([TurnEnded, *kinds]))
    bounds = [*zip(starts, [*ends, len(probabilities) * FRAME], strict=False)]
    assert all(before[1] <= after[0] for before, after in pairwise(bounds))
    for i in [i for i, probability in enumerate(probabilities) if probability >= detection.threshold]:
        assert any(start <= i * FRAME and (i + 1) * FRAME <= end for start, end in bounds)


@given(probabilities=st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=200), detection=DETECTIONS)
def test_a_pause_is_told_before_the_end_and_ends_with_the_turn_or_with_speech(
    probabilities: list[float], detection: TurnDetection
) -> None:
    told: list[TurnEvent] = [TurnEnded(0, 0, "threshold"), *turns_of(probabilities, detection)]
    before = {TurnStarted: TurnEnded, TurnPaused: (TurnStarted, TurnResumed), TurnResumed: TurnPaused}
    for previous, event in pairwise(told):
        if isinstance(event, TurnEnded):
            assert isinstance(previous, TurnPaused) or event.reason == "timeout" or detection.eager_end_threshold
        else:
            assert isinstance(previous, before[type(event)])


def test_a_turn_has_its_padding_and_the_silence_that_ended_it() -> None:
    silence = [0.0] * 40
    started, paused, ended = turns_of([*silence, *[0.9] * 20, *silence], TurnDetection())
    assert started == TurnStarted(40 * FRAME - 4800)
    assert paused == TurnPaused(60 * FRAME)
    assert ended == TurnEnded(76 * FRAME, 60 * FRAME, "threshold")  # 512 ms, the first frames that are 500 or more


@pytest.mark.parametrize("eagerness", sorted(PAUSES_MS))
def test_behind_a_sentence_a_shorter_pause_ends_a_semantic_turn(eagerness: str) -> None:
    detection = TurnDetection("semantic_vad", eagerness=eagerness)
    after_sentence, elsewhere = PAUSES_MS[eagerness]
    for sentence_ended, pause in ((True, after_sentence), (False, elsewhere)):
        events = turns_of([0.9] * 10 + [0.0] * 200, detection, sentence_ended)
        assert abs(events[-1].end - 10 * FRAME - pause * 16) <= FRAME
        shorter = [0.9] * 10 + [0.0] * (frames(pause) - 2) + [0.9] * 10
        assert [type(event) for event in turns_of(shorter, detection, sentence_ended)] == [
            TurnStarted, TurnPaused, TurnResumed,
        ]  # fmt: skip


def test_mistrals_three_bars_and_its_timeout_end_a_turn_differently() -> None:
    detection = TurnDetection(silence_duration_ms=500, eager_end_threshold=0.5, end_threshold=0.33, end_timeout_ms=1600)
    murmur = [0.9] * 10 + [0.4] * 60
    *_, paused, ended = turns_of(murmur, detection)
    assert (paused, ended) == (TurnPaused(10 * FRAME), TurnEnded(60 * FRAME, 60 * FRAME, "timeout"))
    *_, paused, ended = turns_of([0.9] * 10 + [0.2] * 60, detection)
    assert (paused, ended) == (TurnPaused(10 * FRAME), TurnEnded(26 * FRAME, 10 * FRAME, "threshold"))
    *_, paused, resumed = turns_of([0.9] * 10 + [0.4] * 15 + [0.6] * 10, detection)
    assert (paused, resumed) == (TurnPaused(10 * FRAME), TurnResumed(25 * FRAME))


def test_after_a_cut_the_next_turn_begins_there_and_not_before() -> None:
    tracker = TurnTracker(TurnDetection())
    for _ in range(20):
        list(tracker.add(0.9))
    tracker.cut(20 * FRAME - 100)
    assert not tracker.open
    assert [*tracker.add(0.9)] == [TurnStarted(20 * FRAME - 100)]


def judged(pieces: list[np.ndarray]) -> list[float]:
    listener = Listener(LIVE_BATCH)
    return [probability for piece in pieces for batch in listener.hear(piece) for probability in batch.tolist()]


@cache
def conversation() -> tuple[np.ndarray, list[float]]:
    """Two utterances, each after two seconds of silence, and what is judged of their samples at once."""
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([pause, clip("short_0").samples(), pause, clip("short_0").samples(), pause])
    return samples, judged([samples])


@settings(max_examples=4)
@given(sizes=st.lists(st.integers(1, 2 * SAMPLE_RATE), min_size=1, max_size=30), detection=DETECTIONS)
def test_pieces_of_any_size_give_the_same_turns(sizes: list[int], detection: TurnDetection) -> None:
    samples, expected = conversation()
    pieces = np.split(samples, np.cumsum(sizes)[np.cumsum(sizes) < len(samples)])
    assert turns_of(judged(pieces), detection) == turns_of(expected, detection)


def test_spoken_utterances_are_turns_at_their_true_places() -> None:
    samples, probabilities = conversation()
    started, _, ended, *second = turns_of(probabilities, TurnDetection())
    first, other = (chunk.speech_ms() for chunk in speech_chunks([samples], 3, Detection()))
    for turn_start, turn_end, speech in ((started, ended, first), (second[0], second[-1], other)):
        assert abs(turn_start.start / 16 - (speech[0] - 300)) < 100
        assert abs(turn_end.end / 16 - (speech[1] + 500)) < 100
