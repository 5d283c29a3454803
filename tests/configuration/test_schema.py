import dataclasses
import pickle
import subprocess
import sys

import pytest
import transformers
from hydra.errors import HydraException

from src.arguments import Arguments, TrainingArguments
from src.configuration import schema as configuration
from src.configuration.schema import (
    build_arguments,
    decide,
    explain,
    refuse_unknown_keys,
)
from src.foundation import UserError
from tests.conftest import REPOSITORY

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")


def refusal(composed, *overrides: str) -> str:
    """What the user is told; a test fails where nothing is refused."""
    try:
        config = composed(*overrides)
        refuse_unknown_keys(config)
        decide(config)
        build_arguments(config)
    except (UserError, HydraException) as error:
        return explain(error)
    pytest.fail(f"{overrides} was not refused")


def test_every_field_of_hugging_faces_training_arguments_is_a_key(composed):
    config = composed(*SAMPLE)
    for field in dataclasses.fields(transformers.TrainingArguments):
        assert not field.init or field.name in config.training


def test_real_objects_come_out_typed(composed):
    config = composed(*SAMPLE, "training.lr_scheduler_type=linear", "training.seed=7")
    decide(config)
    args = build_arguments(config)
    assert isinstance(args.training, TrainingArguments)
    assert args.training.lr_scheduler_type == "linear"
    assert (args.training.seed, args.training.learning_rate) == (7, 3e-3)
    assert args.model.config_overrides["n_layer"] == 4


@pytest.mark.parametrize(
    "override, told",
    [
        ("training.learning_rate=abc", ("training.learning_rate", "abc", "Float")),
        ("training.seed=null", ("training.seed", "null")),
        ("training.lr_scheduler_type=coseen", ("coseen", "linear, cosine")),
        ("data.document_boundary=page", ("data.document_boundary", "page", "heading")),
        ("wandb.mode=on", ("wandb.mode", "auto, online, offline")),
        ("training.lerning_rate=1", ("lerning_rate", "training.learning_rate")),
        ("+training.lerning_rate=1", ("lerning_rate", "training.learning_rate")),
        ("++data.blok_size=8", ("data.blok_size", "data.block_size")),
        ("+models=gpt2-small", ("models", "+model=", "gpt2-small")),
        ("+foo=1", ("foo", "neither a section")),
        ("per_device_train_batch_size=8", ("training.per_device_train_batch_size",)),
        ("+per_device_train_batch_size=8", ("training.per_device_train_batch_size",)),
        ("+training.evaluation_strategy=steps", ("training.eval_strategy",)),
        ("evaluation_strategy=steps", ("training.eval_strategy",)),
        ("+training.no_cuda=true", ("training.use_cpu",)),
        ("model.config_overrides.rotary=1", ("+model.config_overrides.rotary=",)),
        ("data.block_size=1", ("data.block_size", "at least 2", "1")),
        ("data.max_eval_samples=0", ("data.max_eval_samples", "at least 1", "0")),
        (
            "data.validation_split_percentage=100",
            ("validation_split_percentage", "100"),
        ),
        ("training.save_total_limit=1", ("training.save_total_limit", "at least 2")),
        ("training.fp16=true", ("training.fp16", "GPU")),
        ("training.tf32=true", ("training.tf32", "GPU")),
        ("training.use_cpu=false", ("training.use_cpu", "there is none")),
        ("training.tokens_per_step=0", ("training.tokens_per_step", "above 0", "0")),
        (
            "training.gradient_accumulation_steps=2",
            ("training.per_device_train_batch_size must be given", "tokens_per_step"),
        ),
        (
            "training.torch_compile_mode=default",
            ("torch_compile_mode", "torch_compile"),
        ),
        ("training.bf16_full_eval=true", ("bf16_full_eval", "cast", "training.bf16 ")),
        ("training.fp16_full_eval=true", ("fp16_full_eval", "cast", "training.bf16 ")),
        ("training.report_to=[wandb]", ("wandb.log",)),
        ("training.save_only_model=true", ("save_only_model", "continued")),
        ("training.train_sampling_strategy=sequential", ("train_sampling_strategy",)),
        ("training.resume_from_checkpoint=x", ("continues", "model_name_or_path")),
        ("data.dataset_name=x", ("data.dataset_name", "data.train_file")),
        ("+model=gpt2-huge", ("gpt2-huge", "gpt2-medium", "opt-125m")),
    ],
)
def test_a_bad_override_is_refused_with_what_would_be_right(composed, override, told):
    first = () if override.startswith("+model=") else SAMPLE[:1]
    message = refusal(composed, *first, SAMPLE[1], override)
    assert all(part in message for part in told), message
    assert "Traceback" not in message


def test_the_batch_is_stated_once(composed):
    """What was given is named as it was typed; what was not, not at all."""
    tokens, size = "training.tokens_per_step", "training.per_device_train_batch_size"
    number = "training.gradient_accumulation_steps"
    message = refusal(composed, *SAMPLE, f"{tokens}=2048", f"{size}=16")
    assert message.startswith(f"{tokens}=2048 and {size}=16 both say what a step sees")
    message = refusal(composed, *SAMPLE, f"{tokens}=2048", f"{size}=8", f"{number}=2")
    assert message.startswith(f"{tokens}=2048 and {size}=8, {number}=2 both say")
    message = refusal(composed, *SAMPLE, f"{tokens}=null")
    assert message == f"{size} must be given where {tokens} is not, got null"


def test_a_batch_in_sequences_replaces_the_one_in_tokens(composed):
    assert composed(*SAMPLE).training.tokens_per_step == 2048
    given = composed(*SAMPLE, "training.per_device_train_batch_size=4").training
    assert given.tokens_per_step is None


def test_a_metric_that_nothing_reports_is_refused(composed):
    message = refusal(
        composed,
        *SAMPLE,
        "training.metric_for_best_model=f1",
        "evaluation.pairs=null",  # with tasks, it may be one of theirs
    )
    assert "metric_for_best_model=f1" in message and "perplexity" in message


def test_a_file_dropped_into_a_group_works(composed, own_group):
    own_group(
        "model/mine.yaml",
        "# @package _global_\nmodel:\n  model_type: opt\ntraining:\n  seed: 5\n",
    )
    config = composed("+model=mine", "+dataset=sample")
    assert (config.model.model_type, config.training.seed) == ("opt", 5)
    assert config.wandb.group == "run-mine-sample"


def test_a_new_group_works(composed, own_group):
    own_group(
        "speed/slow.yaml", "# @package _global_\ntraining:\n  learning_rate: 1e-5\n"
    )
    config = composed(*SAMPLE, "+speed=slow")
    assert config.training.learning_rate == 1e-5
    assert config.wandb.name == "seed-42_speed-slow"


def test_a_new_group_without_its_package_line_is_explained(composed, own_group):
    own_group("speed/slow.yaml", "training:\n  learning_rate: 1e-5\n")
    assert "# @package _global_" in refusal(composed, *SAMPLE, "+speed=slow")


def test_a_file_without_its_package_line_is_explained(composed, own_group):
    own_group("model/nopkg.yaml", "model:\n  model_type: gpt2\n")
    assert "# @package _global_" in refusal(composed, "+model=nopkg", SAMPLE[1])


def test_a_flat_key_in_a_file_is_sent_to_its_section(composed, own_group):
    own_group(
        "model/flat.yaml", "# @package _global_\nper_device_train_batch_size: 8\n"
    )
    message = refusal(composed, "+model=flat", "+dataset=sample")
    assert "model/flat" in message and "training.per_device_train_batch_size" in message


def test_a_wrong_type_in_a_file_names_file_key_and_value(composed, own_group):
    own_group("model/bad.yaml", "# @package _global_\ntraining:\n  max_steps: many\n")
    message = refusal(composed, "+model=bad", "+dataset=sample")
    assert all(part in message for part in ("model/bad", "training.max_steps", "many"))


def test_a_bare_no_in_a_file_is_explained(composed, own_group):
    own_group("model/no.yaml", "# @package _global_\ntraining:\n  eval_strategy: no\n")
    assert "quotes" in refusal(composed, "+model=no", "+dataset=sample")


def test_no_evaluation_means_no_best_model(composed):
    config = composed(*SAMPLE, "training.eval_strategy=no")
    decide(config)
    assert build_arguments(config).training.load_best_model_at_end is False


def test_the_configuration_can_be_pickled_for_launchers(composed):
    config = composed(*SAMPLE)
    assert pickle.loads(pickle.dumps(config)) == config


def test_secrets_are_not_in_the_record(composed):
    config = composed(*SAMPLE, "model.token=hf_secret", "training.hub_token=hf_secret")
    assert "hf_secret" not in str(configuration.resolved(config))


def test_adding_an_argument_is_adding_a_field():
    @dataclasses.dataclass
    class MyArguments(TrainingArguments):
        patience: int = 3

    mirror = configuration.schema(MyArguments)
    assert {f.name: f.type for f in dataclasses.fields(mirror)}["patience"] is int


def test_option_names_are_told_apart():
    """Run names leave out `training.` and `data.`: no field may be in both."""
    sections = configuration.sections()
    names = [
        f.name for s in ("training", "data") for f in dataclasses.fields(sections[s])
    ]
    assert len(names) == len(set(names))
    assert set(sections) == {f.name for f in dataclasses.fields(Arguments)}


def test_cfg_and_help_load_nothing_but_the_schema():
    """One after the other in a process of their own."""
    commands = {
        "--cfg job": "learning_rate: 0.003",
        "--cfg job --resolve": "output_dir: exp/run-gpt2-tiny-sample/seed-42",
        "--help": "data.block_size=128",
    }
    code = (
        "import sys; from src.run_clm import main\n"
        "for flags in %r:\n"
        "    sys.argv = ['run_clm', *%r, *flags.split()]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code\n"
        "    print('LOADED', [m for m in ('datasets', 'evaluate', 'wandb',"
        " 'transformers.trainer') if m in sys.modules])"
    ) % ([*commands], SAMPLE)
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    *found, rest = out.stdout.split("LOADED []\n")
    assert len(found) == len(commands) and not rest, out.stderr
    for shown, expected in zip(found, commands.values()):
        assert expected in shown


@pytest.mark.parametrize(
    "metric, greater",
    [("loss", False), ("accuracy", True), ("childes_perplexity", False)],
)
def test_what_is_better_follows_from_the_metric(composed, metric, greater):
    config = composed(*SAMPLE, f"training.metric_for_best_model={metric}")
    decide(config)
    assert build_arguments(config).training.greater_is_better is greater


def test_a_recipe_brings_its_model_along(composed):
    config = composed("+recipe=gpt2_2025", "+dataset=babylm_10M")
    assert config.model.config_overrides.n_layer == 12
    assert config.training.learning_rate == 5e-5  # the recipe's, not the model file's
    told = refusal(composed, "+recipe=gpt2_2025", "+model=gpt2-tiny", SAMPLE[1])
    assert "+model=gpt2-tiny" in told and "A recipe brings the model" in told
    told = refusal(composed, *SAMPLE, "+dataset=babylm_10M")
    assert "+dataset=babylm_10M" in told and "recipe" not in told
    other = composed("+recipe=gpt2_2025", "model=gpt2-tiny", SAMPLE[1])
    assert other.model.config_overrides.n_layer == 4


@pytest.mark.parametrize(
    "overrides, told",
    [
        (
            ["+recipe=gpt2_2025", "+dataset=babylm_100M"],
            ["10,000,000 words", "100,000,000", "data.recipe_budget=null"],
        ),
        (
            [*SAMPLE, "training.optimizer=muon", "training.optim=adafactor"],
            ["training.optimizer=muon", "training.optim=adafactor"],
        ),
        ([*SAMPLE, "training.averaging=swa"], ["ema, tail"]),
        ([*SAMPLE, "training.averaging_steps=0"], ["training.averaging_steps", "0"]),
        ([*SAMPLE, "training.cooldown_steps=-1"], ["training.cooldown_steps", "-1"]),
    ],
)
def test_recipes_and_values_that_do_not_go_together_are_refused(
    composed, overrides, told
):
    message = refusal(composed, *overrides)
    assert all(part in message for part in told), message


def test_every_recipe_composes_with_its_track(composed):
    tracks = {
        10_000_000: "babylm_10M",
        100_000_000: "babylm_100M",
        300_000: "babylm_300k",
    }
    for recipe in configuration.group_choices()["recipe"]:
        budget = composed(f"+recipe={recipe}").data.recipe_budget
        config = composed(f"+recipe={recipe}", f"+dataset={tracks[budget]}")
        refuse_unknown_keys(config)
        decide(config)
        assert build_arguments(config).model.model_type
