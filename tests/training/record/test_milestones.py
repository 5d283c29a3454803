"""Milestones and the ledger of words: at the right steps, exact, and the same after a stop."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from src.foundation import UserError
from src.training.final_model import final_scores
from src.training.record import energy
from src.training.record.checkpoints import seal
from src.training.record.ledger import read_ledger
from src.training.record.milestones import milestone_steps, parse_milestones
from tests.training.test_trainer import (  # noqa: F401
    StopAfter,
    stream_of,
    train,
    trainer_of,
)


def plan(*words: int, tokens: int = 100):
    """A plan whose steps see these numbers of words."""
    return SimpleNamespace(
        words=np.array([0, *np.cumsum(words)]), num_steps=len(words),
        blocks_per_step=tokens, blocks=SimpleNamespace(block_size=1),
    )  # fmt: skip


def test_names_are_the_challenges():
    names = {"chck_300k": 300_000, "chck_1M": 10**6, "chck_1000M": 10**9}
    assert parse_milestones(["300k", "1M", "1000M"]) == names
    assert parse_milestones([250]) == {"chck_250": 250}
    assert parse_milestones(None) == {}


@pytest.mark.parametrize("values", [["1B"], ["-1M"], ["0"], ["2M", "1M"], ["1M", "1M"]])
def test_what_is_no_ascending_list_of_words_is_refused(values):
    with pytest.raises(UserError, match="training.milestones"):
        parse_milestones(values)


def test_a_milestone_is_the_first_step_that_reaches_its_words():
    names = {"a": 10, "b": 11, "c": 35}
    assert milestone_steps(plan(10, 10, 10, 10), names) == {1: "a", 2: "b", 4: "c"}


def test_a_run_that_ends_early_has_the_milestones_up_to_there():
    assert milestone_steps(plan(60, 39), {"a": 50, "b": 200}) == {1: "a"}
    # A little less than the last milestone, since the last tokens fill no block.
    assert milestone_steps(plan(600, 395), {"a": 500, "b": 1000}) == {1: "a", 2: "b"}


def test_a_batch_that_passes_two_milestones_is_refused_with_one_that_does_not():
    names = {"a": 10, "b": 14}
    with pytest.raises(UserError, match="a batch of at most 20 tokens"):
        milestone_steps(plan(10 * 2, 10), names)
    assert milestone_steps(plan(*[4] * 9), names) == {3: "a", 4: "b"}


@pytest.fixture
def run(trainer_of, tmp_path):  # noqa: F811
    """`run(name, …)`: a trainer whose run has a record."""

    def call(name, **settings):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "run.json").write_text('{"identity": {}}')
        values = dict(
            max_steps=6, per_device_train_batch_size=4, save_strategy="steps",
            save_steps=2, output_dir=str(directory), save_total_limit=2,
        )  # fmt: skip
        return trainer_of(**{**values, **settings}), directory

    return call


def weights(directory):
    return load_file(directory / "model.safetensors")


def same(one, other) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_milestones_survive_a_stop_and_change_nothing(run):
    plain, directory = run("plain")
    train(plain)
    words = plain.plan.words
    asked = [int(words[1]), int(words[3]), int(words[5])]
    whole, of_whole = run("whole", milestones=asked)
    train(whole)
    stopped, of_stopped = run("stopped", milestones=asked)
    stopped.add_callback(StopAfter(3))
    train(stopped)
    resumed, _ = run("stopped", milestones=asked)
    train(resumed)
    names = [f"chck_{number}" for number in asked]
    for name, number, step in zip(names, asked, (1, 3, 5)):
        for folder in (of_whole, of_stopped):
            record = json.loads((folder / name / "words_seen.json").read_text())
            assert (record["words"], record["step"]) == (number, step)
        assert same(weights(of_whole / name), weights(of_stopped / name))
        assert not (of_whole / name / "optimizer.pt").exists()
    last = "checkpoint-6"
    assert same(weights(directory / last), weights(of_stopped / last))
    assert not same(weights(of_whole / names[0]), weights(of_whole / names[2]))


def test_the_ledger_is_continued_and_never_doubled(run):
    whole, of_whole = run("whole")
    train(whole)
    stopped, of_stopped = run("stopped", logging_steps=1)
    stopped.add_callback(StopAfter(3))
    train(stopped)
    file = of_stopped / "words.jsonl"
    with file.open(
        "a"
    ) as ledger:  # a row after the checkpoint, and one cut off by a kill
        ledger.write(json.dumps({**read_ledger(file)[-1], "step": 4}) + '\n{"step": 5')
    resumed, _ = run("stopped")
    train(resumed)
    rows, expected = (read_ledger(d / "words.jsonl") for d in (of_stopped, of_whole))
    seconds = [row.pop("device_seconds") for row in rows]
    assert seconds == sorted(seconds)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows == [
        {k: v for k, v in r.items() if k != "device_seconds"} for r in expected
    ]
    assert (
        rows[-1]["words"] == whole.plan.words_seen(6) == sum(rows[-1]["files"].values())
    )
    assert rows[-1]["tokens"] == 6 * 4 * 8


def test_what_can_no_longer_be_made_is_said(run, caplog):
    stopped, _ = run("late")
    stopped.add_callback(StopAfter(4))
    train(stopped)
    words = stopped.plan.words
    late, directory = run("late", milestones=[int(words[1]), int(words[5])])
    train(late)
    assert f"chck_{words[1]} cannot be saved any more" in caplog.text
    assert (directory / f"chck_{words[5]}" / "words_seen.json").exists()


def test_another_number_of_processes_continues_the_mean_loss(run):
    """The Trainer logs the mean over the processes of the sums since the last log."""
    whole, _ = run("whole", logging_steps=4)
    train(whole)
    stopped, directory = run("stopped", logging_steps=4)
    stopped.add_callback(StopAfter(3))
    train(stopped)
    file = directory / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    window = state["stateful_callbacks"]["loss_window"]
    (loss,) = window["losses"]
    window["losses"] = [
        0.5 * loss,
        1.5 * loss,
    ]  # as two processes would have saved them
    file.write_text(json.dumps(state))
    seal(directory / "checkpoint-3")
    resumed, _ = run("stopped", logging_steps=4)
    train(resumed)
    logged = [
        [r["loss"] for r in t.state.log_history if "loss" in r]
        for t in (whole, resumed)
    ]
    assert logged[1] == pytest.approx(logged[0], rel=1e-6)


def test_the_last_row_of_the_ledger_is_the_last_step(run):
    plain, directory = run("plain", logging_steps=4)
    train(plain)
    rows = read_ledger(directory / "words.jsonl")
    assert [(row["step"], row["loss"] is None) for row in rows] == [
        (4, False),
        (6, True),
    ]
    assert rows[-1]["words"] == plain.plan.words_seen(6)
    stopped, directory = run("stopped", logging_steps=4)
    stopped.add_callback(StopAfter(3))
    train(stopped)
    (row,) = read_ledger(directory / "words.jsonl")
    assert row["step"] == 3 and row["gpu_seconds"] == 0
    row["device_seconds"] = 100.0
    (directory / "words.jsonl").write_text(json.dumps(row) + "\n")
    resumed, _ = run("stopped", logging_steps=4)
    train(resumed)
    rows = read_ledger(directory / "words.jsonl")
    assert [row["step"] for row in rows] == [4, 6]
    assert all(100 <= row["device_seconds"] < 200 for row in rows)


def test_the_energy_is_summed_over_the_starts_of_a_run(run, monkeypatch):
    used = iter(range(0, 10**6, 7))  # joules
    monkeypatch.setattr(energy, "_counters", lambda device: [(next(used), 10**6)])
    stopped, directory = run("run", logging_steps=4)
    stopped.add_callback(StopAfter(3))
    train(stopped)
    (row,) = read_ledger(directory / "words.jsonl")
    assert row["joules"] == 4 * 7  # after each step, and for the row
    resumed, _ = run("run", logging_steps=4)
    train(resumed)
    rows = read_ledger(directory / "words.jsonl")
    assert [row["joules"] for row in rows] == [28 + 2 * 7, 28 + 5 * 7]
    assert final_scores(resumed, {})["joules"] == 63
