from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from config import DEMO_MODEL
from engine.features import WINDOW_SAMPLES, LogMel, window_count

EDGES = (
    1,
    159,
    400,
    80_123,
    WINDOW_SAMPLES - 399,
    WINDOW_SAMPLES - 1,
    WINDOW_SAMPLES,
    WINDOW_SAMPLES + 1,
    2 * WINDOW_SAMPLES - 200,
    2 * WINDOW_SAMPLES + 80_123,
)


@pytest.fixture(scope="module")
def log_mel() -> LogMel:
    return LogMel(DEMO_MODEL, torch.device("cpu"))


def official(samples: np.ndarray) -> torch.Tensor:
    """(bins, frames), as VoxtralProcessor asks for it."""
    extractor = WhisperFeatureExtractor.from_pretrained(DEMO_MODEL)
    return extractor(
        samples, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=WINDOW_SAMPLES,
        return_tensors="pt",
    ).input_features[0]  # fmt: skip


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("loudness", [0.0, 1e-7, 0.1])
def test_the_spectrogram_is_that_of_transformers(log_mel: LogMel, length: int, loudness: float) -> None:
    samples = loudness * np.random.default_rng(length).standard_normal(length, np.float32)
    windows = torch.stack([*log_mel(samples.astype(np.float32))])
    assert windows.shape == (window_count(length), 128, 3000)
    torch.testing.assert_close(windows.transpose(0, 1).flatten(1), official(samples), rtol=0, atol=1e-5)


def test_samples_on_disk_are_heard_as_those_in_memory(log_mel: LogMel, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal(3 * WINDOW_SAMPLES, np.float32)
    (tmp_path / "samples").write_bytes(samples)
    mapped = np.memmap(tmp_path / "samples", np.float32, "r")
    for window, same in zip(log_mel(mapped), log_mel(samples), strict=True):
        assert torch.equal(window, same)
