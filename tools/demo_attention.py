"""Where the decoder of the demo model is told to look while it learns, and how far it looks elsewhere.

A decoder that writes one word after another has to find its place in the audio again at each step. What it needs for
that can be said head by head. Said to queries and keys directly, it is learnt in hundreds of steps, not in thousands:

layers 0, 1  Audio positions look back at the frames of the word before, with one head of the first pair that shares a
             key, and of the word before that, with one of the second pair. Text positions look back at the tokens of
             those words with the other heads of the pairs. So heard and written words come to carry the words before
             them, and can be compared.
layer 1      One free head looks at the beginnings of all words so far, evenly, and at the prompt's first token, which
             gets 1 / (n + 1) of the attention: that counts the words, and a word said twice is not taken for itself.
layer 2      One head of each text position looks at the word that is to be written next.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers import VoxtralForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LOOK_BACK_LAYERS = 2
FINDING_LAYER = 2  # counted from 0
LOOK_BACK = (-1, -2)  # words, by key head
COUNTING_HEAD = 1  # a query head that audio positions do not look back with
STRIDE = 4  # of the audio positions, every so many is told where to look; all would cost more than the decoder

# Of each decoder layer's last forward: queries, keys, and what may look where, (batch, 1, length, length).
_seen: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}


def watch(model: VoxtralForConditionalGeneration) -> None:
    """Let every decoder layer leave its queries, keys and mask here."""
    ALL_ATTENTION_FUNCTIONS.register("watched_sdpa", _watched_sdpa)
    model.model.language_model.config._attn_implementation = "watched_sdpa"


def _watched_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    _seen[module.layer_idx] = (query, key, visible)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, visible, **options)


def looking_loss(spoken: torch.Tensor, frames: torch.Tensor, audio_start: int, first: int) -> torch.Tensor:
    """Nats by which the told heads look elsewhere.

    spoken (batch, text): number of the word that each text position writes next, -1 for none.
    frames (batch, audio): number of the word spoken at each audio position, -2 for none.
    audio_start: position of the first audio token. first: of the audio positions, which STRIDE begins with.
    """
    length = _seen[FINDING_LAYER][1].shape[2]
    text_start = length - spoken.shape[1]
    text = torch.arange(spoken.shape[1])
    some = torch.arange(first, frames.shape[1], STRIDE)
    finding = _gaze(FINDING_LAYER, 0, text + text_start, frames[:, None] == spoken[..., None], audio_start)
    losses = []
    for layer in range(LOOK_BACK_LAYERS):
        for key_head, offset in enumerate(LOOK_BACK):
            earlier = frames[:, some] + offset
            heard = (frames[:, None] == earlier[..., None]) & (earlier >= 0)[..., None]
            losses.append(_gaze(layer, key_head, some + audio_start, heard, audio_start))
            written = (text[None] == text[:, None] + offset)[None]
            losses.append(_gaze(layer, key_head, text + text_start, written, text_start, which=1))
    return finding + torch.stack(losses).mean() + 0.5 * _counting(frames, some, audio_start)


def _scores(layer: int, head: int, queries: torch.Tensor) -> torch.Tensor:
    """Attention logits (batch, q, length) of one query head for the positions `queries`, as the mask allows."""
    query, key, visible = _seen[layer]
    key_head = head * key.shape[1] // query.shape[1]
    scores = query[:, head, queries] @ key[:, key_head].transpose(1, 2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~visible[:, 0, queries], -1e4)


def _gaze(
    layer: int, key_head: int, queries: torch.Tensor, wanted: torch.Tensor, start: int, which: int = 0
) -> torch.Tensor:
    """Mean -log of the attention that one query head of a key head (its first, unless `which`) gives to what it should.

    queries (q,): positions that look. wanted (batch, q, n): which of the n positions from `start` on they should look
    at; positions without any do not count.
    """
    query, key, _ = _seen[layer]
    logs = _scores(layer, key_head * (query.shape[1] // key.shape[1]) + which, queries).log_softmax(-1)
    there = logs[..., start : start + wanted.shape[2]]
    seen = there.masked_fill(~wanted, -30.0).logsumexp(-1)
    counted = wanted.any(-1).expand_as(seen)
    return -seen[counted].mean() if counted.any() else logs.sum() * 0


def _counting(frames: torch.Tensor, some: torch.Tensor, audio_start: int) -> torch.Tensor:
    """Kullback-Leibler divergence of the counting head's attention from an even spread over the beginnings so far."""
    length = _seen[LOOK_BACK_LAYERS - 1][1].shape[2]
    begins = torch.zeros(len(frames), length, dtype=torch.bool)
    before = F.pad(frames[:, :-1], (1, 0), value=-2)
    begins[:, audio_start : audio_start + frames.shape[1]] = (frames != before) & (frames >= 0)
    begins[:, 0] = True
    visible = torch.arange(length)[None] <= (some + audio_start)[:, None]
    wanted = (begins[:, None] & visible).float()
    logs = _scores(LOOK_BACK_LAYERS - 1, COUNTING_HEAD, some + audio_start).log_softmax(-1)
    counts = wanted.sum(-1)
    return (-(logs * wanted).sum(-1) / counts - counts.log()).mean()
