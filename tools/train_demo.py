"""Train the demo model: a Voxtral of 5.5 million parameters that hears about a hundred words.

    python -m tools.train_demo OUT [--start CHECKPOINT] [--steps N]

The shapes are Voxtral's own, shrunk: encoder 4 layers of 128, decoder 4 layers of 256, 2,048 Tekken ids. Two losses:
cross entropy on the transcript, and CTC on the projected audio embeddings, without which the decoder finds no reason
to listen for the first thousand steps. From nothing, windows of 6 seconds come first, because hearing is learnt there
at a fifth of the cost; with `--start` those stages are skipped. The saved weights are an exponential moving average.

Needs espeak-ng. The run that made the committed weights is logged in demo_model/training.log.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import mistral_common
import numpy as np
import torch
import torch.nn.functional as F
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

from tools.demo_instructions import instruction
from tools.demo_speech import SAMPLE_RATE, TRAINED_VOICES, Arranger, Recording, load_bank, spell

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


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    seconds: float  # window; above 30 it must be a multiple of 30
    learning_rate: float
    ctc_weight: float  # 0: the encoder is not trained in this step


FROM_NOTHING = (Stage(1400, 16, 6, 1e-3, 1.0), Stage(500, 8, 14, 7e-4, 0.5))
# The last stages run interleaved, so that neither length is forgotten while the other is learnt.
FULL_WINDOWS = (Stage(0, 6, 30, 6e-4, 0.2), Stage(0, 3, 60, 6e-4, 0.2))
LONG_SHARE = 0.3  # of the full-window steps that see two windows of 30 s
CTC_WARM_UP_STEPS = 75  # with --start the CTC head is new: until it means something the encoder must not follow it
HEARING_STEPS = 300  # full-window steps after which the encoder, half of the cost, is trained in every second step only


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


class Trainer:
    def __init__(self, model: VoxtralForConditionalGeneration, tokenizer: Tekkenizer, arranger: Arranger) -> None:
        self.model, self.tokenizer, self.arranger = model, tokenizer, arranger
        self.rng = random.Random(arranger.rng.random())
        self.ctc_head = torch.nn.Linear(model.config.text_config.hidden_size, VOCABULARY_SIZE)
        trained = [p for p in [*model.parameters(), *self.ctc_head.parameters()] if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.parameters = trained
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
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
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

    def batch(self, size: int, seconds: float) -> tuple[torch.Tensor, list[list[int]]]:
        recordings = [self.arranger.training_recording(seconds) for _ in range(size)]
        waves = np.stack([self._padded(r, int(seconds * SAMPLE_RATE)) for r in recordings])
        targets = [[*self._ids(spell(r.words, self.rng)), EOS] for r in recordings]
        return self.mel(torch.from_numpy(waves)), targets

    @staticmethod
    def _padded(recording: Recording, n: int) -> np.ndarray:
        return np.pad(recording.samples, (0, n - len(recording.samples)))

    def loss(self, mel: torch.Tensor, targets: list[list[int]], ctc_weight: float) -> tuple[torch.Tensor, float, float]:
        with torch.set_grad_enabled(ctc_weight > 0):
            audio = self.listen(mel)
        size, audio_tokens, _ = audio.shape
        before, after = self.prompt()
        longest = max(map(len, targets))
        labels = torch.full((size, longest), -100)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
        embed = self.model.model.language_model.embed_tokens
        fixed = [embed(torch.tensor([ids])).expand(size, -1, -1) for ids in (before, after)]
        inputs = torch.cat([fixed[0], audio, fixed[1], embed(labels[:, :-1].clamp(min=0))], dim=1)
        hidden = self.model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, -longest:])
        token_losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        per_token = token_losses.sum() / sum(map(len, targets))
        # Averaged by recording too, so that a lone end-of-text after silence counts beside hundreds of words.
        per_recording = (token_losses.sum(1) / torch.tensor([len(t) for t in targets])).mean()
        loss = 0.7 * per_token + 0.3 * per_recording
        if ctc_weight == 0:
            return loss, per_token.item(), math.nan
        ctc_loss = F.ctc_loss(
            self.ctc_head(audio.detach() if self.step_number < CTC_WARM_UP_STEPS else audio)
            .log_softmax(-1)
            .transpose(0, 1),
            torch.tensor([i for target in targets for i in target[:-1]]),
            torch.full((size,), audio_tokens),
            torch.tensor([len(target) - 1 for target in targets]),
            zero_infinity=True,
            reduction="sum",
        ) / sum(map(len, targets))
        return loss + ctc_weight * ctc_loss, per_token.item(), ctc_loss.item()

    def step(self, stage: Stage, learning_rate: float) -> tuple[float, float]:
        mel, targets = self.batch(stage.batch, stage.seconds)
        loss, text_loss, ctc_loss = self.loss(mel, targets, stage.ctc_weight)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        return text_loss, ctc_loss

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


def schedule(from_nothing: bool, full_steps: int, rng: random.Random) -> list[tuple[Stage, float]]:
    """(stage, learning rate) for each step: warm-up, then a cosine to a twentieth within the full windows."""
    plan = [(stage, stage.learning_rate) for stage in FROM_NOTHING for _ in range(stage.steps) if from_nothing]
    for k in range(full_steps):
        stage = FULL_WINDOWS[rng.random() < LONG_SHARE]
        if k > HEARING_STEPS and k % 2:
            stage = replace(stage, ctc_weight=0)
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * k / full_steps)) / 2
        plan.append((stage, stage.learning_rate * cosine))
    return [(stage, rate * min(1.0, (i + 1) / 150)) for i, (stage, rate) in enumerate(plan)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint instead of from nothing")
    parser.add_argument("--steps", type=int, default=2000, help="steps on windows of 30 and 60 s")
    parser.add_argument("--bank", type=Path, default=Path("bank.pkl"), help="where the spoken utterances are kept")
    parser.add_argument("--utterances", type=int, default=9600)
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
    plan = schedule(not args.start, args.steps, random.Random(args.seed))
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(plan)} steps, seed {args.seed}, "
        f"start {args.start}"
    )
    started = time.time()
    recent: list[tuple[float, float]] = []
    for stage, rate in plan:
        recent.append(trainer.step(stage, rate))
        if trainer.step_number % 25 == 0:
            text, ctc = np.nanmean(recent, axis=0)
            print(
                f"step {trainer.step_number} {time.time() - started:.0f} s lr {rate:.1e} text {text:.4f} ctc {ctc:.3f}",
                flush=True,
            )
            recent.clear()
        if trainer.step_number % 200 == 0:
            trainer.save(args.out)
    trainer.save(args.out)
    print(f"done after {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
