"""Train the demo aligner: a wav2vec2 of 0.9 million parameters that spells what espeak-ng says, letter by letter.

    python -m tools.train_aligner OUT [--steps N]

The shapes are wav2vec2's own, shrunk: convolutions that make a frame of 20 ms, then 4 layers of 128. CTC alone
leaves open where within a word its letters stand. espeak-ng tells when each word begins, so each frame is
told what to say: the letters of a word share its time evenly, `|` stands at its end, and a pause is blank. Needs
espeak-ng. The run that made the committed weights is logged in demo_aligner/training.log.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from tools import training
from tools.demo_speech import SAMPLE_RATE, Arranger, Recording

SPECIALS, LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|"), "'abcdefghijklmnopqrstuvwxyz"
VOCABULARY = {token: i for i, token in enumerate((*SPECIALS, *LETTERS))}
BLANK, BORDER = VOCABULARY["<pad>"], VOCABULARY["|"]
STRIDE, HEARD = 320, 760  # samples from frame to frame, and that the convolutions of one frame see
BATCHES = ((8, 5.0, 0.8), (3, 14.0, 0.2))  # recordings, seconds, share of the steps
PEAK = 1.5e-3  # learning rate


def new_model() -> Wav2Vec2ForCTC:
    model = Wav2Vec2ForCTC(Wav2Vec2Config(
        vocab_size=len(VOCABULARY), hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384,
        conv_dim=(64, 96, 128, 128), conv_kernel=(80, 4, 4, 3), conv_stride=(40, 2, 2, 2), conv_bias=True,
        num_feat_extract_layers=4, feat_extract_norm="group", feat_extract_activation="relu", hidden_act="relu",
        do_stable_layer_norm=True, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
        apply_spec_augment=False, pad_token_id=BLANK, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    first = model.wav2vec2.feature_extractor.conv_layers[0].conv
    first.weight.data = waves(64, 80)[:, None]
    first.requires_grad_(False)  # a quarter of the time would go into filters that are good as they are
    return model


def waves(count: int, samples: int) -> torch.Tensor:
    """Filters (count, samples): windowed sine waves, evenly spaced in mel from 80 Hz to 7.5 kHz."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (80, 7500))
    hertz = 700 * (10 ** (torch.linspace(low, high, count)[:, None] / 2595) - 1)
    phases = torch.arange(count)[:, None] * math.pi / 2
    time = torch.arange(samples)[None] / SAMPLE_RATE
    return torch.hann_window(samples) * torch.sin(2 * math.pi * hertz * time + phases) / math.sqrt(samples)


def write_processor(out: Path) -> None:
    """What turns waves into inputs, and letters into classes."""
    (out / "vocab.json").write_text(json.dumps(VOCABULARY))
    Wav2Vec2CTCTokenizer(str(out / "vocab.json")).save_pretrained(out)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(out)


def letters_at(recording: Recording, frames: int) -> np.ndarray:
    """The class (frames,) that each frame is told to say; a letter that stands twice has a blank between."""
    labels = np.full(frames, BLANK)
    middles = np.arange(frames) * STRIDE + HEARD // 2
    for word, (start, end) in zip(recording.words, recording.spans, strict=True):
        first, last = np.searchsorted(middles, (start, end))
        letters = [VOCABULARY[letter] for letter in word]
        places = ((middles[first:last] - start) * len(letters) // (end - start)).clip(max=len(letters) - 1)
        labels[first:last] = [letters[place] for place in places]
        new = np.flatnonzero(np.diff(places)) + 1
        labels[first + new[[letters[places[i]] == letters[places[i] - 1] for i in new]]] = BLANK
        labels[max(first, last - 1) : last] = BORDER
    return labels


def normalized(waves: np.ndarray) -> np.ndarray:
    """As Wav2Vec2FeatureExtractor does it, (batch, samples)."""
    return (waves - waves.mean(1, keepdims=True)) / np.sqrt(waves.var(1, keepdims=True) + 1e-7)


class Trainer:
    def __init__(self, model: Wav2Vec2ForCTC, arranger: Arranger) -> None:
        self.model, self.arranger = model, arranger
        self.average = training.Average(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01)

    def losses(self, size: int, seconds: float) -> tuple[torch.Tensor, float]:
        """Nats by which frames say something else, and the share of them that say what they are told."""
        n = int(seconds * SAMPLE_RATE)
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        waves = np.stack([np.pad(r.samples, (0, n - len(r.samples))) for r in recordings])
        logits = self.model(torch.from_numpy(normalized(waves))).logits
        labels = torch.from_numpy(np.stack([letters_at(r, logits.shape[1]) for r in recordings]))
        right = (logits.argmax(-1) == labels).float().mean().item()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), right

    def step(self, loss: torch.Tensor, learning_rate: float) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.average.update()

    def save(self, out: Path) -> None:
        """Write the averaged weights in fp16, in the Hub's layout."""
        model = new_model()
        model.load_state_dict(self.average.values)
        model.half().save_pretrained(out)


def learning_rate(k: int, steps: int) -> float:
    """A warm-up, then a cosine to nothing."""
    return PEAK * min(1.0, (k + 1) / 100) * (1 + math.cos(math.pi * k / steps)) / 2


def train(trainer: Trainer, steps: int, out: Path) -> None:
    def step(k: int) -> dict[str, float]:
        size, seconds, _ = trainer.arranger.rng.choices(BATCHES, weights=[share for *_, share in BATCHES])[0]
        loss, right = trainer.losses(size, seconds)
        trainer.step(loss, learning_rate(k, steps))
        return {"loss": loss.item(), "frames right": right}

    training.run("spelling", step, steps, lambda: trainer.save(out))


def main() -> None:
    parser = training.options(__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()

    bank = training.begin(args)
    write_processor(args.out)
    model = new_model()
    training.announce(model, args)
    train(Trainer(model, Arranger(bank, args.seed)), args.steps, args.out)


if __name__ == "__main__":
    main()
