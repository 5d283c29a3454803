"""The configuration of a run: what follows from the command line, decided once."""

import copy
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
    """Resolve and check what Hydra composed. Nothing is written into it.

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
    """Build and check the arguments of `run_eval` from what Hydra composed.

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
    """Return the section with its open options filled in, and the reasons by their keys."""
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
    """Return a copy of the nested values in which a given secret has a placeholder."""
    recorded = copy.deepcopy(dict(values))
    for section, name in (key.split(".") for key in SECRETS):
        if recorded[section][name] is not None:
            recorded[section][name] = NOT_RECORDED
    return recorded


def _recorded_overrides(overrides: list[str]) -> list[str]:
    """Return the overrides of the command line with placeholders for secrets."""
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    return [
        f"{key}={NOT_RECORDED}" if key in SECRETS else override
        for key, override in zip(keys, overrides)
    ]
