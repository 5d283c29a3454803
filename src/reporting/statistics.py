"""Statistics over seeds and items: is the difference between two runs or two recipes real?

Scores vary for two reasons. Another sample of items gives another score, and so does another seed.
A comparison of two models tells about these models only; a comparison of two groups of seeds tells
about the recipes (Reimers & Gurevych 2017, "Reporting score distributions makes a difference";
Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks").

Two values are compared only if they come from the same rules, data and kind of model.
"""

import functools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.arguments import ReportArguments, ScoringArguments
from src.evaluation.glue.data import RECIPES
from src.evaluation.results import Entry, entry_checksum
from src.evaluation.suite import is_share, of_whole_tasks
from src.evaluation.table import overall
from src.evaluation.tasks.catalogue import OWN_PAIRS, load_tasks
from src.foundation import UserError, first_line
from src.reporting.runs import MALFORMED, RunData

DEV_LOSS, SEED = "dev loss", "training.seed"
# What the field has seen between repetitions of one run, in points: smaller differences say little.
# The dev loss is in nats per token: it is the standard deviation over seeds.
NOISE = {"blimp": 1.8, "supplement": 3.6, "entity_tracking": 5.4, "glue": 1.7}
NOISE |= {DEV_LOSS: 0.0015}
ADVICE = (
    "The standard deviation over seeds is up to 2.8 points for BLiMP, but 0.0015 for the dev"
    " loss: recipes are better chosen by the dev loss."
)
ONE_SEED = "One seed cannot tell a better recipe from a luckier seed."
# Fields of an entry of `scores.json` that must be equal in two runs that are compared.
RULES = ("protocol", "dtype", "positions", "seed", "data_checksum")
DRAWS = 2000  # of the bootstrap
# Standard errors that a true difference must have, to be found with a probability of 80 % by a
# test at the level of 5 %: 1.96 + 0.84.
POWER = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))


@dataclass(frozen=True)
class Score:
    """A value, and what must be equal in two runs for their values to be compared.

    Attributes:
        value: a percentage, a correlation × 100, or for the dev loss nats per token.
        rules: the protocol, the data, ….
    """

    value: float
    rules: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """The difference between two runs or two groups of runs on one task.

    Attributes:
        first, second: mean score of each group.
        difference: first - second, in points; None if they are not comparable. Of tasks with an
            F1 score (mrpc, qqp), it and what follows is about the accuracy.
        low, high: its confidence interval (95 %); None if it is unknown.
        p: p-value of `test`; None if there is none.
        test: "McNemar" over items, or "Welch" over seeds if both groups have several.
        smallest: smallest true difference that would be found in four of five such comparisons.
        notes: why values are not compared, and warnings.
        phenomena: name -> {"items": number, "difference": points, "first": ids of items on which
            the first group is right more often, "second": ids}.
    """

    task: str
    first: float
    second: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""
    smallest: float | None = None
    notes: list[str] = field(default_factory=list)
    phenomena: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs, or two groups of runs, which have these names."""

    names: list[str]
    differences: list[Difference]
    notes: list[str]


def settings(run: RunData) -> dict[str, Any]:
    """Return the settings that change a run's result, flat. Those that are off are left out."""
    return {k: v for k, v in run.record.get("identity", {}).items() if v is not None}


def groups(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Return the runs in groups whose settings differ in the seed only.

    A run whose settings cannot be read is a group of its own. A second run of the same seed is in
    another group, since it is no further sample.
    """
    found, repeats = defaultdict(list), Counter()
    for run in runs:
        others = {k: v for k, v in settings(run).items() if k != SEED}
        key = json.dumps(others, sort_keys=True) if others else str(run.directory)
        of_seed = key, settings(run).get(SEED)
        found[key, repeats[of_seed]].append(run)
        repeats[of_seed] += 1
    return list(found.values())


def group_name(group: Sequence[RunData]) -> str:
    """Return the name of a run, or of its group: `run-a/seed-* (3 runs)`."""
    names = [re.sub(r"seed-\d+", "seed-*", run.name) for run in group]
    return group[0].name if len(group) == 1 else f"{names[0]} ({len(group)} runs)"


def scored_revision(run: RunData) -> str:
    """Return the final model, `main`, or else the newest scored one; "main" if there is none."""
    scored = [name for name in run.words if name in run.scores] or [*run.scores]
    return "main" if "main" in run.scores or not scored else scored[-1]


def scores(run: RunData) -> dict[str, Score]:
    """Return the dev loss and the scores of a run's final model, with the means of tasks.

    Undefined scores are left out. The dev loss of a run that is not finished is its last one.
    Scores that the run computed itself count unless `src.run_eval` computed them, too.
    """
    tasks, given, revision = {}, settings(run), scored_revision(run)
    protocol = run.config.get("evaluation", {}).get("protocol")
    for name in of_whole_tasks(key.removeprefix("eval_") for key in run.results):
        value, rules = run.results.get(f"eval_{name}"), {"protocol": protocol}
        if isinstance(value, float) and math.isfinite(value):
            tasks[name] = Score(100 * value, {**rules, "source": "results.json"})
    for task, entry in run.scores.get(revision, {}).items():
        if entry["score"] is not None:
            rules = {name: entry.get(name) for name in RULES} | {"revision": revision}
            rules["backend"] = entry.get("files", ["/"])[0].split("/")[1]
            tasks[task] = Score(entry["score"], rules)
    if tasks.keys() >= RECIPES.keys():
        rules = {task: tasks[task].rules for task in RECIPES}
        tasks["glue"] = Score(fmean(tasks[task].value for task in RECIPES), rules)
    mean = overall({task: score.value for task, score in tasks.items()})
    if mean is not None:
        tasks["overall"] = Score(mean, {t: score.rules for t, score in tasks.items()})
    losses = [row for row in [*run.logs, run.results] if "eval_loss" in row]
    if not losses:
        return tasks
    names = [k for k in given if k.startswith(("tokenizer", "data.max_eval"))]
    rules = {name: given[name] for name in names}
    trains = "tokenizer.name_or_path" not in given  # a tokenizer, on the training text
    text = given.get("data", {}).items()
    rules["text"] = {k: v for k, v in text if trains or "validation" in k}
    rules["step"] = "last" if run.results else losses[-1]["step"]
    return {DEV_LOSS: Score(losses[-1]["eval_loss"], rules), **tasks}


def other_rules(scores: Sequence[Score], rules: dict[str, Any]) -> str:
    """Return what keeps values from being compared with one by these rules: "protocol, dtype"."""
    pairs = [(s.rules, k) for s in scores for k in {**rules, **s.rules}]
    return ", ".join(sorted({k for x, k in pairs if x.get(k) != rules.get(k)}))


def predictions(run: RunData, revision: str, task: str) -> pd.DataFrame:
    """Return a task's official predictions: columns id (text), pred and maybe prob.

    Raises:
        UserError: they are missing, or not as they were written, by the checksum of the entry.
    """
    entry, folder = _entry(run, revision, task), run.folders[revision]
    try:
        files = [x for x in entry.get("files", ()) if x.endswith("predictions.json")]
        file = folder.joinpath(*files)  # older versions did not record it
        parts = json.loads(file.read_text(encoding="utf-8")).values()
        table = pd.DataFrame([row for part in parts for row in part["predictions"]])
        table = table.astype({"id": str, "pred": object})
        if entry.get("checksum") in (None, entry_checksum(entry, folder)):
            return table
        reason = "they have changed since they were written"
    except (OSError, *MALFORMED) as error:
        reason = first_line(error)
    raise UserError(f"{run.name}, {revision}: no predictions of {task}: {reason}")


def _entry(run: RunData, revision: str, task: str) -> Entry:
    """Return the entry of `scores.json`; raise `UserError` if there is none."""
    if task not in run.scores.get(revision, {}):
        raise UserError(
            f"{run.name}: items are compared after src.run_eval has scored {task}"
        )
    return run.scores[revision][task]


@functools.lru_cache(maxsize=32)
def right_answers(task: str, protocol: int, data: str, pairs: tuple[str, ...] = ()):
    """Return the right answers of a task from its data, and the checksum of the data.

    The columns are id, part, phenomenon, answer (a text without outer spaces, or a label) and
    weight. The score is the sum of the weights of the items that are right.

    Args:
        data: the folder that holds full_eval and fast_eval.
        pairs: folders of the user's own minimal pairs.

    Raises:
        UserError: there are no such data.
    """
    own = [x for x in pairs if f"{OWN_PAIRS}/{Path(x).resolve().name}" == task]
    tasks = [] if task.startswith(OWN_PAIRS) else [task.split(" (")[0]]  # no backend
    args = ScoringArguments(tasks=tasks, pairs=own, data=data, protocol=protocol)
    loaded, _ = load_tasks(args, seed=0)
    choices = [c for x in loaded for c in getattr(x, "choices", ())]
    terms = [c.tags.get("linguistics_term", c.uid) for c in choices]
    rows = [(c.uid, t, c.answers[c.label].strip()) for c, t in zip(choices, terms)]
    if task in RECIPES:
        rows = [(task, task, label) for *_, label in loaded[0].valid]
    if not rows:
        raise UserError(f"the right answers of {task} need pairs=<its folder>")
    table = pd.DataFrame(rows, columns=["part", "phenomenon", "answer"])
    table["id"] = table["part"] + "_" + table.groupby("part").cumcount().astype(str)
    if table["part"].is_unique:  # as in PIQA, which calls every item a part
        table[["part", "phenomenon"]] = task
    has_splits = bool(choices) and loaded[0].format.has_splits
    ending = r"_\d+_ops$" if has_splits else ".*"
    split = table["part"].str.replace(ending, "", regex=True)
    parts_of_split = table.groupby(split)["part"].transform("nunique")
    size = table.groupby("part")["id"].transform("size")
    table["weight"] = 1 / (size * parts_of_split * split.nunique())
    return table, loaded[0].data_checksum


def right_items(run: RunData, revision: str, task: str, args: ReportArguments):
    """Return the items of a task, a table: `right_answers`, `predictions`, and `right`.

    Texts are compared without outer spaces, as the challenge's server does.

    Raises:
        UserError: there are no right answers or predictions, or they are of other data.
    """
    entry = _entry(run, revision, task)
    pairs = [args.pairs] if isinstance(args.pairs, str) else args.pairs or []
    answers, checksum = right_answers(task, entry["protocol"], args.data, tuple(pairs))
    table = answers.merge(predictions(run, revision, task), on="id", how="left")
    if entry.get("data_checksum") != checksum or table["pred"].isna().any():
        raise UserError(
            f"{run.name}: {task} was scored on other data than those in data="
        )
    pred = [x.strip() if isinstance(x, str) else x for x in table["pred"]]
    return table.assign(right=[a == b for a, b in zip(pred, table["answer"])])


def bootstrap(
    right: np.ndarray, answers: pd.DataFrame, rng: np.random.Generator
) -> np.ndarray:
    """Return scores of all runs on `DRAWS` samples of items, percentages [DRAWS, runs].

    All runs get the same samples (paired bootstrap: Efron & Tibshirani 1993; Koehn 2004;
    Berg-Kirkpatrick et al. 2012). Items are drawn within their part of the task, since the parts
    are not a sample. Items of a part that the same runs get right are interchangeable, so a
    multinomial draw of the numbers of such kinds equals a draw of items.

    Args:
        right: whether each run is right on each item, booleans [runs, N].
        answers: rows of `right_answers` [N].
    """
    total = np.zeros((DRAWS, len(right)))
    for rows in answers.groupby("part").indices.values():
        kinds, sizes = np.unique(right[:, rows], axis=1, return_counts=True)
        drawn = rng.multinomial(len(rows), sizes / len(rows), DRAWS)  # [DRAWS, kinds]
        total += drawn @ kinds.T * answers["weight"].iloc[rows[0]]
    return 100 * total


def compare_items(
    first: np.ndarray, second: np.ndarray, answers: pd.DataFrame
) -> dict[str, Any]:
    """Return the fields of a `Difference` for items that are right or wrong.

    * Interval: percentiles of the paired bootstrap over items and, within each group, over n seeds.
      n - 1 seeds are drawn, so that the variance is not too small (Rao & Wu 1988). Still, with
      fewer than about five seeds the interval is too narrow.
    * Test: McNemar's exact test (McNemar 1947; Dietterich 1998), a binomial test of the items that
      only one of two models gets right. For groups, an item counts for the group that is right
      more often (sign test). It is about these models, not about other seeds; `compare` prefers
      Welch's test if both groups have several. Each item counts the same, whatever its weight.
    * Smallest difference: 2.8 standard errors, for a power of 80 % at the level of 5 % (Bloom 1995;
      Card et al. 2020, "With little power comes great responsibility").

    Args:
        first, second: whether each run of a group is right on each item, booleans [runs, N].
        answers: rows of `right_answers` [N].
    """
    rng = np.random.default_rng(0)
    drawn = bootstrap(np.concatenate([first, second]), answers, rng)
    means = []
    for of_group in np.split(drawn, [len(first)], axis=1):  # [DRAWS, seeds]
        seeds = of_group.shape[1]
        chosen = rng.integers(seeds, size=(DRAWS, max(1, seeds - 1)))
        means.append(np.take_along_axis(of_group, chosen, axis=1).mean(axis=1))
    sampled = means[0] - means[1]
    low, high = np.percentile(sampled, [2.5, 97.5]).tolist()
    gain = first.mean(axis=0) - second.mean(axis=0)  # [N]
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    phenomena = {
        name: {
            "items": len(rows),
            "difference": float(100 * gain[rows].mean()),
            "first": answers["id"].iloc[rows[gain[rows] > 0]].tolist(),
            "second": answers["id"].iloc[rows[gain[rows] < 0]].tolist(),
        }
        for name, rows in answers.groupby("phenomenon").indices.items()
    }
    return {
        "difference": float(100 * answers["weight"] @ gain),
        **{"low": low, "high": high, "test": "McNemar", "phenomena": phenomena},
        "p": stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0,
        "smallest": POWER * float(sampled.std()),
    }


def compare_values(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return the fields of a `Difference` for one value per run.

    If both groups have several runs, they are those of Welch's t-test (1947).
    """
    fields: dict[str, Any] = {"difference": fmean(first) - fmean(second)}
    errors = [stats.sem(x) if len(x) > 1 else np.nan for x in (first, second)]
    error = float(np.hypot(*errors))
    if error > 1e-9:  # neither NaN nor a mere rounding error
        welch = stats.ttest_ind(first, second, equal_var=False)
        low, high = map(float, welch.confidence_interval(0.95))
        fields |= {"low": low, "high": high, "p": float(welch.pvalue)}
        fields |= {"test": "Welch", "smallest": POWER * error}
    return fields


def compare(
    first: Sequence[RunData], second: Sequence[RunData], args: ReportArguments
) -> Comparison:
    """Return the comparison of two runs or of two groups of runs, on what all of them have."""
    sides = (first, second)
    values = [[scores(run) for run in group] for group in sides]
    flat = [known for group in values for known in group]
    differences, tasks = [], [t for t in flat[0] if all(t in known for known in flat)]
    for task in tasks:
        found = [[known[task] for known in group] for group in values]
        numbers = [[score.value for score in group] for group in found]
        fields, notes = compare_values(*numbers), []
        faults = other_rules([*found[0], *found[1]], found[0][0].rules)
        try:
            if faults:
                fields = {}
                raise UserError(f"not comparable: other {faults}")
            if is_share(task) and task not in (DEV_LOSS, "glue", "overall"):
                # Welch's test is about recipes; McNemar's about these models only.
                of_recipes = {k: fields[k] for k in ("p", "test") if k in fields}
                fields = _compare_task(task, sides, args) | of_recipes
        except UserError as error:
            notes.append(first_line(error))
        noise = NOISE.get(task.removesuffix("_fast"), 0)
        if abs(fields.get("difference", noise)) < noise:
            notes.append(f"below the noise between repetitions of a run, {noise}")
        means = map(fmean, numbers)
        differences.append(Difference(task, *means, **fields, notes=notes))
    lacking = sorted({t for known in flat for t in known} - {*tasks})
    notes = [f"not compared, since some runs lack it: {task}" for task in lacking]
    mixed = [group_name(group) for group in sides if len(groups(group)) > 1]
    notes += [f"{name} differ in more than the seed, or repeat one" for name in mixed]
    notes += [ONE_SEED] * (min(map(len, sides)) == 1) + [ADVICE]
    return Comparison([*map(group_name, sides)], differences, notes)


def _compare_task(task: str, sides: Sequence, args: ReportArguments) -> dict[str, Any]:
    pairs = [[(run, scored_revision(run)) for run in group] for group in sides]
    tables = [[right_items(*pair, task, args) for pair in group] for group in pairs]
    right = [np.array([table["right"] for table in group]) for group in tables]
    return compare_items(*right, tables[0][0])
