"""Weights & Biases: what a run logs, read back with its own tools; and runs without it."""

import json
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from src.arguments import (
    Arguments,
    RunConfiguration,
    TrainingArguments,
    WandbArguments,
)
from src.training.record.run_record import RunRecord, sweep_run_id
from src.training.record.wandb_logging import (
    FINISH_TIMEOUT,
    WandbLogging,
    send_results,
    wandb_callbacks,
)

CONFIGURATION = {
    "model": {"model_type": "gpt2", "config_overrides": {"n_layer": 2}},
    "training": {"seed": 7, "learning_rate": 7e-4},
}
LOGS = [
    (1, {"loss": 5.5, "learning_rate": 0.001, "grad_norm": 2.0, "words": 80}),
    (2, {"loss": 5.0, "learning_rate": 0.0005, "grad_norm": 1.0, "words": 161}),
    (2, {"eval_loss": 4.5, "eval_childes_accuracy": 0.25, "words": 161}),
]


def record(run_dir: Path, **wandb) -> RunRecord:
    """The record of a run with these options of W&B."""
    if not (run_dir / "run.json").exists():
        wandb_id = uuid.uuid4().hex[:8]
        (run_dir / "run.json").write_text(json.dumps({"wandb_id": wandb_id}))
    training = TrainingArguments(output_dir=str(run_dir), use_cpu=True, do_train=True)
    args = Arguments(wandb=WandbArguments(**wandb), training=training)
    configuration = RunConfiguration(args, {}, CONFIGURATION, {}, [])
    return RunRecord(configuration, {})


def opened(run_dir: Path, **wandb):
    """`wandb_callbacks` of a run with these options of W&B."""
    return wandb_callbacks(record(run_dir, **wandb))


def log_to(run_dir: Path, name: str, rows: list, fails: bool = False) -> str:
    """Log the rows as the Trainer would, to a W&B run of this process. Returns its id.

    One that `fails` continues from a checkpoint before its last row.
    """
    names = dict(project="babies", group="run-tiny-sample", name=name)
    run_dir.mkdir(exist_ok=True)
    with opened(run_dir, mode="offline", **names) as (callback,):
        state = TrainerState()
        if fails:
            *before, last = rows
            state.log_history = [{**logs, "step": step} for step, logs in before]
            rows = [last]
        for step, logs in rows:  # as the Trainer adds them to its history
            state.log_history.append({**logs, "step": step})
            callback.on_log(TrainingArguments(), state, TrainerControl(), logs=logs)
        if fails:
            raise RuntimeError("the run fails")
    return callback.run.id


def records(folder: Path) -> list[dict]:
    """What W&B's own reader finds in a run's folder, record by record."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(found: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in found if record["type"] == kind]


def folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"), key=os.path.getmtime)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two runs of one process, `first` and `second`; then `first` goes on, and fails."""
    folder = tmp_path_factory.mktemp("sweep")
    log_to(folder / "first", "seed-1", LOGS)
    log_to(folder / "second", "seed-2", LOGS[:1])
    with pytest.raises(RuntimeError):
        log_to(folder / "first", "seed-1", [*LOGS, (3, {"loss": 4.0})], fails=True)
    return folder


@pytest.fixture(scope="module")
def first(sweep) -> list[dict]:
    return records(folders(sweep / "first")[0])


def test_a_run_has_its_name_its_group_and_its_project(first):
    (run,) = of_type(first, "run")
    shown = {key: run[key] for key in ("display_name", "run_group", "project")}
    assert shown == {
        "display_name": "seed-1", "run_group": "run-tiny-sample", "project": "babies"
    }  # fmt: skip


def test_a_run_has_its_whole_configuration_nested(first):
    (run,) = of_type(first, "run")
    config = run["config"]["update"]
    assert {key: config[key] for key in CONFIGURATION} == CONFIGURATION


def test_what_the_trainer_logs_becomes_history_over_the_words_seen(first):
    items = [record["item"] for record in of_type(first, "history")]
    shown = [{k: v for k, v in i.items() if not k.startswith("_")} for i in items]
    assert shown == [
        {"train/global_step": 1, "words": 80, "train/loss": 5.5,
         "train/learning_rate": 0.001, "train/grad_norm": 2},
        {"train/global_step": 2, "words": 161, "train/loss": 5,
         "train/learning_rate": 0.0005, "train/grad_norm": 1},
        {"train/global_step": 2, "words": 161, "eval/loss": 4.5,
         "eval/childes_accuracy": 0.25},
    ]  # fmt: skip
    axes = {m.get("glob_name"): m.get("step_metric") for m in of_type(first, "metric")}
    assert axes["*"] == "words"


def test_runs_of_one_process_are_runs_of_their_own(sweep, first):
    (folder,) = folders(sweep / "second")
    second = records(folder)
    assert of_type(second, "run")[0]["display_name"] == "seed-2"
    assert len(of_type(second, "history")) == 1
    ids = {of_type(found, "run")[0]["run_id"] for found in (first, second)}
    assert len(ids) == 2


def test_a_continued_run_keeps_its_id_and_a_failed_one_says_so(sweep, first):
    before, after = folders(sweep / "first")
    continued = records(after)
    (again,) = of_type(continued, "run")
    assert again["run_id"] == of_type(first, "run")[0]["run_id"]
    assert before != after
    assert of_type(first, "exit")[0].get("exit_code", 0) == 0
    assert of_type(continued, "exit")[0]["exit_code"] == 1


def test_a_continued_offline_run_has_the_rows_from_before_too_and_none_twice(sweep):
    """W&B replaces a run's rows by those of the last folder that is uploaded."""
    _, after = folders(sweep / "first")
    rows = [record["item"] for record in of_type(records(after), "history")]
    assert [row.get("train/loss", row.get("eval/loss")) for row in rows] == [
        5.5, 5, 4.5, 4
    ]  # fmt: skip
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]


class OnlineRun:
    """A W&B run that has some rows already, and keeps those that it is sent."""

    def __init__(self, starting_step: int):
        self.starting_step, self.rows = starting_step, []

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row, step, commit):
        self.rows.append((step, row["train/global_step"]))


def test_a_continued_online_run_is_sent_what_it_lacks():
    state = TrainerState(log_history=[{"loss": 1.0, "step": n} for n in (1, 2)])
    for number, lacking in ((1, [(1, 2), (2, 3)]), (2, [(2, 3)]), (3, [])):
        callback = WandbLogging(OnlineRun(number))
        state.log_history = state.log_history[:2] + [{"loss": 1.0, "step": 3}]
        callback.on_log(TrainingArguments(), state, TrainerControl())
        assert callback.run.rows == lacking


def test_all_folders_of_a_run_are_named_in_one_command(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "wandb" / "offline-run-20260101_000000-12345678").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-20260101_000000-87654321").mkdir()
    (tmp_path / "run.json").write_text('{"wandb_id": "12345678"}')
    with opened(tmp_path, mode="offline", group="g", name="n"):
        pass
    old, new = sorted(tmp_path.glob("wandb/offline-run-*-12345678"))
    assert f"wandb sync {old} {new}\n" in caplog.text


def test_a_sweeps_trial_that_repeats_a_finished_run_reports_its_scores(
    tmp_path, monkeypatch
):
    import wandb  # the users' processes must not have it

    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_RUN_ID", "ofagent1")
    assert sweep_run_id() is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    finished = record(tmp_path, mode="offline", group="g", name="n")
    finished.finish({"eval_loss": 4.5, "eval_blimp": 0.5, "steps": 12})
    send_results(finished)
    wandb.teardown()
    found = records(folders(tmp_path)[0])
    assert of_type(found, "run")[0]["run_id"] == sweep_run_id() == "ofagent1"
    assert of_type(found, "run")[0]["sweep_id"] == "sweep123"
    (row,) = [each["item"] for each in of_type(found, "history")]
    assert (row["eval/loss"], row["eval/blimp"]) == (4.5, 0.5)


def test_a_run_ends_though_the_server_of_wandb_is_gone(tmp_path):
    with opened(tmp_path, mode="offline", group="g", name="n") as (callback,):
        assert callback.run.settings.finish_timeout == FINISH_TIMEOUT <= 300


@pytest.fixture(scope="module")
def shown(wandb_users) -> dict[str, str]:
    """What the users of tests/training/conftest.py are shown."""
    found = {}
    for name, process in wandb_users.items():
        found[name], errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    return found


def test_a_run_without_wandb_does_not_import_it(shown):
    assert shown["no key"].startswith("log=false: [] False\n")


def test_online_without_a_key_is_refused(shown):
    told = "wandb.mode=online needs an API key: `wandb login` or WANDB_API_KEY"
    assert f"UserError: {told}\n" in shown["no key"]


def test_without_a_key_a_run_is_logged_offline_and_nobody_is_asked(shown):
    assert "W&B has no API key (`wandb login` sets one): logging offline\n" in (
        shown["no key"]
    )
    assert "auto runs; offline: True\n" in shown["no key"]


def test_without_a_network_a_run_is_logged_offline(shown):
    assert "W&B cannot be reached (" in shown["no network"]
    assert "): logging offline\n" in shown["no network"]
    assert "auto runs; offline: True\n" in shown["no network"]
