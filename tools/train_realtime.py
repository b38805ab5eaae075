"""Train the realtime demo model: Voxtral Mini 4B Realtime shrunk to 3.4 million parameters, for about a hundred words.

    python -m tools.train_realtime OUT [--start CHECKPOINT] [--steps N]

At each 80 ms the model hears one audio embedding and writes one token: [STREAMING_PAD], or [STREAMING_WORD] where a
word has ended `delay` ago, and then the word. espeak-ng tells when words end, so the target of every position is known
and plain cross entropy is all that it takes. Each batch has its own delay, of which the decoder's norms are told.
Recordings are longer than the attention windows, so that the model learns to live without its beginning. A classifier
that is thrown away names the word being spoken from the audio embeddings alone, which teaches the encoder sooner. The
saved weights are an exponential moving average. Needs espeak-ng. The run that made the committed weights is logged in
demo_realtime/training.log.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import VoxtralRealtimeFeatureExtractor, VoxtralRealtimeForConditionalGeneration

from tools.averaging import Average
from tools.demo_checkpoint import BOS
from tools.demo_labels import WORD_CLASSES, words_at
from tools.demo_speech import SAMPLE_RATE, TRAINED_VOICES, Arranger, Recording, load_bank, spell
from tools.realtime_checkpoint import (
    BUFFER_TOKENS,
    LEFT_PAD_TOKENS,
    STREAMING_PAD,
    STREAMING_WORD,
    new_model,
    write_files,
)
from tools.train_demo import classifier, learning_rate

SAMPLES_PER_TOKEN = SAMPLE_RATE * 80 // 1000
DELAYS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 30)  # tokens of 80 ms
BATCHES = ((7, 12.0, 0.5), (4, 20.0, 0.5))  # recordings, seconds, share of the steps
PEAK = 1.5e-3  # learning rate
HEARD_AFTER = 2  # tokens after which the classifier must name the word that is spoken
WRONG = (0.0, 0.0, 0.05, 0.15)  # shares of the written words that are replaced, for the model will make mistakes


@dataclass(frozen=True)
class Batch:
    mel: torch.Tensor  # (recordings, 128, 8 * positions)
    written: torch.Tensor  # (recordings, positions + 1): the prompt, then what is written at each position
    delay: int  # in tokens
    recordings: list[Recording]


def written_tokens(recording: Recording, ids: list[list[int]], length: int) -> list[int]:
    """What is written at each 80 ms, without delay: a marker when a word has ended and then its ids, else pads.

    A word that ends while the one before is being written comes right after it.
    """
    tokens, free = [STREAMING_PAD] * length, 0
    for (_, end), word in zip(recording.spans, ids, strict=True):
        at = max(free, -(-end // SAMPLES_PER_TOKEN) - 1)
        free = at + 1 + len(word)
        tokens[at:free] = [STREAMING_WORD, *word]
    return tokens[:length]


class Trainer:
    def __init__(
        self, model: VoxtralRealtimeForConditionalGeneration, tokenizer: Tekkenizer, arranger: Arranger
    ) -> None:
        self.model, self.tokenizer, self.arranger = model, tokenizer, arranger
        self.rng = random.Random(arranger.rng.random())
        self.features = VoxtralRealtimeFeatureExtractor()
        self.word_head = classifier(model.config.text_config.hidden_size, WORD_CLASSES)
        self.parameters = [*model.parameters(), *self.word_head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = Average(model)

    def batch(self, size: int, seconds: float) -> Batch:
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        delay = self.rng.choice(DELAYS)
        spoken = int(seconds * SAMPLE_RATE) // SAMPLES_PER_TOKEN
        positions = LEFT_PAD_TOKENS + spoken + delay + 1 + BUFFER_TOKENS
        waves = np.zeros((size, positions * SAMPLES_PER_TOKEN), np.float32)
        written = torch.full((size, positions + 1), STREAMING_PAD)
        written[:, 0] = BOS
        start, first = LEFT_PAD_TOKENS * SAMPLES_PER_TOKEN, LEFT_PAD_TOKENS + delay + 1
        for row, recording in enumerate(recordings):
            waves[row, start : start + len(recording.samples)] = recording.samples
            ids = [self._ids(f" {word}") for word in spell(recording.words, self.rng)]
            written[row, first:] = torch.tensor(written_tokens(recording, ids, positions + 1 - first))
        mel = self.features(list(waves), sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        return Batch(mel, written, delay, recordings)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, bos=False, eos=False)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        model = self.model.model
        audio = model.get_audio_features(batch.mel, return_dict=True).pooler_output
        inputs = model.language_model.embed_tokens(self._with_mistakes(batch.written[:, :-1])) + audio
        condition = model.time_embedding(torch.tensor([float(batch.delay)]))
        hidden = model.language_model(inputs_embeds=inputs, t_cond=condition[None]).last_hidden_state
        losses = F.cross_entropy(self.model.lm_head(hidden).transpose(1, 2), batch.written[:, 1:], reduction="none")
        first = LEFT_PAD_TOKENS + batch.delay  # position that writes; those before only read the prompt
        losses, pads = losses[:, first:], batch.written[:, first + 1 :] == STREAMING_PAD
        # A pad is the likeliest token everywhere, and most are easy: told apart, the two show what is learnt.
        text, silence = losses[~pads].sum() / max(1, (~pads).sum()), losses[pads].mean()
        return {"text": text, "pads": 3 * silence, "hearing": 0.5 * self._hearing(audio, batch.recordings)}

    def _hearing(self, audio: torch.Tensor, recordings: list[Recording]) -> torch.Tensor:
        heard = audio[:, LEFT_PAD_TOKENS + HEARD_AFTER :]
        spoken = torch.from_numpy(np.stack([words_at(r, heard.shape[1])[:, 0] for r in recordings]))
        return F.cross_entropy(self.word_head(heard).flatten(0, 1), spoken.flatten())

    def _with_mistakes(self, written: torch.Tensor) -> torch.Tensor:
        words = written[written > STREAMING_WORD]
        if not len(words):
            return written
        wrong = (torch.rand(written.shape) < self.rng.choice(WRONG)) & (written > STREAMING_WORD)
        return torch.where(wrong, words[torch.randint(len(words), written.shape)], written)

    def step(self, losses: dict[str, torch.Tensor], rate: float) -> dict[str, float]:
        """One update. Returns the losses by name."""
        self.optimizer.zero_grad()
        sum(losses.values(), start=torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update()
        return {name: loss.item() for name, loss in losses.items()}

    def save(self, out: Path) -> None:
        """Write the averaged weights in bf16, in the Hub's layout."""
        model = new_model()
        model.load_state_dict(self.average.values)
        model.to(torch.bfloat16).save_pretrained(out)


def train(trainer: Trainer, steps: int, peak: float, out: Path) -> None:
    started, recent = time.time(), []
    for k in range(steps):
        size, seconds, _ = trainer.rng.choices(BATCHES, weights=[share for *_, share in BATCHES])[0]
        recent.append(trainer.step(trainer.losses(trainer.batch(size, seconds)), learning_rate(k, steps, peak)))
        if (k + 1) % 25 == 0:
            means = " ".join(f"{name} {mean(losses[name] for losses in recent):.4f}" for name in recent[0])
            print(f"{k + 1} {time.time() - started:.0f} s {means}", flush=True)
            recent.clear()
        if (k + 1) % 100 == 0:
            trainer.save(out)
    trainer.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--peak", type=float, default=PEAK, help="highest learning rate")
    parser.add_argument("--bank", type=Path, default=Path("bank.pkl"), help="where the spoken utterances are kept")
    parser.add_argument("--utterances", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    write_files(args.out)
    model = new_model()
    if args.start:
        started = VoxtralRealtimeForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
        model.load_state_dict(started.state_dict())
    bank = load_bank(args.bank, args.utterances, TRAINED_VOICES, seed=1)
    trainer = Trainer(model, Tekkenizer.from_file(args.out / "tekken.json"), Arranger(bank, args.seed))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {vars(args)}", flush=True)
    train(trainer, args.steps, args.peak, args.out)


if __name__ == "__main__":
    main()
