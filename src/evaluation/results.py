"""Results on disk: `scores.json`, and the files that the challenge's pipeline writes.

    results/<model>/<revision>/scores.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/best_temperature_report.txt
    results/<model>/<revision>/finetune/<task>/{predictions.json,results.txt}

All files but `scores.json` have the layout of babylm-org/babylm-eval (July 2026), so that its
`collate_preds` reads them. The folder of a revision belongs to one model, which `scores.json`
identifies by the checksum of its files. Results by other rules than the challenge's have the
same layout in a folder of their own: `results/2025/<model>/…`, `results/bf16/<model>/…`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.foundation import UserError, write_atomically

STANDARD_PROTOCOL = 2026
STANDARD_SEED = 42  # of the protocol's fine-tuning

Entry = dict[str, Any]  # the result of one task in `scores.json`


@dataclass(frozen=True)
class Result:
    """The result of one model on one task.

    Args:
        folder: folder of the official files, below the backend's for zero-shot tasks and
            below the revision's for fine-tuning (`finetune/<task>`).
        score, subscores: percentages, or correlations × 100; NaN where undefined.
        too_long: official ids of the items that exceed the model's context.
        files: official files: name → text or JSON content.
        seed: seed of fine-tuning; None for tasks without randomness.
        seconds: time for tokenizing and scoring.
    """

    task: str
    folder: str
    protocol: int
    score: float
    num_items: int
    num_ties: int = 0
    too_long: tuple[str, ...] = ()
    subscores: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    data_checksum: str = ""
    seed: int | None = None
    seconds: float = math.nan


@dataclass(frozen=True)
class ResultKey:
    """The model that was scored, and the way it was scored."""

    model: str
    revision: str  # branch of the hub, "main" for a final model
    checksum: str  # of the model's and the tokenizer's files
    backend: str  # causal, mlm or mntp
    dtype: str = "float32"
    seed: int | None = None  # of the model's training, if known


@dataclass(frozen=True)
class ResultsFolder:
    """The results of all models by one set of rules.

    Args:
        results_dir: folder for results by any rules.
        is_bf16: whether scoring in bfloat16 was requested.
        seed: seed of fine-tuning; None for the tasks without randomness.
    """

    results_dir: Path
    protocol: int = STANDARD_PROTOCOL
    is_bf16: bool = False
    seed: int | None = None

    @property
    def path(self) -> Path:
        """The folder, named by each rule that differs from the challenge's."""
        names = []
        if self.protocol != STANDARD_PROTOCOL:
            names.append(str(self.protocol))
        if self.is_bf16:
            names.append("bf16")
        if self.seed not in (None, STANDARD_SEED):
            names.append(f"seed-{self.seed}")
        return self.results_dir / "_".join(names)

    def of_model(self, key: ResultKey) -> Path:
        """Return the folder of one revision of one model."""
        return self.path / model_folder(key.model) / key.revision

    def read(self, key: ResultKey) -> dict[str, Any]:
        """Return the content of a model's `scores.json`, without scores if there is none.

        Raises:
            UserError: the file is damaged, or the folder belongs to another or to an
                unknown model.
        """
        folder = self.of_model(key)
        file = folder / "scores.json"
        model = {
            "name": key.model,
            "revision": key.revision,
            "checksum": key.checksum,
            "seed": key.seed,
        }
        if not file.exists():
            if (folder / "zero_shot").exists():
                raise UserError(
                    f"{folder} holds scores without a scores.json, so their model is not"
                    " known; move them away or choose another folder for the results"
                )
            return {"model": model, "scores": {}}
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            checksum = record["model"]["checksum"]
            record["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is no record of scores ({error}): delete {folder} to score the"
                " model again, or choose another folder for the results"
            ) from error
        if checksum != key.checksum:
            raise UserError(
                f"{folder} holds the scores of another model: {record['model']}, now"
                f" {model}; move them away or choose another folder for the results"
            )
        return record

    def find(
        self, key: ResultKey, checksums: Mapping[str, str | None]
    ) -> dict[str, Entry]:
        """Return the entries of the tasks that were scored in the same way on the same data.

        Args:
            checksums: task → checksum of its data; None accepts any data.
        """
        stored = self.read(key)["scores"].get(key.backend, {})
        rules = {"protocol": self.protocol, "dtype": key.dtype, "seed": self.seed}
        found = {}
        for task, checksum in checksums.items():
            entry = stored.get(task)
            wanted = dict(rules)
            if checksum is not None:
                wanted["data_checksum"] = checksum
            if entry and all(entry.get(name) == wanted[name] for name in wanted):
                found[task] = entry
        return found

    def write(self, key: ResultKey, result: Result) -> Entry:
        """Add a result to the model's folder and return its entry in `scores.json`.

        The old entry is removed before the official files are replaced, and the new one
        written after them: an entry always describes complete files.
        """
        record = self.read(key)
        file = self.of_model(key) / "scores.json"
        entries = record["scores"].setdefault(key.backend, {})
        entries.pop(result.task, None)
        entry = {
            "score": float(result.score),
            "protocol": result.protocol,
            "items": result.num_items,
            "ties": result.num_ties,
            "too_long": result.too_long,
            "seconds": float(result.seconds),
            "seed": result.seed,
            "dtype": key.dtype,
            "data_checksum": result.data_checksum,
            "subscores": {
                group: {name: float(value) for name, value in values.items()}
                for group, values in result.subscores.items()
            },
            "choices_changed": self._num_choices_changed(key, result),
        }
        _write(file, record)
        for name, content in result.files.items():
            _write(self._official_folder(key, result) / name, content)
        entries[result.task] = _without_nan(entry)
        _write(file, record)
        return entries[result.task]

    def _official_folder(self, key: ResultKey, result: Result) -> Path:
        folder = self.of_model(key)
        if not result.folder.startswith("finetune"):
            folder = folder / "zero_shot" / key.backend
        return folder / result.folder

    def _num_choices_changed(self, key: ResultKey, result: Result) -> int | None:
        """Return how many of a result's choices in bfloat16 differ from those in float32.

        None for other results, and where float32 results of the same model on the same data
        do not exist or cannot be read.
        """
        if not self.is_bf16 or result.folder.startswith("finetune"):
            return None
        exact, exact_key = replace(self, is_bf16=False), replace(key, dtype="float32")
        file = exact._official_folder(exact_key, result) / "predictions.json"
        try:
            if not exact.find(exact_key, {result.task: result.data_checksum}):
                return None
            old = _choices(json.loads(file.read_text(encoding="utf-8")))
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        new = _choices(result.files["predictions.json"])
        if not all(isinstance(choice, str) for choice in new.values()):
            return None  # surprisals, which all differ a little
        return sum(old.get(item) != choice for item, choice in new.items())


def model_folder(model: str) -> str:
    """Return the name of a model's folder, as `collate_preds --model_path_or_name` needs it.

    The official scripts cut a name at its last dot. Without dots, `lr-0.001` and `lr-0.002`
    stay different.
    """
    return Path(model).name.replace(".", "_")


def _choices(predictions: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return (part of the task, id) → prediction from the content of predictions.json."""
    return {
        (part, item["id"]): item["pred"]
        for part, content in predictions.items()
        for item in content["predictions"]
    }


def _without_nan(content: Any) -> Any:
    """Return JSON content with null for NaN: NaN is not JSON, the official scripts skip both."""
    return json.loads(json.dumps(content), parse_constant=lambda name: None)


def _write(file: Path, content: Any) -> None:
    """Write text, or other content as strict JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        indent = 2 if file.name == "scores.json" else None
        content = json.dumps(_without_nan(content), indent=indent)
    write_atomically(file, content)
