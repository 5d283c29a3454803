"""Tables of runs and comparisons as text, CSV, JSON and LaTeX, and a CSV file of all items."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from src.arguments import ReportArguments
from src.evaluation.suite import is_share
from src.evaluation.table import align
from src.foundation import UserError, replacing
from src.reporting.runs import RunData
from src.reporting.statistics import (
    DEV_LOSS,
    SEED,
    Comparison,
    group_name,
    groups,
    other_rules,
    predictions,
    right_items,
    scores,
    settings,
)

MARK = "†"  # of what must not be compared, or only with care
NOT_COMPARABLE = "not comparable"
LATEX = {"±": r"$\pm$", MARK: r"$^\dagger$", " -": " $-$", "|": r"\textbar{}"}
FOOTNOTE = r"\par\footnotesize $^\dagger$ Not comparable, or only with care.\par"
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}
# A box that shrinks to the width of a line if it is wider.
SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
# What pdfTeX cannot print without further packages.
UNPRINTABLE = r"[^\n -~\xa1-\xff†–—‘’“”]|[«»ÐÞðþ]"
ITEM_FIELDS = [
    *("run", "seed", "words", "revision", "task", "phenomenon", "item", "right"),
    "log_probability",
]
SIDES = ("first", "second")
Row = dict[str, Any]


def run_rows(runs: Sequence[RunData]) -> list[Row]:
    """Return a row for each run, followed by one for its group if there are several seeds.

    A row has `run`, `n` (number of runs), the settings that differ, the scores by the names of
    tasks, `<task> sd` (standard deviation over seeds), and `not comparable`: for each task with a
    value by other rules or on other data than most runs', what is different. A group has no mean
    of such values: it is None.
    """
    values = {run.directory: scores(run) for run in runs}
    names = {task: 0 for known in values.values() for task in known}
    tasks = sorted(names, key=lambda task: task != DEV_LOSS)
    texts = [{k: json.dumps(v) for k, v in settings(run).items()} for run in runs]
    keys = {key: {text.get(key) for text in texts} for text in texts for key in text}
    usual = {}
    for task in tasks:
        rules = [x[task].rules for x in values.values() if task in x]
        dumped = [json.dumps(x, sort_keys=True) for x in rules]
        usual[task] = json.loads(Counter(dumped).most_common(1)[0][0])
    rows = []
    for group in groups(runs):
        several = [group] if len(group) > 1 else []
        for members in [*([run] for run in group), *several]:
            row: Row = {"run": group_name(members), "n": len(members)}
            given = settings(members[0]) | ({SEED: None} if members in several else {})
            row |= {k: given.get(k) for k, known in keys.items() if len(known) > 1}
            if "data" in row:  # the checksums of the text
                row["data"] = f"{crc32(json.dumps(row['data']).encode()):08x}"
            row[NOT_COMPARABLE] = {}
            known = [values[run.directory] for run in members]
            for task in tasks:
                x = [s[task] for s in known if task in s]
                if faults := other_rules(x, usual[task]):
                    row[NOT_COMPARABLE][task] = faults
                numbers = [score.value for score in x]
                is_mixed = len(members) > 1 and faults
                has_mean = len(x) == len(members) and not is_mixed
                row[task] = fmean(numbers) if has_mean else None
                if has_mean and len(members) > 1:
                    row[f"{task} sd"] = stdev(numbers)
            rows.append(row)
    return rows


def run_notes(runs: Sequence[RunData], rows: Sequence[Row]) -> list[str]:
    """Return notes on unscored and unfinished runs, and on values that are not comparable."""
    notes = [
        f"{run.name} has no scores of src.run_eval" for run in runs if not run.scores
    ]
    if len(notes) == len(runs) > 1:
        notes = ["No run has scores of src.run_eval"]
    notes += [f"{x.name} is not finished" for x in runs if not x.results]
    for row in rows:
        for task, faults in row[NOT_COMPARABLE].items():
            notes.append(
                f"{MARK} {row['run']}: {task} is not comparable: other {faults}"
            )
    return notes


def group_rows(runs: Sequence[RunData], rows: Sequence[Row]) -> list[Row]:
    """Return the rows of groups, and of runs that are alone, under the names of their folders.

    The settings that differ tell them apart.
    """
    several = {run.name for group in groups(runs) if len(group) > 1 for run in group}
    found = [row for row in rows if row["run"] not in several]
    return [{**row, "run": row["run"].split("/")[0]} for row in found]


def render(
    runs: Sequence[RunData], comparisons: Sequence[Comparison], form: str
) -> str:
    """Return the table of runs, if there are any, and those of comparisons.

    Args:
        form: `table`, `csv`, `json` or `latex`. A LaTeX table needs the packages booktabs and
            graphicx; a group of seeds is one row of it.
    """
    rows = run_rows(runs)
    notes = [*(fault for run in runs for fault in run.faults), *run_notes(runs, rows)]
    if form == "json":
        found = [dataclasses.asdict(comparison) for comparison in comparisons]
        content = {"runs": rows, "notes": notes, "comparisons": found}
        return json.dumps(content, indent=1, ensure_ascii=False)
    if form == "csv":
        found = [dataclasses.asdict(x) for c in comparisons for x in c.differences]
        for row in found or rows:
            row.pop("phenomena", None)
            marks = [f"{k}: other {v}" for k, v in row.pop(NOT_COMPARABLE, {}).items()]
            row["notes"] = "; ".join(row.get("notes", marks))
        return pd.DataFrame(found or rows).to_csv(index=False).rstrip("\n")
    if form == "latex":
        rows = group_rows(runs, rows)
    tables = [run_table("Runs", rows, notes)] if runs else []
    for comparison in comparisons:
        found = comparison_tables(comparison)
        tables += found[:1] if form == "latex" else found
    return "\n\n".join(map(_latex if form == "latex" else _text, tables))


def comparison_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Return tables of a comparison: of tasks, and of phenomena if they are known.

    A table has `caption`, `columns` (names), `rows` (lists of texts) and `notes` (lines).
    """
    names = "first: {}; second: {}".format(*comparison.names)
    of_tasks = [
        f"{MARK} {x.task}: {n}" for x in comparison.differences for n in x.notes
    ]
    cells = [
        {"task": x.task, "phenomenon": name, "items": f"{found['items']:,}"}
        | {"difference": f"{found['difference']:.2f}"}
        | {f"{side} is better": str(len(found[side])) for side in SIDES}
        for x in comparison.differences
        for name, found in x.phenomena.items()
    ]
    notes = [names, *of_tasks, *comparison.notes]
    differences = map(_difference_cells, comparison.differences)
    tables = [_table("Differences", differences, notes)]
    return tables + (
        [_table("Differences by phenomenon", cells, [names])] if cells else []
    )


def run_table(caption: str, rows: Sequence[Row], notes: Sequence[str]) -> Row:
    """Return a table of runs, with the fields of `comparison_tables`."""
    return _table(caption, map(run_cells, rows), notes)


def _table(caption: str, cells: Iterable[Row], notes: Sequence[str]) -> Row:
    known = [*cells]
    names = dict.fromkeys(name for row in known for name in row)
    columns = [name for name in names if any(row.get(name) for row in known)]
    rows = [[row.get(name, "") for name in columns] for row in known]
    return {"caption": caption, "columns": columns, "rows": rows, "notes": notes}


def run_cells(row: Row) -> dict[str, str]:
    """Return the texts of a row of the table of runs, by column."""
    cells = {}
    for name, value in row.items():
        if f"{name} sd" in row:
            value = f"{_number(value, name)} ± {_number(row[f'{name} sd'], name)}"
        elif not is_setting(name):
            value = _number(value, name)
        if name != NOT_COMPARABLE and not name.endswith(" sd"):
            mark = MARK if name in row[NOT_COMPARABLE] else ""
            value = "" if value is None else value
            text = value if isinstance(value, str) else json.dumps(value)
            cells[name.removeprefix("training.")] = text + mark
    return cells


def is_setting(name: str) -> bool:
    """Return whether a field of a row is a setting, such as `training.seed`, and not a task."""
    return re.match(r"\w+\.", name) is not None


def _number(value: Any, name: str) -> Any:
    """Return a number as text: a dev loss with four digits after the point, others with two."""
    digits = 4 if name == DEV_LOSS else 2
    return f"{value:.{digits}f}" if isinstance(value, float) else value


def _difference_cells(x: Any) -> dict[str, str]:
    names = ("first", "second", "difference", "low", "high", "smallest")
    cells = {name: _number(getattr(x, name), x.task) or "" for name in names}
    interval = f"{cells.pop('low')} to {cells.pop('high')}" if cells["low"] else ""
    smallest = cells.pop("smallest")
    cells["difference"] += MARK if x.notes else ""
    p = "" if x.p is None else f"{x.p:.2g} ({x.test})"
    end = {"95 % interval": interval, "p": p, "smallest visible": smallest}
    return {"task": x.task, **cells, **end}


def _text(table: dict[str, Any]) -> str:
    return "\n".join([*align([table["columns"], *table["rows"]]), *table["notes"]])


def _latex(table: dict[str, Any]) -> str:
    """Return a LaTeX table with the notes as comments. It is at most as wide as a line.

    A line below it explains the mark, if there is one.
    The name and the number of runs become comments, too, if all rows have the same.
    """
    frame = pd.DataFrame(table["rows"], columns=table["columns"])
    notes = [*table["notes"]]
    for name in ("run", "n"):
        if name in frame and len(frame) > 1 and frame[name].nunique() == 1:
            notes.append(f"in all rows, {name} is {frame.pop(name)[0]}")
    form = "@{}l" + "r" * (len(frame.columns) - 1) + "@{}"
    text = frame.to_latex(index=False, escape=True, column_format=form).rstrip()
    for character, command in LATEX.items():
        text = text.replace(character, command)
    comments = [f"% {line}" for note in notes for line in note.splitlines()]
    foot = FOOTNOTE if any(note.startswith(MARK) for note in notes) else ""
    head = [r"% needs \usepackage{booktabs,graphicx}", *comments, r"{\small"]
    head += [r"\setlength{\tabcolsep}{4pt}", SHRUNK]
    return re.sub(UNPRINTABLE, "?", "\n".join([*head, text + "}" + foot + "}"]))


def write_items(
    runs: Sequence[RunData], file: Path, args: ReportArguments
) -> list[str]:
    """Write a CSV file with a row for each item of each task of each scored model.

    The columns are `ITEM_FIELDS`. `right` is 1 or 0, and empty for tasks without right and wrong.
    `log_probability` is in nats, and empty where the official files have none: they have the
    surprisal of each word (reading) and the first text's share of the probability (wug).

    Returns:
        The reasons why rows or their `right` are missing.
    """
    notes: list[str] = []
    with replacing(file) as temporary:
        pd.DataFrame(columns=ITEM_FIELDS).to_csv(temporary, index=False)
        for run in runs:
            seed = settings(run).get(SEED)
            every = [(r, task) for r, tasks in run.scores.items() for task in tasks]
            for revision, task in every:
                if task == "aoa":
                    continue  # the words are those of several models
                table = _items(run, revision, task, args, notes).assign(
                    run=run.name,
                    seed=seed,
                    words=run.words.get(revision),
                    revision=revision,
                    task=task,
                )
                table = table.reindex(columns=ITEM_FIELDS)
                table.to_csv(temporary, mode="a", header=False, index=False)
    return [*dict.fromkeys(notes)]


def _items(
    run: RunData, revision: str, task: str, args: ReportArguments, notes: list[str]
) -> pd.DataFrame:
    """Return the items of a task with what is known about them; add to `notes` what is not."""
    table = pd.DataFrame({"id": []})
    try:
        table = predictions(run, revision, task)
        if is_share(task):
            table = right_items(run, revision, task, args).astype({"right": int})
    except UserError as error:
        notes.append(str(error))
    if task == "reading" and "pred" in table:
        table["log_probability"] = -table["pred"].astype(float)
    elif "prob" in table:
        table["log_probability"] = np.log(table["prob"].astype(float))
    return table.rename(columns={"id": "item"})
