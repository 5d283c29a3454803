"""Errors of the command line: unknown keys, missing choices, and what Hydra refuses."""

import difflib
import re
from typing import Iterable, Optional

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.arguments import Arguments
from src.configuration.schema import group_choices, options, sections
from src.foundation import UserError

# Old names of options of Hugging Face's TrainingArguments.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "use_mps_device": "use_cpu",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of the run)",
    "logging_dir": "report_to, with the directory in TENSORBOARD_LOGGING_DIR",
    "group_by_length": "train_sampling_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "fp16_backend": "fp16",
    "half_precision_backend": "fp16",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile",
}


def refuse_unknown_keys(config: DictConfig, root: type = Arguments) -> None:
    """Raise `UserError` for keys that Hydra added because of a `+` or `++`.

    Hydra takes `+models=gpt2-small` and `+training.lerning_rate=1` for new keys, even in a
    structured config. Without this check, such a run would train with the defaults.

    Args:
        root: the dataclass of the command's keys.
    """
    keys: list[str] = []
    for name in map(str, config):
        if name in sections(root):
            keys += [f"{name}.{option}" for option in config[name]]
        else:
            keys.append(name)
    known = options(root)
    if unknown := [_unknown(key, root) for key in keys if key not in known]:
        raise UserError("\n".join(unknown))


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
    while isinstance(cause, HydraException):  # it hides OmegaConf's error
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
        message = f"+{group}={choice}: a {group} is chosen already"
        if group == "model":
            message += (
                ". A recipe brings the model that its values were found for: leave +model"
                f" away (to try them on another model: model={choice}, without the +)"
            )
    return message


def _unknown(key: str, root: type = Arguments) -> str:
    """Return advice on an unknown key: its new name, its section or the nearest key."""
    message, known, groups = f"unknown key `{key}`", options(root), group_choices()
    if root is not Arguments:  # it has neither sections nor groups
        return message + _nearest(key, known)
    if key.count(".") > 1:  # inside an option that takes any keys
        return f"`{key}` is not in the chosen files; to add it write +{key}=…"
    section, _, name = key.rpartition(".")
    if key in groups or (section in groups and name in sections()):
        return f"`{key}`: does its file begin with the line `# @package _global_`?"
    if name in RENAMED:
        return f"{message}: it is now training.{RENAMED[name]}"
    for known_key in known:
        if known_key.partition(".")[2] == name:
            return f"{message}: write `{known_key}`"
    if section in sections():
        siblings = [known_key for known_key in known if known_key.startswith(section)]
        return message + _nearest(key, siblings)
    names = ", ".join(sections())
    message = f"`{key}` is neither a section ({names}) nor a group of src/conf"
    close = difflib.get_close_matches(key, [*sections(), *groups], n=1)
    if close and close[0] in groups:
        return f"{message}; did you mean +{close[0]}=… ({', '.join(groups[close[0]])})?"
    return message + _nearest(key, known)


def _nearest(key: str, known: Iterable[str]) -> str:
    """Return a question with the known key whose last part is nearest to that of `key`."""
    by_name = {known_key.rpartition(".")[2]: known_key for known_key in known}
    close = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1)
    return f"; did you mean `{by_name[close[0]]}`?" if close else ""
