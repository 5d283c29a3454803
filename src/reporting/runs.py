"""The runs of a report: everything that is on disk about them.

A run that is going on, that was killed, or that has damaged files is read as far as possible.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.evaluation.models import (
    list_below,
    local_checkpoint,
    matching,
    model_folder,
    natural_order,
)
from src.evaluation.results import Entry
from src.foundation import UserError, fault_by_manifest, first_line, parse_words
from src.training.record.checkpoints import checkpoints
from src.training.record.ledger import FILE as LEDGER

# Rows of a run's log and of its ledger that are kept. More would not be seen in a figure, and 200
# runs of 10,000 rows would take more than 2 GB.
MAX_ROWS = 600
# The errors of a file that is cut off or holds something else than expected.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)
# The parser in C is ten times as fast, but not every build of PyYAML has it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
YAML = functools.partial(yaml.load, Loader=LOADER)


@dataclass(frozen=True)
class RunData:
    """The files of a run, read from disk. A file that is missing or unreadable is empty.

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
        named = matching(pattern)
        below = [path for x in named if not _is_run(x) for path in x.glob("*")]
        paths = sorted(filter(_is_run, [*named, *below]), key=natural_order)
        if not paths:
            listed = list_below(Path(pattern).expanduser(), _is_run, "run")
            raise UserError(f"{pattern} is no run (a folder with a run.json); {listed}")
        for path in paths:
            other = runs.setdefault(model_folder(local_checkpoint(path).model), path)
            if other.resolve() != path.resolve():
                fault = "would share one folder in results_dir"
                raise UserError(f"{other} and {path} {fault}")
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
        if logs := [row for row in state.get("log_history", ()) if "step" in row]:
            break
    others = [row for row in logs if "eval_loss" not in row]
    logs = [*_thinned(others), *(row for row in logs if "eval_loss" in row)]
    final = _read(directory / "results.json", faults)
    if final and (fault := fault_by_manifest(directory, ["results.json"])):
        faults.append(f"{directory} {fault}")
        final = {}
    files = {file.parent.name: file for file in sorted(results.glob("*/scores.json"))}
    scores = {name: _read(file, faults, _scores) for name, file in files.items()}
    scores = {name: entries for name, entries in scores.items() if entries}
    run = RunData(
        directory,
        name="/".join(directory.resolve().parts[-2:]).encode(errors="replace").decode(),
        config=_read(directory / "config.yaml", faults, YAML),
        record=_read(directory / "run.json", faults),
        results=final,
        logs=sorted(logs, key=lambda row: row["step"]),
        ledger=_read_ledger(directory / LEDGER, faults),
        scores=scores,
        words={},
        folders={name: files[name].parent for name in scores},
        faults=faults,
    )
    run.words.update(sorted(_words(run).items(), key=lambda item: item[::-1]))
    return run


def _read(
    file: Path, faults: list[str], parse: Callable[[str], Any] = json.loads
) -> dict[str, Any]:
    """Return the content of a file, {} if it does not exist; add to `faults` if it is damaged."""
    try:
        content = parse(file.read_text(encoding="utf-8")) if file.exists() else {}
        return dict(content.items())
    except (OSError, *MALFORMED) as error:
        faults.append(f"{file} cannot be read: {first_line(error)}")
        return {}


def _scores(text: str) -> dict[str, Entry]:
    """Return the entries of a `scores.json`: task -> entry.

    If a model was scored by several backends, the name of a task that an earlier backend has
    is followed by its backend.
    """
    entries: dict[str, Entry] = {}
    for backend, tasks in json.loads(text)["scores"].items():
        for task, entry in tasks.items():
            for field in ("score", "protocol", "subscores"):
                entry[field]  # or it is damaged
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
    number, half = len(rows), MAX_ROWS // 2
    if number <= MAX_ROWS:
        return rows
    kept = {*np.geomspace(1, number, half, dtype=int)}
    kept |= {*np.linspace(1, number, half, dtype=int)}
    return [rows[index - 1] for index in sorted(kept)]


def _words(run: RunData) -> dict[str, int]:
    """Return the number of words that each revision of a run has seen.

    For a checkpoint it follows from the nearest row of the ledger, or else of the log.
    """
    rows = run.ledger or [row for row in run.logs if "words" in row]
    rows = [row for row in rows if row["step"]]
    words = {"main": run.results.get("words_seen")}
    for name in {*run.scores, *(path.name for path in run.directory.glob("ch*"))}:
        if match := re.fullmatch(r"checkpoint-(\d+)", name):
            step = int(match[1])
            for row in sorted(rows, key=lambda row: abs(row["step"] - step))[:1]:
                words[name] = round(row["words"] * step / row["step"])
        elif name.startswith("chck_"):
            words[name] = parse_words(name.removeprefix("chck_"))
    return {name: number for name, number in words.items() if number is not None}
