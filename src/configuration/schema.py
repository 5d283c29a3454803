"""The schema that Hydra checks, and the construction of arguments from composed values.

OmegaConf 2.3 cannot hold all types of `transformers.TrainingArguments` (unions of containers,
`Literal`, enums that are chosen by value), and every release changes the fields with such
types. So each dataclass in `src/arguments.py` gets a mirror class with types that OmegaConf
can check. `build` constructs the dataclass from the composed values.
"""

import copy
import dataclasses
import enum
import functools
import json
import math
import operator
import re
import shutil
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src.arguments import (
    FIXED_TRAINING_VALUES,
    HUGGING_FACE_BOUNDS,
    Arguments,
    ExportArguments,
    ReportArguments,
    RunEvalArguments,
    Section,
)
from src.foundation import UserError, blaming

CONF_DIR = Path(__file__).parents[1] / "conf"
BOUNDS = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def sections(root: type = Arguments) -> dict[str, type[Section]]:
    """Return the sections by name. The keys of other commands than training have none."""
    hints = typing.get_type_hints(root)
    inner = {
        n: h for n, h in hints.items() if isinstance(h, type) and issubclass(h, Section)
    }
    return {root.section: root, **inner} if issubclass(root, Section) else inner


@functools.cache
def options(root: type = Arguments) -> dict[str, dataclasses.Field]:
    """Return the options by the keys that users type: {"data.block_size": …, …}."""
    return {
        section.key(field.name): field
        for section in sections(root).values()
        for field in dataclasses.fields(section)
        if field.init and section.key(field.name) not in sections(root)
    }


def group_choices() -> dict[str, list[str]]:
    """Return the groups under `src/conf/` with their choices: {"tokenizer": ["gpt2"], …}."""
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in sorted(CONF_DIR.iterdir())
        if group.is_dir()
    }


def _alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if is_union else [hint]


def _choices(hint: Any) -> dict[str, Any]:
    """Return the values of a `Literal` or an enum by their text; {} for other types."""
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    enums = [kind for kind in kinds if kind is not str]
    values: Iterable[Any] = ()
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is typing.Literal:
        values = typing.get_args(kinds[0])
    elif len(enums) == 1 and isinstance(enums[0], enum.EnumMeta):
        values = [member.value for member in enums[0]]
    return {str(value): value for value in values}


def _checkable(hint: Any, name: str) -> Any:
    """Return the nearest type to `hint` that OmegaConf can check; `Any` if there is none.

    Args:
        name: the name of the enum for a closed choice. Users type the names of its members.
    """
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if choices := _choices(hint):
        kinds = [enum.Enum(name, choices, module=__name__)]
        # As an attribute of this module, launchers can pickle it.
        setattr(sys.modules[__name__], name, kinds[0])
    elif kinds not in ([bool], [int], [float], [str]):
        return Any
    return Optional[kinds[0]] if type(None) in _alternatives(hint) else kinds[0]


def _default(field: dataclasses.Field, hint: Any) -> Any:
    """Return the default of a field, as text for a closed choice."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if _choices(hint) and default is not None:
        return str(getattr(default, "value", default))
    return default


@functools.cache
def schema(section: type) -> type:
    """Return a dataclass with the fields of `section`, in types that OmegaConf checks.

    It has no `__post_init__`. As an attribute of this module, launchers can pickle it.
    """
    hints = typing.get_type_hints(section)
    fields = []
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            checked = factory = schema(hint)
        else:
            checked = _checkable(hint, f"{section.__name__}_{field.name}")
            factory = functools.partial(copy.copy, _default(field, hint))
        if field.init:
            default = dataclasses.field(default_factory=factory)
            fields.append((field.name, checked, default))
    mirror = dataclasses.make_dataclass(f"{section.__name__}Schema", fields)
    mirror.__module__ = __name__
    setattr(sys.modules[__name__], mirror.__name__, mirror)
    return mirror


# The name of each command's schema, which its file under src/conf/ refers to.
ROOTS = {
    "base_config": Arguments,
    "run_eval_config": RunEvalArguments,
    "export_config": ExportArguments,
    "report_config": ReportArguments,
}
for _name, _root in ROOTS.items():
    ConfigStore.instance().store(name=_name, node=schema(_root))


def build(section: type[Section], values: Mapping[str, Any]) -> Any:
    """Return a section that is built from composed values and checked.

    Args:
        values: plain values by the names of the options; closed choices by their names.

    Raises:
        UserError: if a value is out of its bounds, or if values exclude each other.
    """
    hints = typing.get_type_hints(section)
    typed = {
        name: choices.get(value) if (choices := _choices(hints[name])) else value
        for name, value in values.items()
    }
    defaults = {}
    for field in dataclasses.fields(section):
        key, value = section.key(field.name), typed.get(field.name)
        bounds = _bounds(key, field)
        if bounds and value is not None and value != bounds.get("unset"):
            _check_bounds(key, value, bounds)
        if field.init:
            defaults[field.name] = _default(field, hints[field.name])
    built = blaming(lambda x: section(**x), typed, defaults, section.section)
    built.check()
    return built


def _check_bounds(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Raise `UserError` for a number out of its bounds, and for NaN and infinity."""
    is_finite = math.isfinite(value)
    holds = [
        test(value, bounds[name])
        for name, (_, test) in BOUNDS.items()
        if name in bounds
    ]
    if not (is_finite and all(holds)):
        rule = _rule(bounds)
        finite = "" if is_finite else "a finite number "
        reason = f": {bounds['reason']}" if "reason" in bounds else ""
        raise UserError(f"{key} must be {finite}{rule}, got {value}{reason}")


def _bounds(key: str, field: dataclasses.Field) -> Mapping[str, Any]:
    """Return the bounds of an option; {} if there are none."""
    return field.metadata.get("bounds") or HUGGING_FACE_BOUNDS.get(key, {})


def _rule(bounds: Mapping[str, Any]) -> str:
    """Return the range of a number in words: "at least 0 and below 1"."""
    words = [
        f"{w} {bounds[name]:,}" for name, (w, _) in BOUNDS.items() if name in bounds
    ]
    return " and ".join(words)


def describe_options(root: str = "base_config", *, _root_: DictConfig) -> str:
    """Return the text of `--help`: each option with its value and meaning, ours first.

    Options with only one allowed value are left out.

    Args:
        root: the name of the command's schema.
        _root_: the whole configuration, which OmegaConf passes.
    """
    texts, known = [], options(ROOTS[root])
    for section in sections(ROOTS[root]).values():
        hints = typing.get_type_hints(section)
        ours = section.__dict__["__annotations__"]
        fields = sorted(dataclasses.fields(section), key=lambda f: f.name not in ours)
        for field in fields:
            key = section.key(field.name)
            if key in known and field.name not in FIXED_TRAINING_VALUES:
                value = as_text(OmegaConf.select(_root_, key)).replace('"', "")
                meaning = _meaning(field, hints[field.name])
                if rule := _rule(_bounds(key, field)):
                    meaning += f" ({rule})"
                texts += [f"  {key}={value}", _wrapped(meaning, indent=6)]
        texts.append("")
    # Hydra substitutes `$NAME` in the help text.
    return "\n".join(texts).replace("$", "$$")


def _meaning(field: dataclasses.Field, hint: Any) -> str:
    """Return the meaning of an option, with its choices if it is a closed choice."""
    # Hugging Face says in a sentence of its own that a number of steps may be a share.
    full = field.metadata.get("help", "").rstrip(" .")
    meaning, *share = re.split(r"\. (?:Should|Can) be an integer", full)
    meaning += "; below 1: a share of the run" if share else ""
    choices = ", ".join(_choices(hint))
    return f"{meaning}. One of: {choices}" if choices else meaning


def as_text(value: Any) -> str:
    """Return a composed value as short text. Equal values have equal texts."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, enum.Enum):
        value = value.name
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict):  # JSON cannot sort keys of several types
        value = {str(key): value[key] for key in value}
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def describe_groups() -> str:
    """Return the groups and their choices, for `--help`."""
    lines = [f"{group}: {', '.join(names)}" for group, names in group_choices().items()]
    return "\n".join(map(_wrapped, lines))


def _wrapped(text: str, indent: int = 2) -> str:
    """Return text in lines that fit the terminal."""
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * max(indent, 6),
        break_on_hyphens=False,
    )


def unless_batch_is_given(tokens: int, *, _root_: DictConfig) -> Optional[int]:
    """Return `tokens`, or None if the batch is given in sequences."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return tokens if all(_root_.training[name] is None for name in names) else None


def saving(option: str, *, _root_: DictConfig) -> Any:
    """Return `save_strategy` or `save_steps`, so that a run is saved when it is evaluated.

    A run without evaluations is saved ten times.
    """
    training = _root_.training
    strategy = training.eval_strategy.name if training.do_eval else "no"
    if option == "save_strategy":
        return "steps" if strategy == "no" else strategy
    return (
        (training.eval_steps or training.logging_steps) if strategy == "steps" else 0.1
    )


for _resolver in (unless_batch_is_given, saving, describe_groups, describe_options):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
