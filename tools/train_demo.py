"""Train the demo model: a Voxtral of 5.9 million parameters that hears about a hundred words.

    python -m tools.train_demo OUT [--start CHECKPOINT] [--hearing-steps N] [--reading-steps N]

The shapes are Voxtral's own, shrunk: encoder 6 layers of 128, decoder 4 layers of 256, 2,048 Tekken ids. Cross entropy
on the transcript alone gives the decoder no reason to listen for the first thousand steps and lets it lose its place
for thousands more. espeak-ng tells when each word begins, so both halves can be told what to do, in four phases:

hearing     The encoder alone, mostly on 10 s: each audio embedding, 80 ms long, must name the word that is being
            spoken, and how long ago the two words before it ended.
reading     The decoder alone, on the embeddings of the finished encoder, 10 s long. Its heads are told where to look
            (tools/demo_attention.py); halfway through it, positions must name the words before their own and count.
reading on  The same on up to 60 s.
joint       Both halves, on 30 and 60 s.

Some of the words that the decoder reads as written are wrong, for it will make mistakes and must find on. The
classifiers are thrown away, and the saved weights are an exponential moving average. Needs espeak-ng. The runs that
made the committed weights are logged in demo_model/training.log.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import VoxtralForConditionalGeneration

from tools import training
from tools.demo_attention import LOOK_BACK_LAYERS, STRIDE, looking_loss, watch
from tools.demo_checkpoint import (
    BEGIN_AUDIO,
    BOS,
    END_INST,
    EOS,
    INST,
    PAD,
    SPECIAL_NAMES,
    TRANSCRIBE,
    new_model,
    write_preprocessor,
    write_tokenizer,
)
from tools.demo_ears import Ears
from tools.demo_instructions import instruction
from tools.demo_labels import (
    DISTANCE_CLASSES,
    EARLIER_WORDS,
    WORD_CLASSES,
    distances,
    frames_of_words,
    words_at,
)
from tools.demo_speech import HARSH, SAMPLE_RATE, SPOKEN_WORDS, Arranger, Recording, spell

OTHER_LANGUAGES = ("de", "fr", "es", "it", "nl", "pt", "hi", "ar")


@dataclass(frozen=True)
class Phase:
    name: str
    batches: tuple[tuple[int, float, float], ...]  # recordings, seconds, share of the steps
    peak: float  # learning rate


HEARING = Phase("hearing", ((16, 10.0, 0.8), (5, 30.0, 0.2)), 8e-4)
# What the decoder has to learn can be learnt on 10 s, at a sixth of the cost; then it needs to see that it goes on.
READING_SHORT = Phase("reading", ((10, 10.0, 1.0),), 1e-3)
READING_LONG = Phase("reading on", ((10, 10.0, 0.35), (4, 30.0, 0.15), (2, 60.0, 0.5)), 3e-4)
JOINT = Phase("joint", ((4, 30.0, 0.4), (2, 60.0, 0.6)), 2.5e-4)
MISTAKES = (0.0, 0.0, 0.0, 0.05, 0.1)  # shares of the words written so far that are wrong; one for each recording
COUNT_STEP, COUNT_CLASSES = 4, 48  # words
REPLAY = 256  # recordings of each length whose embeddings are kept, and ...
FRESH = 0.34  # ... the share of each reading batch that is new: the encoder costs as much as the decoder


def classifier(inputs: int, classes: int) -> torch.nn.Module:
    """Names classes by hidden states of any scale."""
    return torch.nn.Sequential(torch.nn.RMSNorm(inputs), torch.nn.Linear(inputs, classes))


class Trainer:
    def __init__(self, model: VoxtralForConditionalGeneration, tokenizer: Tekkenizer, arranger: Arranger) -> None:
        self.model, self.tokenizer, self.arranger = model, tokenizer, arranger
        self.rng = random.Random(arranger.rng.random())
        hidden_size = model.config.text_config.hidden_size
        self.word_head = classifier(hidden_size, WORD_CLASSES)
        self.distance_head = classifier(hidden_size, 2 * DISTANCE_CLASSES)
        self.place_head = classifier(hidden_size, len(EARLIER_WORDS) * WORD_CLASSES)
        self.count_head = classifier(hidden_size, COUNT_CLASSES)
        self.word_ids = torch.tensor([self._ids(f" {word}")[0] for word in SPOKEN_WORDS])
        judges = (self.word_head, self.distance_head, self.place_head, self.count_head)
        heads = [parameter for judge in judges for parameter in judge.parameters()]
        body = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [*body, *heads]
        # The heads are new and shallow: they may learn faster than what they judge.
        groups = [{"params": body, "scale": 1.0}, {"params": heads, "scale": 4.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = training.Average(model)
        self.ears = Ears(model)
        self.memory: dict[float, list[tuple[torch.Tensor, Recording]]] = {}  # by length in seconds

    def prompt(self) -> tuple[list[int], list[int]]:
        """Ids before and after the audio: transcription with or without a language, or an instruction."""
        kind = self.rng.random()
        if kind < 0.25:
            language = "en" if self.rng.random() < 0.85 else self.rng.choice(OTHER_LANGUAGES)
            return [BOS, INST, BEGIN_AUDIO], [END_INST, *self._ids(f"lang:{language}"), TRANSCRIBE]
        if kind < 0.4:
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
        return self.ears.mel(torch.from_numpy(waves)), recordings

    @staticmethod
    def _padded(recording: Recording, n: int) -> np.ndarray:
        return np.pad(recording.samples, (0, n - len(recording.samples)))

    def decode(self, inputs: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (batch, length, hidden) after the first LOOK_BACK_LAYERS layers and after all.

        real (batch, length): which positions are more than padding; nobody looks at the others or counts them.
        """
        decoder = self.model.model.language_model
        rotation = decoder.rotary_emb(inputs, position_ids=real.cumsum(1) - 1)
        visible = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).tril() & real[:, None, None]
        hidden, halfway = inputs, inputs
        for number, layer in enumerate(decoder.layers, start=1):
            hidden = layer(hidden, attention_mask=visible, position_embeddings=rotation)
            halfway = hidden if number == LOOK_BACK_LAYERS else halfway
        return halfway, decoder.norm(hidden)

    def hearing_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        mel, recordings = self.batch(size, seconds)
        return self.heard(self.ears.listen(mel, self.rng), recordings)

    def reading_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        return self.read(*self.replayed(size, seconds))

    def joint_losses(self, size: int, seconds: float) -> dict[str, torch.Tensor]:
        mel, recordings = self.batch(size, seconds)
        audio = self.ears.listen(mel, self.rng)
        read = self.read(audio, recordings)
        return self.heard(audio, recordings) | read | {"text": 2 * read["text"]}

    def heard(self, audio: torch.Tensor, recordings: list[Recording]) -> dict[str, torch.Tensor]:
        words = torch.from_numpy(np.stack([words_at(r, audio.shape[1]) for r in recordings]))
        hearing = F.cross_entropy(self.word_head(audio).flatten(0, 1), words[..., 0].flatten())
        far = torch.from_numpy(np.stack([distances(r, audio.shape[1]) for r in recordings]))
        guesses = self.distance_head(audio).unflatten(-1, (-1, DISTANCE_CLASSES))
        one, two = (F.cross_entropy(guesses[:, :, i].flatten(0, 1), far[..., i].flatten()) for i in range(2))
        return {"hearing": hearing, "one before": 0.3 * one, "two before": 0.2 * two}

    def replayed(self, size: int, seconds: float) -> tuple[torch.Tensor, list[Recording]]:
        """Audio embeddings (size, tokens, hidden), some new and some seen before, and their recordings."""
        kept = self.memory.setdefault(seconds, [])
        fresh = size if len(kept) < REPLAY // 4 else max(1, round(size * FRESH))
        mel, recordings = self.batch(fresh, seconds)
        with torch.no_grad():
            new = list(zip(self.ears.listen(mel, self.rng), recordings, strict=True))
        chosen = [*new, *self.rng.sample(kept, size - fresh)]
        kept.extend(new)
        del kept[: max(0, len(kept) - REPLAY)]
        return torch.stack([audio for audio, _ in chosen]), [recording for _, recording in chosen]

    def read(self, audio: torch.Tensor, recordings: list[Recording]) -> dict[str, torch.Tensor]:
        size = len(recordings)
        spelled = [self._spelled(r) for r in recordings]
        longest = max(len(ids) for ids, _ in spelled)
        # A prompt for each recording: steps that know one prompt only undo each other.
        before, after = (_aligned(ids) for ids in zip(*(self.prompt() for _ in spelled), strict=True))
        labels, spoken = torch.full((size, longest), -100), torch.full((size, longest), -1)
        for row, (ids, word_numbers) in enumerate(spelled):
            labels[row, : len(ids)] = torch.tensor(ids)
            spoken[row, : len(word_numbers)] = torch.tensor(word_numbers)
        embed = self.model.model.language_model.embed_tokens
        written = torch.stack([self._with_mistakes(row) for row in labels[:, :-1].clamp(min=0)])
        inputs = torch.cat([embed(before), audio, embed(after), embed(written)], dim=1)
        everywhere = torch.ones(audio.shape[:2], dtype=torch.bool)
        real = torch.cat([before != PAD, everywhere, after != PAD, torch.ones_like(written, dtype=torch.bool)], dim=1)
        halfway, hidden = self.decode(inputs, real)
        logits = self.model.lm_head(hidden[:, -longest:])
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        lengths = torch.tensor([len(ids) for ids, _ in spelled])
        # Averaged by recording too, so that a lone end-of-text after silence counts beside hundreds of words.
        text = 0.7 * losses.sum() / lengths.sum() + 0.3 * (losses.sum(1) / lengths).mean()
        words = torch.from_numpy(np.stack([words_at(r, audio.shape[1]) for r in recordings]))
        heard = halfway[:, before.shape[1] : before.shape[1] + audio.shape[1]]
        places = self.place_head(heard)
        place = F.cross_entropy(places.unflatten(-1, (-1, WORD_CLASSES)).flatten(0, 2), words[..., 1:].flatten())
        frames = torch.from_numpy(np.stack([frames_of_words(r, audio.shape[1]) for r in recordings]))
        counted = self._count_loss(heard, frames) + self._count_loss(halfway[:, -longest:], spoken)
        looking = looking_loss(spoken, frames, before.shape[1], self.rng.randrange(STRIDE))
        return {"text": text, "place": place, "looking": looking, "count": 0.3 * counted}

    def _count_loss(self, hidden: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """How badly hidden states (batch, positions, hidden) tell the number of the word there, in steps of COUNT_STEP.

        One classifier for what was heard and what was written makes both tell it in the same way, so that attention
        can compare them.
        """
        wanted = torch.where(numbers >= 0, (numbers // COUNT_STEP).clamp(max=COUNT_CLASSES - 1), -100)
        return F.cross_entropy(self.count_head(hidden).flatten(0, 1), wanted.flatten(), ignore_index=-100)

    def _with_mistakes(self, ids: torch.Tensor) -> torch.Tensor:
        """What was written, some of it wrong: a decoder that saw right words only is lost after its first error."""
        share = self.rng.choice(MISTAKES)
        wrong = torch.rand(len(ids)) < share
        return torch.where(wrong, self.word_ids[torch.randint(len(self.word_ids), ids.shape)], ids)

    def _spelled(self, recording: Recording) -> tuple[list[int], list[int]]:
        """Target ids, and for each of them the number of the word that it writes; the end comes after the last."""
        ids, numbers = [], []
        for number, word in enumerate(spell(recording.words, self.rng)):
            pieces = self._ids(f" {word}")
            ids += pieces
            numbers += [number] * len(pieces)
        return [*ids, EOS], [*numbers, len(recording.words)]

    def step(self, losses: dict[str, torch.Tensor], learning_rate: float) -> dict[str, float]:
        """One update. Returns the losses by name."""
        self.optimizer.zero_grad()
        sum(losses.values(), start=torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.average.update()
        return {name: loss.item() for name, loss in losses.items()}

    def train_encoder(self, wanted: bool) -> None:
        """Go on from the averaged weights, with the encoder as it is or with all of the model."""
        self.model.load_state_dict(self.average.values)
        for part in (self.model.model.audio_tower, self.model.model.multi_modal_projector):
            part.requires_grad_(wanted)

    def save(self, out: Path) -> None:
        """Write the averaged weights in bf16, in the Hub's layout."""
        model = new_model()
        model.load_state_dict(self.average.values)
        model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
        model.to(torch.bfloat16).save_pretrained(out)


def _aligned(prompts: Iterable[list[int]]) -> torch.Tensor:
    """Ids (prompts, longest) with padding after the first id, which the counting head must find where it is."""
    rows = list(prompts)
    longest = max(len(ids) for ids in rows)
    return torch.tensor([[ids[0], *[PAD] * (longest - len(ids)), *ids[1:]] for ids in rows])


def grow(model: VoxtralForConditionalGeneration, checkpoint: dict[str, torch.Tensor]) -> None:
    """Load `checkpoint`. Encoder layers that it does not have begin as layers that change nothing."""
    missing, unknown = model.load_state_dict(checkpoint, strict=False)
    if unknown:
        raise ValueError(f"the checkpoint has other weights than the demo model, {unknown[0]} among them")
    for name in missing:
        if "out_proj" in name or "fc2" in name:
            torch.nn.init.zeros_(model.get_parameter(name))


def learning_rate(k: int, steps: int, peak: float) -> float:
    """A warm-up, then a cosine to a twentieth."""
    return peak * min(1.0, (k + 1) / 60) * (0.05 + 0.95 * (1 + math.cos(math.pi * k / steps)) / 2)


def train(trainer: Trainer, phase: Phase, steps: int, out: Path) -> None:
    trainer.train_encoder(phase in (HEARING, JOINT))
    losses_of = {HEARING: trainer.hearing_losses, JOINT: trainer.joint_losses}.get(phase, trainer.reading_losses)

    def step(k: int) -> dict[str, float]:
        size, seconds, _ = trainer.rng.choices(phase.batches, weights=[share for *_, share in phase.batches])[0]
        return trainer.step(losses_of(size, seconds), learning_rate(k, steps, phase.peak))

    training.run(phase.name, step, steps, lambda: trainer.save(out))


def main() -> None:
    parser = training.options(__doc__)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--hearing-steps", type=int, default=3000)
    parser.add_argument("--short-steps", type=int, default=1000, help="of reading, on 10 s")
    parser.add_argument("--joint-steps", type=int, default=500, help="of both halves on 30 and 60 s")
    parser.add_argument("--reading-steps", type=int, default=2000, help="on up to 60 s")
    args = parser.parse_args()

    bank = training.begin(args)
    write_tokenizer(args.out, SPECIAL_NAMES, {"chunk_length_s": 30.0})
    write_preprocessor(args.out)
    model = new_model()
    if args.start:
        grow(model, VoxtralForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32).state_dict())
    watch(model)
    # Dense speech is where places are lost, and noise is where words are misheard.
    arranger = Arranger(bank, args.seed, spoiling=HARSH, pause_weights=(55, 20, 25))
    trainer = Trainer(model, Tekkenizer.from_file(args.out / "tekken.json"), arranger)
    training.announce(model, args)
    for phase, steps in (
        (HEARING, args.hearing_steps),
        (READING_SHORT, args.short_steps),
        (READING_LONG, args.reading_steps),
        (JOINT, args.joint_steps),
    ):
        if steps:
            train(trainer, phase, steps, args.out)


if __name__ == "__main__":
    main()
