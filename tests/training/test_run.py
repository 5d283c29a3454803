"""The story of a run: what it does to its arguments."""

import copy
import dataclasses
from pathlib import Path

from src.configuration.run_configuration import run_configuration
from src.training.run import train
from tests.training.test_task_scores import pairs  # noqa: F401


def values(configuration) -> dict:
    """A deep copy of a run's configuration, and of all fields of its sections."""
    plain = {
        field.name: getattr(configuration, field.name)
        for field in dataclasses.fields(configuration)
        if field.name != "args"
    }
    for name, section in vars(configuration.args).items():
        for field in dataclasses.fields(section):
            plain[f"{name}.{field.name}"] = getattr(section, field.name)
    return copy.deepcopy(plain)


def test_a_run_leaves_its_arguments_as_they_were(
    tiny, composed, pairs, caplog  # noqa: F811
):
    """With evaluations, tasks, an average, and options that are resolved for the run."""
    overrides = [o for o in tiny if not o.startswith("training.bf16")]
    configuration = run_configuration(
        composed(
            *overrides,
            f"evaluation.pairs={pairs}",
            "evaluation.items_while_training=6",
            "evaluation.num_generated_texts=1",
            "training.averaging=tail",
            "training.averaging_steps=4",
            "training.lr_scheduler_type=warmup_stable_decay",
            "training.eval_steps=4",
            "training.save_steps=4",
            "training.save_total_limit=2",
            "training.metric_for_best_model=pairs",
            "data.block_size_schedule={8: 0.5, 16: 0.5}",
        )
    )
    before = values(configuration)
    assert before["training.averaging"] == "tail" and before["data.block_size"] == 16
    caplog.set_level("INFO")
    assert train(configuration) > 0
    assert "The average of the weights (tail of 4 steps) has eval_pairs" in caplog.text
    after = values(configuration)
    assert {k: (before[k], after[k]) for k in before if before[k] != after[k]} == {}
    assert after.keys() == before.keys()
    assert list(Path("exp").glob("*/*/results.json"))
