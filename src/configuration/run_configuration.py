"""The configuration of a run, which is resolved and checked once."""

import copy
import re
from typing import Any, Mapping

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.arguments import FIGURES, Arguments, RunConfiguration, RunEvalArguments
from src.configuration.errors import refuse_missing_choice, refuse_unknown_keys
from src.configuration.identity import defaults, identity
from src.configuration.schema import build, sections
from src.hardware import resolve_hardware

NOT_RECORDED = "<not recorded>"
LOWER_IS_BETTER = tuple(figure for figure in FIGURES if figure != "accuracy")
SECRETS = ("model.token", "training.hub_token")


def run_configuration(config: DictConfig) -> RunConfiguration:
    """Return the resolved and checked configuration. `config` does not change.

    Raises:
        UserError: if a key is unknown, a model or data is missing, or a value is refused.
    """
    refuse_unknown_keys(config)
    refuse_missing_choice(config)
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    values["training"], reasons = _resolve_training(values["training"])
    recorded = _without_secrets(values)
    built = {name: build(section, values[name]) for name, section in sections().items()}
    args = Arguments(**built)
    args.check()
    return RunConfiguration(
        args=args,
        reasons=reasons,
        recorded=recorded,
        identity=identity(recorded),
        defaults=defaults(),
        overrides=_recorded_overrides(HydraConfig.get().overrides.task),
    )


def build_run_eval(config: DictConfig) -> RunEvalArguments:
    """Return the checked arguments of `run_eval`.

    Raises:
        UserError: if a key is unknown or a value is refused.
    """
    refuse_unknown_keys(config, RunEvalArguments)
    return build(
        RunEvalArguments, OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    )


def _resolve_training(
    training: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the section with values for its open options, and the reasons by key."""
    resolved = resolve_hardware(training)
    metric = training["metric_for_best_model"]
    if metric and training["greater_is_better"] is None:
        lower_is_better = metric.endswith(LOWER_IS_BETTER)
        reason = f"a {'lower' if lower_is_better else 'higher'} {metric} is better"
        resolved["greater_is_better"] = (not lower_is_better, reason)
    values = {**training, **{name: value for name, (value, _) in resolved.items()}}
    if not values["do_eval"]:
        values["eval_strategy"] = "no"
    if values["eval_strategy"] == "no":
        values["load_best_model_at_end"] = False
    return values, {f"training.{name}": why for name, (_, why) in resolved.items()}


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the nested values, with placeholders for secrets."""
    recorded = copy.deepcopy(dict(values))
    for section, name in (key.split(".") for key in SECRETS):
        if recorded[section][name] is not None:
            recorded[section][name] = NOT_RECORDED
    return recorded


def _recorded_overrides(overrides: list[str]) -> list[str]:
    """Return the overrides of the command line with placeholders for secrets."""
    secret = rf"^\+*({'|'.join(map(re.escape, SECRETS))})=.*"
    return [re.sub(secret, rf"\1={NOT_RECORDED}", x, flags=re.S) for x in overrides]
