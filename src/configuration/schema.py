"""From dataclasses to a composed, checked configuration, and back to typed objects.

Hydra needs structured configs that OmegaConf can check. OmegaConf 2.3 cannot hold what
`transformers.TrainingArguments` uses (unions of containers, `Literal`, enums chosen by
value), and which fields use it changes with every release. So the schema is generated from
the dataclasses of `src/arguments.py`: one mirror class a section, with types OmegaConf can
check. The real objects are built once, after composition, by `build_arguments`.
"""

import dataclasses
import difflib
import enum
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.arguments import FIGURES, Arguments, RunEvalArguments
from src.configuration.checks import check_arguments
from src.foundation import UserError
from src.hardware import choose_hardware

CONF_DIR = Path(__file__).parents[1] / "conf"

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


def _choice(name: str, values: list[Any]) -> type[enum.Enum]:
    """An enum whose member names are the values: OmegaConf matches names, users type values."""
    choice = enum.Enum(name, {str(value): value for value in values}, module=__name__)
    # A module attribute, so that launchers can pickle it by reference.
    setattr(sys.modules[__name__], name, choice)
    return choice


def _checkable(hint: Any, name: str) -> Any:
    """The nearest type to `hint` that OmegaConf checks; `Any` where there is none."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(hint)) if union else [hint]
    optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    enums = [k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)]
    if enums and all(k is str for k in kinds if k not in enums):
        checked = _choice(name, [member.value for member in enums[0]])
    elif len(kinds) == 1 and typing.get_origin(kinds[0]) is typing.Literal:
        checked = _choice(name, list(typing.get_args(kinds[0])))
    elif kinds in ([bool], [int], [float], [str]):
        checked = kinds[0]
    else:
        return Any
    return Optional[checked] if optional else checked


def _default(field: dataclasses.Field, checked: Any) -> Any:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if isinstance(default, enum.Enum):
        default = default.value
    kinds = [checked, *typing.get_args(checked)]
    for choice in (
        k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)
    ):
        default = None if default is None else choice[str(default)]
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default))
    return dataclasses.field(default=default)


def schema(section: type) -> type:
    """A dataclass with the fields of `section`, all typed so that OmegaConf checks them.

    It has no `__post_init__`, lives in this module (so pickles by reference), and gives
    `Any` to every field whose type OmegaConf cannot express.
    """
    hints = typing.get_type_hints(section)
    fields = []
    for f in dataclasses.fields(section):
        if not f.init:
            continue
        if dataclasses.is_dataclass(hints[f.name]):
            nested = schema(hints[f.name])
            fields.append((f.name, nested, dataclasses.field(default_factory=nested)))
        else:
            checked = _checkable(hints[f.name], f"{section.__name__}_{f.name}")
            fields.append((f.name, checked, _default(f, checked)))
    mirror = dataclasses.make_dataclass(f"{section.__name__}Schema", fields)
    mirror.__module__ = __name__
    setattr(sys.modules[__name__], mirror.__name__, mirror)
    return mirror


# Name of a front door's schema, in its file under src/conf/ → the schema's source.
ROOTS = {"base_config": Arguments, "run_eval_config": RunEvalArguments}
for _name, _root in ROOTS.items():
    ConfigStore.instance().store(name=_name, node=schema(_root))


def sections() -> dict[str, type]:
    """Name → dataclass of every section of `Arguments`."""
    return typing.get_type_hints(Arguments)


def group_choices() -> dict[str, list[str]]:
    """The groups under `src/conf/` and their files: {"model": ["gpt2-small", …], …}."""
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in sorted(CONF_DIR.iterdir())
        if group.is_dir()
    }


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _unknown(key: str, root: type = Arguments) -> str:
    """What to say of a key that does not exist: its new name, its section or the nearest."""
    if root is not Arguments:  # no sections, no groups
        return f"unknown key `{key}`" + _nearest(key, root.__dataclass_fields__)
    if key.count(".") > 1:  # inside a field that takes any keys
        return f"`{key}` is not in the chosen files; to add it write +{key}=…"
    section, _, name = key.rpartition(".")
    if name in sections() and section in group_choices():
        return f"`{key}`: does the file begin with the line `# @package _global_`?"
    if name in RENAMED:
        return f"unknown key `{key}`: it is now training.{RENAMED[name]}"
    fields = {s: [f.name for f in dataclasses.fields(c)] for s, c in sections().items()}
    if section in fields:
        return f"unknown key `{key}`" + _nearest(
            key, [f"{section}.{name}" for name in fields[section]]
        )
    homes = [s for s in fields if name in fields[s]]
    if homes:
        return f"unknown key `{key}`: write `{homes[0]}.{name}`"
    groups = group_choices()
    message = (
        f"`{key}` is neither a section ({', '.join(fields)}) nor a group of src/conf"
    )
    if key in groups:
        return f"{message}: does its file begin with the line `# @package _global_`?"
    close = difflib.get_close_matches(key, [*fields, *groups], n=1)
    if close and close[0] in groups:
        return f"{message}; did you mean +{close[0]}=… ({', '.join(groups[close[0]])})?"
    flat = [f"{section}.{name}" for section in fields for name in fields[section]]
    by_leaf = {name.rpartition(".")[2]: name for name in flat}
    leaf = difflib.get_close_matches(name, by_leaf, n=1)
    return message + (f"; did you mean `{by_leaf[leaf[0]]}`?" if leaf else "")


def refuse_unknown_keys(config: DictConfig, root: type = Arguments) -> None:
    """Raise `UserError` for keys that Hydra let in behind `+` or `++`.

    Hydra takes `+models=gpt2-small` and `+training.lerning_rate=1` for new keys, even with
    a structured root: without this check such a run trains with the defaults.
    """
    known = sections()
    fields = root.__dataclass_fields__
    problems = [_unknown(str(key), root) for key in config if key not in fields]
    for section in config:
        if section in known and root is Arguments:
            names = {f.name for f in dataclasses.fields(known[section])}
            problems += [
                _unknown(f"{section}.{key}")
                for key in config[section]
                if key not in names
            ]
    if problems:
        raise UserError("\n".join(problems))


def decide(config: DictConfig) -> None:
    """Fill in, in place, what follows from the hardware and from other values."""
    for key in ("wandb.group", "wandb.name", "training.output_dir"):
        # Written down first: a run's name is what was typed, not what follows from it.
        OmegaConf.update(config, key, OmegaConf.select(config, key))
    training = config.training
    choose_hardware(training)
    if not training.do_eval:
        training.eval_strategy = "no"
    if training.eval_strategy.name == "no":
        training.load_best_model_at_end = False
    if training.metric_for_best_model and training.greater_is_better is None:
        lower = tuple(figure for figure in FIGURES if figure != "accuracy")
        training.greater_is_better = not training.metric_for_best_model.endswith(lower)


def build_arguments(config: DictConfig) -> Arguments:
    """The typed objects of a composed configuration."""
    built = {}
    for name, section in sections().items():
        values = OmegaConf.to_container(config[name], resolve=True, enum_to_str=True)
        try:
            built[name] = section(**values)
        except (ValueError, TypeError) as error:  # Hugging Face's own checks
            raise UserError(f"{name}: {error}") from error
    args = Arguments(**built)
    check_arguments(args)
    return args


LEFT_OUT = "<not recorded>"
SECRETS = ("model.token", "training.hub_token")


def recorded_overrides(overrides: list[str]) -> list[str]:
    """The command line's overrides, secrets left out."""
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    return [
        f"{key}={LEFT_OUT}" if key in SECRETS else override
        for key, override in zip(keys, overrides)
    ]


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, all interpolations resolved, secrets left out."""
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    for section, name in (key.split(".") for key in SECRETS):
        if values[section][name] is not None:
            values[section][name] = LEFT_OUT
    return values


def _chosen_twice(group: str, option: str) -> str:
    advice = (
        ". A recipe brings the model along that its values were found for: leave +model away"
        f" (to try its values on another model: model={option}, without the +)"
    )
    return f"+{group}={option}: a {group} is chosen already" + advice * (
        group == "model"
    )


def explain(error: Exception, root: type = Arguments) -> str:
    """One short message for an error of composition: the key, the value, what is right."""
    cause: Optional[BaseException] = error
    while isinstance(cause, HydraException):  # OmegaConf's error is somewhere below
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        if "no viable alternative" in str(error):
            return f"{error}\n(values with spaces, braces or brackets need quotes: 'key={{a: 1}}')"
        if twice := re.match(r"Multiple values for (\w+).* (.*)'", str(error)):
            return _chosen_twice(*twice.groups())
        return str(error)
    file = re.match(r"In '([^']*)'", str(error))
    where = f"In {file.group(1)}: " if file else ""
    key = cause.full_key or ""
    reason = str(cause.msg or cause).split("\n")[0]
    if key and "not in" in reason:
        return where + _unknown(key, root)
    reason = re.sub(r"field '.*' is not Optional", "null is not allowed", reason)
    if "Invalid value 'False', expected one of [no," in reason:
        reason += " (YAML reads a bare no as false: write 'no' in quotes)"
    return where + (f"{key}: " if key else "") + reason


def describe_options(config: DictConfig, root: type = Arguments) -> str:
    """One line a key, for `--help`: key=value, and what it means."""
    lines = []
    parts = sections() if root is Arguments else {"": root}
    for section, cls in parts.items():
        part, prefix = (config[section], f"{section}.") if section else (config, "")
        values = OmegaConf.to_container(part, enum_to_str=True)
        for f in dataclasses.fields(cls):
            if f.init:
                value = "null" if values.get(f.name) is None else values.get(f.name)
                help = re.split(r"(?<=\.)\s", f.metadata.get("help", "").strip())[0]
                lines.append(f"  {prefix}{f.name}={value}".ljust(46) + f"  {help}")
        lines.append("")
    # Hydra substitutes `$NAME` in the help text.
    return "\n".join(lines).replace("$", "$$")


def unless_batch_is_given(tokens: int, training: DictConfig) -> Optional[int]:
    """`tokens`, unless the batch is stated in sequences."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return tokens if all(training[name] is None for name in names) else None


OmegaConf.register_new_resolver(
    "unless_batch_is_given",
    lambda tokens, *, _root_: unless_batch_is_given(tokens, _root_.training),
    replace=True,
)
OmegaConf.register_new_resolver(
    "describe_options",
    lambda root="base_config", *, _root_: describe_options(_root_, ROOTS[root]),
    replace=True,
)
