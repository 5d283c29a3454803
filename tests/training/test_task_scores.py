"""The challenge's scores at every evaluation of a run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.arguments import ScoringArguments, UserError
from src.evaluation.suite import Suite
from src.training.task_scores import TaskScores, resolve_metric
from tests.test_run_clm import history, only_run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twenty pairs in two sets: what is good is in the training text, what is bad is not."""
    folder = tmp_path / "agreement"
    folder.mkdir()
    for name, noun in (("dogs", "dog"), ("cats", "cat")):
        rows = [
            {
                "sentence_good": f"The {noun} {verb} a bird.",
                "sentence_bad": f"{noun} The {verb} bird a.",
            }
            for verb in "sees likes finds calls helps hears follows knows a b".split()
        ]
        text = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def suite(pairs: Path) -> Suite:
    return Suite.load(ScoringArguments(pairs=str(pairs)))


def with_dropout(tiny: list[str]) -> list[str]:
    return [*tiny, "training.eval_steps=4", "training.save_steps=4"]


def test_scoring_changes_neither_the_losses_nor_the_weights(tiny, run_clm, pairs):
    """Bit for bit, with dropout (GPT-2's own) and scores before, between and after steps."""
    command = with_dropout(tiny)
    assert run_clm(*command, "wandb.tag=without") == 0
    scored = [f"evaluation.pairs={pairs}", "evaluation.items_while_training=6"]
    assert run_clm(*command, *scored, "wandb.tag=with") == 0
    without, with_scores = only_run("without"), only_run("with")
    weights = [load_file(run / "model.safetensors") for run in (without, with_scores)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [
        [{k: v for k, v in row.items() if "pairs" not in k} for row in history(run)]
        for run in (without, with_scores)
    ]
    assert rows[0] == rows[1]
    found = [row for row in history(with_scores) if "eval_pairs" in row]
    assert [row["step"] for row in found] == [4, 8, 12]
    # Six of twenty while training, three a set; all of them at the end.
    assert all((row["eval_pairs_dogs"] * 3) % 1 == pytest.approx(0) for row in found)
    results = json.loads((with_scores / "results.json").read_text())
    assert (results["eval_pairs"] * 20) % 1 == pytest.approx(0)
    assert results["eval_scoring_runtime"] > 0


def test_a_score_can_pick_the_best_model(tiny, run_clm, pairs):
    overrides = ["training.metric_for_best_model=eval_pairs", "training.max_steps=40"]
    command = [o for o in with_dropout(tiny) if "max_steps" not in o]
    command += [f"evaluation.pairs={pairs}", "training.learning_rate=0.02"]
    assert run_clm(*command, *overrides) == 0
    rows = [row for row in history(only_run()) if "eval_pairs" in row]
    best = max(row["eval_pairs"] for row in rows)
    assert min(row["eval_pairs"] for row in rows) < best
    results = json.loads((only_run() / "results.json").read_text())
    assert results["eval_pairs"] == best
    first = next(row["step"] for row in rows if row["eval_pairs"] == best)
    state = json.loads(
        max(
            only_run().glob("checkpoint-*/trainer_state.json"),
            key=lambda p: int(p.parent.name.split("-")[1]),
        ).read_text()
    )
    assert state["best_global_step"] == first and state["best_metric"] == best


def test_a_sample_is_spread_over_all_parts_and_the_same_each_time(suite):
    sample = suite.sample(4)
    (task,) = sample.choices
    good = [choice.items[0].text for choice in task.choices]
    assert [text.split()[1] for text in good] == ["cat", "cat", "dog", "dog"]
    assert suite.sample(4).choices[0].choices == task.choices
    assert len(suite.sample(99).choices[0].choices) == 20
    assert not suite.sample(0).checksums and suite.checksums


def test_without_tasks_there_is_nothing_to_score():
    scores = TaskScores(Suite.load(ScoringArguments()), None)
    assert scores.of(None, None, final=True) == {} and scores.seconds == 0


def test_the_metric_is_named_as_it_is_logged(suite):
    assert resolve_metric("eval_pairs", suite, None) == "pairs"
    fast = Suite([], missing=[])
    fast.choices = [type("Task", (), {"name": "blimp_fast", "data_checksum": "x"})]
    assert resolve_metric("blimp", fast, 5) == "blimp_fast"
    with pytest.raises(UserError, match="=ewok is neither .*: agreement, pairs"):
        resolve_metric("ewok", suite, None)
    with pytest.raises(UserError, match="nor among what .*: nothing"):
        resolve_metric("eval_pairs", suite, 0)
