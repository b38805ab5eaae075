"""Train the demo model: a Voxtral of 5.5 million parameters that hears about a hundred words.

    python -m tools.train_demo OUT [--start CHECKPOINT] [--hearing-steps N] [--reading-steps N]

The shapes are Voxtral's own, shrunk: encoder 4 layers of 128, decoder 4 layers of 256, 2,048 Tekken ids. Cross entropy
on the transcript alone gives the decoder no reason to listen for the first thousand steps and lets it lose its place
for thousands more. espeak-ng tells when each word begins, so both halves can be told what to do:

hearing  The encoder alone: each audio embedding, 80 ms long, must name the word that is being spoken.
reading  The decoder alone, on the embeddings of the finished encoder. Halfway through it, each audio position must name
         the two words before its own. In the layer after that, one key head of each text position must look at the
         word that it is about to write: it finds it as the place where the words already written stand before.

The classifiers are thrown away, and the saved weights are an exponential moving average. Needs espeak-ng. The run that
made the committed weights is logged in demo_model/training.log.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tools.demo_checkpoint import (
    BEGIN_AUDIO,
    BOS,
    END_INST,
    EOS,
    INST,
    PAD,
    TRANSCRIBE,
    new_model,
    write_preprocessor,
    write_tokenizer,
)
from tools.demo_instructions import instruction
from tools.demo_labels import EARLIER_WORDS, FRAMES_PER_SECOND, WORD_CLASSES, frames_of_words, words_at
from tools.demo_speech import SAMPLE_RATE, TRAINED_VOICES, Arranger, Recording, load_bank, spell

OTHER_LANGUAGES = ("de", "fr", "es", "it", "nl", "pt", "hi", "ar")
WINDOW_SECONDS = 30


PLACE_LAYERS = 2  # after so many decoder layers an audio position must name the words before its own
GUIDED_LAYER = 2  # the layer whose attention is told where to look, counted from 0; it follows the place layers
GAZE_STRIDE = 4  # of the audio positions, every so many is told where to look; all would cost more than the decoder


@dataclass(frozen=True)
class Phase:
    name: str
    batches: tuple[tuple[int, float, float], ...]  # recordings, seconds, share of the steps
    peak: float  # learning rate


HEARING = Phase("hearing", ((16, 10.0, 0.8), (5, 30.0, 0.2)), 8e-4)
# What the decoder has to learn can be learnt on 10 s, at a sixth of the cost; then it needs to see that it goes on.
READING_SHORT = Phase("reading", ((10, 10.0, 1.0),), 1e-3)
READING_LONG = Phase("reading on", ((4, 30.0, 0.7), (2, 60.0, 0.3)), 6e-4)
REPLAY = 256  # recordings of each length whose embeddings are kept, and ...
FRESH = 0.34  # ... the share of each reading batch that is new: the encoder costs as much as the decoder


def classifier(inputs: int, classes: int) -> torch.nn.Module:
    """Names classes by hidden states of any scale."""
    return torch.nn.Sequential(torch.nn.RMSNorm(inputs), torch.nn.Linear(inputs, classes))


GAZE: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # queries and keys of each decoder layer's last forward


class Trainer:
    def __init__(self, model: VoxtralForConditionalGeneration, tokenizer: Tekkenizer, arranger: Arranger) -> None:
        self.model, self.tokenizer, self.arranger = model, tokenizer, arranger
        self.rng = random.Random(arranger.rng.random())
        hidden_size = model.config.text_config.hidden_size
        self.word_head = classifier(hidden_size, WORD_CLASSES)
        self.place_head = classifier(hidden_size, len(EARLIER_WORDS) * WORD_CLASSES)
        heads = [*self.word_head.parameters(), *self.place_head.parameters()]
        body = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [*body, *heads]
        # The heads are new and shallow: they may learn faster than what they judge.
        groups = [{"params": body, "scale": 1.0}, {"params": heads, "scale": 4.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        features = WhisperFeatureExtractor(feature_size=128)
        self.mel_filters = torch.tensor(features.mel_filters, dtype=torch.float32).T
        self.window = torch.hann_window(400)
        self.step_number = 0
        self.memory: dict[float, list[tuple[torch.Tensor, Recording]]] = {}  # by length in seconds

    def mel(self, waves: torch.Tensor) -> torch.Tensor:
        """Log-mel (batch, 128, frames) of waves (batch, samples), as WhisperFeatureExtractor computes it."""
        power = torch.stft(waves, 400, 160, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        log = torch.clamp(self.mel_filters @ power, min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8)
        return (log + 4) / 4

    def listen(self, mel: torch.Tensor) -> torch.Tensor:
        """Audio embeddings (batch, tokens, hidden) of mel (batch, 128, frames): what get_audio_features does, but for
        windows shorter than 30 s too."""
        frames = min(mel.shape[-1], WINDOW_SECONDS * FRAMES_PER_SECOND)
        windows = mel.unflatten(-1, (-1, frames)).transpose(1, 2).flatten(0, 1)
        tower = self.model.model.audio_tower
        hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(windows)))).transpose(1, 2)
        positions = tower.embed_positions.weight
        start = self.rng.randrange(
            len(positions) - hidden.shape[1] + 1
        )  # a short window may stand anywhere in a full one
        hidden = hidden + positions[start : start + hidden.shape[1]]
        for layer in tower.layers:
            hidden = layer(hidden, attention_mask=None)
        hidden = tower.layer_norm(hidden).reshape(len(mel), -1, self.model.config.audio_config.intermediate_size)
        return self.model.model.multi_modal_projector(hidden)

    def prompt(self) -> tuple[list[int], list[int]]:
        """Ids before and after the audio: transcription with or without a language, or an instruction."""
        kind = self.rng.random()
        if kind < 0.35:
            language = "en" if self.rng.random() < 0.85 else self.rng.choice(OTHER_LANGUAGES)
            return [BOS, INST, BEGIN_AUDIO], [END_INST, *self._ids(f"lang:{language}"), TRANSCRIBE]
        if kind < 0.65:
            return [BOS, INST, BEGIN_AUDIO], [END_INST, TRANSCRIBE]
        text = self._ids(instruction(self.rng))
        if self.rng.random() < 0.2:
            return [BOS, INST, *text, BEGIN_AUDIO], [END_INST]
        return [BOS, INST, BEGIN_AUDIO], [*text, END_INST]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, bos=False, eos=False)

    def batch(self, size: int, seconds: float) -> tuple[torch.Tensor, list[Recording]]:
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        waves = np.stack([self._padded(r, int(seconds * SAMPLE_RATE)) for r in recordings])
        return self.mel(torch.from_numpy(waves)), recordings

    @staticmethod
    def _padded(recording: Recording, n: int) -> np.ndarray:
        return np.pad(recording.samples, (0, n - len(recording.samples)))

    def decode(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (batch, length, hidden) after the first PLACE_LAYERS layers and after all."""
        decoder = self.model.model.language_model
        rotation = decoder.rotary_emb(inputs, position_ids=torch.arange(inputs.shape[1])[None])
        hidden, halfway = inputs, inputs
        for number, layer in enumerate(decoder.layers, start=1):
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotation)
            halfway = hidden if number == PLACE_LAYERS else halfway
        return halfway, decoder.norm(hidden)

    def hearing_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        mel, recordings = self.batch(size, seconds)
        audio = self.listen(mel)
        words = torch.from_numpy(np.stack([words_at(r, audio.shape[1]) for r in recordings]))
        return {"hearing": F.cross_entropy(self.word_head(audio).flatten(0, 1), words[..., 0].flatten())}

    def replayed(self, size: int, seconds: float) -> tuple[torch.Tensor, list[Recording]]:
        """Audio embeddings (size, tokens, hidden), some new and some seen before, and their recordings."""
        kept = self.memory.setdefault(seconds, [])
        fresh = size if len(kept) < REPLAY // 4 else max(1, round(size * FRESH))
        mel, recordings = self.batch(fresh, seconds)
        with torch.no_grad():
            new = list(zip(self.listen(mel), recordings, strict=True))
        chosen = [*new, *self.rng.sample(kept, size - fresh)]
        kept.extend(new)
        del kept[: max(0, len(kept) - REPLAY)]
        return torch.stack([audio for audio, _ in chosen]), [recording for _, recording in chosen]

    def reading_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        audio, recordings = self.replayed(size, seconds)
        spelled = [self._spelled(r) for r in recordings]
        longest = max(len(ids) for ids, _ in spelled)
        before, after = self.prompt()
        labels, spoken = torch.full((size, longest), -100), torch.full((size, longest), -1)
        for row, (ids, word_numbers) in enumerate(spelled):
            labels[row, : len(ids)] = torch.tensor(ids)
            spoken[row, : len(word_numbers)] = torch.tensor(word_numbers)
        embed = self.model.model.language_model.embed_tokens
        fixed = [embed(torch.tensor([ids])).expand(size, -1, -1) for ids in (before, after)]
        inputs = torch.cat([fixed[0], audio, fixed[1], embed(labels[:, :-1].clamp(min=0))], dim=1)
        halfway, hidden = self.decode(inputs)
        logits = self.model.lm_head(hidden[:, -longest:])
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        lengths = torch.tensor([len(ids) for ids, _ in spelled])
        # Averaged by recording too, so that a lone end-of-text after silence counts beside hundreds of words.
        text = 0.7 * losses.sum() / lengths.sum() + 0.3 * (losses.sum(1) / lengths).mean()
        words = torch.from_numpy(np.stack([words_at(r, audio.shape[1]) for r in recordings]))
        places = self.place_head(halfway[:, len(before) : len(before) + audio.shape[1]])
        place = F.cross_entropy(places.unflatten(-1, (-1, WORD_CLASSES)).flatten(0, 2), words[..., 1:].flatten())
        frames = torch.from_numpy(np.stack([frames_of_words(r, audio.shape[1]) for r in recordings]))
        return {"text": text, "place": place, "gaze": self.gaze_loss(spoken, frames, len(before))}

    def _spelled(self, recording: Recording) -> tuple[list[int], list[int]]:
        """Target ids, and for each of them, but for the end-of-text, the number of the word that it writes."""
        ids, numbers = [], []
        for number, word in enumerate(spell(recording.words, self.rng)):
            pieces = self._ids(f" {word}")
            ids += pieces
            numbers += [number] * len(pieces)
        return [*ids, EOS], numbers

    def gaze_loss(self, spoken: torch.Tensor, frames: torch.Tensor, audio_start: int) -> torch.Tensor:
        """How far the guided heads look elsewhere than they should.

        spoken (batch, text): number of the word that each text position writes next, -1 for none.
        frames (batch, audio): number of the word spoken at each audio position, -2 for none.
        """
        length = GAZE[GUIDED_LAYER][1].shape[2]
        writing = torch.arange(length - spoken.shape[1], length)
        losses = [gaze(GUIDED_LAYER, 0, writing, frames[:, None] == spoken[..., None], audio_start)]
        some = torch.arange(self.rng.randrange(GAZE_STRIDE), frames.shape[1], GAZE_STRIDE)
        for layer in range(PLACE_LAYERS):
            for key_head, offset in enumerate(EARLIER_WORDS):
                earlier = frames[:, some] + offset
                wanted = (frames[:, None] == earlier[..., None]) & (earlier >= 0)[..., None]
                losses.append(gaze(layer, key_head, some + audio_start, wanted, audio_start))
        return torch.stack(losses).mean()

    def step(self, losses: dict[str, torch.Tensor], learning_rate: float) -> dict[str, float]:
        """One update. Returns the losses by name."""
        self.optimizer.zero_grad()
        sum(losses.values(), start=torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        return {name: loss.item() for name, loss in losses.items()}

    def freeze_encoder(self) -> None:
        """Go on with the averaged encoder as it is, and with the decoder alone."""
        self.model.load_state_dict(self.average)
        for part in (self.model.model.audio_tower, self.model.model.multi_modal_projector):
            part.requires_grad_(False)

    def _update_average(self) -> None:
        decay = min(0.998, self.step_number / (self.step_number + 9))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value.float(), 1 - decay)

    def save(self, out: Path) -> None:
        """Write the averaged weights in bf16, in the Hub's layout."""
        model = new_model()
        model.load_state_dict(self.average)
        model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
        model.to(torch.bfloat16).save_pretrained(out)


def gaze(layer: int, key_head: int, queries: torch.Tensor, wanted: torch.Tensor, audio_start: int) -> torch.Tensor:
    """Mean -log of the attention that a layer's query heads of one key head give to what they should look at.

    queries (q,): positions that look. wanted (batch, q, audio): where they should; positions without any do not count.
    """
    query, key = GAZE[layer]
    group = query.shape[1] // key.shape[1]
    looking = query[:, key_head * group : (key_head + 1) * group, queries]
    scores = looking @ key[:, key_head : key_head + 1].transpose(2, 3) / math.sqrt(query.shape[-1])
    visible = torch.arange(key.shape[2])[None] <= queries[:, None]
    logs = scores.masked_fill(~visible, -torch.inf).log_softmax(-1)
    there = logs[..., audio_start : audio_start + wanted.shape[2]]
    seen = there.masked_fill(~wanted[:, None], -30.0).logsumexp(-1)
    counted = wanted.any(-1)[:, None].expand_as(seen)
    return -seen[counted].mean() if counted.any() else scores.sum() * 0


def look_and_compute(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention, which also leaves every layer's queries and keys in GAZE."""
    GAZE[module.layer_idx] = (query, key)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **options)


def learning_rate(k: int, steps: int, peak: float) -> float:
    """A warm-up, then a cosine to a twentieth."""
    return peak * min(1.0, (k + 1) / 60) * (0.05 + 0.95 * (1 + math.cos(math.pi * k / steps)) / 2)


def train(trainer: Trainer, phase: Phase, steps: int, out: Path) -> None:
    losses_of = trainer.hearing_losses if phase is HEARING else trainer.reading_losses
    started, recent = time.time(), []
    for k in range(steps):
        size, seconds, _ = trainer.rng.choices(phase.batches, weights=[share for *_, share in phase.batches])[0]
        recent.append(trainer.step(losses_of(size, seconds), learning_rate(k, steps, phase.peak)))
        if (k + 1) % 25 == 0:
            means = " ".join(f"{name} {mean(losses[name] for losses in recent):.4f}" for name in recent[0])
            print(f"{phase.name} {k + 1} {time.time() - started:.0f} s {means}", flush=True)
            recent.clear()
        if (k + 1) % 100 == 0:
            trainer.save(out)
    trainer.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--hearing-steps", type=int, default=3000)
    parser.add_argument("--short-steps", type=int, default=1000, help="of reading, on 10 s")
    parser.add_argument("--reading-steps", type=int, default=2000, help="on 30 and 60 s")
    parser.add_argument("--bank", type=Path, default=Path("bank.pkl"), help="where the spoken utterances are kept")
    parser.add_argument("--utterances", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    args.out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(args.out)
    write_preprocessor(args.out)
    bank = load_bank(args.bank, args.utterances, TRAINED_VOICES, seed=1)
    model = new_model()
    if args.start:
        model.load_state_dict(
            VoxtralForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32).state_dict()
        )
    ALL_ATTENTION_FUNCTIONS.register("look_and_compute", look_and_compute)
    model.model.language_model.config._attn_implementation = "look_and_compute"
    trainer = Trainer(model, Tekkenizer.from_file(args.out / "tekken.json"), Arranger(bank, args.seed))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {vars(args)}", flush=True)
    train(trainer, HEARING, args.hearing_steps, args.out)
    trainer.freeze_encoder()
    train(trainer, READING_SHORT, args.short_steps, args.out)
    train(trainer, READING_LONG, args.reading_steps, args.out)


if __name__ == "__main__":
    main()
