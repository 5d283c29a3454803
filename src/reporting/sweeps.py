"""The table of a sweep: its jobs, and their mean and deviation over seeds."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from src.evaluation.suite import of_whole_tasks
from src.evaluation.table import align
from src.foundation import counted, read_json, write_atomically

logger = logging.getLogger(__name__)


def show_sweep(folder: Path, num_jobs: int) -> None:
    """Log the table of a sweep, and write it to `jobs.txt` in the sweep's folder.

    Args:
        num_jobs: number of jobs of the whole sweep.
    """
    files = (folder / "jobs").glob("*.json")
    jobs = sorted(map(read_json, files), key=lambda job: job["job"])
    text = "\n".join(sweep_lines(jobs)) if jobs else "No job has begun"
    if missing := num_jobs - len(jobs):
        text += f"\n{counted(missing, 'job')} not started: the same command runs what is missing"
    write_atomically(folder / "jobs.txt", f"{text}\n")
    logger.info("\n%s\n\nTable of the sweep: %s", text.strip("\n"), folder / "jobs.txt")


def sweep_lines(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each job, and one for each group of jobs that differ in the seed only.

    Scores of tasks are percentages, as everywhere.

    Args:
        jobs: the records of `src/configuration/sweep.py`.
    """
    settings = [dict(o.lstrip("+").split("=", 1) for o in x["overrides"]) for x in jobs]
    values = {key: {x.get(key) for x in settings} for x in settings for key in x}
    swept = [key for key in values if len(values[key]) > 1]
    rows, groups = [], defaultdict(list)
    for job, given in zip(jobs, settings):
        parts = {key: f"{key}={given[key]}" for key in swept if key in given}
        figures = _figures(job) if job["state"] == "done" else {}
        row = {"job": str(job["job"]), "differs": " ".join(parts.values())}
        row |= {"state": job["state"]}
        row |= {name: f"{x:.5g}" for name, x in figures.items()}
        rows.append(row | {"directory": job["directory"]})
        if figures:
            parts.pop("training.seed", None)
            groups[" ".join(parts.values())].append(figures)
    for differs, members in groups.items():
        if len(members) > 1:
            row = {"job": f"mean of {len(members)} seeds", "differs": differs}
            for name in set.intersection(*map(set, members)):
                x = [member[name] for member in members]
                row[name] = f"{fmean(x):.5g} ± {stdev(x):.2g}"
            rows.append(row)
    columns = [*dict.fromkeys(n for row in rows for n in row if n != "directory")]
    columns.append("directory")
    rows = [dict(zip(columns, columns)), *rows]
    for name in ("differs", "directory"):  # aligned left
        width = max(len(row.get(name, "")) for row in rows)
        rows = [{**row, name: row.get(name, "").ljust(width)} for row in rows]
    return [*align([[row.get(c, "") for c in columns] for row in rows])]


def _figures(job: Mapping[str, Any]) -> dict[str, float]:
    """Return the loss, the scores of tasks and the sweep's metric of a finished job."""
    results = read_json(Path(job["directory"], "results.json"))
    figures = {k.removeprefix("eval_"): x for k, x in results.items()}
    tasks = {name: 100 * figures[name] for name in of_whole_tasks(figures)}
    others = {n: figures[n] for n in ("loss", job["metric"]) if n in figures}
    return {**others, **tasks}
