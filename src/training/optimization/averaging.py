"""The average of a run's weights, which is often better than any of them."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import PreTrainedModel, TrainerCallback

FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Average of the weights, updated after every step and kept with the checkpoints.

    Args:
        kind: `tail`, stochastic weight averaging (SWA, Izmailov et al. 2018) over the last
            steps of the run; `ema`, an exponential average over all of it, with decay
            1 - 2 / (N + 1).
        steps: of the tail, or N.
        num_steps: of the run.
    """

    def __init__(self, model: PreTrainedModel, kind: str, steps: int, num_steps: int):
        self.kind, self.steps = kind, steps
        self.weights = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.average: dict[str, torch.Tensor] = {}
        self.first = num_steps - self.steps + 1 if kind == "tail" else 1
        self._update = (
            get_swa_multi_avg_fn()
            if kind == "tail"
            else get_ema_multi_avg_fn(1 - 2 / (self.steps + 1))
        )

    def on_step_end(self, args, state, control, **kwargs):
        number = state.global_step - self.first  # of weights that are in the average
        if number < 0:
            return
        if number == 0:
            self.average = {n: p.detach().clone() for n, p in self.weights.items()}
            return
        pairs = [(self.average[n], p.detach()) for n, p in self.weights.items()]
        self._update(*map(list, zip(*pairs)), number)

    def save(self, checkpoint: Path) -> None:
        """Save the average beside the weights of a checkpoint."""
        if self.average:
            save_file(self.average, str(checkpoint / FILE))

    def load(self, checkpoint: Path) -> None:
        """Load the average as it was at a checkpoint."""
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
