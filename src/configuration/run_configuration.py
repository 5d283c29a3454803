"""The configuration of a run, which is resolved and checked once."""

import copy
import functools
import os
import re
import sys
from typing import Any, Mapping

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from src.arguments import (
    EFFECTIVE_WITH,
    FIGURES,
    OF_WEIGHT_DECAY,
    Arguments,
    RunConfiguration,
    Section,
    is_text_figure,
)
from src.configuration.identity import identity, typed_overrides
from src.configuration.schema import build, group_choices, schema, sections
from src.foundation import UserError
from src.hardware import resolve_hardware

NOT_RECORDED = "<not recorded>"
LOWER_IS_BETTER = tuple(figure for figure in FIGURES if figure != "accuracy")
SECRETS = ("model.token", "training.hub_token")
# The variables ACCELERATE_<name> that would override a run's options, and have no option.
NO_OPTION = (
    "DYNAMO_BACKEND DOWNCAST_BF16 TORCH_DEVICE USE_DEEPSPEED USE_MEGATRON_LM"
    " USE_PARALLELISM_CONFIG USE_SAGEMAKER"
).split()
OFF, ON = ("", "no", "false", "0"), ("yes", "true", "1")


def run_configuration(config: DictConfig) -> RunConfiguration:
    """Return the resolved and checked configuration. `config` does not change.

    Raises:
        UserError: if a key is unknown, a model or data is missing, or a value is refused.
    """
    values = _plain(config, Arguments)
    _refuse_missing_choice(config)
    given = values["training"]
    values["training"], reasons = _resolve_training(given)
    _refuse_without_effect(given, values["training"])
    _refuse_environment(values["training"])
    recorded = copy.deepcopy(values)
    for section, secret in (key.split(".") for key in SECRETS):
        recorded[section][secret] = recorded[section][secret] and NOT_RECORDED
    built = {name: build(section, values[name]) for name, section in sections().items()}
    args = Arguments(**built)
    args.check()
    return RunConfiguration(
        args=args,
        reasons=reasons,
        recorded=recorded,
        identity=identity(recorded),
        overrides=[*map(hide_secrets, typed_overrides())],
    )


def command_arguments(root: type[Section], config: DictConfig) -> Any:
    """Return the checked arguments of another command than training.

    Args:
        root: the dataclass of the command's keys.

    Raises:
        UserError: if a key is unknown or a value is refused.
    """
    values = _plain(config, root)
    inner = {name: build(s, values[name]) for name, s in sections(root).items() if name}
    return build(root, {**values, **inner})


def _refuse_missing_choice(config: DictConfig) -> None:
    """Raise `UserError`, with the choices, for a run without a model or without data."""
    needed = {
        ("model", "model"): ("model_type", "model_name_or_path"),
        ("data", "dataset"): ("train_file", "dataset_name", "validation_file"),
    }
    problems = []
    for (section, group), names in needed.items():
        if not any(config[section][name] for name in names):
            chosen = HydraConfig.get().runtime.choices.get(group)
            reason = f"+{group}={chosen} sets none; " if chosen else ""
            choices = ", ".join(group_choices()[group])
            problems.append(
                f"no {section}: {reason}choose with +{group}=… ({choices}), or give"
                f" {section}.{names[0]}= or {section}.{names[1]}="
            )
    if problems:
        raise UserError("\n".join(problems))


def _plain(config: DictConfig, root: type) -> dict[str, Any]:
    """Return resolved and plain values. A `~` at the beginning of a path is expanded.

    Raises:
        ConfigKeyError: a key is unknown. Hydra accepts `+foo=1` as a new key, even in a
            structured config.
    """
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    OmegaConf.merge(schema(root), values)
    return _with_home(values)


def _with_home(value: Any) -> Any:
    """Return nested values in which the home directory replaces a leading `~` of texts."""
    if isinstance(value, dict):
        return {key: _with_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _resolve_training(
    training: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the section with values for its open options, and the reasons by key."""
    resolved = resolve_hardware(training)
    metric, greater = training["metric_for_best_model"], training["greater_is_better"]
    if metric:
        is_lower_better = lower_is_better(metric)
        reason = f"a {'lower' if is_lower_better else 'higher'} {metric} is better"
        if greater is is_lower_better:
            raise UserError(f"training.greater_is_better={greater}: {reason}")
        if greater is None:
            resolved["greater_is_better"] = (not is_lower_better, reason)
    values = {**training, **{name: value for name, (value, _) in resolved.items()}}
    if not values["do_eval"]:
        values["eval_strategy"] = "no"
    if values["eval_strategy"] == "no":
        values["load_best_model_at_end"] = False
    return values, {f"training.{name}": why for name, (_, why) in resolved.items()}


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better: of losses, but not of scores."""
    return is_text_figure(metric) and metric.endswith(LOWER_IS_BETTER)


def _refuse_without_effect(given: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Raise `UserError` for a typed option that has no effect; see `EFFECTIVE_WITH`.

    Files may set such options, and so may sweeps, for jobs in which they have an effect.

    Args:
        given: the values of the section `training` as they were composed.
        used: the values that the run uses.
    """
    typed = {override.partition("=")[0].lstrip("+") for override in typed_overrides()}
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    for name, (other, expected) in EFFECTIVE_WITH.items():
        is_typed = f"training.{name}" in typed and given[name]
        if is_typed and used[other] not in expected:
            needed = " or ".join(map(str, expected))
            raise UserError(
                f"training.{name}={given[name]} has no effect: it needs"
                f" training.{other}={needed}, got {used[other]}"
            )
    for name in OF_WEIGHT_DECAY:
        value = given[name]
        has_effect = used["weight_decay"] or value in (None, False, "constant")
        if f"training.{name}" in typed and not has_effect:
            raise UserError(
                f"training.{name}={value} has no effect: it needs training.weight_decay above 0"
            )


def _refuse_environment(training: Mapping[str, Any]) -> None:
    """Raise `UserError` for a variable by which accelerate would override the run's options.

    Args:
        training: the values of the section `training` that the run uses.
    """
    precision = "fp16" if training["fp16"] else "bf16" if training["bf16"] else "no"
    values = {
        "MIXED_PRECISION": precision,
        "GRADIENT_ACCUMULATION_STEPS": training["gradient_accumulation_steps"] or 1,
        "USE_CPU": training["use_cpu"],
        "USE_FSDP": bool(training["fsdp"]),
        **dict.fromkeys(NO_OPTION, False),
    }
    for name, value in values.items():
        text = os.environ.get(f"ACCELERATE_{name}", "").lower()
        # `accelerate launch` sets most of them to a value that changes nothing.
        if text not in (*OFF, *(ON if value is True else [str(value)])):
            raise UserError(
                f"ACCELERATE_{name}={text} in the environment contradicts the options of the"
                f" run, by which it is {str(value).lower()}: unset it (`accelerate launch`"
                " sets it from its options and its configuration file)"
            )


def hide_secrets(text: str) -> str:
    """Return `text`, such as an override or YAML, with placeholders for tokens."""
    pattern = r"""\b((?:hub_)?token['"]?\s*[:=]\s*)(?!null\b|\${)[^\s,}]+"""
    return re.sub(pattern, rf"\1{NOT_RECORDED}", text)


class MoveSecrets(Callback):
    """Before Hydra writes the configuration anywhere, moves secrets out of it.

    A secret goes into an environment variable, which the configuration, the overrides and
    the command line then refer to. Hydra also records these in `multirun.yaml` and prints
    the overrides above a traceback; W&B records the command line.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Move the secrets of a run, or of all runs of a sweep."""
        job, overrides = config.hydra.job, config.hydra.overrides
        for key in (*SECRETS, "token", "hub.token"):
            if (secret := OmegaConf.select(config, key)) is None:
                continue
            variable = key.replace(".", "_").upper()
            os.environ[variable] = str(secret)
            reference = f"${{oc.env:{variable}}}"
            OmegaConf.update(config, key, reference)
            hide = functools.partial(
                re.sub, rf"(?<!\w){re.escape(str(secret))}(?!\w)", reference
            )
            sys.argv[1:] = map(hide, sys.argv[1:])
            with read_write(config.hydra):
                task = OmegaConf.to_container(overrides.task)
                overrides.task = [hide(override) for override in task]
                job.override_dirname = hide(job.override_dirname)

    on_multirun_start = on_run_start
