"""Where speech is found: frames to spans as a pure function, and the real network on loud, quiet and noisy clips."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunking import speech_chunks
from tests.serving import ROOT
from tests.speech import SAMPLE_RATE, clip, clips_of
from voice_activity import BATCH, FRAME, LEAST_FRAMES, SURE, Detection, Listener, Span, Tracker

SECOND = SAMPLE_RATE
PROBABILITIES = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=120)
LASTING = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=20).map(
    lambda levels: [level for level in levels for _ in range(LEAST_FRAMES)]
)


def spans_of(probabilities: list[float], detection: Detection, total: int | None = None) -> list[Span]:
    tracker = Tracker(detection)
    half = len(probabilities) // 2
    begun = list(tracker.add(np.array(probabilities[:half])))
    total = len(probabilities) * FRAME if total is None else total
    return begun + list(tracker.finish(np.array(probabilities[half:]), total))


@given(
    probabilities=LASTING,
    threshold=st.floats(0, 1),
    prefix=st.integers(0, 2000),
    silence=st.integers(0, 2000),
    missing=st.integers(0, FRAME - 1),
)
def test_every_frame_of_speech_is_in_one_span_with_its_padding(
    probabilities: list[float], threshold: float, prefix: int, silence: int, missing: int
) -> None:
    total = max(len(probabilities) * FRAME - missing, 0)
    spans = spans_of(probabilities, Detection(threshold, prefix, silence), total)
    for span in spans:
        assert 0 <= span.start <= span.first < span.last <= span.end <= total
    for before, after in pairwise(spans):
        assert before.end <= after.start
    for i in [i for i, probability in enumerate(probabilities) if probability >= threshold]:
        begins, ends = i * FRAME, min((i + 1) * FRAME, total)
        (around,) = [span for span in spans if span.first <= begins and ends <= span.last]
        assert around.end >= min(ends + silence * 16, total)
        others = [span.end for span in spans if span.end <= around.start]
        assert around.start <= max([around.first - prefix * 16, 0, *others])


def test_a_span_ends_after_silence_and_not_within_a_short_pause() -> None:
    frames = [0.0] * 20 + [1.0] * 10 + [0.0] * 5 + [1.0] * 10 + [0.0] * 20
    (whole,) = spans_of(frames, Detection())
    assert (whole.first, whole.last) == (20 * FRAME, 45 * FRAME)
    assert (whole.first - whole.start, whole.end - whole.last) == (4800, 3200)
    first, second = spans_of(frames, Detection(silence_duration_ms=100))
    assert (first.end, second.start) == (30 * FRAME + 1600, 30 * FRAME + 1600)


def test_speech_that_fades_goes_on_below_the_threshold() -> None:
    (span,) = spans_of([0.6] * 16 + [0.4, 0.4, 0.0, 0.0], Detection(silence_duration_ms=0))
    assert span.last == 18 * FRAME
    assert spans_of([0.4, 0.4, 0.4, 0.0], Detection()) == []


@given(PROBABILITIES, st.floats(0, 0.98), st.integers(0, 2000))
def test_a_span_has_a_fifth_of_a_second_of_speech_or_less_and_some_of_it_sure(
    probabilities: list[float], threshold: float, silence: int
) -> None:
    for span in spans_of(probabilities, Detection(threshold, silence_duration_ms=600 + silence)):
        frames = probabilities[span.first // FRAME : span.last // FRAME]
        assert len(frames) > 60 or sum(p >= threshold for p in frames) >= (4 if max(frames) >= SURE else 6)


def test_a_blip_is_no_speech_and_does_not_shorten_what_is_kept_before_the_next_words() -> None:
    blip, word = [0.0] * 10 + [0.9] * 5, [1.0] * 4 + [0.0] * 20
    assert spans_of([*blip, *[0.0] * 20], Detection()) == []
    (span,) = spans_of([*blip, *[0.0] * 17, *word], Detection(prefix_padding_ms=2000))
    assert (span.start, span.first, span.last) == (0, 32 * FRAME, 36 * FRAME)


def frames_of(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.first // FRAME, span.last // FRAME) for span in spans]


def test_speech_that_short_pauses_divide_is_judged_as_one() -> None:
    divided = spans_of([0.9, 0.9, 0.9, 0.0] * 8, Detection(prefix_padding_ms=0, silence_duration_ms=0))
    assert frames_of(divided) == [(4 * i, 4 * i + 3) for i in range(8)]
    hesitant = [0.0] * 44 + [0.9] * 4 + [0.0] * 14 + [0.9] * 30 + [0.0] * 20
    assert frames_of(spans_of(hesitant, Detection())) == [(44, 48), (62, 92)]
    assert frames_of(spans_of([*hesitant[:48], *[0.0] * 16, *hesitant[62:]], Detection())) == [(64, 94)]  # a blip


@given(PROBABILITIES, st.integers(0, 600), st.integers(0, 600))
def test_nothing_is_forgotten_that_may_become_speech(probabilities: list[float], prefix: int, silence: int) -> None:
    tracker, earliest = Tracker(Detection(prefix_padding_ms=prefix, silence_duration_ms=silence)), 0
    for probability in probabilities:
        for span in tracker.add(np.array([probability])):
            assert span.start >= earliest
        earliest = tracker.earliest
    assert all(span.start >= earliest for span in tracker.finish(np.zeros(0), len(probabilities) * FRAME))


@pytest.mark.parametrize("peak", [0.5, 0.02, 0.005, 0.001])
def test_quiet_speech_is_found_where_loud_speech_is(peak: float) -> None:
    for name in ("short_0", "voice_en-us", "gain-40", "minute"):
        samples = clip(name).samples()
        expected = [chunk.speech_ms() for chunk in speech_chunks([samples], 60, Detection())]
        quiet = samples * (peak / np.abs(samples).max())
        (start, end), (first, last) = expected[0], next(speech_chunks([quiet], 60, Detection())).speech_ms()
        assert abs(first - start) <= 200
        assert abs(last - end) <= 300


@pytest.mark.parametrize("db", [-30, -20])
def test_speech_in_noise_is_found(db: int) -> None:
    rng = np.random.default_rng(0)
    for spoken in clips_of("trained voice", "unheard voice"):
        samples = spoken.samples()
        noise = rng.standard_normal(len(samples)).astype(np.float32)
        noisy = samples / np.abs(samples).max() * 0.5 + noise * 0.5 * 10 ** (db / 20) / 3
        (clean,), (heard,) = ([*speech_chunks([s], 60, Detection())] for s in (samples, noisy.astype(np.float32)))
        assert abs(heard.speech_ms()[0] - clean.speech_ms()[0]) <= 500
        assert abs(heard.speech_ms()[1] - clean.speech_ms()[1]) <= 500


def sounds() -> dict[str, np.ndarray]:
    """Ten seconds each of what is no speech, at full scale."""
    rng, t = np.random.default_rng(0), np.arange(10 * SECOND) / SECOND
    hum = sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3))
    chords = sum(np.sin(2 * np.pi * f * t) for f in (262, 330, 392, 523)) * np.exp(-(t % 0.5) * 4)
    notes = np.repeat(rng.choice([262, 294, 330, 349, 392, 440, 494], 20), SECOND // 2)
    melody = np.sin(2 * np.pi * np.cumsum(notes) / SECOND) * np.exp(-(t % 0.5) * 3)
    clicks = (rng.random(len(t)) > 0.9995) * 1.0
    note = t[: int(0.35 * SECOND)]
    struck = np.exp(-note * 11) * np.minimum(1, np.minimum(note / 0.02, (0.35 - note) / 0.05))
    piano = np.concatenate([
        struck * sum(np.sin(2 * np.pi * k * 110 * 2 ** (key / 12) * note) / k for k in range(1, 8))
        for key in np.random.default_rng(12).integers(0, 24, 28)
    ])  # fmt: skip
    made = {"silence": 0 * t, "noise": rng.standard_normal(len(t)), "hum": hum, "chords": chords, "melody": melody,
            "clicks": clicks, "piano": piano}  # fmt: skip
    return {name: (sound / max(np.abs(sound).max(), 1)).astype(np.float32) for name, sound in made.items()}


@pytest.mark.parametrize("gain", [0.9, 0.1, 0.003])
@pytest.mark.parametrize("name", sounds())
def test_what_is_no_speech_gives_no_chunk(name: str, gain: float) -> None:
    assert list(speech_chunks([sounds()[name] * np.float32(gain)], 60, Detection())) == []


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 3 * SECOND), max_size=12))
def test_probabilities_do_not_depend_on_the_blocks(sizes: list[int]) -> None:
    samples = clip("voice_en-us").samples()
    whole, parts = Listener(), Listener()
    expected = np.concatenate([*whole.hear(samples), whole.finish()])
    blocks = np.split(samples, np.cumsum(sizes)[np.cumsum(sizes) < len(samples)])
    heard = np.concatenate([*(p for block in blocks for p in parts.hear(block)), parts.finish()])
    assert len(expected) == -(-len(samples) // FRAME)
    assert np.array_equal(heard, expected)


def test_a_recording_of_whole_batches_has_nothing_left_to_judge() -> None:
    listener = Listener()
    assert [len(batch) for batch in listener.hear(np.zeros(2 * BATCH, np.float32))] == [32, 32]
    assert len(listener.finish()) == 0


def test_looking_for_speech_does_not_bring_torch() -> None:
    code = "import sys, voice_activity; voice_activity.Listener(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
