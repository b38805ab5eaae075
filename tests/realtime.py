"""A realtime model with random weights: small, with short windows, and chatty enough for what it writes to tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import VoxtralRealtimeFeatureExtractor

from tools.realtime_checkpoint import STREAMING_PAD, new_model, write_files

PADS = 0.6  # share of what is written, about
SPEECH = 0.1  # standard deviation of noise that stands for it


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 (n,) at 16 kHz, with a new loudness every 0.3 s, so that the model hears changes."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(int(seconds * 16_000))
    loudness = np.repeat(rng.uniform(0, 1, len(samples) // 4800 + 1) ** 2, 4800)[: len(samples)]
    samples = SPEECH * loudness * samples
    return (np.round(samples * 32_768) / 32_768).astype(np.float32)  # transformers' processor goes by way of 16 bits


def write_random_model(folder: Path) -> Path:
    """Its audio weighs as much as its text, and of its tokens about as many are pads as in real speech."""
    write_files(folder)
    torch.manual_seed(0)
    model = new_model()
    for name, weights in model.named_parameters():
        if weights.dim() > 1 and "embed_tokens" not in name:
            weights.data.mul_(3)
    model.model.multi_modal_projector.linear_2.weight.data.mul_(40)
    embeddings = model.model.language_model.embed_tokens.weight.data
    mel = VoxtralRealtimeFeatureExtractor()(noise(8), sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        audio = model.get_audio_features(mel).pooler_output
        condition = model.model.time_embedding(torch.tensor([6.0]))[None]
        written = embeddings[torch.randint(len(embeddings), audio.shape[:2])]
        hidden = model.model.language_model(inputs_embeds=audio + written, t_cond=condition).last_hidden_state[0]
    # A pad is what the usual hidden state asks for, as strongly as it takes to be the likeliest at PADS of them.
    usual, others = hidden.mean(0), (hidden @ embeddings.T).amax(1)
    asked = hidden @ usual
    embeddings[STREAMING_PAD] = usual * (others / asked)[asked > 0].quantile(PADS)
    model.save_pretrained(folder)
    return folder
