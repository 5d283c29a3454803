"""Results on disk: `scores.json`, and the files that the challenge's pipeline writes.

    results/<model>/<revision>/scores.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/best_temperature_report.txt
    results/<model>/<revision>/finetune/<task>/{predictions.json,results.txt}

All but the first are as babylm-org/babylm-eval of July 2026 writes them, so that its
`collate_preds` reads them. A folder belongs to one model, told by the checksum of its files.
They are what the challenge asks for. What other rules give lies apart, in a folder of their
own that has all of this again (see `place`): `results/2025/<model>/…`, `results/bf16/…`.
"""

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.foundation import UserError

STANDARD_PROTOCOL = 2026
STANDARD_SEED = 42  # of the protocol's fine-tuning


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
    seed: int | None = None  # of fine-tuning; the other tasks draw nothing
    seconds: float = math.nan  # scoring and tokenizing; whoever took the time sets it


@dataclass(frozen=True)
class Subject:
    """Whose scores they are, and how they were made."""

    model: str
    revision: str  # branch of the hub, "main" for a final model
    checksum: str  # of the model's and the tokenizer's files
    backend: str  # causal, mlm or mntp
    dtype: str = "float32"
    seed: int | None = None  # of the model's training, where it is known


def place(
    results_dir: Path, protocol: int, is_bf16: bool, seed: int | None = None
) -> Path:
    """Where the results of these rules lie: below a folder that names what is unusual.

    So rules never replace or mix with each other, and all are there to go back to.

    Args:
        is_bf16: whether bfloat16 was asked for.
        seed: of fine-tuning.
    """
    unusual = {
        str(protocol): protocol != STANDARD_PROTOCOL,
        "bf16": is_bf16,
        f"seed-{seed}": seed not in (None, STANDARD_SEED),
    }
    names = [name for name, is_so in unusual.items() if is_so]
    return results_dir / "_".join(names) if names else results_dir


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
        raise UserError(
            f"{file} is no record of scores ({error}): delete {file.parent} to score the"
            " model again, or choose another folder for the results"
        ) from error
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
    data_checksum: str | None,
    seed: int | None = None,
) -> dict[str, Any] | None:
    """The entry of a task that was scored in the same way on the same data, if any.

    Args:
        data_checksum: None for whatever data.
        seed: of fine-tuning.
    """
    entry = record["scores"].get(subject.backend, {}).get(task)
    wanted = {"protocol": protocol, "dtype": subject.dtype, "seed": seed}
    if data_checksum is not None:
        wanted["data_checksum"] = data_checksum
    if entry is None or any(entry.get(key) != value for key, value in wanted.items()):
        return None
    return entry


def write_result(
    results_dir: Path,
    subject: Subject,
    result: Result,
    float32_dir: Path | None = None,
) -> dict[str, Any]:
    """Adds a result to the model's folder, and returns its entry.

    With the results in float32, `float32_dir`, it says how many choices differ from theirs.
    The official files come first, the record last: while files are replaced it tells of
    nothing that is not wholly there.
    """
    record = read_record(results_dir, subject)
    file = scores_file(results_dir, subject)
    is_tuned = result.folder.startswith("finetune")
    place = file.parent if is_tuned else file.parent / "zero_shot" / subject.backend
    folder = place / result.folder
    entries = record["scores"].setdefault(subject.backend, {})
    entries.pop(result.task, None)
    changed = None
    if float32_dir is not None and not is_tuned:
        changed = _num_changed(float32_dir, subject, result)
    _write(file, record)
    for name, content in result.files.items():
        _write(folder / name, content)
    entries[result.task] = {**_entry(result, subject), "choices_changed": changed}
    _write(file, record)
    return entries[result.task]


def _entry(result: Result, subject: Subject) -> dict[str, Any]:
    return {
        "score": _number(result.score),
        "protocol": result.protocol,
        "items": result.num_items,
        "ties": result.num_ties,
        "too_long": list(result.too_long),
        "seconds": _number(result.seconds),
        "seed": result.seed,
        "dtype": subject.dtype,
        "data_checksum": result.data_checksum,
        "subscores": {
            group: {name: _number(value) for name, value in values.items()}
            for group, values in result.subscores.items()
        },
    }


def _num_changed(float32_dir: Path, subject: Subject, result: Result) -> int | None:
    """How many choices differ from those in float32; None where there are none of this
    model by the same protocol on the same data."""
    exact = replace(subject, dtype="float32")
    keys = (result.task, result.protocol, result.data_checksum)
    try:
        stored = find_stored(read_record(float32_dir, exact), exact, *keys)
    except UserError:  # another model's
        return None
    folder = scores_file(float32_dir, exact).parent / "zero_shot" / subject.backend
    file = folder / result.folder / "predictions.json"
    if stored is None or not file.is_file():
        return None
    try:
        old = _choices(json.loads(file.read_text(encoding="utf-8")))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # written by somebody else
        return None
    new = _choices(result.files["predictions.json"])
    if not all(isinstance(choice, str) for choice in new.values()):
        return None  # surprisals: all of them differ a little
    return sum(old.get(key) != choice for key, choice in new.items())


def _choices(predictions: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """(part, id) → what was chosen there."""
    return {
        (part, item["id"]): item["pred"]
        for part, content in predictions.items()
        for item in content["predictions"]
    }


def _model(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.model,
        "revision": subject.revision,
        "checksum": subject.checksum,
        "seed": subject.seed,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _strict(content: Any) -> Any:
    """The same with null for NaN, which no JSON is: the official scripts skip either."""
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_strict(value) for value in content]
    return _number(content) if isinstance(content, float) else content


def _write(file: Path, content: Any) -> None:
    """Text as it is, anything else as JSON; complete under its name, or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        indent = 2 if file.name == "scores.json" else None
        content = json.dumps(_strict(content), indent=indent, allow_nan=False)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, file)
