"""The average of a run's weights, which often scores better than the weights of any step."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import PreTrainedModel, TrainerCallback

FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """An average of the weights, updated after every step and saved with each checkpoint.

    Args:
        kind: `tail`, stochastic weight averaging (SWA, Izmailov et al. 2018) over the last
            steps of the run; or `ema`, an exponential moving average over the whole run, with
            decay 1 - 2 / (N + 1).
        steps: number of steps in the tail, or N.
        num_steps: number of steps in the run.
    """

    def __init__(self, model: PreTrainedModel, kind: str, steps: int, num_steps: int):
        self.kind, self.steps = kind, steps
        named = model.named_parameters()
        self.weights = {name: p for name, p in named if p.requires_grad}
        self.average: dict[str, torch.Tensor] = {}
        if kind == "tail":
            self.first, self._update = num_steps - steps + 1, get_swa_multi_avg_fn()
        else:
            self.first, self._update = 1, get_ema_multi_avg_fn(1 - 2 / (steps + 1))

    def on_step_end(self, args, state, control, **kwargs):
        num_averaged = state.global_step - self.first
        if num_averaged == 0:
            self.average = {n: p.detach().clone() for n, p in self.weights.items()}
        elif num_averaged > 0:
            pairs = [(self.average[n], p.detach()) for n, p in self.weights.items()]
            self._update(*map(list, zip(*pairs)), num_averaged)

    def save(self, checkpoint: Path) -> None:
        """Save the average, if it has begun, beside the weights of a checkpoint."""
        if self.average:
            save_file(self.average, str(checkpoint / FILE))

    def load(self, checkpoint: Path) -> None:
        """Load the average of a checkpoint, if it had begun."""
        if (checkpoint / FILE).is_file():
            device = str(next(iter(self.weights.values())).device)
            self.average = load_file(str(checkpoint / FILE), device=device)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the averaged weights and the model's weights."""
        for name, weight in self.weights.items():
            before = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name] = before
