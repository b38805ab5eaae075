"""What the three trainings of demo models share: options, the loop, its log, and averaged weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch

from tools.demo_speech import TRAINED_VOICES, Utterance, load_bank

STEPS_OF_A_LINE, STEPS_OF_A_SAVE = 25, 100


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bank", type=Path, default=Path("bank.pkl"), help="where the spoken utterances are kept")
    parser.add_argument("--utterances", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def begin(args: argparse.Namespace) -> list[Utterance]:
    """Seed torch, make the folder, and return what the model is to hear."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    return load_bank(args.bank, args.utterances, TRAINED_VOICES, seed=1)


def announce(model: torch.nn.Module, args: argparse.Namespace) -> None:
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {vars(args)}", flush=True)


def run(name: str, step: Callable[[int], dict[str, float]], steps: int, save: Callable[[], None]) -> None:
    """Call `step` with 0 to `steps` - 1, print the means of what it returns, and save now and then and at the end."""
    started, recent = time.time(), []
    for k in range(steps):
        recent.append(step(k))
        if (k + 1) % STEPS_OF_A_LINE == 0:
            means = " ".join(f"{key} {mean(values[key] for values in recent):.4f}" for key in recent[0])
            print(f"{name} {k + 1} {time.time() - started:.0f} s {means}", flush=True)
            recent.clear()
        if (k + 1) % STEPS_OF_A_SAVE == 0 or k + 1 == steps:
            save()


class Average:
    """An exponential moving average of a model's weights: steadier than the weights of any one step."""

    LONGEST = 0.998  # share of the average that stays in a step; less at the beginning

    def __init__(self, model: torch.nn.Module) -> None:
        self._model, self._steps = model, 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self) -> None:
        """Take in the weights after one more step."""
        self._steps += 1
        decay = min(self.LONGEST, self._steps / (self._steps + 9))
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                self.values[name].lerp_(value.float(), 1 - decay)
