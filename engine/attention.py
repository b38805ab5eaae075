"""The attention that decoder heads pay to the audio while a text is read, which SDPA keeps to itself.

Computed a second time from queries and keys, for the positions of the text only, and in blocks, so that memory does not
grow with the number of layers and heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine import dense_attention
from engine.alignment import BestHeads, follow_scores
from engine.kv_cache import KernelView

WATCHED_SDPA = "watched_sdpa"
BLOCK = 2**24  # weights that are computed at once, 64 MB
AROUND = 5  # audio tokens, 0.4 s: about a word, of which some heads look at the whole


def _watched_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    seen: AudioWatch | KernelView | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA, or what is quicker on this device; `seen` is an argument that decoder layers hand down."""
    if isinstance(seen, KernelView):
        return seen.attend(module.layer_idx, query, key, value, module.scaling), None
    if seen:
        seen.see(query[0], key[0], module.scaling)
    if mask is None and dense_attention.serves(query.device, query.dtype):
        return dense_attention.attend(query, key, value, module.scaling, causal=True), None
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(WATCHED_SDPA, _watched_sdpa)
AttentionMaskInterface.register(WATCHED_SDPA, sdpa_mask)


class AudioWatch:
    """Looks on while one text is read, and keeps the attention of the heads that follow the speech best."""

    def __init__(self, audio: slice, start: int) -> None:
        """`audio`: positions of the audio tokens; `start`: position of the first query."""
        self._audio, self._start = audio, start
        self.heads = BestHeads()

    def see(self, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """One layer: query (heads, text, dim), key (key_heads, positions, dim)."""
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        at_once = max(1, BLOCK // (key.shape[0] * key.shape[1]))
        found = [
            _peaks(self._weights(query[:, first : first + at_once], key, first, scaling))
            for first in range(0, query.shape[1], at_once)
        ]
        # One copy, because the device is waited for; places are whole numbers in float32, too.
        peaks, places = torch.stack([torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]).cpu().numpy()
        for head, score in enumerate(follow_scores(peaks, places).tolist()):
            if self.heads.wants(score):
                one = slice(head, head + 1)
                self.heads.add(score, self._weights(query[one], key[one], 0, scaling)[0].half().cpu().numpy())

    def _weights(self, query: torch.Tensor, key: torch.Tensor, first: int, scaling: float) -> torch.Tensor:
        """Attention (heads, text, audio) of the text positions from the `first` on, as shares of all they look at."""
        scores = query.float() @ key.float().transpose(1, 2) * scaling
        own = self._start + first + torch.arange(query.shape[1], device=key.device)
        later = torch.arange(key.shape[1], device=key.device) > own[:, None]
        return scores.masked_fill(later, -torch.inf).softmax(-1)[..., self._audio]


def _peaks(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of weights (heads, text, audio): the most attention that AROUND neighbours get, and where (heads, text) each."""
    around = F.avg_pool1d(weights, AROUND, stride=1, padding=AROUND // 2) * AROUND
    return around.max(dim=-1)
