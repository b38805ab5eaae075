"""The log-mel spectrogram that the encoder hears, computed where the model is.

The numbers are those of transformers' WhisperFeatureExtractor, which takes recordings to the CPU and back and computes
the silence that fills the last window, and of its VoxtralRealtimeFeatureExtractor, which wants a recording whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import VoxtralRealtimeFeatureExtractor, WhisperFeatureExtractor

from engine.devices import to_device

WINDOW_SAMPLES = 480_000  # the encoder hears 30 s at 16 kHz at a time, padded with silence
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

    def __call__(self, samples: torch.Tensor, center: bool) -> torch.Tensor:
        """Decades (bins, frames) of samples (n,) on the CPU. `center`: a frame has its samples on both sides of its
        beginning, so that there is one more, which nobody wants."""
        samples = to_device(samples, self._device)
        spectrum = torch.stft(samples, self.size, self.hop, window=self._shape, center=center, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # (frequencies, frames); a third of the time of abs
        mel = (self._filters @ power).clamp(min=LEAST_POWER).log10()
        return mel[:, :-1] if center else mel


def scaled(mel: torch.Tensor, loudest: torch.Tensor | float) -> torch.Tensor:
    """Decades as the encoder wants them."""
    return (mel.clamp(min=loudest - RANGE) + 4) / 4


class LogMel:
    def __init__(self, folder: Path, device: torch.device) -> None:
        """With the filters of the model in `folder`."""
        self._spectrum = Spectrum(WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True), device)

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        """Windows (count, bins, frames) of samples (n,), float32 at 16 kHz."""
        whole, hop = window_count(len(samples)) * WINDOW_SAMPLES, self._spectrum.hop
        # A frame that begins after the samples hears only padding; up to there the padding has to be real.
        heard = min(len(samples) + self._spectrum.size, whole)
        mel = self._spectrum(F.pad(torch.tensor(samples), (0, heard - len(samples))), center=True)
        mel = F.pad(mel, (0, whole // hop - mel.shape[1]), value=SILENCE)
        return scaled(mel, mel.max()).unflatten(1, (-1, WINDOW_SAMPLES // hop)).transpose(0, 1)


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
        return scaled(self._spectrum(torch.from_numpy(samples), center=False), self._loudest)
