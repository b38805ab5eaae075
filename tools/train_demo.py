"""Train the demo model: a Voxtral of 5.5 million parameters that hears about a hundred words.

    python -m tools.train_demo OUT [--start CHECKPOINT] [--hearing-steps N] [--steps N]

The shapes are Voxtral's own, shrunk: encoder 4 layers of 128, decoder 4 layers of 256, 2,048 Tekken ids. Cross entropy
on the transcript alone gives the decoder no reason to listen for the first thousand steps, so two more losses say what
to listen for. Each audio embedding, 80 ms long, must name the word that is being spoken (espeak-ng tells when each word
begins, so nothing has to be aligned). And halfway through the decoder each of them must name the two words before: the
decoder keeps its place by looking for the words that it has just written, and so finds the one that follows them.

Hearing is learnt first, by the encoder alone on windows of 10 s, which cost a third; then both on 30 and 60 s. The
saved weights are an exponential moving average. Needs espeak-ng. The run that made the committed weights is logged in
demo_model/training.log.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import mistral_common
import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

from tools.demo_instructions import instruction
from tools.demo_speech import SAMPLE_RATE, SPOKEN_WORDS, TRAINED_VOICES, Arranger, Recording, load_bank, spell

VOCABULARY_SIZE, SPECIAL_TOKENS = 2048, 1000
BOS, EOS, INST, END_INST, PAD, AUDIO, BEGIN_AUDIO, TRANSCRIBE = 1, 2, 3, 4, 11, 24, 25, 34
SPECIAL_NAMES = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]",
}  # fmt: skip
WINDOW_SECONDS = 30
FRAMES_PER_SECOND = 100
FRAMES_PER_TOKEN = 8  # the encoder halves the frames, the projector joins four: one audio token is 80 ms


EARLIER_WORDS = (-1, -2)  # which words before the one being spoken an audio position must name within the decoder ...
PLACE_LAYERS = 2  # ... after this many of its layers
NO_WORD = len(SPOKEN_WORDS)  # nobody speaks here, or there is no such neighbour
WORD_CLASSES = NO_WORD + 1
WORD_CLASS = {word: i for i, word in enumerate(SPOKEN_WORDS)}


@dataclass(frozen=True)
class Stage:
    batch: int
    seconds: float  # window; above 30 it must be a multiple of 30
    learning_rate: float
    decoder: bool = True  # is trained
    encoder: bool = True


HEARING = Stage(16, 10, 8e-4, decoder=False)
WINDOW = Stage(6, 30, 6e-4)
TWO_WINDOWS = Stage(3, 60, 6e-4)
LONG_SHARE = (0.2, 0.5)  # of the steps that see two windows, at the beginning and at the end


def write_tokenizer(out: Path) -> None:
    """Cut mistral-common's bundled Tekken vocabulary to the demo's size and add Voxtral's audio section."""
    tekken = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    tekken.pop("image", None)
    tekken["vocab"] = tekken["vocab"][: VOCABULARY_SIZE - SPECIAL_TOKENS]
    tekken["config"].update(
        default_vocab_size=VOCABULARY_SIZE, default_num_special_tokens=SPECIAL_TOKENS, version="v13",
        num_vocab_tokens=len(tekken["vocab"]),
    )  # fmt: skip
    tekken["special_tokens"] = [
        {"rank": i, "token_str": SPECIAL_NAMES.get(i, f"<SPECIAL_{i}>"), "is_control": True}
        for i in range(SPECIAL_TOKENS)
    ]
    tekken["audio"] = {
        "sampling_rate": SAMPLE_RATE,
        "frame_rate": 12.5,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        "chunk_length_s": 30.0,
    }
    (out / "tekken.json").write_text(json.dumps(tekken))


def write_preprocessor(out: Path) -> None:
    WhisperFeatureExtractor(feature_size=128).save_pretrained(out)
    path = out / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "VoxtralProcessor"}, indent=2))


def sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's fixed positions (length, channels): sines, then cosines, of geometrically spaced frequencies."""
    step = math.log(10_000) / (channels // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def new_model() -> VoxtralForConditionalGeneration:
    config = VoxtralConfig(
        text_config={
            "model_type": "llama", "vocab_size": VOCABULARY_SIZE, "hidden_size": 256, "intermediate_size": 768,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 1e8,
        },
        audio_config={
            "model_type": "voxtral_encoder", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        audio_token_id=AUDIO,
        projector_hidden_act="gelu",
    )  # fmt: skip
    model = VoxtralForConditionalGeneration(config)
    positions = model.model.audio_tower.embed_positions.weight
    positions.data.copy_(sinusoids(*positions.shape))
    return model


def classifier(inputs: int, classes: int) -> torch.nn.Module:
    """Names classes by hidden states of any scale."""
    return torch.nn.Sequential(torch.nn.RMSNorm(inputs), torch.nn.Linear(inputs, classes))


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
            language = "en" if self.rng.random() < 0.85 else self.rng.choice("de fr es it nl pt hi ar".split())
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

    def text_losses(
        self, audio: torch.Tensor, recordings: list[Recording], words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the transcripts by token and of the places, given audio (batch, tokens, hidden) and its labels."""
        targets = [[*self._ids(spell(r.words, self.rng)), EOS] for r in recordings]
        size, longest = len(targets), max(map(len, targets))
        before, after = self.prompt()
        labels = torch.full((size, longest), -100)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
        embed = self.model.model.language_model.embed_tokens
        fixed = [embed(torch.tensor([ids])).expand(size, -1, -1) for ids in (before, after)]
        inputs = torch.cat([fixed[0], audio, fixed[1], embed(labels[:, :-1].clamp(min=0))], dim=1)
        halfway, hidden = self.decode(inputs)
        logits = self.model.lm_head(hidden[:, -longest:])
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        per_token = losses.sum() / sum(map(len, targets))
        # Averaged by recording too, so that a lone end-of-text after silence counts beside hundreds of words.
        per_recording = (losses.sum(1) / torch.tensor([len(t) for t in targets])).mean()
        places = self.place_head(halfway[:, len(before) : len(before) + audio.shape[1]])
        place_loss = F.cross_entropy(places.unflatten(-1, (-1, WORD_CLASSES)).flatten(0, 2), words[..., 1:].flatten())
        return 0.7 * per_token + 0.3 * per_recording, place_loss

    def step(self, stage: Stage, learning_rate: float) -> dict[str, float]:
        """One update. Returns the losses by name."""
        mel, recordings = self.batch(stage.batch, stage.seconds)
        with torch.set_grad_enabled(stage.encoder):
            audio = self.listen(mel)
        words = torch.from_numpy(np.stack([words_at(r, audio.shape[1]) for r in recordings]))
        losses = {"hearing": F.cross_entropy(self.word_head(audio).flatten(0, 1), words[..., 0].flatten())}
        if stage.decoder:
            losses["text"], losses["place"] = self.text_losses(audio, recordings, words)
        self.optimizer.zero_grad()
        sum(losses.values(), start=torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        return {name: loss.item() for name, loss in losses.items()}

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


def words_at(recording: Recording, audio_tokens: int) -> np.ndarray:
    """Labels (audio_tokens, 3) for the middle of each 80 ms: the word being spoken, the one before it, and the one
    before that; NO_WORD where there is none. In a pause the last word spoken is the one before."""
    labels = np.full((audio_tokens, 1 + len(EARLIER_WORDS)), NO_WORD)
    if not recording.words:
        return labels
    classes = np.array([WORD_CLASS[word] for word in recording.words])
    middles = (np.arange(audio_tokens) + 0.5) * FRAMES_PER_TOKEN * SAMPLE_RATE / FRAMES_PER_SECOND
    starts, ends = np.array(recording.spans).T
    latest = np.searchsorted(starts, middles, side="right") - 1  # the last word that has begun; -1: none yet
    spoken = (latest >= 0) & (middles < ends[latest])
    labels[spoken, 0] = classes[latest[spoken]]
    for column, offset in enumerate(EARLIER_WORDS, start=1):
        earlier = np.where(spoken, latest, latest + 1) + offset
        labels[earlier >= 0, column] = classes[earlier[earlier >= 0]]
    return labels


def schedule(hearing_steps: int, full_steps: int, rng: random.Random) -> list[tuple[Stage, float]]:
    """(stage, learning rate) for each step: a warm-up each time, then cosines, the last one to a twentieth."""
    plan: list[tuple[Stage, float]] = []
    for k in range(hearing_steps):
        cosine = 0.5 + 0.5 * (1 + math.cos(math.pi * k / hearing_steps)) / 2
        plan.append((HEARING, HEARING.learning_rate * cosine * min(1.0, (k + 1) / 60)))
    for k in range(full_steps):
        done = k / full_steps
        long = rng.random() < LONG_SHARE[0] + (LONG_SHARE[1] - LONG_SHARE[0]) * done
        stage = replace(TWO_WINDOWS if long else WINDOW, encoder=k % 2 == 0)  # half of the cost, so half as often
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2
        plan.append((stage, stage.learning_rate * cosine * min(1.0, (k + 1) / 60)))
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--hearing-steps", type=int, default=3000, help="steps of the encoder alone, on 10 s")
    parser.add_argument("--steps", type=int, default=2400, help="steps on windows of 30 and 60 s")
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
    trainer = Trainer(model, Tekkenizer.from_file(args.out / "tekken.json"), Arranger(bank, args.seed))
    plan = schedule(args.hearing_steps, args.steps, random.Random(args.seed))
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(plan)} steps, seed {args.seed}, start {args.start}"
    )
    started = time.time()
    recent: list[dict[str, float]] = []
    for stage, rate in plan:
        recent.append(trainer.step(stage, rate))
        if trainer.step_number % 25 == 0:
            names = recent[-1].keys()
            means = " ".join(f"{name} {mean(r[name] for r in recent if name in r):.4f}" for name in names)
            print(f"step {trainer.step_number} {time.time() - started:.0f} s lr {rate:.1e} {means}", flush=True)
            recent.clear()
        if trainer.step_number % 200 == 0:
            trainer.save(args.out)
    trainer.save(args.out)
    print(f"done after {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
