"""How long the parts of a run are, and what is refused as longer than the run."""

import pytest
import torch
from transformers import TrainerState, get_scheduler

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.optimization.schedule import (
    WeightDecaySchedule,
    averaging_steps,
    choose_schedule,
)


def training(**values) -> TrainingArguments:
    return TrainingArguments(use_cpu=True, **values)


def learning_rates(args: TrainingArguments, num_steps: int) -> list[float]:
    """The learning rate of every step, from the library's own schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(num_steps),
        num_steps,
        choose_schedule(args, num_steps).value,
    )
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_constant_and_a_linear_cooldown():
    args = training(
        lr_scheduler_type="warmup_stable_decay", warmup_steps=2, cooldown_steps=0.4
    )
    rates = learning_rates(args, 10)
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_what_the_schedule_was_given_by_hand_stays():
    args = training(
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 3, "decay_type": "cosine"},
    )
    given = {"num_decay_steps": 3, "decay_type": "cosine"}
    assert choose_schedule(args, 10).value == given
    assert choose_schedule(training(), 10).value == {}


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(warmup_steps=11), "warmup_steps=11 must be at most the run's 10 steps"),
        (
            dict(averaging="tail", averaging_steps=12),
            "averaging_steps=12 must be at most the run's 10 steps",
        ),
        (
            dict(averaging="ema", averaging_steps=12),
            "averaging_steps=12 must be at most the run's 10 steps",
        ),
        (
            dict(
                lr_scheduler_type="warmup_stable_decay",
                warmup_steps=6,
                cooldown_steps=0.5,
            ),
            "warmup_steps=6 and cooldown_steps=0.5 must together be at most",
        ),
    ],
)
def test_a_part_that_is_longer_than_the_run_is_refused(values, told):
    with pytest.raises(UserError, match=told):
        choose_schedule(training(**values), 10)
        averaging_steps(training(**values), 10)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
def test_shares_fit_every_run(num_steps):
    args = training(
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=0.02,
        cooldown_steps=0.2,
        averaging="tail",
    )
    steps = averaging_steps(args, num_steps)
    # The average of one step would be that step itself.
    assert steps is None if num_steps < 10 else 1 < steps <= num_steps
    assert len(learning_rates(args, num_steps)) == num_steps


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("dip", [1, 1, 17 / 24, 10 / 24, 1 / 8, 0.384375, 0.64375, 0.903125]),
    ],
)
def test_the_weight_decay_is_a_function_of_the_step(kind, expected):
    """Also in a run that continues from a checkpoint of its fourth step."""

    def weight_decays(optimizer, steps):
        for step in steps:
            state = TrainerState(global_step=step, max_steps=8)
            schedule = WeightDecaySchedule(kind)
            schedule.on_step_begin(None, state, None, optimizer=optimizer)
            yield [group["weight_decay"] for group in optimizer.param_groups]

    def optimizer():
        groups = [{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)]}]
        groups[1]["weight_decay"] = 0.0
        built = torch.optim.AdamW(groups, weight_decay=0.5)
        for group in built.param_groups:
            group["initial_weight_decay"] = group["weight_decay"]
        return built

    first, second = optimizer(), optimizer()
    found = [*weight_decays(first, range(4))]
    second.load_state_dict(first.state_dict())
    found += weight_decays(second, range(4, 8))
    assert found == [[pytest.approx(0.5 * x), 0] for x in expected]
