"""Train the realtime demo model: Voxtral Mini 4B Realtime shrunk to 3.7 million parameters, for about a hundred words.

    python -m tools.train_realtime OUT [--start CHECKPOINT] [--steps N]

At each 80 ms the model hears one audio embedding and writes one token: [STREAMING_PAD], or [STREAMING_WORD] where a
word has ended `delay` ago, and then the word. espeak-ng tells when words end, so the target of every position is known.
Each recording has its own delay, of which the decoder's norms are told; with one delay for a whole batch, each step
undid much of what the one before had taught. Recordings are longer than the attention windows, so that the model learns
to live without its beginning.

Cross entropy alone is slow, because words are written at few positions. So two classifiers, which are thrown away, name
the word that was spoken at every position: one from the audio embeddings alone and one, `delay` later, from what the
decoder knows then. Before both halves learn together, the encoder learns to name words and, which is much easier and
comes first, their letters, as if each took as long to say as the others; it begins with what the other demo model's
encoder knows. This model's spectrogram is not scaled to the loudest sound, as the 3B's is, so loudness costs it more to
learn, and varies less here.

The saved weights are an exponential moving average. Needs espeak-ng.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import (
    VoxtralForConditionalGeneration,
    VoxtralRealtimeFeatureExtractor,
    VoxtralRealtimeForConditionalGeneration,
)

from tools import training
from tools.demo_checkpoint import BOS
from tools.demo_labels import WORD_CLASSES, words_at
from tools.demo_speech import (
    DONE,
    SAMPLE_RATE,
    Arranger,
    Recording,
    decided_by_what_follows,
    spell,
    spell_by_what_follows,
)
from tools.realtime_checkpoint import (
    BUFFER_TOKENS,
    LEFT_PAD_TOKENS,
    STREAMING_PAD,
    STREAMING_WORD,
    lend_ears,
    new_model,
    write_files,
)
from tools.train_demo import classifier, learning_rate

SAMPLES_PER_TOKEN = SAMPLE_RATE * 80 // 1000
DELAYS = (1, 2, 3, 4, 5, 6, 6, 8, 10, 12, 12, 15, *[30] * 5)  # tokens of 80 ms; the longest is learnt last
# Steps by which a word is written too late, and their shares. A model that saw each word in its place alone writes it
# again, or never, when it was a step off itself.
LATE = {-1: 0.06, 0: 0.79, 1: 0.1, 2: 0.05}
HEARING_BATCHES = ((10, 6.0, 1.0),)  # recordings, seconds, share of the steps
BATCHES = ((4, 12.0, 0.5), (2, 24.0, 0.5))
PEAK = 1.2e-3  # learning rate
HEARD_AFTER, KNOWN_AFTER = 3, 2  # tokens after which encoder and decoder must name the word that is spoken ...
LETTER_AFTER, NO_LETTER = 1, 26  # ... and the encoder its letter
NOT_ASKED = -100  # class that cross entropy leaves out
LOUDNESS = ((-30.0, -14.0), (-20.0, 0.0), (-14.0, 0.0))  # peaks in dB of full scale
# Times as often come utterances in which a word is spelled by what follows, and as much counts what it begins with.
OFTEN, MUCH = 10, 3.0
WRONG = (0.0, 0.0, 0.05, 0.15)  # shares of the written words that are replaced, for the model will make mistakes


@dataclass(frozen=True)
class Batch:
    mel: torch.Tensor  # (recordings, 128, 8 * positions)
    written: torch.Tensor  # (recordings, positions + 1): the prompt, then what is written at each position
    delays: torch.Tensor  # (recordings,) in tokens
    recordings: list[Recording]

    @property
    def firsts(self) -> torch.Tensor:
        """(recordings,): the positions that begin to write; those before only read the prompt."""
        return LEFT_PAD_TOKENS + self.delays


def written_tokens(recording: Recording, ids: list[list[int]], late: list[int], length: int) -> list[int]:
    """What is written at each 80 ms, without delay: a marker when a word has ended and then its ids, else pads.

    A word that ends while the one before is being written comes right after it. late: of each word, in steps.
    """
    tokens, free = [STREAMING_PAD] * length, 0
    for (_, end), word, steps in zip(recording.spans, ids, late, strict=True):
        at = max(free, -(-end // SAMPLES_PER_TOKEN) - 1 + steps)
        free = at + 1 + len(word)
        tokens[at:free] = [STREAMING_WORD, *word]
    return tokens[:length]


def letters_at(recording: Recording, audio_tokens: int) -> np.ndarray:
    """Which letter of its word is spoken in the middle of each 80 ms (audio_tokens,): 0 to 25, or NO_LETTER."""
    labels = np.full(audio_tokens, NO_LETTER)
    for word, (start, end) in zip(recording.words, recording.spans, strict=True):
        first, last = round(start / SAMPLES_PER_TOKEN), round(end / SAMPLES_PER_TOKEN)
        place = (np.arange(first, min(last, audio_tokens)) - first + 0.5) / max(1, last - first)
        letters = np.frombuffer(word.encode(), np.uint8) - ord("a")
        labels[first : first + len(place)] = letters[(place * len(word)).astype(int)]
    return labels


class Trainer:
    def __init__(
        self, model: VoxtralRealtimeForConditionalGeneration, tokenizer: Tekkenizer, arranger: Arranger
    ) -> None:
        self.model, self.tokenizer, self.arranger = model, tokenizer, arranger
        self.rng = random.Random(arranger.rng.random())
        self.features = VoxtralRealtimeFeatureExtractor()
        hidden_size = model.config.text_config.hidden_size
        self.encoder_head, self.decoder_head = (classifier(hidden_size, WORD_CLASSES) for _ in range(2))
        self.letter_head = classifier(hidden_size, NO_LETTER + 1)
        judges = (self.encoder_head, self.decoder_head, self.letter_head)
        heads = [parameter for judge in judges for parameter in judge.parameters()]
        self.parameters = [*model.parameters(), *heads]
        # The heads are new and shallow: they may learn faster than what they judge.
        groups = [{"params": list(model.parameters()), "scale": 1.0}, {"params": heads, "scale": 4.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = training.Average(model)
        self.decided = torch.tensor([self._ids(f" {word}")[0] for word in (*DONE, *DONE.values())])

    def batch(self, size: int, seconds: float) -> Batch:
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        delays = torch.tensor(self.rng.choices(DELAYS, k=size))
        tokens = int(seconds * SAMPLE_RATE) // SAMPLES_PER_TOKEN
        positions = LEFT_PAD_TOKENS + int(delays.max()) + 1 + tokens + BUFFER_TOKENS
        written = torch.full((size, positions + 1), STREAMING_PAD)
        written[:, 0] = BOS
        for row, recording, delay in zip(written, recordings, delays.tolist(), strict=True):
            ids = [self._ids(f" {word}") for word in spell(spell_by_what_follows(recording), self.rng)]
            late = self.rng.choices([*LATE], [*LATE.values()], k=len(ids))
            said = row[LEFT_PAD_TOKENS + delay + 1 :]
            said.copy_(torch.tensor(written_tokens(recording, ids, late, len(said))))
        return Batch(self._mel(recordings, LEFT_PAD_TOKENS, positions), written, delays, recordings)

    def _mel(self, recordings: list[Recording], left_pad: int, positions: int) -> torch.Tensor:
        """Log-mel (recordings, 128, 8 * positions) of the recordings after `left_pad` tokens of silence."""
        waves = np.zeros((len(recordings), positions * SAMPLES_PER_TOKEN), np.float32)
        for wave, recording in zip(waves, recordings, strict=True):
            start = left_pad * SAMPLES_PER_TOKEN
            wave[start : start + len(recording.samples)] = recording.samples
        return self.features(list(waves), sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, bos=False, eos=False)

    def hearing_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        mel = self._mel(recordings, 0, int(seconds * SAMPLE_RATE) // SAMPLES_PER_TOKEN)
        audio = self.model.get_audio_features(mel, return_dict=True).pooler_output
        letters = torch.from_numpy(np.stack([letters_at(r, audio.shape[1] - LETTER_AFTER) for r in recordings]))
        spelling = F.cross_entropy(self.letter_head(audio[:, LETTER_AFTER:]).flatten(0, 1), letters.flatten())
        heard = torch.full((size,), HEARD_AFTER)
        return {"hearing": self._naming(self.encoder_head, audio, recordings, heard), "spelling": spelling}

    def losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        batch, model = self.batch(size, seconds), self.model.model
        audio = model.get_audio_features(batch.mel, return_dict=True).pooler_output
        inputs = model.language_model.embed_tokens(self._with_mistakes(batch.written[:, :-1])) + audio
        condition = torch.stack([model.time_embedding(delay[None].float()) for delay in batch.delays])
        hidden = model.language_model(inputs_embeds=inputs, t_cond=condition[:, None]).last_hidden_state
        losses = F.cross_entropy(self.model.lm_head(hidden).transpose(1, 2), batch.written[:, 1:], reduction="none")
        writes, pads = torch.arange(inputs.shape[1]) >= batch.firsts[:, None], batch.written[:, 1:] == STREAMING_PAD
        # A pad is the likeliest token everywhere, and most are easy: told apart, the two show what is learnt.
        words = (writes & ~pads) * torch.where(torch.isin(batch.written[:, 1:], self.decided), MUCH, 1.0)
        text, silence = (losses * words).sum() / words.sum().clamp(min=1), losses[writes & pads].mean()
        heard = torch.full_like(batch.firsts, LEFT_PAD_TOKENS + HEARD_AFTER)
        hearing = self._naming(self.encoder_head, audio, batch.recordings, heard)
        knowing = self._naming(self.decoder_head, hidden, batch.recordings, batch.firsts + KNOWN_AFTER)
        return {"text": text, "pads": 3 * silence, "hearing": hearing, "knowing": knowing}

    @staticmethod
    def _naming(
        head: torch.nn.Module, hidden: torch.Tensor, recordings: list[Recording], firsts: torch.Tensor
    ) -> torch.Tensor:
        """firsts (recordings,): the positions that are to name what is spoken first."""
        spoken = torch.full(hidden.shape[:2], NOT_ASKED)
        for row, recording, first in zip(spoken, recordings, firsts.tolist(), strict=True):
            row[first:] = torch.from_numpy(words_at(recording, len(row) - first)[:, 0])
        return F.cross_entropy(head(hidden).flatten(0, 1), spoken.flatten())

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
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.average.update()
        return {name: loss.item() for name, loss in losses.items()}

    def save(self, out: Path) -> None:
        """Write the averaged weights in bf16, in the Hub's layout."""
        model = new_model()
        model.load_state_dict(self.average.values)
        model.to(torch.bfloat16).save_pretrained(out)


def train(trainer: Trainer, hearing: bool, steps: int, peak: float, out: Path) -> None:
    batches, losses_of = (HEARING_BATCHES, trainer.hearing_losses) if hearing else (BATCHES, trainer.losses)

    def step(k: int) -> dict[str, float]:
        size, seconds, _ = trainer.rng.choices(batches, weights=[share for *_, share in batches])[0]
        return trainer.step(losses_of(size, seconds), learning_rate(k, steps, peak))

    training.run("hearing" if hearing else "both", step, steps, lambda: trainer.save(out))


def main() -> None:
    parser = training.options(__doc__)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--ears", type=Path, default=Path("demo_model"), help="whose encoder the new one begins with")
    parser.add_argument("--hearing-steps", type=int, default=600, help="of the encoder alone")
    parser.add_argument("--steps", type=int, default=3000, help="of both halves")
    parser.add_argument("--peak", type=float, default=PEAK, help="highest learning rate")
    args = parser.parse_args()

    bank = training.begin(args)
    write_files(args.out)
    model = new_model()
    if args.start:
        started = VoxtralRealtimeForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
        model.load_state_dict(started.state_dict())
    else:
        lend_ears(model, VoxtralForConditionalGeneration.from_pretrained(args.ears, dtype=torch.float32))
    tokenizer = Tekkenizer.from_file(args.out / "tekken.json")
    trainer = Trainer(
        model, tokenizer, Arranger(bank + (OFTEN - 1) * decided_by_what_follows(bank), args.seed, LOUDNESS)
    )
    training.announce(model, args)
    train(trainer, True, args.hearing_steps, args.peak, args.out)
    train(trainer, False, args.steps, args.peak, args.out)


if __name__ == "__main__":
    main()
