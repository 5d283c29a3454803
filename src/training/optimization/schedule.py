"""The lengths of a run's parts in steps: warm-up, cooldown, the span of the average."""

import math
from typing import Any, Optional

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.decision import Decision

COOLDOWN = "warmup_stable_decay"


def num_steps_of(value: float, num_steps: int) -> int:
    """Return a number of steps; a value below 1 is a share of `num_steps`. At least one."""
    return int(value) if value >= 1 else max(1, math.floor(value * num_steps))


def averaging_steps(training: TrainingArguments, num_steps: int) -> Optional[int]:
    """Return the span of the average of the weights in steps; None: no average.

    Raises:
        UserError: the span is longer than the run.
    """
    if training.averaging is None:
        return None
    steps = num_steps_of(training.averaging_steps, num_steps)
    if steps > num_steps:
        raise UserError(
            f"training.averaging_steps={training.averaging_steps:g} must be at most the"
            f" run's {num_steps:,} steps"
        )
    return steps


def choose_schedule(
    training: TrainingArguments, num_steps: int
) -> Decision[dict[str, Any]]:
    """Return the arguments of the learning rate's schedule; those the user gave win.

    Raises:
        UserError: warm-up and cooldown are longer than the run.
    """
    run = f"the run's {num_steps:,} steps"
    warmup = training.get_warmup_steps(num_steps)
    if warmup > num_steps:
        raise UserError(
            f"training.warmup_steps={training.warmup_steps:g} must be at most {run}"
        )
    kwargs = dict(training.lr_scheduler_kwargs or {})
    reason = f"{warmup:,} steps of warm-up"
    if training.lr_scheduler_type == COOLDOWN:
        cooldown = num_steps_of(training.cooldown_steps, num_steps)
        if num_steps > 1 and warmup + cooldown > num_steps:
            raise UserError(
                f"training.warmup_steps={training.warmup_steps:g} and"
                f" cooldown_steps={training.cooldown_steps:g} must together be at most"
                f" {run}"
            )
        kwargs = {"num_decay_steps": cooldown, "decay_type": "linear", **kwargs}
        reason += f", {kwargs['num_decay_steps']:,} of cooldown"
    name = training.lr_scheduler_type.value
    return Decision(kwargs, f"learning rate {name}", reason)
