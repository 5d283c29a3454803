"""How many steps the parts of a run have: warm-up, cooldown, the average of the weights."""

import math

from src.arguments import TrainingArguments
from src.foundation import UserError

COOLDOWN = "warmup_stable_decay"


def num_steps_of(value: float, num_steps: int) -> int:
    """A number of steps, or below 1 a share of the run's `num_steps`; at least one."""
    return int(value) if value >= 1 else max(1, math.floor(value * num_steps))


def check_lengths(training: TrainingArguments, num_steps: int) -> None:
    """Raise `UserError` where a part is longer than the run."""
    run = f"the run's {num_steps:,} steps"
    warmup = training.get_warmup_steps(num_steps)
    if warmup > num_steps:
        raise UserError(
            f"training.warmup_steps={training.warmup_steps:g} must be at most {run}"
        )
    if training.averaging is not None:
        steps = num_steps_of(training.averaging_steps, num_steps)
        if steps > num_steps:
            raise UserError(
                f"training.averaging_steps={training.averaging_steps:g} must be at most"
                f" {run}"
            )
    if training.lr_scheduler_type == COOLDOWN:
        steps = num_steps_of(training.cooldown_steps, num_steps)
        if num_steps > 1 and warmup + steps > num_steps:
            raise UserError(
                f"training.warmup_steps={training.warmup_steps:g} and"
                f" cooldown_steps={training.cooldown_steps:g} must together be at most"
                f" {run}"
            )


def schedule_kwargs(training: TrainingArguments, num_steps: int) -> dict:
    """What the learning rate's schedule is told; what the user gave it stays."""
    given = dict(training.lr_scheduler_kwargs or {})
    if training.lr_scheduler_type == COOLDOWN:
        steps = num_steps_of(training.cooldown_steps, num_steps)
        return {"num_decay_steps": steps, "decay_type": "linear", **given}
    return given
