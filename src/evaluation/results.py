"""Results on disk: `scores.json`, and the files that the challenge's pipeline writes.

    results/<model>/<revision>/scores.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
    results/<model>/<revision>/zero_shot/<backend>/<task>/<dataset>/best_temperature_report.txt
    results/<model>/<revision>/finetune/<task>/{predictions.json,results.txt}

All files except `scores.json` have the layout of babylm-org/babylm-eval (July 2026), so that its
`collate_preds` can read them. The folder of a revision belongs to one model; `scores.json` has
the checksum of the model's files. Results by other rules than the challenge's have the same layout
in a separate folder: `results/2025/<model>/…`, `results/bf16/<model>/…`.

Each entry of `scores.json` has a checksum of itself and of its official files. If one of them is
damaged, the result is not used, so that the task is scored again.
"""

import hashlib
import json
import logging
import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.evaluation.models import Checkpoint, model_folder
from src.evaluation.protocol import PROTOCOLS, STANDARD
from src.evaluation.scoring.scorer import Backend
from src.foundation import (
    UserError,
    check_folder,
    checksum_of_files,
    naming,
    write_atomically,
)

LOGGER = logging.getLogger(__name__)
STANDARD_SEED = 42  # of the protocol's fine-tuning

REMEDY = "move the folder away, or choose another results_dir"

Entry = dict[str, Any]  # the result of one task in `scores.json`


@dataclass(frozen=True)
class Result:
    """The result of one model on one task.

    Args:
        folder: folder of the official files, below the backend's for zero-shot tasks and
            below the revision's for fine-tuning (`finetune/<task>`).
        score, subscores: percentages, or correlations × 100; NaN if undefined.
        too_long: official ids of the items that exceed the model's context.
        files: name of each official file -> its text or JSON content.
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
    """The model that was scored, and the way it was scored.

    Args:
        dtype: type of the matrix products, `float32` or `bfloat16`.
    """

    checkpoint: Checkpoint
    backend: Backend
    dtype: str = "float32"


@dataclass(frozen=True)
class ResultsFolder:
    """The results of all models by one set of rules.

    Args:
        results_dir: folder for results by any rules.
        is_bf16: whether scoring in bfloat16 was requested.
        seed: seed of fine-tuning; None for the tasks without randomness.
        exact_positions: whether fine-tuning with exact positions was requested.
    """

    results_dir: Path
    protocol: int = STANDARD
    is_bf16: bool = False
    seed: int | None = None
    exact_positions: bool = False

    @property
    def path(self) -> Path:
        """The folder, named by each rule that differs from the challenge's."""
        names = {
            str(self.protocol): self.protocol != STANDARD,
            "bf16": self.is_bf16,
            f"seed-{self.seed}": self.seed not in (None, STANDARD_SEED),
            "exact_positions": self.exact_positions and self._positions is not None,
        }
        differing = [name for name, differs in names.items() if differs]
        return self.results_dir / "_".join(differing)

    @property
    def _positions(self) -> str | None:
        """The way in which fine-tuning numbers tokens; None if there is only one.

        Entries of 2026 that lack it are from versions whose positions were always exact.
        """
        if self.seed is None or not PROTOCOLS[self.protocol].shifts_positions:
            return None
        return "exact" if self.exact_positions else "from the padding"

    def check_writable(self, key: ResultKey) -> None:
        """Raise `UserError` if a model's results cannot be written. Nothing is created."""
        folder = self.of_model(key)
        with naming("results_dir"):
            check_folder(folder)
            nearest = next(path for path in (folder, *folder.parents) if path.exists())
            try:
                with tempfile.TemporaryFile(dir=nearest) as file:
                    file.write(bytes(1 << 16))  # a full disk may hold an empty file
            except OSError as error:
                fault = f"cannot write to {nearest}: {error.strerror}"
                raise UserError(fault) from error

    def of_model(self, key: ResultKey) -> Path:
        """Return the folder of one revision of one model."""
        return self.path / model_folder(key.checkpoint.model) / key.checkpoint.revision

    def read(self, key: ResultKey) -> dict[str, Any]:
        """Return the content of a model's `scores.json`, or one without scores.

        Raises:
            UserError: the file is damaged or missing although there are scores, or the folder
                belongs to another model.
        """
        folder = self.of_model(key)
        file = folder / "scores.json"
        scored = key.checkpoint
        model = {"name": scored.model, "revision": scored.revision}
        model |= {"checksum": scored.checksum, "seed": scored.seed}
        if not file.exists() and not (folder / "zero_shot").exists():
            return {"model": model, "scores": {}}
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            checksum = record["model"]["checksum"]
            record["scores"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = f"holds scores, but scores.json is missing or damaged ({error!r})"
            raise UserError(f"{folder} {fault}; {REMEDY}") from error
        if checksum != scored.checksum:
            fault = f"holds the scores of another model, {record['model']}"
            raise UserError(f"{folder} {fault}, not of {model}; {REMEDY}")
        return record

    def find(
        self, key: ResultKey, task: str, data_checksum: str | None = None
    ) -> Entry | None:
        """Return the entry of a task if it was scored in the same way on the same data.

        An entry that is damaged, or whose official files are, is left out with a warning.
        Entries of earlier versions have no checksum, and are taken as they are.

        Args:
            data_checksum: checksum of the task's data; None accepts any data.
        """
        entry = self.read(key)["scores"].get(key.backend, {}).get(task)
        if not entry:
            return None
        folder = self.of_model(key)
        if entry.get("checksum") not in (None, entry_checksum(entry, folder)):
            LOGGER.warning(
                "warning: %s/scores.json: the score of %s or its files have changed since they"
                " were written; it is not used",
                *(folder, task),
            )
            return None
        wanted = {"protocol": self.protocol, "dtype": key.dtype, "seed": self.seed}
        wanted |= {"positions": self._positions}
        wanted |= {} if data_checksum is None else {"data_checksum": data_checksum}
        is_same = all(entry.get(name) == wanted[name] for name in wanted)
        return entry if is_same else None

    def write(self, key: ResultKey, result: Result) -> Entry:
        """Add a result to the model's folder and return its entry in `scores.json`.

        The old entry is removed before the official files are replaced, and the new one is
        written after them. So an entry always describes complete files.
        """
        record = self.read(key)
        file = self.of_model(key) / "scores.json"
        entries = record["scores"].setdefault(key.backend, {})
        entries.pop(result.task, None)
        folder = _official_folder(key, result)
        entry = {
            "score": result.score,
            "protocol": result.protocol,
            "items": result.num_items,
            "ties": result.num_ties,
            "too_long": result.too_long,
            "seconds": result.seconds,
            "seed": result.seed,
            "dtype": key.dtype,
            "positions": self._positions,
            "data_checksum": result.data_checksum,
            "subscores": result.subscores,
            "files": [str(folder / name) for name in result.files],
            "choices_changed": self._num_choices_changed(key, result),
        }
        _write(file, record)
        for name, content in result.files.items():
            _write(file.parent / folder / name, content)
        entry = _without_nan(entry)
        entries[result.task] = {**entry, "checksum": entry_checksum(entry, file.parent)}
        _write(file, record)
        return entries[result.task]

    def _num_choices_changed(self, key: ResultKey, result: Result) -> int | None:
        """Return the number of choices in bfloat16 that differ from those in float32.

        It is None if the results are not choices in bfloat16, or if there are no intact results
        in float32 of the same model on the same data.
        """
        new = _choices(result.files.get("predictions.json", {})) if self.is_bf16 else {}
        if not new:
            return None
        exact, exact_key = replace(self, is_bf16=False), replace(key, dtype="float32")
        folder = exact.of_model(exact_key) / _official_folder(key, result)
        try:
            if not exact.find(exact_key, result.task, result.data_checksum):
                return None
            file = folder / "predictions.json"
            old = _choices(json.loads(file.read_text(encoding="utf-8")))
        except (UserError, OSError, ValueError):
            return None
        return sum(old.get(item) != choice for item, choice in new.items())


def _official_folder(key: ResultKey, result: Result) -> Path:
    """Return the folder of a result's official files, relative to the folder of its model."""
    if result.folder.startswith("finetune"):
        return Path(result.folder)
    return Path("zero_shot", key.backend, result.folder)


def entry_checksum(entry: Entry, folder: Path) -> str:
    """Return the SHA-256 of an entry, without the field `checksum`, and of its existing files.

    Args:
        folder: folder of the model, to which the names of the files are relative.
    """
    values = {name: value for name, value in entry.items() if name != "checksum"}
    files = [folder / name for name in entry.get("files", ())]
    of_files = checksum_of_files(file for file in files if file.is_file())
    content = json.dumps([values, of_files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _choices(predictions: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return a dictionary, (part of the task, id) -> chosen text, from predictions.json.

    Surprisals and the labels of fine-tuning are left out.
    """
    return {
        (part, item["id"]): item["pred"]
        for part, content in predictions.items()
        for item in content["predictions"]
        if isinstance(item["pred"], str)
    }


def _without_nan(content: Any) -> Any:
    """Return content with null for NaN, which JSON lacks. The official scripts skip both."""
    return json.loads(json.dumps(content), parse_constant=lambda name: None)


def _write(file: Path, content: Any) -> None:
    """Write text, or other content as strict JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        indent = 2 if file.name == "scores.json" else None
        content = json.dumps(_without_nan(content), indent=indent)
    write_atomically(file, content)
