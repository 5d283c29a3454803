"""Which run is this? Its name, its directory's record, and what makes two runs different.

A run lives in `exp/<tag>-<model>-<dataset>/<name>`. The name is the seed and, behind it,
the overrides that change the result (`seed-42_lr-0.001`), so that runs that were typed or
swept with different values never meet. What the name cannot show (an edited YAML file,
changed text) is caught by the record: the resolved configuration, written once when the
run begins and compared whenever the same directory is used again.
"""

import dataclasses
import enum
import hashlib
import json
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from src.arguments import FIGURES, TrainingArguments
from src.configuration.schema import group_choices, sections
from src.foundation import UserError

SHORT = {
    "training.learning_rate": "lr",
    "training.num_train_epochs": "epochs",
    "training.per_device_train_batch_size": "batch",
    "training.gradient_accumulation_steps": "accumulation",
}
SHORT_PREFIXES = {"training.": "", "data.": "", "model.config_overrides": "config"}
# When a run is evaluated changes its result only where the best model is kept; how tasks are
# scored, only where such a score says which is the best.
EVALUATION_CADENCE = {"eval_strategy", "eval_steps", "eval_delay"}
MAX_NAME_LENGTH = 120


# Fields of Hugging Face's TrainingArguments that leave weights and reported numbers alone.
# A field that is not named here, such as a new one, counts as changing the result: a run
# too many directories is a nuisance, two runs in one directory are a wrong number.
HARMLESS_TRAINING_FIELDS = frozenset(
    "output_dir do_predict logging_strategy logging_steps"
    " logging_first_step log_on_each_node logging_nan_inf_filter log_level"
    " log_level_replica disable_tqdm report_to run_name project trackio_space_id"
    " trackio_bucket_id trackio_static_space_id include_num_input_tokens_seen"
    " per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches"
    " eval_use_gather_object eval_on_start include_for_metrics batch_eval_metrics"
    " prediction_loss_only save_strategy save_steps save_on_each_node save_total_limit"
    " save_only_model enable_jit_checkpoint push_to_hub hub_token hub_private_repo"
    " hub_model_id hub_strategy hub_always_push hub_revision resume_from_checkpoint"
    " dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers"
    " dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order"
    " remove_unused_columns label_names length_column_name ddp_find_unused_parameters"
    " ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout"
    " local_rank debug skip_memory_metrics torch_empty_cache_steps"
    " accelerator_config".split()
)


def changes_result(section: type, name: str) -> bool:
    """Whether two runs that differ in this field may end with different numbers."""
    described = section.__dataclass_fields__.get(name)
    if described is None:
        return False  # an unknown key, which is refused
    default = section is not TrainingArguments or name not in HARMLESS_TRAINING_FIELDS
    return described.metadata.get("changes_result", default)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _safe(text: str) -> str:
    """`text` for a path and for Hydra's grammar; a hash is added where characters were lost."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return text if safe == text else f"{safe.strip('-.')[:24]}-{_hash(text)}"


def _matters(config: DictConfig, key: str) -> bool:
    """Whether the key, `section.field` or deeper, is part of the run's identity."""
    if "." not in key:
        return True  # a group's choice
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if name in EVALUATION_CADENCE:
        return bool(config.training.load_best_model_at_end)
    metric = config.training.metric_for_best_model or "loss"
    best_by_task = config.training.load_best_model_at_end and not metric.endswith(
        FIGURES
    )
    if section == "evaluation" and not best_by_task:
        return False
    known = sections().get(section)
    return known is not None and changes_result(known, name)


def _short(key: str) -> str:
    if key in SHORT:
        return SHORT[key]
    for prefix, short in SHORT_PREFIXES.items():
        if key.startswith(prefix):
            return _safe(short + key.removeprefix(prefix))
    return _safe(key)


def _text(value: Any) -> str:
    """A value as short text, the same for equal values."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(
        value, dict
    ):  # keys of any kind: what they should be is checked later
        value = {str(key): value[key] for key in value}
    return json.dumps(value, sort_keys=True)


def run_name(config: DictConfig, overrides: list[str]) -> str:
    """`seed-<seed>` and the result-changing `overrides`, sorted: `seed-42_lr-0.001`.

    `overrides` are the command line's, as Hydra records them; their values are read from
    the composed `config`, so that `1e-3` and `0.001` are the same run.
    """
    keys = {
        o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)
    }
    parts = []
    for key, override in sorted(keys.items()):
        if key in ("model", "dataset", "training.seed") or not _matters(config, key):
            continue
        value = override.value()
        if "." in key and OmegaConf.select(config, key) is not None:
            value = OmegaConf.select(config, key)
        parts.append(f"{_short(key)}-{_safe(_text(value))}")
    name = "_".join([f"seed-{config.training.seed}", *parts])
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[:MAX_NAME_LENGTH - 9]}-{_hash(name)}"
    return name


def group_name(tag: str) -> str:
    """`<tag>-<model>-<dataset>`; a group that was not chosen is called `custom`."""
    choices = HydraConfig.get().runtime.choices
    chosen = (choices.get(group) or "custom" for group in ("model", "dataset"))
    return "-".join(
        [_safe(tag), *(_safe(choice.replace("/", "-")) for choice in chosen)]
    )


def identity(config: DictConfig) -> dict[str, Any]:
    """The result-changing settings of a composed configuration, flat: {"data.block_size": 512}."""
    flat = {}
    for section in sections():
        values = OmegaConf.to_container(config[section], resolve=True, enum_to_str=True)
        for name, value in values.items():
            if _matters(config, f"{section}.{name}"):
                flat[f"{section}.{name}"] = value
    return flat


def defaults() -> dict[str, Any]:
    """The dataclasses' own values of all keys: what a record without a key stands for."""
    return {
        f"{section}.{name}": field.default
        for section, cls in sections().items()
        for name, field in cls.__dataclass_fields__.items()
        if field.default is not dataclasses.MISSING
    }


def refuse_missing_choice(config: DictConfig) -> None:
    """Raise `UserError`, listing what there is, for a run without a model or without data."""
    groups = group_choices()
    lacking = []
    if not (config.model.model_type or config.model.model_name_or_path):
        lacking.append(
            f"no model: choose one with +model=… ({', '.join(groups['model'])}),"
            " or give model.model_type= or model.model_name_or_path="
        )
    data = config.data
    if not (data.train_file or data.validation_file or data.dataset_name):
        lacking.append(
            f"no data: choose it with +dataset=… ({', '.join(groups['dataset'])}),"
            " or give data.train_file= or data.dataset_name="
        )
    if lacking:
        raise UserError("\n".join(lacking))


OmegaConf.register_new_resolver(
    "run_name",
    lambda *, _root_: run_name(_root_, list(HydraConfig.get().overrides.task)),
    replace=True,
)
OmegaConf.register_new_resolver("group_name", group_name, replace=True)
