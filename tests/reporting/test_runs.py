"""What is read about runs, and what happens to damaged files."""

import json
from pathlib import Path

import pytest

from src.foundation import UserError
from src.reporting.runs import MAX_ROWS, find_runs
from tests.reporting.conftest import write_run, write_scores

RIGHT = {"island": "1111", "agreement": "111000"}


def test_a_run_is_what_lies_on_disk(place):
    directory = write_run("run-a", "seed-1")
    write_scores(directory, RIGHT)
    write_scores(directory, RIGHT, "chck_200")
    write_scores(directory, RIGHT, "checkpoint-15")
    (run,) = find_runs("exp/run-*", Path("results"))
    assert run.name == "run-a/seed-1" and run.config["training"]["seed"] == 1
    assert run.results["eval_loss"] == run.logs[-1]["eval_loss"] == 3.0
    assert list(run.words.items()) == [
        ("chck_200", 200),
        ("checkpoint-15", 750),
        ("checkpoint-20", 1000),
        ("main", 1000),
    ]
    assert run.scores["main"]["blimp"]["score"] == 75 and not run.faults
    assert run.folders["main"] == Path("results/run-a_seed-1/main")


def test_runs_are_sorted_by_number_and_come_once(place):
    for seed in (10, 2):
        write_run("run-a", f"seed-{seed}", seed)
    names = [
        run.name for run in find_runs(["exp/*", "exp/run-a/seed-2"], Path("results"))
    ]
    assert names == ["run-a/seed-2", "run-a/seed-10"]


def test_if_there_is_no_run_the_message_lists_what_there_is(place):
    with pytest.raises(UserError, match="exp/x is no run .*; there is no run in exp"):
        find_runs("exp/x", Path("results"))
    write_run("run-a", "seed-1")
    with pytest.raises(UserError, match="runs in exp:\n  exp/run-a/seed-1"):
        find_runs("exp/x/*", Path("results"))


def test_runs_of_the_same_name_would_share_their_results(place):
    write_run("run-a", "seed-1")
    Path("exp").rename("old")
    write_run("run-a", "seed-1")
    with pytest.raises(UserError, match="would share one folder in results_dir"):
        find_runs(["old/*", "exp/*"], Path("results"))


@pytest.mark.parametrize(
    "name, lost",
    [
        ("config.yaml", "config"),
        ("run.json", "record"),
        ("results.json", "results"),
        ("checkpoint-20/trainer_state.json", "logs"),
        ("results/run-a_seed-1/main/scores.json", "scores"),
    ],
)
@pytest.mark.parametrize("content", [b'{"a": [1, ', b"[]", b"\xff\xfe", b'"text"'])
def test_a_damaged_file_is_named_and_the_rest_is_read(place, name, lost, content):
    directory = write_run("run-a", "seed-1")
    write_scores(directory, RIGHT)
    file = Path(name) if name.startswith("results/") else directory / name
    file.write_bytes(content)
    (run,) = find_runs("exp/*", Path("results"))
    assert len(run.faults) == 1 and file.name in run.faults[0]
    contents = ("config", "record", "results", "logs", "scores", "ledger")
    assert [name for name in contents if not getattr(run, name)] == [lost]


def test_the_row_that_a_kill_cut_off_is_no_fault_but_another_one_is(place):
    ledger = write_run("run-a", "seed-1", finished=False) / "words.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole + '{"step": 3')
    (run,) = find_runs("exp/*", Path("results"))
    assert [row["step"] for row in run.ledger] == [10, 20]
    assert not run.faults and run.results == {}
    ledger.write_text('{"step\n' + whole)
    (run,) = find_runs("exp/*", Path("results"))
    assert len(run.ledger) == 2 and "words.jsonl is damaged" in run.faults[0]


def test_an_older_checkpoint_is_read_if_the_newest_is_damaged(place):
    directory = write_run("run-a", "seed-1", finished=False)
    state = directory / "checkpoint-30/trainer_state.json"
    state.parent.mkdir()
    state.write_text("{")
    (run,) = find_runs("exp/*", Path("results"))
    assert run.logs[-1]["step"] == 20 and "checkpoint-30" in run.faults[0]


def test_many_rows_are_thinned_but_no_evaluation_is(place):
    directory = write_run("run-a", "seed-1")
    logs = [{"step": step, "loss": 1.0} for step in range(10_000)]
    logs += [{"step": step, "eval_loss": 1.0} for step in range(0, 10_000, 100)]
    state = directory / "checkpoint-20/trainer_state.json"
    state.write_text(json.dumps({"log_history": logs}))
    (run,) = find_runs("exp/*", Path("results"))
    steps = [row["step"] for row in run.logs if "loss" in row]
    assert len(steps) <= MAX_ROWS and steps[:3] == [0, 1, 2] and steps[-1] == 9999
    assert sum("eval_loss" in row for row in run.logs) == 100
    assert steps == sorted(steps)
