"""The log-mel spectrogram that the encoder hears, computed where the model is.

The numbers are those of transformers' WhisperFeatureExtractor, which takes recordings to the CPU and back and computes
the silence that fills the last window.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import WhisperFeatureExtractor

from engine.devices import to_device

WINDOW_SAMPLES = 480_000  # the encoder hears 30 s at 16 kHz at a time, padded with silence
LEAST_POWER = 1e-10
SILENCE = -10.0  # its logarithm
RANGE = 8.0  # decades below the loudest that are told apart


def window_count(samples: int) -> int:
    return -(-samples // WINDOW_SAMPLES)


class LogMel:
    def __init__(self, folder: Path, device: torch.device) -> None:
        """With the filters of the model in `folder`."""
        told = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self._device, self._size, self._hop = device, told.n_fft, told.hop_length
        self._filters = to_device(torch.from_numpy(told.mel_filters.T).float(), device)  # (bins, frequencies)
        self._shape = torch.hann_window(told.n_fft, device=device)

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        """Windows (count, bins, frames) of samples (n,), float32 at 16 kHz."""
        whole = window_count(len(samples)) * WINDOW_SAMPLES
        # A frame that begins after the samples hears only padding; up to there the padding has to be real.
        heard = min(len(samples) + self._size, whole)
        padded = F.pad(to_device(torch.tensor(samples), self._device), (0, heard - len(samples)))
        spectrum = torch.stft(padded, self._size, self._hop, window=self._shape, return_complex=True)[:, :-1]
        power = spectrum.real.square() + spectrum.imag.square()  # (frequencies, frames); a third of the time of abs
        mel = (self._filters @ power).clamp(min=LEAST_POWER).log10()
        mel = F.pad(mel, (0, whole // self._hop - mel.shape[1]), value=SILENCE)
        mel = (mel.maximum(mel.max() - RANGE) + 4) / 4
        return mel.unflatten(1, (-1, WINDOW_SAMPLES // self._hop)).transpose(0, 1)
