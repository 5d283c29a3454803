"""The page of a report: one self-contained HTML file, with its figures in a folder beside it.

    report.html                 opens from disk and needs no network
    report_figures/loss.svg     each figure, and the same as PNG

Runs that differ in `training.seed` only are a group. One run gets its own figures, configuration
and cost; several runs get tables of groups and runs, and curves of groups. How values are written
is in the template, page.html.
"""

import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from src.data.summary import LEGEND
from src.evaluation.results import Entry
from src.evaluation.table import BASELINES, PUBLISHED, SOURCES
from src.foundation import write_atomically
from src.reporting import figures
from src.reporting.figures import Curve
from src.reporting.runs import RunData
from src.reporting.statistics import (
    DEV_LOSS,
    SEED,
    groups,
    scored_revision,
    scores,
    settings,
)
from src.reporting.tables import (
    Row,
    group_rows,
    is_setting,
    run_cells,
    run_notes,
    run_rows,
    run_table,
)

# People agree with BLiMP's labels in 88.6 % of the pairs (Warstadt et al. 2020).
LINES = {"chance": 50, "human": 88.6, **dict(zip(BASELINES, PUBLISHED["blimp"]))}
SETTINGS = "Settings: mean ± standard deviation over n seeds"
MAX_DRAWN = 12  # groups: those of the lowest dev loss; the tables have all
LOGGED = {"learning_rate": "learning rate", "tokens_per_second": "tokens per second"}


@dataclass(frozen=True)
class Pictures:
    """The figures of the page. Each is also written to `folder` as SVG and PNG."""

    folder: Path
    drawn: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, title: str, note: str, draw: Callable, *args, **options):
        """Draw a figure, unless there is nothing to draw: the first of `args` is empty."""
        if args[0]:
            while name in (picture["name"] for picture in self.drawn):
                name += "_2"  # a task whose name has other punctuation
            svg = figures.save(draw, self.folder / name, *args, **options)
            is_wide = draw is figures.heat_map and len(args[1]) > figures.NARROW
            picture = {"name": name, "title": title, "note": note, "is_wide": is_wide}
            self.drawn.append(picture | {"svg": svg})

    def remove_former(self, page: Path, link: str) -> None:
        """Remove the files that a former `page` links to, unless they were drawn again."""
        html = page.read_text("utf-8", "replace") if page.is_file() else ""
        drawn = {picture["name"] for picture in self.drawn}
        for name, suffix in re.findall(
            rf'"{re.escape(link)}/(\w+)(\.svg|\.png)"', html
        ):
            if name not in drawn:
                (self.folder / f"{name}{suffix}").unlink(missing_ok=True)


def write_page(
    runs: list[RunData],
    path: Path,
    comparisons: Iterable = (),
    refresh: int | None = None,
) -> None:
    """Write the page `path`, and its figures to the folder `<stem of path>_figures` beside it.

    Args:
        runs: at least one run.
        comparisons: further tables. Each has `caption`, `columns` (names), `rows` (lists of
            texts, numbers and None) and `notes` (lines), as attributes or keys.
        refresh: seconds after which a browser loads the page again; None: never.
    """
    import jinja2

    pictures = Pictures(path.with_name(f"{path.stem}_figures"))
    pictures.folder.mkdir(parents=True, exist_ok=True)
    tables, rows = [], run_rows(runs)
    if len(runs) == 1:
        _draw_run(runs[0], pictures)
        tables.append(sanity_table(runs[0]))
    else:
        notes = run_notes(runs, rows)
        of_runs = [{**row, "n": None} for row in rows if row["n"] == 1]
        tables.append(run_table(SETTINGS, group_rows(runs, rows), []))
        tables.append(run_table("Runs", of_runs, notes))
        _draw_groups(grouped(runs, rows), pictures)
    link = quote(os.fsencode(pictures.folder.name))
    pictures.remove_former(path, link)
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True)
    html = template.render(
        runs=runs,
        refresh=refresh,
        tables=[*tables, *comparisons],
        pictures=pictures.drawn,
        folder=link,
        final=final_scores(runs[0]),
        metrics=run_cells(rows[0]),
        published={"names": BASELINES, "scores": PUBLISHED, "sources": SOURCES},
        config=yaml.safe_dump(runs[0].config, sort_keys=False),
    )
    # A name may hold bytes that are no text.
    write_atomically(path, html.encode("utf-8", "replace").decode("utf-8"))


def grouped(runs: Sequence[RunData], rows: Sequence[Row]) -> dict[str, list[RunData]]:
    """Return the groups of runs whose settings differ in the seed only, by their labels.

    A label names the settings that differ between groups. If it is too long for a figure, the
    name of the group's first run takes its place.

    Args:
        rows: those of `run_rows`.
    """
    found = {}
    for row, group in zip(group_rows(runs, rows), groups(runs)):
        values = {k: v for k, v in row.items() if is_setting(k) and k != SEED}
        label = ", ".join(f"{k.split('.')[-1]}={v}" for k, v in values.items())
        is_clear = 0 < len(label) <= figures.MAX_LABEL and label not in found
        found[label if settings(group[0]) and is_clear else group[0].name] = group
    return found


def final_scores(run: RunData) -> tuple[str, dict[str, Entry]]:
    """Return the last scored revision, or `main` if it is scored, and its scores by task."""
    revision = scored_revision(run)
    entries = run.scores.get(revision, {})
    return (revision if entries else "", entries)


def sanity_table(run: RunData) -> dict[str, Any]:
    """Return a table of how the run's dev text compares with its training text."""
    rows = run.results.get("sanity", [])
    return {
        "caption": "Dev text beside the training text",
        "columns": ["file", "kl (bits)", "unseen (%)", "trigram perplexity"],
        "rows": [[r["name"], r["kl"], 100 * r["unseen"], r["trigram"]] for r in rows],
        "notes": [LEGEND.strip().replace("\n", " ")],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _logged(run: RunData, key: str, label: str = "") -> list[Curve]:
    """Return the curve of a logged value over the words seen; [] if it was not logged."""
    points = [(row.get("words"), row[key]) for row in run.logs if key in row]
    return _curve(points, label)


def _scores(run: RunData, task: str) -> list[Curve]:
    """Return the curve of a task's scores over the words that each revision has seen."""
    known = [(words, run.scores.get(name, {})) for name, words in run.words.items()]
    return _curve([(w, s[task]["score"]) for w, s in known if task in s], task)


def _curve(points: Iterable[tuple[Any, Any]], label: str) -> list[Curve]:
    usable = [p for p in points if all(map(_is_number, p)) and p[0] > 0]
    return [figures.downsampled(label, *np.array(usable).T)] if usable else []


def _tasks(runs: Iterable[RunData]) -> list[str]:
    return list(dict.fromkeys(t for r in runs for s in r.scores.values() for t in s))


def _terms(models: Sequence[Mapping[str, Entry]]) -> tuple[str, list[dict[str, float]]]:
    """Return a task, and the scores of it and its phenomena of each model; {} if it has none.

    The task is `blimp` or `blimp_fast`, whichever more models have: a figure never mixes both.
    """
    task = max(("blimp", "blimp_fast"), key=lambda t: sum(t in m for m in models))
    found = []
    for entry in (entries.get(task, {"subscores": {}}) for entries in models):
        terms = sorted(entry["subscores"].get("linguistics_term", {}).items())
        terms = {name: value for name, value in terms if _is_number(value)}
        found.append({"all": entry["score"], **terms} if terms else {})
    return task, found


def _draw_run(run: RunData, pictures: Pictures) -> None:
    """Draw the figures of one run."""
    add, draw = pictures.add, figures.curves
    loss = _logged(run, "loss", "training") + _logged(run, "eval_loss", "dev")
    note = "The band spans the steps that a point is the mean of."
    add("loss", "Loss and perplexity", note, draw, loss, "loss (nats)", True)
    names = sorted(
        {key.split("/")[1] for row in run.logs for key in row if "/loss" in key}
    )
    files = [c for n in names for c in _logged(run, f"eval_files/{n}/loss", n)]
    add("dev_loss", "Dev loss by file", "", draw, files, "loss (nats)", True)
    for name, title in LOGGED.items():
        add(name, title.capitalize(), "", draw, _logged(run, name), title)
    scores = [c for t in _tasks([run]) for c in _scores(run, t) if len(c.x) > 1]
    found = [(curve, figures.plateau(curve.y)) for curve in scores]
    stars = [(curve.x[i], curve.y[i]) for curve, i in found if i is not None]
    note = "A star: 95 % of the rise is reached, and the score hardly rises any more."
    note = note if stars else ""
    add("scores", "Scores of checkpoints", note, draw, scores, "score", stars=stars)
    _draw_terms({"this run": [run]}, pictures)
    task, found = _terms([run.scores.get(name, {}) for name in run.words])
    terms = {name: of_name for name, of_name in zip(run.words, found) if of_name}
    rows = list(dict.fromkeys(row for of_name in terms.values() for row in of_name))
    values = [
        [of_name.get(row, math.nan) for of_name in terms.values()] for row in rows
    ]
    note = f"{task}: white is chance (50), orange is worse, purple is better."
    args = rows, list(terms), np.array(values)
    add("heat_map", "Phenomena of checkpoints", note, figures.heat_map, *args)


def _draw_terms(groups: Mapping[str, Sequence[RunData]], pictures: Pictures) -> None:
    """Draw the mean scores of BLiMP's phenomena of each group."""
    final = {run.name: final_scores(run)[1] for runs in groups.values() for run in runs}
    task, found = _terms(list(final.values()))
    of_run, means = dict(zip(final, found)), {}
    for label, runs in groups.items():
        terms = [of_run[run.name] for run in runs if of_run[run.name]]
        names = dict.fromkeys(name for t in terms for name in t)
        mean = {n: statistics.fmean(t[n] for t in terms if n in t) for n in names}
        means |= {label: mean} if mean else {}
    note = f"Points are scores of {task}, lines those of the whole task. {SOURCES}."
    draw = figures.phenomena
    pictures.add("phenomena", "BLiMP by phenomenon", note, draw, means, LINES)


def _draw_groups(groups: Mapping[str, Sequence[RunData]], pictures: Pictures) -> None:
    """Draw the curves and phenomena of the groups with the lowest dev loss."""

    def dev_loss(label: str) -> float:
        losses = [scores(run).get(DEV_LOSS) for run in groups[label]]
        known = [loss.value for loss in losses if loss]
        return statistics.fmean(known) if known else math.inf

    shown = {x: groups[x] for x in sorted(groups, key=dev_loss)[:MAX_DRAWN]}
    note = "Bands are one standard deviation over seeds."
    if len(shown) < len(groups):
        note += f" Of {len(groups)} groups, the {MAX_DRAWN} of the lowest dev loss."

    def add(name: str, title: str, ylabel: str, curve: Callable, key: str, *options):
        of_groups = {x: [c for r in shown[x] for c in curve(r, key)] for x in shown}
        means = [figures.mean_curve(label, c) for label, c in of_groups.items() if c]
        if any(len(mean.x) > 1 for mean in means):  # the tables show single points
            pictures.add(name, title, note, figures.curves, means, ylabel, *options)

    add("loss", "Training loss", "loss (nats)", _logged, "loss", True)
    add("dev_loss", "Dev loss", "loss (nats)", _logged, "eval_loss", True)
    for name, title in LOGGED.items():
        add(name, title.capitalize(), title, _logged, name)
    for task in _tasks(run for group in groups.values() for run in group):
        name = re.sub(r"\W+", "_", f"scores_{task}")
        add(name, f"Scores of {task}", "score", _scores, task)
    _draw_terms(shown, pictures)
