"""The runs of a report: everything that is on disk about them.

A run that is going on, that was killed, or that has damaged files is read as far as possible.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.evaluation.models import (
    Checkpoint,
    list_below,
    local_checkpoint,
    matching,
    model_folder,
    natural_order,
)
from src.evaluation.results import Entry
from src.foundation import UserError, fault_by_manifest, first_line
from src.training.record.checkpoints import checkpoints
from src.training.record.ledger import FILE as LEDGER

# Rows of a run's log and of its ledger that are kept. More would not be seen in a figure, and 200
# runs of 10,000 rows would take more than 2 GB.
MAX_ROWS = 600
# The errors of a file that is cut off or holds something else than expected.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)
# The parser in C is ten times as fast, but not every build of PyYAML has it.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunData:
    """What is on disk about a run. What does not exist or cannot be read is empty.

    Attributes:
        directory: the directory of the run.
        name: `<group>/<name>`.
        config: `config.yaml`, nested: `config["training"]["seed"]`.
        record: `run.json`.
        results: `results.json`; {} for a run that is not finished.
        logs: rows of the Trainer's log, from the newest readable checkpoint. All evaluations are
            kept, but of the other rows at most `MAX_ROWS`.
        ledger: at most `MAX_ROWS` rows of `words.jsonl`.
        scores: revision ("main", "chck_1M", "checkpoint-500") -> task -> entry of `scores.json`.
        words: revision -> words seen, ascending, for scored and for stored models. Revisions
            whose number of words is unknown are left out.
        folders: revision -> folder of its `scores.json`; official predictions lie below it.
        faults: a line for each file that could not be read, which names the file.
    """

    directory: Path
    name: str
    config: dict[str, Any]
    record: dict[str, Any]
    results: dict[str, Any]
    logs: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    scores: dict[str, dict[str, Entry]]
    words: dict[str, int]
    folders: dict[str, Path]
    faults: list[str]


def find_runs(patterns: str | list[str], results_dir: Path) -> list[RunData]:
    """Return the runs with these names, each once, in the order of patterns, names and numbers.

    Args:
        patterns: directories or globs of runs, or of groups of runs (`exp/run-*`).
        results_dir: folder of the scores, as `src.run_eval` writes them.

    Raises:
        UserError: there is no run with a name (the message lists runs that exist), or two runs
            would share one folder of results.
    """
    runs: dict[str, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = [
            path
            for match in matching(pattern)
            for path in ([match] if _is_run(match) else sorted(match.glob("*")))
            if _is_run(path)
        ]
        if not paths:
            listed = list_below(Path(pattern).expanduser(), _is_run, "run")
            raise UserError(f"{pattern} is no run (a folder with a run.json); {listed}")
        for path in sorted(paths, key=natural_order):
            model = model_folder(local_checkpoint(path).model)
            other = runs.setdefault(model, path)
            if other.resolve() != path.resolve():
                both = f"{other} and {path}"
                raise UserError(f"{both} would share one folder in results_dir")
    return [read_run(path, results_dir / model) for model, path in runs.items()]


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def read_run(directory: Path, results: Path) -> RunData:
    """Return what is on disk about one run.

    Args:
        results: the folder of its results, which holds a folder for each revision.
    """
    faults: list[str] = []
    logs: list[dict[str, Any]] = []
    for checkpoint in checkpoints(directory):
        state = _read(checkpoint / "trainer_state.json", faults)
        if logs := [row for row in state.get("log_history") or [] if "step" in row]:
            break
    evaluations = [row for row in logs if "eval_loss" in row]
    logs = _thinned([row for row in logs if "eval_loss" not in row]) + evaluations
    final = directory / "results.json"
    fault = final.exists() and fault_by_manifest(directory, ["results.json"])
    if fault:
        faults.append(f"{directory} {fault}")
    scores, folders = {}, {}
    for file in sorted(results.glob("*/scores.json")):
        by_backend = _read(file, faults, _read_scores)
        if by_backend:
            scores[file.parent.name] = by_backend
            folders[file.parent.name] = file.parent
    whole = directory.resolve()
    run = RunData(
        directory=directory,
        name=f"{whole.parent.name}/{whole.name}",
        config=_read(directory / "config.yaml", faults, _read_yaml),
        record=_read(directory / "run.json", faults),
        results={} if fault else _read(final, faults),
        logs=sorted(logs, key=lambda row: row["step"]),
        ledger=_read_ledger(directory / LEDGER, faults),
        scores=scores,
        words={},
        folders=folders,
        faults=faults,
    )
    run.words.update(sorted(_words(run).items(), key=lambda item: item[1]))
    return run


def _read(
    file: Path, faults: list[str], parse: Callable[[str], Any] = json.loads
) -> dict[str, Any]:
    """Return the content of a file, {} if it does not exist; add to `faults` if it is damaged."""
    try:
        content = parse(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (OSError, *MALFORMED) as error:
        faults.append(f"{file} cannot be read: {first_line(error)}")
        return {}
    return content


def _read_yaml(text: str) -> Any:
    return yaml.load(text, YAML_LOADER)


def _read_scores(text: str) -> dict[str, Entry]:
    """Return the entries of a `scores.json`: task -> entry.

    If a model was scored by several backends, the name of a task that an earlier backend has
    is followed by its backend.
    """
    entries: dict[str, Entry] = {}
    for backend, tasks in json.loads(text)["scores"].items():
        for task, entry in tasks.items():
            if {"score", "protocol", "subscores"} - entry.keys():
                raise ValueError(f"the entry of {task} is not complete")
            entries[f"{task} ({backend})" if task in entries else task] = entry
    return entries


def _read_ledger(file: Path, faults: list[str]) -> list[dict[str, Any]]:
    """Return rows of the ledger. Only the rows that are kept are parsed.

    A last row that a kill has cut off is left out without a fault.
    """
    rows = []
    text = file.read_bytes() if file.is_file() else b""
    for line in _thinned(text.split(b"\n")[:-1]):
        try:
            row = json.loads(line)
            rows += [row] if min(row["step"], row["words"]) >= 0 else []
        except MALFORMED:
            faults.append(f"{file} is damaged: {line[:40]!r}")
    return rows


def _thinned(rows: list[Any]) -> list[Any]:
    """Return at most `MAX_ROWS` rows, half of them dense in the beginning, for a log axis."""
    last, half = len(rows) - 1, MAX_ROWS // 2
    if last < MAX_ROWS:
        return rows
    kept = np.concatenate(
        [np.geomspace(1, last + 1, half) - 1, np.linspace(0, last, half)]
    )
    return [rows[index] for index in np.unique(kept.round().astype(int))]


def _words(run: RunData) -> dict[str, int]:
    """Return the number of words that each revision of a run has seen.

    For a checkpoint it follows from the nearest row of the ledger, or else of the log.
    """
    stored = [
        p.name
        for p in run.directory.glob("ch*k*")
        if re.match("ch(eckpoint-|ck_)", p.name)
    ]
    rows = run.ledger or [row for row in run.logs if "words" in row]
    rows = [row for row in rows if row["step"]]
    words = {}
    for revision in {*run.scores, *stored}:
        if revision.startswith("checkpoint-") and rows:
            step = int(revision.removeprefix("checkpoint-"))
            near = min(
                rows, key=lambda row: abs(math.log((row["step"]) / max(1, step)))
            )
            words[revision] = round(near["words"] * step / near["step"])
        elif revision.startswith("chck_"):
            seen = Checkpoint(
                run.directory / revision, run.name, revision, ""
            ).words_seen
            words |= {revision: seen} if seen is not None else {}
    last = run.results.get("words_seen")
    return words | ({"main": last} if last is not None else {})
