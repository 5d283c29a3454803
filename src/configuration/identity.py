"""The identity of a run: its name, and the settings that make two runs different.

The directory of a run is `exp/<tag>-<model>-<dataset>/<name>`. The name is the seed, followed
by the overrides that change the result (`seed-42_lr-0.001`), so that runs with different
overrides never share a directory. If a YAML file or the text changes, the name stays the same.
Therefore the identity is written to `run.json` when a run begins, and compared with the present
one when it continues.
"""

import hashlib
import re
from typing import Any, Mapping

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from src.arguments import is_text_figure
from src.configuration.schema import as_text, options, sections

# Prefixes of keys, and their short forms in the names of runs. The first match counts.
SHORT_FORMS = {
    "training.learning_rate": "lr",
    "training.num_train_epochs": "epochs",
    "training.per_device_train_batch_size": "batch",
    "training.gradient_accumulation_steps": "accumulation",
    "training.": "",
    "data.": "",
    "model.config_overrides": "config",
}
# Options that change a result only if evaluations choose the best model.
EVALUATION_TIMES = {"eval_strategy", "eval_steps", "eval_delay"}
NEUTRAL_GROUPS = {"milestones", "launcher", "sweep"}
MAX_NAME_LENGTH = 120

# Options of Hugging Face's TrainingArguments that change neither weights nor reported numbers.
# All other options, also those of future releases, count as changing the result: an unneeded
# directory does little harm, but two different runs in one directory give wrong numbers.
HARMLESS_TRAINING_OPTIONS = frozenset(
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


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change a run's result, flat: {"data.block_size": 512}.

    Args:
        values: the resolved values of all sections, nested and plain.
    """
    settings = {}
    for key in options():
        section, name = key.split(".")
        if _changes_result(key, values["training"]):
            settings[key] = values[section][name]
    return settings


def run_name(*, _root_: DictConfig) -> str:
    """Return the name of a run: the seed and the overrides that change its result, sorted.

    Args:
        _root_: the whole configuration, which OmegaConf passes. The values come from it, so
            that `1e-3` and `0.001` give the same name.
    """
    by_key = {}
    for override in OverridesParser.create().parse_overrides(typed_overrides()):
        key, value = override.key_or_group, override.value()
        if key in sections() and isinstance(value, dict):
            by_key.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            by_key[key] = value
    parts = [f"seed-{_root_.training.seed}"]
    for key, value in sorted(by_key.items()):
        is_shown_already = key in ("model", "dataset", "training.seed")
        if not is_shown_already and _changes_result(key, _root_.training):
            composed = OmegaConf.select(_root_, key) if "." in key else None
            value = value if composed is None else composed
            parts.append(f"{_short(key)}-{_safe(as_text(value))}")
    return _limited("_".join(parts))


def typed_overrides() -> list[str]:
    """Return the overrides as they were typed. Interpolations, as of secrets, are kept."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)


def group_name(tag: str) -> str:
    """Return `<tag>-<model>-<dataset>`, with `custom` for a group without a choice."""
    choices = HydraConfig.get().runtime.choices
    chosen = [choices.get(group) or "custom" for group in ("model", "dataset")]
    parts = [tag, *(choice.replace("/", "-") for choice in chosen)]
    return _limited("-".join(map(_safe, parts)))


def _changes_result(key: str, training: Mapping[str, Any]) -> bool:
    """Return whether two runs that differ in `key` may end with different numbers.

    Args:
        key: an option, `section.name` or deeper, or a group.
        training: the values of the section `training`.
    """
    if "." not in key:
        return key not in NEUTRAL_GROUPS  # the choice of a group
    section, name = key.split(".")[:2]
    keeps_best = bool(training["load_best_model_at_end"])
    if name in EVALUATION_TIMES:
        return keeps_best
    metric = training["metric_for_best_model"] or "loss"
    compares_average = bool(training["averaging"] and training["do_eval"])
    picks_model = keeps_best or compares_average
    if section == "evaluation" and not (picks_model and not is_text_figure(metric)):
        return False  # scores of tasks are only reported
    field = options().get(f"{section}.{name}")
    if field is None:
        return False  # an unknown key, which is refused
    is_harmless = section == "training" and name in HARMLESS_TRAINING_OPTIONS
    return field.metadata.get("changes_result", not is_harmless)


def _short(key: str) -> str:
    """Return the key in the form that the name of a run has."""
    for beginning, short in SHORT_FORMS.items():
        if key.startswith(beginning):
            return _safe(short + key.removeprefix(beginning))
    return _safe(key)


def _safe(text: str) -> str:
    """Return `text` without characters that paths or Hydra's grammar do not allow.

    If characters are replaced, a hash of the text keeps different texts apart.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return (
        text
        if safe == text
        else f"{safe.strip('-.')[:24]}-{short_hash(text)}".lstrip("-")
    )


def _limited(name: str) -> str:
    """Return a name that a file system can hold. A hash keeps long names apart."""
    is_long = len(name) > MAX_NAME_LENGTH
    return f"{name[:MAX_NAME_LENGTH - 9]}-{short_hash(name)}" if is_long else name


def short_hash(text: str) -> str:
    """Return eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


for _resolver in (run_name, group_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
