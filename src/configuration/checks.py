"""Values that no run can use: refused before any data is read."""

import math
from typing import Any

from src.arguments import (
    FIGURES,
    Arguments,
    DataTrainingArguments,
    ScoringArguments,
    TrainingArguments,
)
from src.foundation import UserError

POSITIVE_TRAINING_VALUES = (
    "learning_rate",
    "num_train_epochs",
    "tokens_per_step",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "cooldown_steps",
    "averaging_steps",
)

# Fields of Hugging Face's TrainingArguments that would break what this package promises.
REFUSED_TRAINING_VALUES = {
    "resume_from_checkpoint": (
        None,
        "the same command continues its run; for other weights use"
        " model.model_name_or_path=",
    ),
    "save_only_model": (False, "a stopped run could not be continued"),
    "ignore_data_skip": (False, "a continued run would see other data"),
    "auto_find_batch_size": (False, "the batch would depend on the memory there is"),
    "train_sampling_strategy": (
        "random",
        "the order of blocks is a function of the seed",
    ),
    "dataloader_in_order": (True, "the order of blocks is a function of the seed"),
    "dataloader_drop_last": (False, "text would be left out"),
    "batch_eval_metrics": (False, "an evaluation keeps three numbers a block as it is"),
    "average_tokens_across_devices": (True, "the loss is the mean over all tokens"),
    "torch_compile_mode": (None, "training.torch_compile compiles what trains"),
    "torch_compile_backend": (None, "training.torch_compile compiles what trains"),
    "prediction_loss_only": (False, "an evaluation reports more than the loss"),
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval"),
        (
            False,
            "it would cast the final model; training.bf16 gives evaluations mixed precision"
            " as well",
        ),
    ),
}


def check_arguments(args: Arguments) -> None:
    """Raise `UserError` for values that no run can use, before any data is read."""
    _check_data(args)
    _check_training(args.training)
    _check_metric(args)
    check_scoring(args.evaluation, "evaluation.")


def check_scoring(scoring: ScoringArguments, prefix: str = "") -> None:
    """Raise `UserError` for values that no scoring can use; `prefix` is their section."""
    for name in ("tasks", "pairs"):
        value = getattr(scoring, name)
        values = value if isinstance(value, list) else [value]
        if value is not None and not (
            values and all(isinstance(v, str) for v in values)
        ):
            raise UserError(f"{prefix}{name} must be names, got {value!r}")
    if scoring.batch_tokens < 1:
        raise UserError(
            f"{prefix}batch_tokens must be at least 1, got {scoring.batch_tokens}"
        )


def _check_data(args: Arguments) -> None:
    data = args.data
    minima = {
        "data.block_size": 2,
        "data.max_train_samples": 1,
        "data.max_eval_samples": 1,
        "data.preprocessing_num_workers": 1,
        "data.word_budget": 1,
        "training.max_words": 1,
        "evaluation.num_generated_texts": 0,
        "evaluation.items_while_training": 0,
    }
    for key, minimum in minima.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(args, section), name)
        if value is not None and value < minimum:
            raise UserError(f"{key} must be at least {minimum}, got {value}")
    _check_schedule(data)
    _check_files(data)
    if None not in (data.recipe_budget, data.word_budget):
        if data.recipe_budget != data.word_budget:
            raise UserError(
                f"the recipe was made for {data.recipe_budget:,} words"
                f" (data.recipe_budget), the data has a budget of {data.word_budget:,}"
                " (data.word_budget): choose another recipe, or data.recipe_budget=null"
            )
    if not 0 < data.validation_split_percentage < 100:
        raise UserError(
            "data.validation_split_percentage must be between 0 and 100, got"
            f" {data.validation_split_percentage}"
        )
    if args.training.do_train and not (data.train_file or data.dataset_name):
        raise UserError(
            "training.do_train=true needs data.train_file or data.dataset_name;"
            " to evaluate only: training.do_train=false"
        )
    if data.dataset_name and (data.train_file or data.validation_file):
        raise UserError(
            f"data.dataset_name={data.dataset_name} and data.train_file or"
            " data.validation_file exclude each other"
        )


def _check_schedule(data: DataTrainingArguments) -> None:
    schedule = data.block_size_schedule
    if schedule is None:
        return
    key = f"data.block_size_schedule={schedule}"
    if not isinstance(schedule, dict) or not schedule:
        raise UserError(f"{key} must be {{length: share of the run, …}}")
    for size, share in schedule.items():
        if not isinstance(size, int) or size < 2 or data.block_size % size:
            raise UserError(
                f"{key}: {size!r} must be a whole number from 2 that divides"
                f" data.block_size={data.block_size}"
            )
        if not _is_number(share) or not 0 < share <= 1:
            raise UserError(f"{key}: {share!r} must be a share above 0 and up to 1")
    sizes = list(schedule)
    if sizes != sorted(sizes) or sizes[-1] != data.block_size:
        raise UserError(
            f"{key}: lengths must grow and end with data.block_size={data.block_size}"
        )
    if abs(sum(schedule.values()) - 1) > 1e-6:
        raise UserError(
            f"{key}: the shares must add up to 1, not {sum(schedule.values()):g}"
        )


def _check_files(data: DataTrainingArguments) -> None:
    if data.mix is not None:
        if not isinstance(data.mix, dict):
            raise UserError(f"data.mix={data.mix!r} must be {{file: how often, …}}")
        for name, times in data.mix.items():
            if not _is_number(times) or not 0 <= times < math.inf:
                raise UserError(
                    f"data.mix: {name}: {times!r} must be a finite number, 0 or above"
                )
    if data.file_order is not None:
        names = data.file_order
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UserError(f"data.file_order={names!r} must be a list of names")
        if len(set(data.file_order)) != len(data.file_order):
            raise UserError(f"data.file_order={data.file_order} names a file twice")
        if data.order != "by_file":
            raise UserError(
                f"data.file_order needs data.order=by_file, got {data.order}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_training(training: TrainingArguments) -> None:
    for name in POSITIVE_TRAINING_VALUES:
        value = getattr(training, name)
        if value is not None and value <= 0:
            raise UserError(f"training.{name} must be above 0, got {value}")
    if training.save_total_limit is not None and training.save_total_limit < 2:
        raise UserError(
            "training.save_total_limit must be at least 2, or the one before a"
            f" half-written checkpoint would be gone; got {training.save_total_limit}"
        )
    for name, (only, reason) in REFUSED_TRAINING_VALUES.items():
        if getattr(training, name) != only:
            raise UserError(
                f"training.{name} must be {only}, got {getattr(training, name)}: {reason}"
            )
    _check_batch(training)
    if training.optimizer == "muon" and not training.optim.startswith("adamw_torch"):
        raise UserError(
            "training.optimizer=muon has AdamW beside it,"
            f" training.optim={training.optim.value} cannot be there too: give one of them"
        )
    loggers = training.report_to
    loggers = [loggers] if isinstance(loggers, str) else loggers or []
    if {"wandb", "all"} & set(loggers):
        raise UserError(
            f"training.report_to={loggers}: W&B is switched with wandb.log; name the"
            " others, as in training.report_to=[tensorboard]"
        )


def _check_batch(training: TrainingArguments) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    values = {name: getattr(training, name) for name in names}
    given = [
        f"training.{n}={value}" for n, value in values.items() if value is not None
    ]
    tokens = training.tokens_per_step
    if tokens is not None and given:
        raise UserError(
            f"training.tokens_per_step={tokens} and {', '.join(given)} both say what a step"
            " sees: give one (the other as null)"
        )
    if tokens is None and training.per_device_train_batch_size is None:
        raise UserError(
            "training.per_device_train_batch_size must be given where"
            " training.tokens_per_step is not, got null"
            + (f" beside {given[0]}" if given else "")
        )


def _check_metric(args: Arguments) -> None:
    metric = args.training.metric_for_best_model or "loss"
    if metric.endswith(FIGURES) or args.evaluation.tasks or args.evaluation.pairs:
        return  # a task's score is known when the tasks are read
    raise UserError(
        f"training.metric_for_best_model={metric} must be one of {', '.join(FIGURES)},"
        " or <name of a dev file>_<one of them>, or a score of evaluation.tasks"
    )
