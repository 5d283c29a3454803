"""Comparisons, checked by hand and against other implementations."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.arguments import ReportArguments
from src.foundation import UserError
from src.reporting.runs import find_runs
from src.reporting.statistics import (
    DRAWS,
    POWER,
    bootstrap,
    compare,
    compare_items,
    compare_values,
    groups,
    right_answers,
    scores,
)
from tests.reporting.conftest import write_run, write_scores


def compared(first, second, **changed):
    args = ReportArguments(runs="exp/*", data="evals", **changed)
    sides = [find_runs(f"exp/{name}", Path("results")) for name in (first, second)]
    comparison = compare(*sides, args)
    return comparison, {x.task: x for x in comparison.differences}


def table(parts):
    """Items of parts with these sizes; parts count equally."""
    rows = [
        (f"{part}_{i}", part, part, 1 / len(parts) / size)
        for part, size in parts.items()
        for i in range(size)
    ]
    return pd.DataFrame(rows, columns=["id", "part", "phenomenon", "weight"])


def test_two_runs_differ_as_computed_by_hand(place):
    """By hand: island 4 of 4 against 2 of 4, agreement 3 of 6 against 2 of 6.

        island     1111  1100   100.0 % and 50.0 %
        agreement  111000  001010   50.0 % and 33.3 %
        BLiMP (mean of the parts)   75.0 % and 41.7 %: 33.3 points

    The first is right alone on island_2, island_3, agreement_0 and agreement_1, the second on
    agreement_4: McNemar's exact p = 2 · (C(5,0) + C(5,1)) / 2⁵ = 12 / 32.
    """
    for name, right in (
        ("a", {"island": "1111", "agreement": "111000"}),
        ("b", {"island": "1100", "agreement": "001010"}),
    ):
        write_scores(
            write_run(f"run-{name}", "seed-1", loss=3.0 + (name == "b")), right
        )
    comparison, by_task = compared("run-a", "run-b")
    blimp = by_task["blimp"]
    assert (blimp.first, blimp.second) == pytest.approx((75, 125 / 3))
    assert blimp.difference == pytest.approx(100 / 3)
    assert blimp.p == pytest.approx(12 / 32) and blimp.test == "McNemar"
    assert blimp.phenomena["islands"] == {
        "items": 4,
        "difference": 50.0,
        "first": ["island_2", "island_3"],
        "second": [],
    }
    assert blimp.phenomena["agreements"]["second"] == ["agreement_4"]
    assert by_task["dev loss"].difference == -1 and by_task["dev loss"].p is None
    assert comparison.names == ["run-a/seed-1", "run-b/seed-1"]
    assert "luckier seed" in comparison.notes[0]


def test_the_interval_is_that_of_a_bootstrap_that_draws_items_one_by_one():
    rng = np.random.default_rng(1)
    answers = table({"a": 30, "b": 70})
    first, second = rng.random((1, 100)) < 0.7, rng.random((1, 100)) < 0.5
    fields = compare_items(first, second, answers)
    drawn = []
    for _ in range(4000):
        rows = [rng.integers(30, size=30), 30 + rng.integers(70, size=70)]
        drawn.append(50 * sum((first[0, x].mean() - second[0, x].mean()) for x in rows))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert fields["low"] == pytest.approx(low, abs=1)
    assert fields["high"] == pytest.approx(high, abs=1)
    assert fields["smallest"] == pytest.approx(POWER * np.std(drawn), rel=0.06)


def test_the_bootstraps_variance_is_that_of_the_formula():
    """The variance of a mean of parts is Σ w² p (1 - p) / n."""
    answers = table({"a": 40, "b": 10})
    right = np.array([[True] * 10 + [False] * 30 + [True] * 5 + [False] * 5])
    drawn = bootstrap(right, answers, np.random.default_rng(0))
    assert drawn.shape == (DRAWS, 1)
    assert drawn.mean() == pytest.approx(37.5, abs=0.6)
    expected = 100 * math.sqrt((0.25 * 0.75 / 40 + 0.5 * 0.5 / 10) / 4)
    assert drawn.std() == pytest.approx(expected, rel=0.05)


def test_seeds_add_their_variance():
    """With all items of a seed right or wrong, only seeds vary: s² / n of each group."""
    answers = table({"a": 50})
    shares = [0.2, 0.4, 0.6, 0.8]
    first = np.array([[i < 50 * share for i in range(50)] for share in shares])
    second = np.full((1, 50), False)
    fields = compare_items(first, second, answers)
    seeds = np.var([20, 40, 60, 80], ddof=1) / 4
    items = 100**2 * np.mean(first, axis=0).var() / 50
    expected = POWER * math.sqrt(seeds + items)
    assert fields["smallest"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("wins, losses", [(0, 0), (5, 1), (12, 20)])
def test_mcnemar_is_the_sum_of_binomial_probabilities(wins, losses):
    first = np.array([[True] * wins + [False] * losses + [True] * 3])
    second = np.array([[False] * wins + [True] * losses + [True] * 3])
    number = wins + losses
    tail = sum(math.comb(number, i) for i in range(min(wins, losses) + 1)) / 2**number
    fields = compare_items(first, second, table({"a": number + 3}))
    assert fields["p"] == pytest.approx(min(1, 2 * tail))


def test_values_of_several_seeds_are_compared_by_welch():
    """Checked against the formulas: t = 0.02 / sqrt(1e-4/3 + 4e-4/3)."""
    fields = compare_values([3.00, 3.01, 3.02], [3.00, 3.02, 3.04])
    error = math.sqrt(1e-4 / 3 + 4e-4 / 3)
    assert fields["difference"] == pytest.approx(-0.01)
    assert fields["smallest"] == pytest.approx(POWER * error)
    middle = (fields["low"] + fields["high"]) / 2
    assert middle == pytest.approx(-0.01) and fields["test"] == "Welch"
    assert "p" not in compare_values([3.0], [3.1, 3.2])
    assert "p" not in compare_values([3.0, 3.0], [3.1, 3.1])


def test_runs_that_differ_in_the_seed_only_are_a_group(place):
    for seed, lr in itertools.product((1, 2), (0.1, 0.2)):
        write_run("run-a", f"seed-{seed}_lr-{lr}", seed, lr)
    broken = write_run("run-a", "seed-9", 9)
    (broken / "run.json").write_text("{")
    found = groups(find_runs("exp/*", Path("results")))
    assert [[run.name for run in group] for group in found] == [
        ["run-a/seed-1_lr-0.1", "run-a/seed-2_lr-0.1"],
        ["run-a/seed-1_lr-0.2", "run-a/seed-2_lr-0.2"],
        ["run-a/seed-9"],
    ]


def test_a_second_run_of_a_seed_is_no_further_sample(place):
    for group, seed in itertools.product(("run-a", "run-b"), (1, 2)):
        write_run(group, f"seed-{seed}", seed)
    found = groups(find_runs("exp/*", Path("results")))
    assert [[run.name for run in group] for group in found] == [
        ["run-a/seed-1", "run-a/seed-2"],
        ["run-b/seed-1", "run-b/seed-2"],
    ]


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"protocol": 2025}, "protocol"),
        ({"data_checksum": "0"}, "data_checksum"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_values_by_other_rules_or_on_other_data_are_not_compared(place, changed, named):
    right = {"island": "1111", "agreement": "111000"}
    write_scores(write_run("run-a", "seed-1"), right)
    write_scores(write_run("run-b", "seed-1"), right, **changed)
    _, by_task = compared("run-a", "run-b")
    blimp = by_task["blimp"]
    assert blimp.notes == [f"not comparable: other {named}"]
    assert (blimp.difference, blimp.low, blimp.p, blimp.phenomena) == (None,) * 3 + (
        {},
    )


def test_predictions_that_changed_or_that_are_of_other_data_give_no_statistics(place):
    right = {"island": "1111", "agreement": "111000"}
    for name in "ab":
        write_scores(write_run(f"run-{name}", "seed-1"), right)
    (file,) = Path("results/run-b_seed-1/main").rglob("predictions.json")
    whole = file.read_text()
    file.write_text(whole.replace("bad", "good"))
    assert "have changed since" in compared("run-a", "run-b")[1]["blimp"].notes[0]
    file.write_text(whole[:50])
    assert "no predictions of blimp" in compared("run-a", "run-b")[1]["blimp"].notes[0]
    file.unlink()
    assert "No such file" in compared("run-a", "run-b")[1]["blimp"].notes[0]
    assert compared("run-a", "run-b")[1]["blimp"].difference == 0
    file.write_text(whole)
    data = next(Path("evals").rglob("island.jsonl"))
    data.write_text(data.read_text() * 2)
    right_answers.cache_clear()
    assert "other data" in compared("run-a", "run-b")[1]["blimp"].notes[0]


def test_a_small_difference_is_called_noise_and_runs_without_scores_are_compared(place):
    for name, loss in (("a", 3.0), ("b", 3.001)):
        write_run(f"run-{name}", "seed-1", loss=loss)
    comparison, by_task = compared("run-a", "run-b")
    assert [*by_task] == ["dev loss"]
    assert "below the noise" in by_task["dev loss"].notes[0]
    assert "better chosen by the dev loss" in comparison.notes[-1]


def test_the_score_is_the_sum_of_the_weights_of_right_items(place):
    folder = Path("evals/full_eval/entity_tracking")
    folder.mkdir()
    row = '{"input_prefix": "Box 0", "options": ["a", "b"], "numops": %d}\n'
    (folder / "regular.jsonl").write_text(row % 0 + row % 1 + row % 1)
    (folder / "alt.jsonl").write_text(row % 0)
    answers, _ = right_answers("entity_tracking", 2026, "evals", ())
    weights = dict(zip(answers["id"], answers["weight"]))
    assert weights == {
        "alt_0_ops_0": 1 / 2,
        "regular_0_ops_0": 1 / 4,
        "regular_1_ops_0": 1 / 8,
        "regular_1_ops_1": 1 / 8,
    }


def test_the_dev_loss_of_another_text_or_step_has_other_rules(place):
    write_run("run-a", "seed-1")
    write_run("run-b", "seed-1", finished=False)
    _, by_task = compared("run-a", "run-b")
    assert by_task["dev loss"].notes == ["not comparable: other step"]
    run, _ = find_runs("exp/*", Path("results"))
    assert scores(run)["dev loss"].value == 3.0


def test_the_right_answers_of_fine_tuning_are_labels_and_of_own_pairs_the_first(place):
    folder = Path("evals/full_eval/glue_filtered")
    folder.mkdir()
    rows = [{"sentence1": "a", "sentence2": "b", "label": i % 2} for i in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "valid"):
        (folder / f"rte.{split}.jsonl").write_text(text)
    answers, _ = right_answers("rte", 2026, "evals")
    assert [*zip(answers["id"], answers["answer"])][:2] == [("rte_0", 0), ("rte_1", 1)]
    assert answers["weight"].tolist() == [1 / 4] * 4
    own = Path("evals/full_eval/blimp_filtered")
    answers, _ = right_answers("pairs/blimp_filtered", 2026, "nowhere", (str(own),))
    assert len(answers) == 10 and answers["answer"][0] == "good agreement 0"
    with pytest.raises(UserError, match="need pairs=<its folder>"):
        right_answers("pairs/other", 2026, "nowhere")


def test_fine_tuned_models_are_compared_by_their_labels(place):
    folder = Path("evals/full_eval/glue_filtered")
    folder.mkdir()
    row = '{"sentence1": "a", "sentence2": "b", "label": 1}\n'
    for split in ("train", "valid"):
        (folder / f"rte.{split}.jsonl").write_text(row * 3)
    _, checksum = right_answers("rte", 2026, "evals")
    for name, labels in (("a", (1, 1, 0)), ("b", (0, 1, 1))):
        directory = write_run(f"run-{name}", "seed-1")
        file = Path(f"results/run-{name}_seed-1/main/finetune/rte/predictions.json")
        file.parent.mkdir(parents=True)
        rows = [{"id": f"rte_{i}", "pred": x} for i, x in enumerate(labels)]
        file.write_text(json.dumps({"rte": {"predictions": rows}}))
        entry = {"score": 66.7, "protocol": 2026, "subscores": {}}
        entry |= {"data_checksum": checksum, "files": ["finetune/rte/predictions.json"]}
        scores = {"scores": {"causal": {"rte": entry}}}
        (file.parents[2] / "scores.json").write_text(json.dumps(scores))
    _, by_task = compared("run-a", "run-b")
    found = by_task["rte"].phenomena["rte"]
    assert (found["first"], found["second"]) == (["rte_0"], ["rte_2"])
    assert by_task["rte"].difference == pytest.approx(0)
