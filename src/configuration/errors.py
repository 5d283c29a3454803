"""Errors of the command line: unknown keys, missing choices, and the errors of Hydra."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.arguments import Arguments
from src.configuration import schema
from src.configuration.schema import group_choices, options, sections
from src.foundation import UserError

# Old names of options, in Hugging Face's class and examples, and their new keys. A name is not
# listed if `difflib` finds the new one anyway.
RENAMED = {
    "no_cuda": "training.use_cpu",
    "use_mps_device": "training.use_cpu",
    "evaluation_strategy": "training.eval_strategy",
    "evaluate_during_training": "training.eval_strategy",
    "warmup_ratio": "training.warmup_steps (a value below 1 is a share of the run)",
    "logging_dir": "training.report_to, with the directory in TENSORBOARD_LOGGING_DIR",
    "fp16_backend": "training.fp16",
    "half_precision_backend": "training.fp16",
    "adafactor": "training.optim (training.optim=adafactor)",
    "split_batches": "training.accelerator_config",
    "dispatch_batches": "training.accelerator_config",
    "push_to_hub_token": "training.hub_token",
    "push_to_hub_model_id": "training.hub_model_id",
    "torchdynamo": "training.torch_compile",
    "torch_dtype": "training.bf16",
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "max_seq_length": "data.block_size",
    "tokenizer_name": "tokenizer.name_or_path",
    "use_auth_token": "model.token",
}
# Old options without a new name, and the reason.
REMOVED = {
    "group_by_length": "all blocks have the same length",
    "save_safetensors": "models are always saved as safetensors",
    "streaming": "the packed text is read from the disk anyway",
    "use_fast_tokenizer": "all tokenizers are fast",
    "keep_linebreaks": "the text keeps every byte",
    **dict.fromkeys(
        "fp16_opt_level past_index jit_mode_eval use_ipex ray_scope tpu_num_cores"
        " low_cpu_mem_usage include_tokens_per_second".split(),
        "transformers no longer has it",
    ),
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
    missing, data = [], config.data
    if not (config.model.model_type or config.model.model_name_or_path):
        keys = "model.model_type= or model.model_name_or_path="
        missing.append(_missing("model", "model", keys))
    if not (data.train_file or data.validation_file or data.dataset_name):
        keys = "data.train_file= or data.dataset_name="
        missing.append(_missing("data", "dataset", keys))
    if missing:
        raise UserError("\n".join(missing))


def _missing(what: str, group: str, keys: str) -> str:
    """Return the message for a run without a model or data, which `group` chooses."""
    chosen = HydraConfig.get().runtime.choices.get(group)
    reason = f"no {what}: " + (f"+{group}={chosen} sets none; " if chosen else "")
    choices = ", ".join(group_choices()[group])
    return f"{reason}choose with +{group}=… ({choices}), or give {keys}"


def explain(
    error: Exception, root: type = Arguments, arguments: Sequence[str] = ()
) -> Optional[str]:
    """Return a short message for an error that a user can correct: the key, value and rule.

    Args:
        root: the dataclass of the command's keys.
        arguments: the arguments of the command line.

    Returns:
        None for an error that a user cannot correct.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):  # Hydra does not name the file
        files = schema.CONF_DIR.rglob("*.yaml")
        names = [str(file) for file in files if error.object in file.read_bytes()]
        return f"{', '.join(names)} must be saved as UTF-8: {error}" if names else None
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        advice = " (indent with spaces)" if r"\t" in str(error.problem) else ""
        return f"{mark.name}, line {mark.line + 1}: {error.problem}{advice}"
    cause: Optional[BaseException] = error
    while isinstance(cause, HydraException):  # it wraps the error of OmegaConf
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        is_from_hydra = isinstance(error, HydraException)
        return _explain_hydra(str(error), arguments) if is_from_hydra else None
    match = re.match(r"In '([^']*)'", str(error))
    if match and root is Arguments and (advice := _advice_on_file(match.group(1))):
        return advice
    file = f"In {match.group(1)}: " if match else ""
    key = cause.full_key or ""
    reason = str(cause.msg or cause).split("\n")[0]
    if key and "not in" in reason:
        # OmegaConf has no public way from a node to its root.
        model_type = (
            root is Arguments and cause.parent_node._get_root().model.model_type
        )
        return file + (_no_such_override(key, model_type) or _unknown(key, root))
    reason = re.sub(r"field '.*' is not Optional", "null is not allowed", reason)
    section = r"Merge error: \w+ is not a subclass of (\w+)ArgumentsSchema. value: (.*)"
    reason = re.sub(section, r"a section (\1) must hold options, got \2", reason)
    if "Invalid value 'False', expected one of [no," in reason:
        reason += " (YAML reads a bare no as false: write 'no' in quotes)"
    return file + (f"{key}: " if key else "") + reason


def unknown_override(key: str) -> Optional[str]:
    """Return advice on an option of a run that has a wrong name or no section.

    Other keys may be groups of a folder that `--config-dir` names.
    """
    section, _, name = key.partition(".")
    if name:
        option = f"{section}.{name.split('.')[0]}"
        is_unknown = section in sections() and option not in options()
    else:
        is_unknown = key not in {*sections(), *group_choices()} and new_key(key)
    return _unknown(key) if is_unknown else None


def _advice_on_file(name: str) -> Optional[str]:
    """Return the YAML that a group's file should hold; None if its form is right.

    The form is wrong if the package line is missing, if options stand outside of their
    sections, or if a group is chosen by a plain key.

    Args:
        name: the file under `src/conf/` without its ending: model/mine.
    """
    file = schema.CONF_DIR / f"{name}.yaml"
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        return f"{file} must be saved as UTF-8 without a byte order mark (BOM)"
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        return f"{file} must hold keys with values, got {content!r}"
    choices, nested, moved, unknown = group_choices(), {}, [], []
    includes = content.pop("defaults", [])
    has_form = re.match(r"(\s*#.*\n)*\s*#\s*@package\s+_global_", text)
    for key, value in content.items():
        option = new_key(str(key))
        if isinstance(value, str) and value in choices.get(key, ()):
            includes.append(value if key == file.parent.name else {f"/{key}": value})
        elif key in sections() and isinstance(value, dict):
            nested.setdefault(key, {}).update(value)
            continue
        elif option:
            section, name = option.split(".")
            nested.setdefault(section, {})[name] = value
            moved.append(option)
        else:
            unknown.append(_unknown(str(key)))
            continue
        has_form = None
    if has_form or not (includes or nested):
        return None
    defaults = {"defaults": [*includes, "_self_"]} if includes else {}
    written = yaml.safe_dump({**defaults, **nested}, sort_keys=False)
    keys = f" ({', '.join(moved)})" if moved else ""
    advice = f"{file}: options belong to sections{keys}. Write instead:"
    return "\n".join([advice, "", "# @package _global_", written, *unknown]).strip()


def _explain_hydra(message: str, arguments: Sequence[str]) -> str:
    """Return Hydra's message, with advice on common mistakes."""
    message, *_ = re.split(r"\s*(?:Config search path:|See https://)", message)
    if wrong := re.match(r"In '(.*)': Could not \w+ '([\w/]+?)/([^']*)'", message):
        file, group, choice = wrong.groups()
        choices = re.findall(r"\t(.*)", message) or group_choices().get(group, [])
        close = difflib.get_close_matches(choice, choices, n=1)
        advice = f"; did you mean {close[0]}?" if close else "."
        message = f"+{group}={choice}: there is no such {group}{advice}"
        message += f" Choices: {', '.join(choices)}"
        return message if file in ("config", "run_eval") else f"In {file}: {message}"
    if several := re.match(r"Ambiguous value for argument '(\+*)(.*?)=(.*)'", message):
        plus, key, values = several.groups()
        message = (
            f"{plus}{key}={values} has several values: add -m to run one after the"
        )
        message += " other" + ("" if plus else f"; for a list write {key}=[{values}]")
    if twice := re.match(
        r"Multiple values for (\w+)|(\w+) appears more than once", message
    ):
        group = twice[1] or twice[2]
        typed = [x for x in arguments if x.startswith(f"+{group}=")]
        message = f"{' and '.join(typed)} are both given: choose one"
        if len(typed) == 1:
            message = f"{typed[0]}: a {group} has already been chosen"
            if group == "model":
                message += (
                    ". A recipe brings the model for which its values were chosen: leave"
                    f" +model out, or use its values for another: {typed[0][1:]}, without"
                    " the +"
                )
    if plain := re.match(r"Could not override '(.*)'.*\n.* (\S+)$", message):
        message = (
            f"{plain.group(1)}: nothing has been chosen yet: write {plain.group(2)}"
        )
    return message


def new_key(name: str) -> str:
    """Return the key of an option that is named without a section; "" for no option."""
    if name in RENAMED:
        return re.split("[, ]", RENAMED[name])[0]
    return next((key for key in options() if key.endswith(f".{name}")), "")


def _no_such_override(key: str, model_type: Any) -> Optional[str]:
    """Return advice on an override of the model that its architecture does not have."""
    prefix, _, name = key.rpartition(".")
    if prefix != "model.config_overrides" or not model_type:
        return None
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[model_type]()
    known = [*config.to_dict(), *config.attribute_map]
    close = difflib.get_close_matches(name, known, n=1)
    nearest = f"; did you mean `{close[0]}`?" if close else ""
    return None if name in known else f"`{key}`: {model_type} has no {name}{nearest}"


def _unknown(key: str, root: type = Arguments) -> str:
    """Return advice on an unknown key: its new name, its section or the nearest key."""
    message, known, groups = f"unknown key `{key}`", options(root), group_choices()
    section, _, name = key.rpartition(".")
    if root is Arguments:  # `RunEvalArguments` has neither sections nor groups
        if key.count(".") > 1:  # inside an option that takes any keys
            return f"`{key}` is not in the chosen files; to add it write +{key}=…"
        if key in groups or (section in groups and name in sections()):
            return f"`{key}`: does its file begin with the line `# @package _global_`?"
        if name in REMOVED:
            return f"{message}: leave it out; {REMOVED[name]}"
        if name in RENAMED:
            return f"{message}: it is now {RENAMED[name]}"
        if moved := new_key(name):
            return f"{message}: write `{moved}`"
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
