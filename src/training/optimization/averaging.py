"""The average of a run's weights, which is often better than any of them."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import PreTrainedModel, TrainerCallback

from src.training.optimization.schedule import num_steps_of

FILE = "average.safetensors"
logger = logging.getLogger(__name__)


class WeightAverage(TrainerCallback):
    """Averages the weights after every step; kept with the checkpoints.

    Args:
        kind: `tail`, the mean over the last steps of the run (Izmailov et al. 2018); `ema`,
            an exponential average over all of it, with decay 1 - 2 / (N + 1).
        steps: of the tail, or N; below 1 a share of the run.
    """

    def __init__(self, model: PreTrainedModel, kind: str, steps: float, num_steps: int):
        self.kind, self.steps = kind, num_steps_of(steps, num_steps)
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
        """Beside the weights of a checkpoint."""
        if self.average:
            save_file(self.average, str(checkpoint / FILE))

    def load(self, checkpoint: Path) -> None:
        """The average as it was at a checkpoint."""
        if (checkpoint / FILE).is_file():
            device = str(next(iter(self.weights.values())).device)
            self.average = load_file(str(checkpoint / FILE), device=device)

    @torch.no_grad()
    def swap(self) -> None:
        """The average takes the place of the model's weights, and they its."""
        for name, weight in self.weights.items():
            weights = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name] = weights


def keep_better(trainer: Any) -> None:
    """Leave the averaged weights in the trainer's model where they score better than its own.

    What decides is `training.metric_for_best_model`, measured as during training; without
    evaluation they are kept unseen.
    """
    average, args = trainer.weight_average, trainer.args
    what = f"The average of the weights ({average.kind} of {average.steps} steps)"
    if not args.do_eval:
        average.swap()
        trainer.average_kept = True
        logger.info("%s is the final model", what)
        return
    name = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    own = trainer.state.best_metric if args.load_best_model_at_end else None
    if own is None:
        own = trainer.evaluate_as_in_training()[name]
    average.swap()
    averaged = trainer.evaluate_as_in_training()[name]
    better = averaged > own if args.greater_is_better else averaged < own
    if not better:
        average.swap()
    verdict = "it is the final model" if better else "it is not kept"
    logger.info("%s has %s %.5g, without %.5g: %s", what, name, averaged, own, verdict)
    trainer.average_kept = better
