"""The hearing half of the demo model as training calls it: waves to log-mel to audio embeddings, in batches."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

from tools.demo_labels import FRAMES_PER_SECOND

WINDOW_SECONDS = 30


class Ears:
    def __init__(self, model: VoxtralForConditionalGeneration) -> None:
        self._model = model
        features = WhisperFeatureExtractor(feature_size=128)
        self._filters = torch.tensor(features.mel_filters, dtype=torch.float32).T
        self._window = torch.hann_window(400)

    def mel(self, waves: torch.Tensor) -> torch.Tensor:
        """Log-mel (batch, 128, frames) of waves (batch, samples), as WhisperFeatureExtractor computes it."""
        power = torch.stft(waves, 400, 160, window=self._window, return_complex=True)[..., :-1].abs() ** 2
        log = torch.clamp(self._filters @ power, min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8)
        return (log + 4) / 4

    def listen(self, mel: torch.Tensor, rng: random.Random) -> torch.Tensor:
        """Audio embeddings (batch, tokens, hidden) of mel (batch, 128, frames): what get_audio_features does, but for
        windows shorter than 30 s too."""
        frames = min(mel.shape[-1], WINDOW_SECONDS * FRAMES_PER_SECOND)
        windows = mel.unflatten(-1, (-1, frames)).transpose(1, 2).flatten(0, 1)
        tower = self._model.model.audio_tower
        hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(windows)))).transpose(1, 2)
        positions = tower.embed_positions.weight
        start = rng.randrange(len(positions) - hidden.shape[1] + 1)  # a short window may stand anywhere in a full one
        hidden = hidden + positions[start : start + hidden.shape[1]]
        for layer in tower.layers:
            hidden = layer(hidden, attention_mask=None)
        hidden = tower.layer_norm(hidden).reshape(len(mel), -1, self._model.config.audio_config.intermediate_size)
        return self._model.model.multi_modal_projector(hidden)
