"""The submission form and the model card, filled in from a run.

Numbers have the units that the server reads: parameters, words and FLOPs are raw counts, which the
server shows as millions and in units of 1e15. Fields that only the team can answer are marked. The
team answers in `form.json`, and the next export keeps these answers and writes `form.md` from them.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from src.arguments import defaults
from src.entry.checks import Run
from src.entry.rules import Track
from src.evaluation.models import model_folder
from src.evaluation.table import table
from src.foundation import UserError, read_json, write_atomically
from src.training.record.ledger import FILE, read_ledger

logger = logging.getLogger(__name__)

FOR_THE_TEAM = "(for the team to fill in)"
# The options that have a field of their own, and those that say nothing about the model.
SHOWN = [
    *("training.do_train", "training.do_eval", "training.greater_is_better"),
    *("model.model_type", "model.model_name_or_path"),
    *("tokenizer.name_or_path", "tokenizer.vocab_size", "data.block_size"),
    *("data.train_file", "data.validation_file", "data.dataset_name", "training.seed"),
    *("training.optim", "training.optimizer", "training.num_train_epochs"),
    *(
        "training.learning_rate",
        "training.lr_scheduler_type",
        "training.tokens_per_step",
    ),
    *("training.per_device_train_batch_size", "training.gradient_accumulation_steps"),
]
# The server divides these counts by a million or more.
COUNTS = ("num_parameters", "num_words_data", "flops")
# The official collate script gives the file of predictions this name.
PREDICTIONS_FILE = "all_full_preds_and_fast_scores_causal.json"


def build_form(run: Run, track: Track, name: str, before: Path) -> dict[str, Any]:
    """Return the fields of the submission form.

    Args:
        name: the repository on the hub.
        before: `form.json` of an earlier export. Its values are kept.

    Raises:
        UserError: `before` is damaged, or the team changed a count to another unit.
    """
    training, model = run.config["training"], read_json(run.directory / "config.json")
    tokenizer = run.config["tokenizer"]["name_or_path"]
    batch = training["tokens_per_step"] or (
        f"{training['per_device_train_batch_size']} sequences x"
        f" {training['gradient_accumulation_steps'] or 1} per device"
    )
    optimizer = training["optimizer"]
    weights = run.config["model"]["model_name_or_path"]
    of_group = map(gpu_hours, run.directory.parent.glob("*"))
    form = {
        "model_name": name,
        "revision": "main",
        "hf_repo": name,
        "track": track.name,
        "predictions_file": f"predictions/{model_folder(name)}/{PREDICTIONS_FILE}",
        "model_type": "decoder",
        "main_contributions": FOR_THE_TEAM,
        "base_model": weights or "none",
        "architecture": model["architectures"][0],
        "optimizer": training["optim"] if optimizer == "adamw" else optimizer,
        "learning_rate": training["learning_rate"],
        "learning_rate_scheduler": training["lr_scheduler_type"],
        "batch_size": batch,
        "training_epochs": round(run.results["epochs"], 2),
        "seed": training["seed"],
        "tokenizer": tokenizer or "byte-level BPE, trained on the same text",
        "token_set_size": model["vocab_size"],
        "num_layers": _first(model, "num_hidden_layers", "n_layer", "num_layers"),
        "num_heads": _first(model, "num_attention_heads", "n_head", "num_heads"),
        "max_seq_length": run.config["data"]["block_size"],
        "num_parameters": _num_parameters(run.directory),
        "flops": int(run.results.get("total_flos", 0)),
        # In hours of all GPUs; the second one is of all runs of the group.
        "gpu_train": gpu_hours(run.directory),
        "gpu_dev": round(sum(of_group), 3),
        "training_data": run.config["data"]["train_file"]
        or run.config["data"]["dataset_name"],
        "num_words_data": run.results.get("corpus_words", FOR_THE_TEAM),
        "data_genre": FOR_THE_TEAM,
        "data_preprocessing": FOR_THE_TEAM,
        "data_human_annotation": FOR_THE_TEAM,
        "data_syn_aug": FOR_THE_TEAM,
        "model_description": FOR_THE_TEAM,
        "other_hyp": _other_settings(run.record["identity"]),
        "teacher_models": "none" if not weights else FOR_THE_TEAM,
    }
    earlier = read_json(before)
    for field, value in earlier.items():
        computed = form.get(field)
        if value == computed or value == FOR_THE_TEAM:
            continue
        is_count = field in COUNTS and computed != FOR_THE_TEAM
        if is_count and (type(value) is not int or value < computed / 100):
            raise UserError(
                f"{before}: {field} must be a raw count such as {computed}, got {value!r}"
            )
        if computed != FOR_THE_TEAM:
            logger.warning(
                "warning: %s: %s=%s is kept (computed: %s); delete it to get that",
                *(before, field, value, computed),
            )
        form[field] = value
    return form


def describe_form(form: Mapping[str, Any]) -> str:
    """Return the form as a table in Markdown."""
    rows = [f"| {field} | {value} |" for field, value in form.items()]
    return "\n".join(["| field | value |", "|---|---|", *rows, ""])


def write_card(
    run: Run, file: Path, form: Mapping[str, Any], license: str, entries: Any
) -> None:
    """Write the model card: the run's card with the licence and the challenge's scores.

    Args:
        entries: task -> entry of `scores.json` of the final model.
    """
    card = ModelCard.load(run.directory / "README.md")
    card.data.license = license
    milestones = ", ".join(path.name for path in run.milestones) or "none"
    paragraphs = [
        card.text.rstrip(),
        f"## BabyLM challenge, {form['track']}",
        f"Branches with checkpoints by words seen: {milestones}. Load one with"
        f' `AutoModelForCausalLM.from_pretrained("{form["hf_repo"]}", revision=…)`.',
        f"```\n{table(entries)}\n```\n",
    ]
    card.text = "\n\n".join(paragraphs)
    write_atomically(file, str(card))


def gpu_hours(run_dir: Path) -> float:
    """Return the hours of training summed over all GPUs of a run, from its ledger."""
    rows, config = read_ledger(run_dir / FILE), run_dir / "config.yaml"
    if (
        not config.is_file()
        or yaml.safe_load(config.read_text())["training"]["use_cpu"]
    ):
        return 0.0
    return round(rows[-1]["device_seconds"] / 3600, 3) if rows else 0.0


def _num_parameters(directory: Path) -> int:
    """Return the number of parameters, from the headers of the stored weights."""
    from safetensors import safe_open

    total = 0
    for file in directory.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                total += math.prod(weights.get_slice(name).get_shape())
    return total


def _other_settings(identity: Mapping[str, Any]) -> str:
    """Return the settings of a run that differ from the defaults: "weight_decay=0.1, …".

    Those that have a field of their own are left out.
    """
    known = defaults()
    return ", ".join(
        f"{key.partition('.')[2]}={value}"
        for key, value in identity.items()
        if key not in SHOWN and value != known.get(key, value)
    )


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of these names that a configuration has, or None."""
    return next((config[name] for name in names if name in config), None)
