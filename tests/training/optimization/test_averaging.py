"""The average of the weights: what is in it, that it survives a stop, when it is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from src.training.optimization.averaging import FILE, WeightAverage
from src.training.optimization.schedule import num_steps_of
from tests.test_run_clm import only_run

KEEP_ALL = [
    "training.save_steps=1",
    "training.save_total_limit=99",
    "training.eval_steps=1",
]
NOISY = ["training.learning_rate=0.3", "training.lr_scheduler_type=constant"]


def states_of(average: WeightAverage, model: torch.nn.Linear, steps: range) -> None:
    """The model's weights are the number of the step; the average sees each."""
    for step in steps:
        with torch.no_grad():
            model.weight.fill_(step)
        average.on_step_end(None, TrainerState(global_step=step), None)


def averaged(kind: str, steps: float, number: int = 10) -> float:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, kind, num_steps_of(steps, number), number)
    states_of(average, model, range(1, number + 1))
    return average.average["weight"].item()


def test_the_tail_is_the_mean_of_the_last_steps():
    assert averaged("tail", 4) == pytest.approx((7 + 8 + 9 + 10) / 4)
    assert averaged("tail", 0.2) == pytest.approx((9 + 10) / 2)
    assert averaged("tail", 10) == pytest.approx(5.5)
    assert averaged("tail", 1) == 10


def test_the_ema_forgets_with_its_span():
    expected = 1.0
    for step in range(2, 11):
        expected = expected * (1 - 2 / 5) + step * 2 / 5  # a span of 4 steps
    assert averaged("ema", 4) == pytest.approx(expected)


def test_before_the_tail_there_is_nothing_to_save(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, "tail", 4, 10)
    states_of(average, model, range(1, 7))
    average.save(tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("kind", ["tail", "ema"])
def test_a_loaded_average_goes_on_as_if_it_had_not_been_saved(kind, tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    whole = WeightAverage(model, kind, 5, 10)
    states_of(whole, model, range(1, 11))
    first = WeightAverage(model, kind, 5, 10)
    states_of(first, model, range(1, 9))
    first.save(tmp_path)
    second = WeightAverage(model, kind, 5, 10)
    second.load(tmp_path)
    states_of(second, model, range(9, 11))
    assert torch.equal(whole.average["weight"], second.average["weight"])


def test_an_average_that_scores_better_is_the_final_model(tiny, run_clm, caplog):
    assert not run_clm(*tiny, *KEEP_ALL, *NOISY, "training.averaging=tail",
                       "training.averaging_steps=4")  # fmt: skip
    run = only_run()
    results = json.loads((run / "results.json").read_text())
    assert "it is the final model" in caplog.text
    assert results["averaged_steps"] == 4
    steps = [load_file(run / f"checkpoint-{n}/model.safetensors") for n in range(9, 13)]
    for name, weight in load_file(run / "model.safetensors").items():
        mean = torch.stack([weights[name] for weights in steps]).mean(0)
        assert torch.allclose(weight, mean, atol=1e-6), name
    state = TrainerState.load_from_json(str(run / "checkpoint-12/trainer_state.json"))
    assert results["eval_loss"] < state.best_metric


def test_an_average_that_scores_worse_is_not_kept(tiny, run_clm, caplog):
    """The mean over all of a short run has its first, untrained weights in it."""
    assert not run_clm(*tiny, *KEEP_ALL, "training.averaging=tail",
                       "training.averaging_steps=12", "training.warmup_steps=0",
                       "training.learning_rate=0.01")  # fmt: skip
    run = only_run()
    results = json.loads((run / "results.json").read_text())
    assert "it is not kept" in caplog.text
    assert "averaged_steps" not in results
    state = TrainerState.load_from_json(str(run / "checkpoint-12/trainer_state.json"))
    assert results["eval_loss"] == pytest.approx(state.best_metric, abs=1e-6)
    best = load_file(run / f"checkpoint-{state.best_global_step}/model.safetensors")
    for name, weight in load_file(run / "model.safetensors").items():
        assert torch.equal(weight, best[name]), name


def test_a_run_with_muon_and_an_average_continues_bit_for_bit(tiny, run_clm):
    """Killed after a checkpoint in the middle of the tail, it ends as one that was not."""
    options = [*KEEP_ALL, *NOISY, "training.averaging=tail", "training.optimizer=muon",
               "training.averaging_steps=6", "training.normuon=true",
               "training.cautious_weight_decay=true", "training.weight_decay_schedule=dip",
               "training.lr_scales={embedding: 0.3}"]  # fmt: skip
    assert not run_clm(*tiny, *options, "wandb.tag=whole")
    assert not run_clm(*tiny, *options, "wandb.tag=cut")
    whole, cut = only_run("whole"), only_run("cut")
    for step in range(10, 13):  # as a kill after step 9 would have left it
        for file in (cut / f"checkpoint-{step}").iterdir():
            file.unlink()
        (cut / f"checkpoint-{step}").rmdir()
    (cut / "results.json").unlink()
    (cut / "model.safetensors").unlink()
    assert not run_clm(*tiny, *options, "wandb.tag=cut")
    results = [json.loads((run / "results.json").read_text()) for run in (whole, cut)]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    first, second = (load_file(run / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_end_of_a_run_that_was_lost_is_made_up(tiny, run_clm):
    """All steps are done, the average was not yet scored: the same command does that."""
    options = [*KEEP_ALL, *NOISY, "training.averaging=ema"]
    assert not run_clm(*tiny, *options)
    run = only_run()
    before = load_file(run / "model.safetensors")
    (run / "results.json").unlink()
    (run / "model.safetensors").unlink()
    assert not run_clm(*tiny, *options)
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run / "results.json").read_text())["averaged_steps"] == 2


def test_without_an_evaluation_the_average_is_kept_unseen(tiny, run_clm, caplog):
    assert not run_clm(*tiny, "training.do_eval=false", "training.averaging=tail",
                       "training.save_steps=1", "training.save_total_limit=99",
                       "training.averaging_steps=2")  # fmt: skip
    run = only_run()
    assert "(tail of 2 steps) is the final model" in caplog.text
    steps = [load_file(run / f"checkpoint-{n}/model.safetensors") for n in (11, 12)]
    for name, weight in load_file(run / "model.safetensors").items():
        mean = (steps[0][name] + steps[1][name]) / 2
        assert torch.allclose(weight, mean, atol=1e-6), name
