"""Voxtral through transformers: its modules compute, our cache and rows make a batch of them.

docs/MODEL.md follows the numbers from samples to logits. The decoder's layers are called one by one, as
`LlamaModel.forward` calls them, because our cache knows its mask already and transformers would build one each step.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, VoxtralForConditionalGeneration

from engine import cached_attention, dense_attention, native
from engine.alignment import token_spans
from engine.attention import WATCHED_SDPA, AudioWatch
from engine.backends.base import LoadOptions
from engine.core import Job
from engine.devices import CACHE_SHARE, free_memory, release_unused, to_device
from engine.features import WINDOW_SAMPLES, LogMel, window_count
from engine.kv_cache import DecodeView, FixedKVCache, KernelView, KVCache, PrefillView, TextView
from engine.loading import Placement, load_model, memory_bytes
from engine.scheduler import Limits, Size
from engine.steps import ExactSteps, GraphSteps, RoundedSteps, rounded
from engine.tokenizer import VoxtralTokenizer

CONTEXT_LENGTH = 32_768  # tokens; what Voxtral's card promises, a quarter of the positions in its config.json
USUAL_POSITIONS = 4096  # of a row of a fixed cache: more than the longest chunk and its text
LEAST_POSITIONS = 2048  # of the whole cache: what a chunk of 60 s and its text may come to
AUDIO = -1  # stands for an audio token among the ids of a prompt


@dataclass(frozen=True)
class Batching:
    rows: int  # jobs that run together
    prefill_tokens: int  # as in Limits
    windows: int  # that the encoder hears together


# A CPU is busy with one prompt and two windows; more would only make the first text late. A GPU needs some to be busy.
ONE_BY_ONE, MANY_AT_ONCE = Batching(8, 0, 2), Batching(64, 4096, 10)


class VoxtralBackend:
    def __init__(self, folder: Path, options: LoadOptions) -> None:
        placement = Placement.of(options)
        self.device, self._dtype = placement.device, placement.dtype
        if placement.packed:
            native.begin(cached_attention.KERNEL)
        self.tokenizer = VoxtralTokenizer(folder)
        self._tensor_device = torch.device(self.device)
        self._mel = LogMel(folder, self._tensor_device)
        self._model = load_model(VoxtralForConditionalGeneration, folder, placement)
        self._decoder = self._model.model.language_model
        self._decoder.config._attn_implementation = WATCHED_SDPA
        if dense_attention.serves(self._tensor_device, self._dtype):
            self._model.model.audio_tower.config._attn_implementation = dense_attention.DENSE
        audio, text = self._model.config.audio_config, self._model.config.text_config
        # Two frames make an encoder position, and the projector joins as many positions as fill its input.
        self._tokens_per_window = audio.max_source_positions * audio.hidden_size // audio.intermediate_size
        self.memory_bytes = memory_bytes(self._model)
        self.context_length = min(CONTEXT_LENGTH, text.max_position_embeddings)
        self._fixed = bool(options.positions) or self.device == "cuda"
        self._has_kernel = not self._fixed and cached_attention.serves(self._tensor_device, self._dtype, text.head_dim)
        if self._has_kernel:
            native.prepare(cached_attention.KERNEL)
        if self._fixed:
            self._prepare_fixed(text, options)
        else:
            self._prepare_growing(text, options)
        self.description = f"{self.memory_bytes / 1e6:,.0f} MB of weights, {placement}"

    def _prepare_growing(self, config: LlamaConfig, options: LoadOptions) -> None:
        rows = options.rows or ONE_BY_ONE.rows
        self._windows, self.limits = ONE_BY_ONE.windows, Limits(rows, ONE_BY_ONE.prefill_tokens)
        self._cache = KVCache(config, rows, self._dtype, self._tensor_device)
        self._steps = ExactSteps(self._step, self._cache, self._tensor_device)

    def _prepare_fixed(self, config: LlamaConfig, options: LoadOptions) -> None:
        rows = options.rows or MANY_AT_ONCE.rows
        positions = options.positions or self._positions_that_fit(config, rows)
        self._windows, self.limits = MANY_AT_ONCE.windows, Limits(rows, MANY_AT_ONCE.prefill_tokens, positions)
        self.context_length = min(self.context_length, positions)
        self._cache = FixedKVCache(config, rows, self._dtype, self._tensor_device, positions)
        logits = torch.empty(rows, config.vocab_size, dtype=self._dtype, device=self._tensor_device)
        steps = GraphSteps if self.device == "cuda" else RoundedSteps
        self._steps = steps(self._step, self._cache, logits)

    def _positions_that_fit(self, config: LlamaConfig, rows: int) -> int:
        """Positions of the cache that the device has memory for, and no more than are of use. Raises ValueError where
        hardly a request would fit."""
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # keys and values of one
        free, each = free_memory(self._tensor_device), numbers * self._dtype.itemsize
        fit = int(CACHE_SHARE * free) // each
        if fit < LEAST_POSITIONS:
            raise ValueError(
                f"beside the weights {free / 1e9:.1f} GB of the device's memory are free, and "
                f"{LEAST_POSITIONS * each / CACHE_SHARE / 1e9:.1f} are needed. Free some, or set VOXTRAL_DEVICE=cpu."
            )
        return min(fit, max(rows * USUAL_POSITIONS, self.context_length))

    def audio_tokens(self, samples: int) -> int:
        return window_count(samples) * self._tokens_per_window

    def size(self, job: Job) -> Size:
        """Rounded where slots are fixed: for each length of slots, steps are captured anew."""
        prompt = job.prompt.text_tokens + sum(self.audio_tokens(len(samples)) for samples in job.audio)
        most = prompt + job.max_tokens
        return Size(prompt, min(rounded(most), self.context_length) if self._fixed else most)

    @torch.inference_mode()
    def prefill(self, jobs: list[Job], row: int) -> torch.Tensor:
        sizes = [self.size(job) for job in jobs]
        self._cache.begin(row, sizes)
        inputs = self._prompt_embeddings(jobs)
        positions = torch.arange(inputs.shape[1], device=self._tensor_device)[None]
        # Prompts begin together and each position attends to those before it, so never to what fills up the shorter.
        hidden = self._decode_layers(inputs, positions, cache=PrefillView(self._cache, row))
        lengths = torch.tensor([size.prompt for size in sizes])
        self._cache.lengths[row : row + len(jobs)] = lengths
        last = torch.arange(len(jobs)) * inputs.shape[1] + lengths - 1
        return self._model.lm_head(hidden.flatten(0, 1)[to_device(last, self._tensor_device)])

    @torch.inference_mode()
    def decode(self, tokens: list[int]) -> torch.Tensor:
        logits = self._steps(tokens)
        self._cache.advance(len(tokens))
        return logits

    def _step(self, tokens: torch.Tensor, at: torch.Tensor, length: int) -> torch.Tensor:
        """See engine.steps.Step."""
        hidden = self._embed(tokens[:, None])
        if self._has_kernel:
            hidden = self._decode_layers(hidden, at[:, None], seen=KernelView(self._cache, at))
        else:
            view = DecodeView(self._cache, at, length)
            hidden = self._decode_layers(hidden, at[:, None], view.mask, view)
        return self._model.lm_head(hidden[:, 0])

    @torch.inference_mode()
    def align(self, job: Job, row: int, tokens: list[int]) -> list[tuple[int, int]]:
        """Reads the text once more behind the prompt, whose keys the row still holds, and looks where its heads look.

        A token is written from the position before it, so the prompt's last token is read too; what writes the
        end-of-text looks at what comes after the last word.
        """
        (samples,) = job.audio
        audio_tokens = self.audio_tokens(len(samples))
        start = job.prompt.text_tokens + audio_tokens - 1
        ids = torch.tensor([[job.prompt.texts[-1][-1], *tokens]], device=self._tensor_device)
        positions = torch.arange(start, start + ids.shape[1], device=self._tensor_device)
        visible = torch.arange(start + ids.shape[1], device=self._tensor_device) <= positions[:, None]
        self._cache.reserve(visible.shape[1], self._cache.slots)
        samples_per_token = WINDOW_SAMPLES // self._tokens_per_window
        first = len(job.prompt.texts[0])
        watch = AudioWatch(slice(first, first - -len(samples) // samples_per_token), start)
        view = TextView(self._cache, row, start)
        self._decode_layers(self._embed(ids), positions[None], visible[None, None], view, watch)
        spans = token_spans(watch.heads.mean())[:-1] * samples_per_token
        return [(start, end) for start, end in np.minimum(spans, len(samples)).tolist()]

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        self._cache.move_row(source, target)

    def release_memory(self) -> None:
        self._cache.release()
        release_unused(self._tensor_device)

    def free_memory(self) -> int:
        return free_memory(self._tensor_device)

    def close(self) -> None:
        del self._model, self._decoder, self._cache, self._steps, self._mel
        gc.collect()  # modules hold each other in cycles
        release_unused(self._tensor_device)

    def _prompt_embeddings(self, jobs: Sequence[Job]) -> torch.Tensor:
        """Embeddings (jobs, longest prompt, hidden) of the texts and, between them, of the recordings."""
        ids = pad_sequence([self._prompt_ids(job) for job in jobs], batch_first=True)
        embeddings = self._embed(to_device(ids.clamp(min=0), self._tensor_device))
        recordings = [samples for job in jobs for samples in job.audio]
        if recordings:
            heard = (ids.flatten() == AUDIO).nonzero()[:, 0]
            embeddings.flatten(0, 1)[to_device(heard, self._tensor_device)] = self._listen(recordings)
        return embeddings

    def _prompt_ids(self, job: Job) -> torch.Tensor:
        """Token ids (prompt,), with AUDIO where a recording is heard."""
        first, *others = job.prompt.texts
        ids = [*first]
        for samples, text in zip(job.audio, others, strict=True):
            ids += [AUDIO] * self.audio_tokens(len(samples)) + [*text]
        return torch.tensor(ids)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (..., hidden); beside quantized weights they are stored in the file's precision."""
        return self._decoder.embed_tokens(ids).to(self._dtype)

    def _listen(self, recordings: Sequence[np.ndarray]) -> torch.Tensor:
        """Audio embeddings (tokens, hidden) of recordings, each (n,), one after another."""
        windows, heard = chain.from_iterable(map(self._mel, recordings)), []
        while part := [*islice(windows, self._windows)]:
            heard.append(self._model.get_audio_features(torch.stack(part), return_dict=True).pooler_output)
        return torch.cat(heard)

    def _decode_layers(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: PrefillView | DecodeView | TextView | None = None,
        seen: AudioWatch | KernelView | None = None,
    ) -> torch.Tensor:
        """Hidden states (batch, length, hidden) after all layers. Without a mask, attention is causal, unless `seen`
        has the keys."""
        rotation = self._decoder.rotary_emb(hidden, position_ids=positions)
        for layer in self._decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=cache, seen=seen)
        return self._decoder.norm(hidden)
