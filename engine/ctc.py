"""A wav2vec2-style model that spells what it hears, frame by frame, and so tells where each word was spoken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCTC

from audio_processor import SAMPLE_RATE
from engine.loading import pick_device
from engine.spelling import Alphabet, text_of, token_times
from engine.viterbi import unit_spans

WINDOW, CONTEXT = 800, 100  # frames that are heard at once, 16 s, and those around them that are heard too
BORDER = "|"  # between words, where a model has a class for that


class CTCModel:
    """Takes any number of threads' calls, one at a time is meant."""

    def __init__(self, folder: Path, device: str) -> None:
        """Raises OSError or ValueError for a folder that holds no such model."""
        self.device = pick_device(device)
        if self.device == "mps":  # where two threads can break off the process
            self.device = "cpu"
        self._model = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        self._model.to(self.device)
        config = self._model.config
        self._stride = prod(config.conv_stride)  # samples from frame to frame
        self._heard = 1  # samples that one frame is computed from
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self._heard = (self._heard - 1) * stride + kernel
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        blank = vocabulary.get("<blank>", config.pad_token_id)
        self._silences = (blank, vocabulary.get(BORDER, blank))
        self._alphabet = Alphabet({sign: i for sign, i in vocabulary.items() if len(sign) == 1 and sign != BORDER})
        self._normalizes = _preprocessing(folder)["do_normalize"]
        self.memory_bytes = sum(tensor.numel() * tensor.element_size() for tensor in self._model.parameters())

    def covers(self, tokens: Sequence[bytes]) -> bool:
        """Whether the model has the letters of a text."""
        return self._alphabet.covers(text_of(tokens))

    def spans(self, samples: np.ndarray, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
        """First sample of each token and the one after its last, in float32 (n,) at 16 kHz; none where the tokens are
        not what was said."""
        spelling = self._alphabet.spell(text_of(tokens))
        found = unit_spans(self._logprobs(samples), spelling.units, self._silences)
        if found is None:
            return []
        places = np.minimum(token_times(tokens, spelling.times(found * self._stride)), len(samples))
        return [(start, end) for start, end in np.round(places).astype(int).tolist()]

    @torch.inference_mode()
    def _logprobs(self, samples: np.ndarray) -> np.ndarray:
        """Natural logarithms (frames, classes), window by window: what these models learnt from are sentences, and the
        memory of their convolutions grows with the audio. Each frame lies in the midst of what it is computed from."""
        frames = -(-len(samples) // self._stride)
        if self._normalizes:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        before = (self._heard - self._stride) // 2
        padded = np.pad(samples, (before, frames * self._stride - len(samples) + self._heard))
        parts = []
        for first in range(0, frames, WINDOW):
            start, end = max(0, first - CONTEXT), min(first + WINDOW + CONTEXT, frames)
            heard = padded[start * self._stride : (end - 1) * self._stride + self._heard]
            logits = self._model(torch.from_numpy(heard[None]).to(self.device)).logits[0]
            parts.append(logits[first - start :][:WINDOW].float().log_softmax(-1).cpu().numpy())
        return np.concatenate(parts)


def _preprocessing(folder: Path) -> dict[str, bool]:
    """Raises ValueError for audio of another rate."""
    found = {"sampling_rate": SAMPLE_RATE, "do_normalize": True}
    found |= json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    if found["sampling_rate"] != SAMPLE_RATE:
        raise ValueError(f"it hears audio of {found['sampling_rate']} Hz; {SAMPLE_RATE} are needed")
    return found
