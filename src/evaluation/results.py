"""Results on disk: `scores.json`, and the files that the challenge's pipeline writes.

    results/<model>/<revision>/scores.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/best_temperature_report.txt
    results/<model>/<revision>/finetune/<task>/{predictions.json,results.txt}

All but the first are as babylm-org/babylm-eval of July 2026 writes them, so that its
`collate_preds` reads them. A folder belongs to one model, told by the checksum of its files.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.arguments import UserError


@dataclass(frozen=True)
class Result:
    """What one model makes of one task.

    `score` and `subscores` are percents, or correlations × 100. `files` are the official
    files of the task, name → text or JSON content, which go to `folder` below the backend
    (fine-tuning's, finetune/<task>, beside zero_shot).
    """

    task: str
    folder: str
    protocol: int
    score: float
    num_items: int
    num_ties: int = 0
    too_long: tuple[
        str, ...
    ] = ()  # official ids of what no model of this length can read
    subscores: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    data_checksum: str = ""
    seconds: float = math.nan  # scoring and tokenizing; whoever took the time sets it


@dataclass(frozen=True)
class Subject:
    """Whose scores they are, and how they were made."""

    model: str
    revision: str  # branch of the hub, "main" for a final model
    checksum: str  # of the model's and the tokenizer's files
    backend: str  # causal, mlm or mntp
    dtype: str = "float32"


def model_folder(model: str) -> str:
    """The model's folder: what `collate_preds --model_path_or_name=<it>` looks for.

    The official scripts cut a name at its last dot; with none, `lr-0.001` and `lr-0.002`
    stay apart.
    """
    return Path(model).name.replace(".", "_")


def scores_file(results_dir: Path, subject: Subject) -> Path:
    return results_dir / model_folder(subject.model) / subject.revision / "scores.json"


def read_record(results_dir: Path, subject: Subject) -> dict[str, Any]:
    """What the folder holds of this model; an empty record where there is none.

    Raises `UserError` where the folder is another model's, or nobody knows whose.
    """
    file = scores_file(results_dir, subject)
    if not file.exists():
        if (file.parent / "zero_shot").exists():
            raise UserError(
                f"{file.parent} holds scores without a scores.json: whose they are is not"
                " known; move them away or choose another folder for the results"
            )
        return {"model": _model(subject), "scores": {}}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        checksum = record["model"]["checksum"]
        record["scores"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no record of scores: {error!r}") from error
    if checksum != subject.checksum:
        raise UserError(
            f"{file.parent} holds the scores of another model: {record['model']}, now"
            f" {_model(subject)}; move them away or choose another folder for the results"
        )
    return record


def find_stored(
    record: dict[str, Any],
    subject: Subject,
    task: str,
    protocol: int,
    data_checksum: str,
) -> dict[str, Any] | None:
    """The entry of a task that was scored in the same way on the same data, if any."""
    entry = record["scores"].get(subject.backend, {}).get(task)
    wanted = {
        "protocol": protocol,
        "dtype": subject.dtype,
        "data_checksum": data_checksum,
    }
    if entry is None or any(entry.get(key) != value for key, value in wanted.items()):
        return None
    return entry


def write_results(
    results_dir: Path,
    subject: Subject,
    results: Iterable[Result],
    seed: int | None = None,
) -> Path:
    """Adds results to the model's folder; the official files first, the record last.

    Args:
        seed: that of the model's training, where it is known.
    """
    record = read_record(results_dir, subject)
    file = scores_file(results_dir, subject)
    zero_shot = file.parent / "zero_shot" / subject.backend
    entries = record["scores"].setdefault(subject.backend, {})
    # While files are replaced the record tells of nothing that is not wholly there.
    results = list(results)
    for result in results:
        entries.pop(result.task, None)
    _write(file, record)
    for result in results:
        tuned = result.folder.startswith("finetune")
        folder = (file.parent if tuned else zero_shot) / result.folder
        for name, content in result.files.items():
            _write(folder / name, content)
        entries[result.task] = entry(result, subject, seed)
    _write(file, record)
    return file


def entry(result: Result, subject: Subject, seed: int | None = None) -> dict[str, Any]:
    """A task's entry of `scores.json`."""
    return {
        "score": _number(result.score),
        "protocol": result.protocol,
        "items": result.num_items,
        "ties": result.num_ties,
        "too_long": list(result.too_long),
        "seconds": _number(result.seconds),
        "seed": seed,
        "dtype": subject.dtype,
        "data_checksum": result.data_checksum,
        "subscores": {
            group: {name: _number(value) for name, value in values.items()}
            for group, values in result.subscores.items()
        },
    }


def _model(subject: Subject) -> dict[str, str]:
    return {
        "name": subject.model,
        "revision": subject.revision,
        "checksum": subject.checksum,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _write(file: Path, content: Any) -> None:
    """Text as it is, anything else as JSON; complete under its name, or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        indent = 2 if file.name == "scores.json" else None
        content = json.dumps(content, indent=indent)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, file)
