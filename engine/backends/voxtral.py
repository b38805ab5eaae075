"""Voxtral through transformers: its modules compute, our cache and rows make a batch of them.

docs/MODEL.md follows the numbers from samples to logits. The decoder's layers are called one by one, as
`LlamaModel.forward` calls them, because our cache knows its mask already and transformers would build one each step.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

from engine import quantization
from engine.backends.base import LoadOptions
from engine.core import Job
from engine.kv_cache import DecodeView, KVCache, PrefillView
from engine.tokenizer import VoxtralTokenizer
from engine.weights import load_quantized, quantized_bytes, trim_heap

WINDOW_SAMPLES = 480_000  # the encoder hears 30 s at 16 kHz at a time, padded with silence
WINDOW_FRAMES = 3_000  # 10 ms each
BITS = {"int8": 8, "int4": 4}
CONTEXT_LENGTH = 32_768  # tokens; what Voxtral's card promises, a quarter of the positions in its config.json


class VoxtralBackend:
    def __init__(self, folder: Path, options: LoadOptions) -> None:
        device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, device)
        kind = pick_quantization(options.quantization, device)
        self.tokenizer = VoxtralTokenizer(folder)
        self._features = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model = load_model(folder, kind, dtype).to(device)
        self._model, self._dtype = model, dtype
        self._decoder = model.model.language_model
        self._tensor_device = torch.device(device)
        self._cache = KVCache(model.config.text_config, options.rows, dtype, self._tensor_device)
        audio = model.config.audio_config
        # Two frames make an encoder position, and the projector joins as many positions as fill its input.
        self._tokens_per_window = audio.max_source_positions * audio.hidden_size // audio.intermediate_size
        self.memory_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        self.rows = options.rows
        self.device = device
        self.context_length = min(CONTEXT_LENGTH, model.config.text_config.max_position_embeddings)
        self.description = f"{self.memory_bytes / 1e6:,.0f} MB of weights, {device}, {dtype}, quantization {kind}"

    @staticmethod
    def memory_needed(folder: Path, options: LoadOptions) -> int:
        """Bytes of the weights once loaded, a little too many where they are quantized. On disk they are bfloat16."""
        device = pick_device(options.device)
        dtype, kind = pick_dtype(options.dtype, device), pick_quantization(options.quantization, device)
        if kind != "none":
            return quantized_bytes(folder, BITS[kind], dtype)
        stored = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
        return stored * dtype.itemsize // 2

    def audio_tokens(self, samples: int) -> int:
        return -(-samples // WINDOW_SAMPLES) * self._tokens_per_window

    @torch.inference_mode()
    def prefill(self, job: Job, row: int) -> torch.Tensor:
        inputs = self._prompt_embeddings(job)
        length = inputs.shape[1]
        self._cache.reserve(length + 1)
        positions = torch.arange(length, device=self._tensor_device)[None]
        hidden = self._decode_layers(inputs, positions, None, self._cache.prefill_view(row))
        self._cache.lengths[row] = length
        return self._model.lm_head(hidden[:, -1])

    @torch.inference_mode()
    def decode(self, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor(tokens, device=self._tensor_device)[:, None]
        self._cache.reserve(int(self._cache.lengths[: len(tokens)].max()) + 1)
        view = self._cache.decode_view(len(tokens))
        hidden = self._decode_layers(self._embed(ids), view.positions, view.mask, view)
        self._cache.lengths[: len(tokens)] += 1
        return self._model.lm_head(hidden[:, 0])

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        self._cache.move_row(source, target)

    def release_memory(self) -> None:
        self._cache.release()

    def free_memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.mem_get_info(self._tensor_device)[0]
        return psutil.virtual_memory().available

    def close(self) -> None:
        del self._model, self._decoder, self._cache
        gc.collect()  # modules hold each other in cycles
        trim_heap()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        elif self.device == "mps":
            torch.mps.empty_cache()

    def _prompt_embeddings(self, job: Job) -> torch.Tensor:
        """Embeddings (1, prompt, hidden) of the texts and, between them, of the recordings."""
        first, *others = [
            self._embed(torch.tensor(text, dtype=torch.long, device=self._tensor_device)) for text in job.prompt.texts
        ]
        parts = [first]
        for samples, text in zip(job.audio, others, strict=True):
            parts += [self._listen(samples), text]
        return torch.cat(parts)[None]

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (..., hidden); beside quantized weights they are stored in the file's precision."""
        return self._decoder.embed_tokens(ids).to(self._dtype)

    def _listen(self, samples: np.ndarray) -> torch.Tensor:
        """Audio embeddings (tokens, hidden) of samples (n,), which are padded to whole windows of 30 s."""
        mel = self._features(
            samples, sampling_rate=16_000, padding=True, pad_to_multiple_of=WINDOW_SAMPLES, truncation=False,
            return_tensors="pt",
        ).input_features  # (1, bins, frames)  # fmt: skip
        windows = mel[0].unflatten(1, (-1, WINDOW_FRAMES)).transpose(0, 1)  # (windows, bins, frames)
        return self._model.get_audio_features(windows, return_dict=True).pooler_output

    def _decode_layers(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: PrefillView | DecodeView,
    ) -> torch.Tensor:
        """Hidden states (batch, length, hidden) after all layers. Without a mask, attention is causal."""
        rotation = self._decoder.rotary_emb(hidden, position_ids=positions)
        for layer in self._decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=cache)
        return self._decoder.norm(hidden)


def load_model(folder: Path, kind: str, dtype: torch.dtype) -> VoxtralForConditionalGeneration:
    if kind != "none":
        return load_quantized(folder, BITS[kind], dtype)
    return VoxtralForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    ).eval()


def pick_device(wanted: str) -> str:
    """CUDA, else MPS, else CPU; or the one that is wanted, if it is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if not there[wanted]:
            raise ValueError(f"VOXTRAL_DEVICE={wanted}, but this machine has none. Set it to auto.")
        return wanted
    return next(device for device, present in there.items() if present)


def pick_dtype(wanted: str, device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it, else float32: emulated bfloat16 is several times slower."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device == "mps":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def pick_quantization(wanted: str, device: str) -> str:
    """int8 on a CPU that multiplies in it, else none; or what is wanted, if it can be had."""
    possible = device == "cpu" and quantization.supported()
    if wanted == "auto":
        return "int8" if possible else "none"
    if wanted != "none" and not possible:
        raise ValueError(
            f"VOXTRAL_QUANTIZATION={wanted} is for x86 CPUs, and the model is on {device}. Set it to none."
        )
    return wanted
