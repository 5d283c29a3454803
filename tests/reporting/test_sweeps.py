"""The table at the end of a sweep."""

import json

from src.foundation import write_atomically
from src.reporting.sweeps import show_sweep


def write_jobs(folder, *jobs):
    """(state, overrides, results) of each job."""
    (folder / "jobs").mkdir()
    for number, (state, overrides, results) in enumerate(jobs, start=1):
        run = folder / f"run-{number}"
        run.mkdir()
        if results:
            (run / "results.json").write_text(json.dumps(results))
        row = {"job": number, "state": state, "overrides": ["+model=m", *overrides]}
        row |= {"directory": f"{run}", "metric": "accuracy"}
        write_atomically(folder / "jobs" / f"{number}.json", row)


def test_the_table_has_a_mean_over_seeds_and_says_what_is_missing(tmp_path):
    lr = "training.learning_rate"
    write_jobs(
        tmp_path,
        (
            "done",
            [f"{lr}=1", "training.seed=1"],
            {"eval_loss": 3.0, "eval_accuracy": 0.25},
        ),
        (
            "done",
            [f"{lr}=1", "training.seed=2"],
            {"eval_loss": 4.0, "eval_accuracy": 0.75},
        ),
        ("done", [f"{lr}=2", "training.seed=1"], {"eval_loss": 5.0, "eval_blimp": 0.5}),
        ("failed", [f"{lr}=2", "training.seed=2"], {}),
        ("unfinished", [f"{lr}=3", "training.seed=1"], {"eval_loss": 9.0}),
    )
    show_sweep(tmp_path, num_jobs=6)
    heading, *rows, mean, missing = (tmp_path / "jobs.txt").read_text().splitlines()
    assert heading.split() == "job differs state loss accuracy blimp directory".split()
    assert [row.split()[3:-1] for row in rows] == [
        ["done", "3", "0.25"],
        ["done", "4", "0.75"],
        ["done", "5", "50"],
        ["failed"],
        ["unfinished"],
    ]
    assert rows[0].split()[1:3] == [f"{lr}=1", "training.seed=1"]
    assert mean.split() == (f"mean of 2 seeds {lr}=1 3.5 ± 0.71 0.5 ± 0.35".split())
    assert missing.startswith("1 job not started")
