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
from src.reporting.statistics import DEV_LOSS, SEED, groups, scored_revision, settings

# People agree with BLiMP's labels in 88.6 % of the pairs (Warstadt et al. 2020).
LINES = {"chance": 50, "human": 88.6, **dict(zip(BASELINES, PUBLISHED["blimp"]))}
MAX_DRAWN = 12  # groups: those of the lowest dev loss; the tables have all
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
    tables = []
    if len(runs) == 1:
        _draw_run(runs[0], pictures)
    else:
        tables = _tables(of_seeds := grouped(runs))
        _draw_groups(of_seeds, pictures)
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True)
    html = template.render(
        runs=runs,
        refresh=refresh,
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


def grouped(runs: Sequence[RunData]) -> list[Group]:
    """Return the groups of runs whose settings differ in the seed only, in the order of runs.

    A run without readable settings is a group of its own.
    """
    members = groups(runs)
    of_groups = [_settings(of_group[0]) for of_group in members]
    known = [values for values in of_groups if values]
    names = dict.fromkeys(name for values in known for name in values)
    differing = [n for n in names if len({values.get(n) for values in known}) > 1]
    found = []
    for of_group, own in zip(members, of_groups):
        values = {name: own.get(name, "–") for name in differing}
        shown = [f"{name.split('.')[-1]}={value}" for name, value in values.items()]
        label = ", ".join(shown) if own else ""
        # Settings that would be cut off in a figure tell no groups apart.
        label = label if 0 < len(label) <= figures.MAX_LABEL else of_group[0].name
        found.append(Group(label, of_group, values))
    return found


def _settings(run: RunData) -> dict[str, str]:
    """Return the settings that change a result, but the seed; text files by one checksum."""
    identity = settings(run)
    identity.pop(SEED, None)
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
    revision = scored_revision(run)
    entries = run.scores.get(revision, {})
    return (revision if entries else "", entries)


def _metrics(run: RunData) -> dict[str, tuple[float, str]]:
    """Return the dev loss and the scores in percent: name -> value and how it was measured."""
    settings = _flat(run.record.get("identity") or {}).items()
    inputs = [
        s for s in settings if s[0].startswith(("data.validation/", "tokenizer."))
    ]
    rules = f"dev text and tokenizer {_checksum(inputs)}"
    rules += "" if run.results else ", not finished"
    logged = [row["eval_loss"] for row in run.logs if "eval_loss" in row] or [None]
    found = {DEV_LOSS: (run.results.get("eval_loss", logged[-1]), rules)}
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
    add("scores", "Scores of checkpoints", note, draw, scores, "score", stars=stars)
    _draw_terms({run.name: [run]}, pictures)
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


def _draw_groups(groups: Sequence[Group], pictures: Pictures) -> None:
    """Draw the curves and phenomena of the groups with the lowest dev loss."""
    shown = sorted(groups, key=lambda g: _cell(g.runs, DEV_LOSS)["mean"])[:MAX_DRAWN]
    note = "Bands are one standard deviation over seeds."
    if len(shown) < len(groups):
        note += f" Of {len(groups)} groups, the {MAX_DRAWN} of the lowest dev loss."

    def add(name: str, title: str, ylabel: str, curve: Callable, key: str, *options):
        of_groups = [
            (g.label, [c for r in g.runs for c in curve(r, key)]) for g in shown
        ]
        means = [figures.mean_curve(label, c) for label, c in of_groups if c]
        if any(len(mean.x) > 1 for mean in means):  # the tables show single points
            pictures.add(name, title, note, figures.curves, means, ylabel, *options)

    add("loss", "Training loss", "loss (nats)", _logged, "loss", True)
    add("dev_loss", "Dev loss", "loss (nats)", _logged, "eval_loss", True)
    for name, title in LOGGED.items():
        add(name, title.capitalize(), title, _logged, name)
    for task in _tasks(run for group in groups for run in group.runs):
        name = re.sub(r"\W+", "_", f"scores_{task}")
        add(name, f"Scores of {task}", "score", _scores, task)
    _draw_terms({group.label: group.runs for group in shown}, pictures)


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
    return cell | {"digits": 4 if name == DEV_LOSS else 2, "mark": mark}


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

    def row(first: list[Any], group: Group, runs: list[RunData]) -> list[Any]:
        cells = [_cell(runs, name, usual[name]) for name in usual]
        return [*first, *group.values.values(), *cells]

    of_runs = [
        row(
            [r.name, r.config.get("training", {}).get("seed"), final_scores(r)[0]],
            g,
            [r],
        )
        for g in groups
        for r in g.runs
    ]
    of_groups = [row([len(g.runs)], g, g.runs) for g in groups]
    title = "Settings: mean ± standard deviation over n seeds"
    names = [*groups[0].values, *usual]
    columns = ["run", "seed", "scored", *names]
    return [
        {"caption": title, "columns": ["n", *names], "rows": of_groups, "notes": notes},
        {"caption": "Runs", "columns": columns, "rows": of_runs, "notes": notes},
    ]
