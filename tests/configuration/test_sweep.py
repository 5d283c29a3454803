"""Sweeps: what is decided for their jobs, and whole sweeps with the plugins that are installed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.configuration.errors import EXTRAS
from src.configuration.sweep import claimed_gpu, direction, visible_gpus
from tests.conftest import REPOSITORY

HAS_PLUGINS = importlib.util.find_spec("hydra_plugins") is not None


def needs(plugin):
    there = HAS_PLUGINS and importlib.util.find_spec(f"hydra_plugins.{plugin}")
    return pytest.mark.skipif(not there, reason=f"{plugin} is not installed")


def sweep_folder() -> Path:
    (folder,) = Path("exp/.sweeps").iterdir()
    return folder


def test_processes_share_gpus_evenly_and_leave_them_free(tmp_path):
    claim = claimed_gpu.__wrapped__  # each call as from another process
    claims = [claim(tmp_path, ("2", "5")) for _ in range(4)]
    assert [gpu for gpu, _ in claims] == ["2", "5", "2", "5"]
    claims[1][1].release()
    assert claim(tmp_path, ("2", "5"))[0] == "5"


def test_gpus_are_those_that_the_user_allows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert visible_gpus() == ["3", "GPU-5a"]


def test_a_search_minimizes_losses_and_maximizes_scores():
    metrics = ("loss", "files/childes/perplexity", "accuracy", "blimp", "pairs/loss")
    found = [direction(metric) for metric in metrics]
    assert found == ["minimize", "minimize", "maximize", "maximize", "maximize"]


@pytest.mark.parametrize(
    "choice", ["+launcher=joblib", "+launcher=slurm", "+sweep=optuna"]
)
def test_a_missing_extra_is_one_line_with_the_command(tiny, run_clm, choice):
    name = choice.split("=")[1].replace("slurm", "submitit_slurm")
    if not HAS_PLUGINS:
        message = run_clm(*tiny, choice)
        assert message.endswith(f"pip install {EXTRAS[name]}") and "\n" not in message
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"| `{choice}` | `pip install {EXTRAS[name]}` |" in readme


def test_a_metric_that_no_job_has_is_refused_before_any_work(tiny, run_clm):
    message = run_clm(*tiny, "sweep.metric=blimp")
    assert (
        "sweep.metric=blimp is not measured at the end; choose one of loss" in message
    )
    assert not list(Path("exp").rglob("checkpoint-*"))


def test_a_stopped_sweep_ends_with_its_table_and_continues(tiny, run_clm, tmp_path):
    command = [sys.executable, "-m", "src.run_clm", *tiny, "-m", "training.seed=1,2,3"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True
    ) as sweep:
        for line in sweep.stdout:
            if line.startswith("Job 2"):
                sweep.send_signal(signal.SIGTERM)
                break
        output = sweep.stdout.read()
    assert sweep.returncode == 128 + signal.SIGTERM
    states = [line.split()[2] for line in output.split("differs")[1].split("\n")[1:3]]
    assert states == ["done", "unfinished"] and "1 job not started" in output
    assert run_clm("-m", *tiny, "training.seed=1,2,3") == 0
    assert (sweep_folder() / "jobs.txt").read_text().count(" done ") == 3
    assert not Path("exp/multirun.yaml").exists()
    assert (sweep_folder() / "multirun.yaml").exists()


@needs("hydra_joblib_launcher")
def test_parallel_jobs_say_which_they_are(tiny, run_clm, capfd):
    assert run_clm(*tiny, "+launcher=joblib", "training.seed=1,2") == 0
    assert (sweep_folder() / "jobs.txt").read_text().count(" done ") == 2
    lines = capfd.readouterr().out.splitlines()
    for number in (1, 2):
        assert f"[job {number}] Job {number} of 2" in lines
    assert all(line.startswith("[job ") for line in lines if "step 1/12" in line)


@needs("hydra_optuna_sweeper")
def test_a_search_maximizes_a_score_and_survives_a_trial_that_diverges(tiny, run_clm):
    search = [
        *("+sweep=optuna", "hydra.sweeper.n_trials=4", "sweep.metric=accuracy"),
        "hydra.sweeper.params={training.learning_rate: 'choice(1e-3,3e-3,1e30)'}",
        "training.max_grad_norm=0",
    ]
    assert run_clm(*tiny, *search) == 0
    text = (sweep_folder() / "jobs.txt").read_text()
    assert " failed " in text and " done " in text
    best = (sweep_folder() / "optimization_results.yaml").read_text()
    files = Path("exp").glob("run*/seed*/results.json")
    values = [json.loads(file.read_text())["eval_accuracy"] for file in files]
    assert f"best_value: {max(values)}" in best


@needs("hydra_submitit_launcher")
def test_submitit_says_where_its_logs_are(tiny, run_clm, caplog):
    local = ["-m", "hydra/launcher=submitit_local", "training.seed=1,2"]
    assert run_clm(*tiny, *local) == 0
    (line,) = [text for text in caplog.messages if "Messages of the jobs: " in text]
    logs = list(Path().glob(line.split(": ")[1]))
    assert len(logs) == 2 and "Job 2 of 2" in "".join(f.read_text() for f in logs)
