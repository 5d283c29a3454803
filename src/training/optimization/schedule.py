"""Lengths in steps: warm-up, cooldown and the span of the averaged weights."""

import math
from typing import Any, Optional

import numpy as np
from transformers import TrainerCallback

from src.arguments import TrainingArguments
from src.foundation import UserError, counted
from src.training.decision import Decision

COOLDOWN = "warmup_stable_decay"
# Shares of the run, and multiples of the weight decay at them. `dip` is the schedule of the
# NanoGPT slowrun (github.com/qlabs-eng/slowrun, tiny/train.py): 0.8, then 0.1, then 0.93.
WEIGHT_DECAYS = {
    "linear": ([0, 1], [1, 0]),
    "dip": ([0, 1 / 8, 1 / 2, 1], [1, 1, 0.1 / 0.8, 0.93 / 0.8]),
}


def num_steps_of(value: float, num_steps: int) -> int:
    """Return a number of steps, at least 1. A value below 1 is a share of `num_steps`."""
    return int(value) if value >= 1 else max(1, math.floor(value * num_steps))


def averaging_steps(training: TrainingArguments, num_steps: int) -> Optional[int]:
    """Return the span of the averaged weights in steps; None: no average.

    The average of one step is that step's weights, so it is no average.

    Raises:
        UserError: the span is longer than the run.
    """
    if training.averaging is None:
        return None
    steps = num_steps_of(training.averaging_steps, num_steps)
    _check_length(training, ["averaging_steps"], steps, num_steps)
    return steps if steps > 1 else None


def choose_schedule(
    training: TrainingArguments, num_steps: int
) -> Decision[dict[str, Any]]:
    """Return the arguments of the learning rate schedule. Those of the user take precedence.

    Raises:
        UserError: warm-up and cooldown are longer than the run.
    """
    warmup = training.get_warmup_steps(num_steps)
    _check_length(training, ["warmup_steps"], warmup, num_steps)
    kwargs = dict(training.lr_scheduler_kwargs or {})
    reason = f"{counted(warmup, 'step')} of warm-up"
    if training.lr_scheduler_type == COOLDOWN:
        cooldown = num_steps_of(training.cooldown_steps, num_steps)
        cooldown = kwargs.get("num_decay_steps", cooldown)
        if num_steps > 1:
            keys = ["warmup_steps", "cooldown_steps"]
            _check_length(training, keys, warmup + cooldown, num_steps)
        kwargs = {"num_decay_steps": cooldown, "decay_type": "linear", **kwargs}
        reason += f", {kwargs['num_decay_steps']:,} of cooldown"
    name = training.lr_scheduler_type.value
    return Decision(kwargs, f"learning rate {name}", reason)


def _check_length(
    training: TrainingArguments, names: list[str], steps: int, num_steps: int
) -> None:
    """Raise `UserError` if the run has fewer than `steps`, the sum of the named options."""
    if steps > num_steps:
        given = " and ".join(f"{name}={getattr(training, name):g}" for name in names)
        together = " together" * (len(names) > 1)
        raise UserError(
            f"training.{given} must{together} be at most the run's {num_steps:,} steps"
        )


class WeightDecaySchedule(TrainerCallback):
    """Callback that multiplies each group's weight decay by a function of the step.

    The optimizer's groups need their own decay as `initial_weight_decay`, as schedules of the
    learning rate need `initial_lr`. A continued run loads it only if it is there before.

    Args:
        kind: a key of `WEIGHT_DECAYS`.
    """

    def __init__(self, kind: str):
        self.points = WEIGHT_DECAYS[kind]

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        multiple = np.interp(state.global_step / state.max_steps, *self.points)
        for group in optimizer.param_groups:
            group["weight_decay"] = group["initial_weight_decay"] * float(multiple)
