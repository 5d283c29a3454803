import pytest

from src.configuration.run_configuration import run_configuration

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")


def test_a_run_is_named_by_tag_model_dataset_and_seed(composed):
    config = composed("+model=gpt2-small", "+dataset=babylm_10M")
    assert config.wandb.group == "run-gpt2-small-babylm_10M"
    assert config.wandb.name == "seed-42"
    assert config.training.output_dir == "exp/run-gpt2-small-babylm_10M/seed-42"
    assert config.wandb.project == "stanford-babylm"


@pytest.mark.parametrize(
    "overrides, name",
    [
        (["training.seed=7"], "seed-7"),
        (["training.learning_rate=1e-3"], "seed-42_lr-0.001"),
        (["training.learning_rate=0.001"], "seed-42_lr-0.001"),
        (["training.weight_decay=1"], "seed-42_weight_decay-1"),
        (["training.num_train_epochs=2"], "seed-42_epochs-2"),
        (["training.lr_scheduler_type=linear"], "seed-42_lr_scheduler_type-linear"),
        (["model.config_overrides.n_layer=2"], "seed-42_config.n_layer-2"),
        (["tokenizer.vocab_size=512"], "seed-42_tokenizer.vocab_size-512"),
        (["+tokenizer=gpt2"], "seed-42_tokenizer-gpt2"),
        (
            ["training.max_steps=3", "data.block_size=64"],
            "seed-42_block_size-64_max_steps-3",
        ),
        (
            ["data.block_size=64", "training.max_steps=3"],
            "seed-42_block_size-64_max_steps-3",
        ),
        # what changes no result changes no name
        (["training.logging_steps=3"], "seed-42"),
        (["training.save_steps=0.2"], "seed-42"),
        (["wandb.project=x", "model.cache_dir=/tmp/x"], "seed-42"),
        (["data.preprocessing_num_workers=2"], "seed-42"),
        (["training.overwrite_output_dir=true"], "seed-42"),
        (["training.per_device_eval_batch_size=2"], "seed-42"),
        (["+milestones=strict_small"], "seed-42"),
    ],
)
def test_the_name_holds_the_overrides_that_change_the_result(composed, overrides, name):
    assert composed(*SAMPLE, *overrides).wandb.name == name


def test_evaluation_cadence_counts_where_it_decides_the_best_model(composed):
    assert (
        composed(*SAMPLE, "training.eval_steps=0.2").wandb.name
        == "seed-42_eval_steps-0.2"
    )
    alone = composed(
        *SAMPLE, "training.eval_steps=0.2", "training.load_best_model_at_end=false"
    )
    assert "eval_steps" not in alone.wandb.name


def test_what_tasks_are_scored_counts_where_it_decides_the_best_model(composed):
    scored = ["evaluation.tasks=fast", "evaluation.items_while_training=9"]
    scored += ["evaluation.batch_tokens=99", "evaluation.protocol=2025"]
    sample = run_configuration(composed(*SAMPLE)).identity
    config = composed(*SAMPLE, *scored)
    assert config.wandb.name == "seed-42"
    assert run_configuration(config).identity == sample
    best = ["training.metric_for_best_model=eval_blimp", *scored]
    config = composed(*SAMPLE, *best)
    name = "_evaluation.{}-".format
    assert all(
        name(key) in config.wandb.name
        for key in ("items_while_training", "protocol", "tasks")
    )
    assert "batch_tokens" not in config.wandb.name
    assert {"evaluation.pairs", "evaluation.data"} <= set(
        run_configuration(config).identity
    )
    last = [*best, "training.load_best_model_at_end=false"]
    assert "evaluation" not in composed(*SAMPLE, *last).wandb.name
    # The score also decides whether the average of the weights is kept.
    averaged = composed(*SAMPLE, *last, "training.averaging=tail")
    assert "evaluation.items_while_training-9" in averaged.wandb.name
    unseen = composed(
        *SAMPLE, *last, "training.averaging=tail", "training.do_eval=false"
    )
    assert "evaluation" not in unseen.wandb.name


def test_names_are_safe_for_paths_and_never_meet(composed):
    values = [
        "a/b.txt",
        "a-b.txt",
        "[a,b.txt]",
        "ab.txt",
        "'a b.txt'",
        "a//b.txt",
        "a/b.TXT",
        "x" * 300,
    ]
    values = [f"data.train_file={value}" for value in values]
    values += [
        "model.config_overrides={n_layer:2}",
        "model.config_overrides={n_layer:3}",
    ]
    names = [composed(*SAMPLE, value).wandb.name for value in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert not set(name) & set("=/ []{}'\",:*") and len(name) <= 120


def test_long_lists_of_overrides_still_give_names_of_their_own(composed):
    many = [
        f"training.{k}=0.123456" for k in ("adam_beta1", "weight_decay", "warmup_steps")
    ]
    many += [
        f"training.{k}=0.12345" for k in ("max_grad_norm", "adam_epsilon", "adam_beta2")
    ]
    first = composed(*SAMPLE, *many, "training.optim_args=a").wandb.name
    second = composed(*SAMPLE, *many, "training.optim_args=b").wandb.name
    assert first != second and len(first) <= 120


def test_a_run_by_plain_keys_is_called_custom(composed):
    config = composed("model.model_type=llama", "data.train_file=my/*.txt")
    assert config.wandb.group == "run-custom-custom"
    assert "model_type-llama" in config.wandb.name


def test_the_tag_begins_the_group(composed):
    assert composed(*SAMPLE, "wandb.tag=debug").wandb.group == "debug-gpt2-tiny-sample"


def test_identity_holds_what_changes_the_result_and_nothing_else(composed):
    found = run_configuration(composed(*SAMPLE)).identity
    assert found["training.learning_rate"] == 3e-3 and found["training.seed"] == 42
    assert found["model.config_overrides"]["n_layer"] == 4
    for harmless in (
        "logging_steps",
        "save_steps",
        "output_dir",
        "dataloader_num_workers",
    ):
        assert f"training.{harmless}" not in found
    assert not any(key.startswith("wandb.") for key in found)


def test_a_run_without_evaluation_keeps_its_own_name(composed):
    config = composed(*SAMPLE, "training.eval_strategy=no")
    recorded = run_configuration(config).recorded
    assert recorded["training"]["output_dir"] == config.training.output_dir
    assert recorded["wandb"]["name"] == "seed-42_eval_strategy-no"
