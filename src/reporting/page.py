"""The page of a report: one self-contained HTML file, with its figures in a folder beside it.

    report.html                 opens from disk and needs no network
    report_figures/loss.svg     each figure, and the same as PNG

Runs that differ in `training.seed` only are a group. One run gets its own figures, configuration
and cost; several runs get tables of groups and runs, and curves of groups. How values are written
is in the template, page.html.
"""

import json
import math
import re
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.evaluation.results import Entry
from src.evaluation.suite import is_score
from src.evaluation.table import BASELINES, PUBLISHED, SOURCES
from src.foundation import counted, write_atomically
from src.reporting import figures
from src.reporting.figures import Curve
from src.reporting.runs import RunData

# People agree with BLiMP's labels in 88.6 % of the pairs (Warstadt et al. 2020, table 3).
LINES = {"chance": 50.0, "human agreement": 88.6}
LINES |= dict(zip(BASELINES, PUBLISHED["blimp"]))
MAX_COLOURED = 12  # groups: the best by dev loss; the curves of the others are grey
LOSS = "dev loss"
LOGGED = {"learning_rate": "learning rate", "tokens_per_second": "tokens per second"}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed only. `values` are the settings that tell it from others."""

    label: str
    runs: list[RunData]
    values: dict[str, str]


@dataclass(frozen=True)
class Pictures:
    """The figures of the page. Each is also written to `folder` as SVG and PNG."""

    folder: Path
    drawn: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, title: str, note: str, draw: Callable, *args, **options):
        """Draw a figure, unless there is nothing to draw: the first of `args` is empty."""
        if args[0]:
            svg = figures.save(draw, self.folder / name, *args, **options)
            self.drawn.append({"name": name, "title": title, "note": note, "svg": svg})


def write_page(runs: list[RunData], path: Path, comparisons: Iterable = ()) -> None:
    """Write the page `path`, and its figures to the folder `<stem of path>_figures` beside it.

    Args:
        runs: at least one run.
        comparisons: further tables. Each has `caption`, `columns` (names), `rows` (lists of
            texts, numbers and None) and `notes` (lines), as attributes or keys.
    """
    import jinja2

    pictures = Pictures(path.with_name(f"{path.stem}_figures"))
    pictures.folder.mkdir(parents=True, exist_ok=True)
    groups, tables = grouped(runs), []
    if len(runs) == 1:
        _draw_run(runs[0], pictures)
    else:
        tables = _tables(groups)
        _draw_groups(groups, pictures)
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(
        source, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = template.render(
        runs=runs,
        tables=[*tables, *comparisons],
        pictures=pictures.drawn,
        folder=pictures.folder.name,
        final=final_scores(runs[0]),
        metrics={name: _cell(runs, name) for name in _metrics(runs[0])},
        published={"names": BASELINES, "scores": PUBLISHED, "sources": SOURCES},
        config=yaml.safe_dump(runs[0].config, sort_keys=False),
    )
    # A name may hold bytes that are no text.
    write_atomically(path, html.encode("utf-8", "replace").decode("utf-8"))


def grouped(runs: Iterable[RunData]) -> list[Group]:
    """Return the groups of runs whose settings differ in the seed only, in the order of runs.

    A run without readable settings is a group of its own.
    """
    members: dict[str, list[RunData]] = {}
    for run in runs:
        values = _settings(run)
        key = json.dumps(values, sort_keys=True) if values else str(run.directory)
        members.setdefault(key, []).append(run)
    settings = {key: _settings(runs[0]) for key, runs in members.items()}
    known = [values for values in settings.values() if values]
    names = dict.fromkeys(name for values in known for name in values)
    differing = [n for n in names if len({values.get(n) for values in known}) > 1]
    groups = []
    for key, runs in members.items():
        values = {name: settings[key].get(name, "–") for name in differing}
        shown = [f"{name.split('.')[-1]}={value}" for name, value in values.items()]
        label = ", ".join(shown) if settings[key] else ""
        groups.append(Group(label or runs[0].name, runs, values))
    return groups


def _settings(run: RunData) -> dict[str, str]:
    """Return the settings that change a result, but the seed; text files by one checksum."""
    identity = dict(run.record.get("identity") or {})
    identity.pop("training.seed", None)
    if texts := identity.pop("data", None):
        identity["text"] = _checksum(texts)
    return _flat(identity)


def _checksum(values: Any) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, dict):
        return {prefix[:-1]: str(values)}
    parts = (_flat(value, f"{prefix}{key}.") for key, value in values.items())
    return {key: text for part in parts for key, text in part.items()}


def final_scores(run: RunData) -> tuple[str, dict[str, Entry]]:
    """Return the revision whose scores stand for the run, `main` or else the last, and them."""
    scored = [
        name for name in [*run.scores, *run.words, "main"] if run.scores.get(name)
    ]
    return (scored[-1], run.scores[scored[-1]]) if scored else ("", {})


def _metrics(run: RunData) -> dict[str, tuple[float, str]]:
    """Return the dev loss and the scores in percent: name -> value and how it was measured."""
    identity = run.record.get("identity") or {}
    texts = (identity.get("data") or {}).items()
    measured = [item for item in texts if not item[0].startswith("train/")]
    measured += [item for item in identity.items() if item[0].startswith("tokenizer.")]
    dev = (
        next((row for row in reversed(run.logs) if "eval_loss" in row), {})
        | run.results
    )
    end = "" if run.results else ", not finished"
    rules = f"dev text and tokenizer {_checksum(measured)}{end}"
    found = {LOSS: (dev.get("eval_loss"), rules)}
    protocol = run.config.get("evaluation", {}).get("protocol")
    for key, value in run.results.items():
        name = key.removeprefix("eval_")
        if name != key and is_score(name) and "/" not in name and _is_number(value):
            found[name] = 100 * value, f"protocol {protocol}, at the end of the run"
    revision, entries = final_scores(run)
    for task, e in entries.items():
        data = f"data {e['data_checksum'][:8]}, {revision}"
        found[task] = e["score"], f"protocol {e['protocol']}, {e['dtype']}, {data}"
    return {name: value for name, value in found.items() if _is_number(value[0])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _logged(run: RunData, key: str, label: str = "") -> Curve:
    """Return a logged value over the words seen."""
    points = [(row.get("words"), row[key]) for row in run.logs if key in row]
    return _points(points, label)


def _scores(run: RunData, task: str) -> Curve:
    """Return the scores of a task over the words that each revision has seen."""
    known = [(words, run.scores.get(name, {})) for name, words in run.words.items()]
    return _points([(w, s[task]["score"]) for w, s in known if task in s], task)


def _points(points: Iterable[tuple[Any, Any]], label: str) -> Curve:
    points = [point for point in points if all(map(_is_number, point))]
    return figures.downsampled(label, *np.array(points, float).reshape(-1, 2).T)


def _tasks(runs: Iterable[RunData]) -> list[str]:
    return list(dict.fromkeys(t for r in runs for s in r.scores.values() for t in s))


def _terms(entries: Mapping[str, Entry]) -> dict[str, float]:
    """Return the scores of BLiMP and its phenomena; {} if there are none."""
    entry = entries.get("blimp") or entries.get("blimp_fast") or {"subscores": {}}
    terms = sorted(entry["subscores"].get("linguistics_term", {}).items())
    terms = {name: value for name, value in terms if _is_number(value)}
    return {"all": entry["score"], **terms} if terms else {}


def _draw_run(run: RunData, pictures: Pictures) -> None:
    """Draw the figures of one run."""
    keys = sorted({key for row in run.logs for key in row if key.endswith("/loss")})
    keys = [key for key in keys if key.startswith("eval_files/")]
    loss = [_logged(run, "loss", "training"), _logged(run, "eval_loss", "dev")]
    of_files = [_logged(run, key, key.split("/")[1]) for key in keys]
    scores = [c for c in (_scores(run, t) for t in _tasks([run])) if len(c.x) > 1]
    found = [(curve, figures.plateau(curve.y)) for curve in scores]
    stars = [(curve.x[i], curve.y[i]) for curve, i in found if i is not None]
    add, draw = pictures.add, figures.curves
    note = "The band spans the steps that a point is the mean of." if run.logs else ""
    add("loss", "Loss and perplexity", note, draw, _some(loss), "loss (nats)", True)
    title = "Dev loss by file"
    add("dev_loss", title, "", draw, _some(of_files), "loss (nats)", True)
    for name, title in LOGGED.items():
        add(name, title.capitalize(), "", draw, _some([_logged(run, name)]), title)
    note = "A star: 95 % of the rise is reached, and the score hardly rises any more."
    title = "Scores of checkpoints"
    add("scores", title, note, draw, scores, "score", stars=stars)
    _draw_terms({run.name: [run]}, pictures)
    terms = {name: _terms(run.scores.get(name, {})) for name in run.words}
    terms = {name: of_revision for name, of_revision in terms.items() if of_revision}
    rows = list(dict.fromkeys(name for t in terms.values() for name in t))
    values = np.array([[t.get(row, math.nan) for t in terms.values()] for row in rows])
    note = "White is chance (50), orange is worse, purple is better."
    title, draw = "Phenomena of checkpoints", figures.heat_map
    add("heat_map", title, note, draw, rows, list(terms), values)


def _some(curves: Iterable[Curve]) -> list[Curve]:
    return [curve for curve in curves if len(curve.x)]


def _draw_terms(groups: Mapping[str, Sequence[RunData]], pictures: Pictures) -> None:
    """Draw the mean scores of BLiMP's phenomena of each group."""
    means = {}
    for label, runs in groups.items():
        terms = [_terms(final_scores(run)[1]) for run in runs]
        for name in dict.fromkeys(name for t in terms for name in t):
            mean = statistics.fmean(t[name] for t in terms if name in t)
            means.setdefault(label, {})[name] = mean
    note = f"Lines are scores of the whole task. {SOURCES}."
    draw = figures.phenomena
    pictures.add("phenomena", "BLiMP by phenomenon", note, draw, means, LINES)


def _draw_groups(groups: Sequence[Group], pictures: Pictures) -> None:
    """Draw the curves of several groups, and the phenomena of those that have a colour."""
    coloured = sorted(groups, key=lambda g: _cell(g.runs, LOSS)["mean"])
    coloured = coloured[:MAX_COLOURED]
    shown = [*(g for g in groups if g not in coloured), *coloured]  # grey lies below
    note = "Bands are one standard deviation over seeds."
    if grey := len(groups) - len(coloured):
        note += f" Grey: {counted(grey, 'group')} with a higher dev loss."

    def add(name: str, title: str, ylabel: str, curve: Callable, key: str, *options):
        curves = [(g, _some(curve(run, key) for run in g.runs)) for g in shown]
        means = [
            figures.mean_curve(g.label, c, g not in coloured) for g, c in curves if c
        ]
        # One point for each group is no curve: the tables show it.
        means = means if any(len(mean.x) > 1 for mean in means) else []
        pictures.add(name, title, note, figures.curves, means, ylabel, *options)

    add("loss", "Training loss", "loss (nats)", _logged, "loss", True)
    add("dev_loss", "Dev loss", "loss (nats)", _logged, "eval_loss", True)
    for name, title in LOGGED.items():
        add(name, title.capitalize(), title, _logged, name)
    for task in _tasks(run for group in groups for run in group.runs):
        name = re.sub(r"\W+", "_", f"scores_{task}")
        add(name, f"Scores of {task}", "score", _scores, task)
    _draw_terms({group.label: group.runs for group in coloured}, pictures)


def _cell(runs: Sequence[RunData], name: str, usual: str = "") -> dict[str, Any]:
    """Return n, mean and sample standard deviation of a metric; an infinite mean if n is 0.

    Args:
        usual: how most runs were measured. There is a mark if one of `runs` was not.
    """
    found = [m[name] for m in map(_metrics, runs) if name in m]
    values = [value for value, _ in found]
    mean = statistics.fmean(values) if values else math.inf
    sd = statistics.stdev(values) if len(values) > 1 else None
    cell = {"n": len(values), "of": len(runs), "mean": mean, "sd": sd}
    mark = bool(usual) and any(rules != usual for _, rules in found)
    return cell | {"digits": 4 if name == LOSS else 2, "mark": mark}


def _tables(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the tables of groups and of runs. Values that were measured by other rules than
    those of most runs are marked, with a note on the rules."""
    runs = [run for group in groups for run in group.runs]
    rules: dict[str, Counter] = {}
    for name, (_, how) in (item for run in runs for item in _metrics(run).items()):
        rules.setdefault(name, Counter())[how] += 1
    usual = {name: of_name.most_common(1)[0][0] for name, of_name in rules.items()}
    notes = [
        f"† {name}: {counted(number, 'run')} by {how}; most by {usual[name]}"
        for name, of_name in rules.items()
        for how, number in of_name.most_common()[1:]
    ]

    def table(caption: str, columns: list[str], units: list[tuple]) -> dict[str, Any]:
        columns = [*columns, *groups[0].values, *usual]
        cells = [[_cell(runs, n, usual[n]) for n in usual] for _, _, runs in units]
        rows = [[*u[0], *u[1].values.values(), *c] for u, c in zip(units, cells)]
        return {"caption": caption, "columns": columns, "rows": rows, "notes": notes}

    of_groups, of_runs = [], []
    for g in groups:
        finished = sum(bool(run.results) for run in g.runs)
        of_groups.append(([len(g.runs), finished], g, g.runs))
        for run in g.runs:
            seed = run.config.get("training", {}).get("seed")
            cells = [run.name, seed, final_scores(run)[0], len(run.faults)]
            of_runs.append((cells, g, [run]))
    title = "Settings: mean ± standard deviation over n seeds"
    columns = ["run", "seed", "scored", "faults"]
    return [
        table(title, ["n", "finished"], of_groups),
        table("Runs", columns, of_runs),
    ]
