"""The log-mel spectrogram that the encoder hears, computed where the model is.

The numbers are those of transformers' WhisperFeatureExtractor, which takes recordings to the CPU and back and computes
the silence that fills the last window, and of its VoxtralRealtimeFeatureExtractor, which wants a recording whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import VoxtralRealtimeFeatureExtractor, WhisperFeatureExtractor

from engine.devices import to_device

WINDOW_SAMPLES = 480_000  # the encoder hears 30 s at 16 kHz at a time, padded with silence
KEPT_WINDOWS = 2
LEAST_POWER = 1e-10
SILENCE = -10.0  # its logarithm
RANGE = 8.0  # decades below the loudest that are told apart


def window_count(samples: int) -> int:
    return -(-samples // WINDOW_SAMPLES)


class Spectrum:
    """The logarithm of the power that mel filters let through."""

    def __init__(self, told: WhisperFeatureExtractor | VoxtralRealtimeFeatureExtractor, device: torch.device) -> None:
        self._device, self.size, self.hop = device, told.n_fft, told.hop_length
        self._filters = to_device(torch.from_numpy(told.mel_filters.T).float(), device)  # (bins, frequencies)
        self._shape = torch.hann_window(told.n_fft, device=device)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Decades (bins, frames) of all whole frames in samples (n,) on the CPU."""
        samples = to_device(samples, self._device)
        spectrum = torch.stft(samples, self.size, self.hop, window=self._shape, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # (frequencies, frames); a third of the time of abs
        return (self._filters @ power).clamp(min=LEAST_POWER).log10()


def scaled(mel: torch.Tensor, loudest: torch.Tensor | float) -> torch.Tensor:
    """Decades as the encoder wants them."""
    return (mel.clamp(min=loudest - RANGE) + 4) / 4


class LogMel:
    def __init__(self, folder: Path, device: torch.device) -> None:
        """With the filters of the model in `folder`."""
        self._spectrum = Spectrum(WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True), device)

    def __call__(self, samples: np.ndarray) -> Iterator[torch.Tensor]:
        """Windows (bins, frames) of samples (n,), float32 at 16 kHz, one after another: an hour of audio may lie on
        disk and be more than memory should hold. So its spectrum is computed twice, first for how loud it is, unless
        it is no longer than usual chunks."""
        count = window_count(len(samples))
        window = lru_cache(KEPT_WINDOWS)(partial(self._window, samples))
        loudest = torch.stack([window(i).max() for i in range(count)]).max()
        for i in range(count):
            mel = window(i)
            yield scaled(F.pad(mel, (0, WINDOW_SAMPLES // self._spectrum.hop - mel.shape[1]), value=SILENCE), loudest)

    def _window(self, samples: np.ndarray, index: int) -> torch.Tensor:
        """Decades (bins, frames) of one window, without frames that begin after the samples and hear only padding."""
        side = self._spectrum.size // 2  # samples that a frame hears before and behind its beginning
        is_first, is_last = index == 0, index + 1 == window_count(len(samples))
        start, end = index * WINDOW_SAMPLES, (index + 1) * WINDOW_SAMPLES
        first, until = (start if is_first else start - side), (end if is_last else end + side)
        heard = torch.tensor(samples[first:until])
        heard = F.pad(heard, (0, min(until, len(samples) + 2 * side) - first - len(heard)))
        # The extractor mirrors the edges of what it is given, which is all windows.
        heard = F.pad(heard[None], (side * is_first, side * is_last), mode="reflect")[0]
        return self._spectrum(heard)[:, :-1]


class StreamingMel:
    """The same of audio that comes in pieces; how loud its loudest is was settled when the model was trained."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """With the filters of the model in `folder`. Raises ValueError if it has to hear all before it can begin."""
        told = VoxtralRealtimeFeatureExtractor.from_pretrained(folder, local_files_only=True)
        if told.global_log_mel_max is None:
            raise ValueError("the model's preprocessor names no global_log_mel_max, so it cannot hear live")
        self._spectrum, self._loudest = Spectrum(told, device), told.global_log_mel_max
        self.before = told.n_fft // 2  # samples that the first frame hears before the audio begins
        self.hop = told.hop_length

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        """All whole frames (bins, frames) in samples (n,). The next piece begins `hop` samples later for each."""
        return scaled(self._spectrum(torch.from_numpy(samples)), self._loudest)
