"""The demo aligner on the clips, in this process: where words were spoken, and what it leaves to the attention."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import DEMO_ALIGNER
from engine import ctc
from engine.ctc import CTCModel
from tests.speech import SAMPLE_RATE, clip, clips_of

FIGURES = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}


@pytest.fixture(scope="module")
def aligner() -> CTCModel:
    return CTCModel(DEMO_ALIGNER, "cpu")


def tokens_of(words: list[str]) -> list[bytes]:
    return [f" {word}".encode() for word in words]


def starts_ms(aligner: CTCModel, samples: np.ndarray, words: list[str]) -> np.ndarray:
    spans = aligner.spans(samples, tokens_of(words))
    assert len(spans) == len(words)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= len(samples)
    assert all(start < end for start, end in spans)
    return np.array([start for start, _ in spans]) * 1000 / SAMPLE_RATE


def test_a_minute_is_heard_in_windows_and_its_words_begin_where_they_were_spoken(aligner: CTCModel) -> None:
    spoken = clip("minute")
    errors = np.abs(starts_ms(aligner, spoken.samples(), spoken.words.split()) - spoken.starts_ms)
    assert np.median(errors) <= 40
    assert np.quantile(errors, 0.95) <= 100


def test_figures_are_found_between_the_words_that_can_be_spelled(aligner: CTCModel) -> None:
    for spoken in clips_of("half a minute"):
        words = spoken.words.split()
        written = [FIGURES.get(word, word) for word in words]
        figures = np.array([a != b for a, b in zip(words, written, strict=True)])
        assert figures.any()
        errors = np.abs(starts_ms(aligner, spoken.samples(), written) - spoken.starts_ms)
        assert np.quantile(errors[figures], 0.9) <= 150
        assert np.quantile(errors[~figures], 0.95) <= 100


def test_a_text_that_was_not_said_has_no_places(aligner: CTCModel) -> None:
    spoken = clip("voice_en-us")
    backwards = spoken.words.split()[::-1]
    assert aligner.spans(spoken.samples(), tokens_of(backwards)) == []
    assert aligner.spans(spoken.samples()[:1000], tokens_of(spoken.words.split())) == []


def test_short_audio_and_silence_are_no_error(aligner: CTCModel) -> None:
    for samples in (np.zeros(1, np.float32), np.zeros(SAMPLE_RATE, np.float32)):
        for start, end in aligner.spans(samples, [b" a"]):
            assert 0 <= start <= end <= len(samples)


def test_other_windows_change_little(aligner: CTCModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = clip("dense_0")
    whole = aligner._logprobs(spoken.samples())
    monkeypatch.setattr(ctc, "WINDOW", 500)
    parts = aligner._logprobs(spoken.samples())
    assert parts.shape == whole.shape == (-(-len(spoken.samples()) // 320), 32)
    assert (parts.argmax(1) == whole.argmax(1)).mean() > 0.9


def test_on_a_mac_it_leaves_the_gpu_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "pick_device", lambda wanted: "mps")
    assert CTCModel(DEMO_ALIGNER, "auto").device == "cpu"


@pytest.mark.parametrize(("file", "change"), [("preprocessor_config.json", {"sampling_rate": 8000})])
def test_audio_of_another_rate_is_refused(tmp_path: Path, file: str, change: dict[str, int]) -> None:
    folder = tmp_path / "aligner"
    shutil.copytree(DEMO_ALIGNER, folder)
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match="8000 Hz"):
        CTCModel(folder, "cpu")
