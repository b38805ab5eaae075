"""An exponential moving average of a model's weights: steadier than the weights of any one step."""

from __future__ import annotations

import torch


class Average:
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
