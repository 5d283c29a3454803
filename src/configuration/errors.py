"""Errors of the command line: unknown keys, missing choices, and the errors of Hydra."""

import difflib
import re
from typing import Optional

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.arguments import Arguments
from src.configuration.schema import group_choices, options, sections
from src.foundation import UserError

# Old names of options of Hugging Face's TrainingArguments, and their new names. A name is not
# listed if `difflib` finds the new one anyway.
RENAMED = {
    "no_cuda": "use_cpu",
    "use_mps_device": "use_cpu",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of the run)",
    "logging_dir": "report_to, with the directory in TENSORBOARD_LOGGING_DIR",
    "group_by_length": "train_sampling_strategy",
    "fp16_backend": "fp16",
    "half_precision_backend": "fp16",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile",
}


def refuse_unknown_keys(config: DictConfig, root: type = Arguments) -> None:
    """Raise `UserError` for unknown keys that a `+` or `++` has added.

    Hydra accepts `+models=gpt2-small` and `+training.lerning_rate=1` as new keys, even in a
    structured config. Without this check, such a run would train with the defaults.

    Args:
        root: the dataclass of the command's keys.
    """
    keys: list[str] = []
    for name in map(str, config):
        nested = config[name] if name in sections(root) else ()
        keys += [f"{name}.{option}" for option in nested] or [name]
    if unknown := [key for key in keys if key not in options(root)]:
        raise UserError("\n".join(_unknown(key, root) for key in unknown))


def refuse_missing_choice(config: DictConfig) -> None:
    """Raise `UserError`, with the choices, for a run without a model or without data."""
    groups, missing = group_choices(), []
    if not (config.model.model_type or config.model.model_name_or_path):
        missing.append(
            f"no model: choose one with +model=… ({', '.join(groups['model'])}),"
            " or give model.model_type= or model.model_name_or_path="
        )
    data = config.data
    if not (data.train_file or data.validation_file or data.dataset_name):
        missing.append(
            f"no data: choose it with +dataset=… ({', '.join(groups['dataset'])}),"
            " or give data.train_file= or data.dataset_name="
        )
    if missing:
        raise UserError("\n".join(missing))


def explain(error: Exception, root: type = Arguments) -> str:
    """Return a short message for an error of composition: the key, the value, the rule.

    Args:
        root: the dataclass of the command's keys.
    """
    cause: Optional[BaseException] = error
    while isinstance(cause, HydraException):  # it wraps the error of OmegaConf
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        return _explain_hydra(str(error))
    match = re.match(r"In '([^']*)'", str(error))
    file = f"In {match.group(1)}: " if match else ""
    key = cause.full_key or ""
    reason = str(cause.msg or cause).split("\n")[0]
    if key and "not in" in reason:
        return file + _unknown(key, root)
    reason = re.sub(r"field '.*' is not Optional", "null is not allowed", reason)
    if "Invalid value 'False', expected one of [no," in reason:
        reason += " (YAML reads a bare no as false: write 'no' in quotes)"
    return file + (f"{key}: " if key else "") + reason


def _explain_hydra(message: str) -> str:
    """Return Hydra's message, with advice on two common mistakes."""
    if "no viable alternative" in message:
        return (
            f"{message}\n(values with spaces, braces or brackets need quotes:"
            " 'key={a: 1}')"
        )
    if twice := re.match(r"Multiple values for (\w+).* (.*)'", message):
        group, choice = twice.groups()
        message = f"+{group}={choice}: a {group} has already been chosen"
        if group == "model":
            message += (
                ". A recipe brings the model for which its values were chosen: leave +model"
                f" out, or use its values for another: model={choice}, without the +"
            )
    return message


def _unknown(key: str, root: type = Arguments) -> str:
    """Return advice on an unknown key: its new name, its section or the nearest key."""
    message, known, groups = f"unknown key `{key}`", options(root), group_choices()
    section, _, name = key.rpartition(".")
    if root is Arguments:  # `RunEvalArguments` has neither sections nor groups
        if key.count(".") > 1:  # inside an option that takes any keys
            return f"`{key}` is not in the chosen files; to add it write +{key}=…"
        if key in groups or (section in groups and name in sections()):
            return f"`{key}`: does its file begin with the line `# @package _global_`?"
        if name in RENAMED:
            return f"{message}: it is now training.{RENAMED[name]}"
        if moved := [other for other in known if other.endswith(f".{name}")]:
            return f"{message}: write `{moved[0]}`"
        if section not in sections():
            message = (
                f"`{key}` is neither a section ({', '.join(sections())}) nor a group"
            )
        if close := difflib.get_close_matches(key, groups, n=1):
            choices = ", ".join(groups[close[0]])
            return f"{message}; did you mean +{close[0]}=… ({choices})?"
    siblings = [other for other in known if other.startswith(f"{section}.")] or known
    by_name = {other.rpartition(".")[2]: other for other in siblings}
    close = difflib.get_close_matches(name, by_name, n=1)
    return message + (f"; did you mean `{by_name[close[0]]}`?" if close else "")
