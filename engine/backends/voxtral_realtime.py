"""Voxtral Realtime through transformers: its modules compute, our caches make endless streams of them.

Two stacks of layers work one behind the other. The encoder hears a spectrogram and makes an audio embedding of every
80 ms; the decoder reads that embedding, added to that of the token it wrote last, and writes the next token. Both look
back over a window only, and both take any number of new positions of any number of streams in one call
(engine.rolling).
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import VoxtralRealtimeForConditionalGeneration

from engine.backends.base import LoadOptions
from engine.devices import CACHE_SHARE, free_memory, release_unused, to_device
from engine.features import StreamingMel
from engine.loading import Placement, load_model, memory_bytes
from engine.realtime_tokenizer import RealtimeTokenizer
from engine.rolling import PACKED_SDPA, PackedForward, RollingCache, rotations
from engine.scheduler import Limits

MOST_READ, MOST_HEARD = 24, 64  # tokens of one stream in one call, which its caches have room for


@dataclass(frozen=True)
class Batching:
    """How much one call takes on of all streams together, beyond a token of each.

    The decoder takes as long as reading its weights, up to some positions; the encoder computes more than it reads, so
    that more at once only makes others wait.
    """

    rows: int  # recordings that are heard together
    read: int
    heard: int


ON_CPU, ON_GPU = Batching(8, MOST_READ, 16), Batching(64, 256, 256)


class ModelStream:
    """One stream inside of the model: what it must remember, of bounded size. Only the backend changes it."""

    def __init__(
        self, model: VoxtralRealtimeForConditionalGeneration, dtype: torch.dtype, device: torch.device, before: int
    ) -> None:
        encoder, decoder = model.config.audio_config, model.config.text_config
        positions = MOST_HEARD * model.config.downsample_factor
        self.delay_scales = torch.empty(0)  # (layers, 1, hidden): tell the decoder of the delay, once that is known
        self.samples = np.zeros(before, np.float32)  # that the next frame hears, too
        self.taken = 0  # samples in all
        self.edges: dict[str, torch.Tensor] = {}  # what the convolutions see before their next input
        self.hearing, self.heard = RollingCache(encoder, positions, dtype, device), 0  # encoder positions
        self.reading, self.read = RollingCache(decoder, MOST_READ, dtype, device), 0  # tokens that stay
        self.audio = torch.empty(0, decoder.hidden_size, dtype=dtype, device=device)  # embeddings not yet read

    def copy(self) -> ModelStream:
        """Another stream that goes on from here. Neither cache may have rolled over."""
        other = copy.copy(self)
        other.hearing, other.reading = self.hearing.copy(self.heard), self.reading.copy(self.read)
        return other


class RealtimeBackend:
    """As engine.backends.base.Backend where the server asks both; the rest is for the live worker."""

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        placement = Placement.of(options)
        self.device, self._dtype = placement.device, placement.dtype
        self._tensor_device = torch.device(self.device)
        self.tokenizer = RealtimeTokenizer(folder)
        self._mel = StreamingMel(folder, self._tensor_device)
        self._model = load_model(VoxtralRealtimeForConditionalGeneration, folder, placement)
        self.memory_bytes = memory_bytes(self._model)
        self._encoder, self._decoder = self._model.model.audio_tower, self._model.model.language_model
        embedder = self._encoder.embedder
        embedder.conv1, embedder.conv2 = UnfoldedConvolution(embedder.conv1), UnfoldedConvolution(embedder.conv2)
        # A delay stays what it is: each layer gets its scales ready-made, and not twice as many small products a step.
        self._scales_of_delay = [layer.ada_rms_norm for layer in self._decoder.layers]
        for layer in self._decoder.layers:
            layer.ada_rms_norm = torch.nn.Identity()
        for stack in (self._encoder, self._decoder):
            stack.config._attn_implementation = PACKED_SDPA
            stack.rotary_emb.to("cpu")  # where rotations are computed
        self.batching = ON_CPU if self.device == "cpu" else ON_GPU
        self.context_length = self._model.config.text_config.max_position_embeddings
        self._silence = self._hear_silence()
        self.most_streams = self._streams_that_fit()
        self.limits = Limits(min(options.rows or self.batching.rows, self.most_streams), prefill_tokens=0)
        self._beginnings: dict[int, ModelStream] = {}  # by delay
        self.description = f"{self.memory_bytes / 1e6:,.0f} MB of weights, {placement}"

    def _streams_that_fit(self) -> int:
        """Streams that there is memory for when each of them has filled its windows, as a session has after eleven
        minutes; at least one. So too on a CPU, where memory is taken page by page: it would end the process later."""
        each = self._silence.hearing.most_bytes + self._silence.reading.most_bytes
        return max(1, int(CACHE_SHARE * free_memory(self._tensor_device)) // each)

    def audio_tokens(self, samples: int) -> int:
        return -(-samples // self.tokenizer.step)

    @torch.inference_mode()
    def open(self, delay_ms: int) -> ModelStream:
        """A new stream. What every stream begins with is in it already: silence, as far as no audio is heard in it."""
        if delay_ms not in self._beginnings:
            self._beginnings[delay_ms] = self._begin(delay_ms)
        return self._beginnings[delay_ms].copy()

    @torch.inference_mode()
    def _hear_silence(self) -> ModelStream:
        """What every stream begins with, but for the last token, which hears a little of what comes next."""
        stream = ModelStream(self._model, self._dtype, self._tensor_device, self._mel.before)
        # A frame hears samples on both sides of its beginning: so many of those that follow a token.
        lookahead = self._mel.before - self._mel.hop
        self.hear([stream], [np.zeros((self.tokenizer.left_pads - 1) * self.tokenizer.step + lookahead, np.float32)])
        return stream

    def _begin(self, delay_ms: int) -> ModelStream:
        delay = torch.full((1,), self.tokenizer.delay(delay_ms), dtype=self._dtype, device=self._tensor_device)
        stream = copy.copy(self._silence)  # with the same encoder cache, for nothing is written into it
        embedded = self._model.model.time_embedding(delay)
        stream.delay_scales = torch.stack([scales(embedded) for scales in self._scales_of_delay])[:, None]
        stream.reading = self._silence.reading.copy(0)
        prompt = self.tokenizer.prompt(delay_ms)[: len(stream.audio)]
        for first in range(0, len(prompt), MOST_READ):
            ids = prompt[first : first + MOST_READ]
            self.read([stream], [ids], [0])
            self.keep(stream, len(ids))
        return stream

    @torch.inference_mode()
    def hear(self, streams: Sequence[ModelStream], audio: Sequence[np.ndarray]) -> None:
        """Hear more samples (n,) of each stream: whole tokens, MOST_HEARD at most. After an error all is as before."""
        whole = [np.concatenate([s.samples, new]) for s, new in zip(streams, audio, strict=True)]
        mels = [self._mel(samples).to(self._dtype) for samples in whole]
        edges = PackedEdges([stream.edges for stream in streams], [mel.shape[1] for mel in mels])
        embedded = self._encoder.embedder(torch.cat(mels, 1)[None], padding_cache=edges)
        hidden = torch.cat(edges.rows(embedded.transpose(1, 2)), 2).transpose(1, 2)
        counts = edges.lengths
        forward = PackedForward([s.hearing for s in streams], [s.heard for s in streams], counts, self._dtype)
        hidden = self._layers(self._encoder, hidden, forward)
        factor = self._model.config.downsample_factor
        embeddings = self._model.model.multi_modal_projector(hidden.reshape(-1, factor * hidden.shape[2]))
        parts = embeddings.split([count // factor for count in counts])
        unread = [torch.cat([stream.audio, part]) for stream, part in zip(streams, parts, strict=True)]
        for i, stream in enumerate(streams):
            stream.samples = whole[i][mels[i].shape[1] * self._mel.hop :]
            stream.edges = edges.left[i]
            stream.taken += len(audio[i])
            stream.heard += counts[i]
            stream.audio = unread[i]

    @torch.inference_mode()
    def read(
        self, streams: Sequence[ModelStream], tokens: Sequence[Sequence[int]], answers: Sequence[int]
    ) -> torch.Tensor:
        """Read tokens of each stream, of which the first was written, and others may be guesses, beside its audio.

        Logits (sum of answers, vocabulary): of each stream those after the last `answers` of its tokens. Nothing is
        changed until `keep`, so that guesses can be wrong and errors be tried again.
        """
        counts = [len(ids) for ids in tokens]
        ids = torch.tensor([token for ids in tokens for token in ids])
        audio = torch.cat([s.audio[:count] for s, count in zip(streams, counts, strict=True)])
        hidden = self._decoder.embed_tokens(to_device(ids, self._tensor_device)).to(self._dtype) + audio
        scales = [s.delay_scales.expand(-1, count, -1) for s, count in zip(streams, counts, strict=True)]
        forward = PackedForward([s.reading for s in streams], [s.read for s in streams], counts, self._dtype)
        hidden = self._layers(self._decoder, hidden[None], forward, torch.cat(scales, 1))[0]
        asked = [part[len(part) - some :] for part, some in zip(hidden.split(counts), answers, strict=True)]
        return self._model.lm_head(torch.cat(asked))

    def keep(self, stream: ModelStream, count: int) -> None:
        """The first `count` of the tokens that were read last are part of the text; the others never were."""
        stream.read += count
        stream.audio = stream.audio[count:]

    def _layers(
        self, stack: torch.nn.Module, hidden: torch.Tensor, forward: PackedForward, scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states (1, positions, hidden) after all layers of a stack; `scales` (layers, positions, hidden) are
        the decoder's."""
        told = {"attention_mask": None, "packed": forward}
        told["position_embeddings"] = rotations(stack.rotary_emb, forward.positions, hidden)
        for i, layer in enumerate(stack.layers):
            hidden = layer(hidden, **told) if scales is None else layer(hidden, **told, t_cond=scales[i, None])
        return stack.norm(hidden)

    def release_memory(self) -> None:
        release_unused(self._tensor_device)

    def free_memory(self) -> int:
        return free_memory(self._tensor_device)

    def close(self) -> None:
        del self._model, self._encoder, self._decoder, self._scales_of_delay, self._mel
        del self._silence, self._beginnings
        gc.collect()  # modules hold each other in cycles
        self.release_memory()


class UnfoldedConvolution(torch.nn.Module):
    """A causal convolution of few positions, as one product: a CPU's would lay out the weights anew at every call."""

    def __init__(self, convolution: torch.nn.Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.key, self.left_pad = convolution.cache_key, convolution.left_pad
        (self.width,), (self.stride,) = convolution.kernel_size, convolution.stride

    def forward(self, hidden: torch.Tensor, padding_cache: PackedEdges) -> torch.Tensor:
        """(1, channels, positions) without the edges that the cache has for it; (1, channels out, positions out)."""
        windows = padding_cache.with_edges(hidden, self)[0].unfold(1, self.width, self.stride)
        rows = windows.transpose(0, 1).flatten(1)  # (positions out, channels * width)
        return F.linear(rows, self.weight.flatten(1), self.bias).T[None]


class PackedEdges:
    """Gives causal convolutions what each stream had before its new frames.

    Streams lie one behind another, each after its own edge. What a convolution makes of the seams between them is left
    out before the next one, and in `rows` after the last.
    """

    FILL = 2  # positions that each stream gets more, of both convolutions; even, so that a stride of 2 stays in step

    def __init__(self, edges: list[dict[str, torch.Tensor]], lengths: list[int]) -> None:
        self.lengths = lengths  # of what comes out, in the end
        self.left: list[dict[str, torch.Tensor]] = [{} for _ in edges]  # the edges of what comes next
        self._edges, self._seam = edges, 0

    def with_edges(self, hidden: torch.Tensor, convolution: UnfoldedConvolution) -> torch.Tensor:
        """`hidden` (1, channels, positions) as the convolution is to see it."""
        key, width, stride = convolution.key, convolution.left_pad, convolution.stride
        packed = []
        for row, old, left in zip(self.rows(hidden), self._edges, self.left, strict=True):
            left[key] = row[..., -width:].clone()
            fill = row.new_zeros(1, row.shape[1], self.FILL - width)
            packed += [old.get(key, torch.zeros_like(left[key])), row, fill]
        self._seam, self.lengths = self.FILL // stride, [length // stride for length in self.lengths]
        return torch.cat(packed, 2)

    def rows(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Each stream's part of `hidden` (1, channels, positions), without the seams."""
        rows, at = [], 0
        for length in self.lengths:
            rows.append(hidden[..., at : at + length])
            at += length + self._seam
        return rows
