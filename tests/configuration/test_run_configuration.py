import copy
import dataclasses
import math

import pytest
from omegaconf import OmegaConf

from src.arguments import HUGGING_FACE_BOUNDS, RunEvalArguments, TrainingArguments
from src.configuration.run_configuration import command_arguments, run_configuration
from src.configuration.schema import build, group_choices, options, sections
from src.foundation import UserError

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")


def test_real_objects_come_out_typed(composed):
    config = composed(*SAMPLE, "training.lr_scheduler_type=linear", "training.seed=7")
    args = run_configuration(config).args
    assert isinstance(args.training, TrainingArguments)
    assert args.training.lr_scheduler_type == "linear"
    assert (args.training.seed, args.training.learning_rate) == (7, 3e-3)
    assert args.model.config_overrides["n_layer"] == 4


def test_no_evaluation_means_no_best_model(composed):
    config = composed(*SAMPLE, "training.eval_strategy=no")
    assert run_configuration(config).args.training.load_best_model_at_end is False


@pytest.mark.parametrize(
    "metric, greater",
    [("loss", False), ("accuracy", True), ("childes_perplexity", False)],
)
def test_what_is_better_follows_from_the_metric(composed, metric, greater):
    config = composed(*SAMPLE, f"training.metric_for_best_model={metric}")
    assert run_configuration(config).args.training.greater_is_better is greater


@pytest.mark.parametrize(
    "overrides, strategy, steps",
    [
        ([], "steps", 0.1),
        (["training.eval_steps=200"], "steps", 200),
        (["training.eval_strategy=epoch"], "epoch", 0.1),
        (["training.eval_steps=0.05", "training.save_steps=0.2"], "steps", 0.2),
        (["training.eval_strategy=no"], "steps", 0.1),
        (["training.do_eval=false"], "steps", 0.1),
        (["training.eval_steps=null"], "steps", 20),
    ],
)
def test_a_run_is_saved_when_it_is_evaluated(composed, overrides, strategy, steps):
    training = run_configuration(composed(*SAMPLE, *overrides)).args.training
    assert (training.save_strategy, training.save_steps) == (strategy, steps)


def test_arguments_do_not_print_tokens(composed):
    secret = ("model.token=hf_planted", "training.hub_token=hf_planted")
    args = run_configuration(composed(*SAMPLE, *secret)).args
    assert args.model.token == args.training.hub_token == "hf_planted"
    assert "hf_planted" not in f"{args!r} {args.training} {args.training.to_dict()}"


def test_a_file_may_set_an_option_that_has_no_effect(composed, monkeypatch):
    from src.configuration import run_configuration as module

    typed = ["training.averaging_steps=0.5"]
    with pytest.raises(UserError, match="averaging_steps=0.5 has no effect"):
        run_configuration(composed(*SAMPLE, *typed))
    monkeypatch.setattr(module, "typed_overrides", lambda: [])  # as in a file
    assert run_configuration(composed(*SAMPLE, *typed))


def test_secrets_are_not_in_the_record(composed):
    config = composed(*SAMPLE, "model.token=hf_secret", "training.hub_token=hf_secret")
    assert "hf_secret" not in str(run_configuration(config).recorded)


def test_a_batch_in_sequences_replaces_the_one_in_tokens(composed):
    assert composed(*SAMPLE).training.tokens_per_step == 2048
    given = composed(*SAMPLE, "training.per_device_train_batch_size=4").training
    assert given.tokens_per_step is None


def test_a_recipe_brings_its_model_along(composed, refusal):
    config = composed("+recipe=gpt2_2025", "+dataset=babylm_10M")
    assert config.model.config_overrides.n_layer == 12
    assert config.training.learning_rate == 5e-5  # the recipe's, not the model file's
    told = refusal("+recipe=gpt2_2025", "+model=gpt2-tiny", SAMPLE[1])
    assert "+model=gpt2-tiny" in told and "A recipe brings the model" in told
    told = refusal(*SAMPLE, "+dataset=babylm_10M")
    assert "+dataset=babylm_10M" in told and "recipe" not in told
    other = composed("+recipe=gpt2_2025", "model=gpt2-tiny", SAMPLE[1])
    assert other.model.config_overrides.n_layer == 4


def test_every_recipe_composes_with_its_track(composed):
    tracks = {
        10_000_000: "babylm_10M",
        100_000_000: "babylm_100M",
        300_000: "babylm_300k",
    }
    for recipe in group_choices()["recipe"]:
        budget = composed(f"+recipe={recipe}").data.recipe_budget
        config = composed(f"+recipe={recipe}", f"+dataset={tracks[budget]}")
        assert run_configuration(config).args.model.model_type


def test_nothing_is_written_into_what_hydra_composed(composed):
    config = composed(*SAMPLE, "training.do_eval=false", "training.bf16=null")
    before = copy.deepcopy(config)
    configuration = run_configuration(config)
    assert config == before and config.training.bf16 is None
    assert configuration.recorded["training"]["bf16"] is not None
    assert configuration.recorded["training"]["eval_strategy"] == "no"


def test_the_arguments_and_the_configuration_cannot_be_changed(composed):
    configuration = run_configuration(composed(*SAMPLE))
    args = configuration.args
    frozen = [configuration, args, args.model, args.data, args.evaluation, args.wandb]
    for part in frozen:
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)


def test_a_value_that_was_left_open_has_a_reason(composed):
    reasons = run_configuration(composed(*SAMPLE)).reasons
    assert reasons["training.use_cpu"] == "there is no GPU"
    assert reasons["training.bf16"].startswith("the CPU is ")
    assert reasons["training.greater_is_better"] == "a lower loss is better"
    given = ("training.use_cpu=true", "training.bf16=true")
    reasons = run_configuration(composed(*SAMPLE, *given)).reasons
    assert not {"training.use_cpu", "training.bf16", "training.tf32"} & set(reasons)


def test_what_is_recorded_has_the_values_of_the_arguments(composed):
    configuration = run_configuration(composed(*SAMPLE))
    args, recorded = configuration.args, configuration.recorded
    assert args.training.bf16 is recorded["training"]["bf16"]
    assert args.training.output_dir == recorded["training"]["output_dir"]
    assert args.evaluation.protocol == 2026  # the choice itself, not its name
    assert recorded["evaluation"]["protocol"] == "2026"
    assert configuration.overrides == list(SAMPLE)


BOUNDED = {
    key: field.metadata.get("bounds") or HUGGING_FACE_BOUNDS.get(key)
    for key, field in options().items()
}


@pytest.mark.parametrize("key", [key for key, bounds in BOUNDED.items() if bounds])
def test_bounds_are_those_that_the_option_declares(key):
    section, name = key.split(".")
    section = sections()[section]

    def is_refused(value) -> bool:
        try:
            build(section, {name: value})
        except UserError as error:
            return str(error).startswith(f"{key} must be a") and "got" in str(error)
        return False

    for kind, bound in BOUNDED[key].items():
        if kind != "reason":
            assert is_refused(bound) is (kind in ("above", "below"))
            assert is_refused(bound + (1 if kind in ("maximum", "below") else -1))
    for value in (math.nan, math.inf, -math.inf):
        assert is_refused(value)


def test_run_eval_has_the_same_checks_and_keys_without_a_section():
    values = {f.name: f.default for f in dataclasses.fields(RunEvalArguments)}
    assert RunEvalArguments.key("tasks") == "tasks"
    with pytest.raises(UserError, match="^batch_tokens must be at least 1, got 0$"):
        build(RunEvalArguments, {**values, "protocol": "2025", "batch_tokens": 0})
    with pytest.raises(
        UserError, match="^tasks must be a text or a list of texts, got 3$"
    ):
        build(RunEvalArguments, {**values, "protocol": "2025", "tasks": 3})
    args = command_arguments(
        RunEvalArguments, OmegaConf.create({"protocol": "2025", "tasks": "fast"})
    )
    assert (args.protocol, args.tasks) == (2025, "fast")


@pytest.mark.parametrize(
    "name, value",
    [
        ("MIXED_PRECISION", "bf16"),
        ("MIXED_PRECISION", "fp8"),
        ("DYNAMO_BACKEND", "inductor"),
        ("GRADIENT_ACCUMULATION_STEPS", "4"),
        ("USE_FSDP", "true"),
        ("USE_DEEPSPEED", "1"),
    ],
)
def test_what_accelerate_would_override_is_refused(composed, name, value, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    config = composed("+model=gpt2-tiny", "+dataset=sample", "training.bf16=false")
    with pytest.raises(UserError, match=f"^ACCELERATE_{name}={value} in the envir"):
        run_configuration(config)


def test_what_accelerate_launch_sets_by_itself_is_accepted(composed, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    given = "+model=gpt2-tiny", "+dataset=sample", "training.bf16=true"
    assert run_configuration(composed(*given)).args.training.bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert run_configuration(composed(*given)).args.training.bf16


def test_deepspeed_is_refused_in_one_line(composed):
    config = composed(
        "+model=gpt2-tiny", "+dataset=sample", "+training.deepspeed=d.json"
    )
    with pytest.raises(UserError, match="^training.deepspeed must be None, got d.json"):
        run_configuration(config)


def test_sharding_weights_needs_a_process_for_each_gpu(composed):
    for override in ("+parallel=fsdp", "training.fsdp=true"):
        with pytest.raises(UserError, match="fsdp=true needs several GPUs .* on a CPU"):
            run_configuration(composed(*SAMPLE, override, "training.use_cpu=true"))


@pytest.mark.parametrize(
    "option",
    [
        "averaging=ema",
        "optimizer=muon",
        "optim=adafactor",
        "torch_compile=true",
        "do_train=false",
        "fsdp_config.state_dict_type=SHARDED_STATE_DICT",
        "fsdp_config.version=1",
    ],
)
def test_what_does_not_work_with_sharded_weights_is_refused(composed, option):
    config = composed(*SAMPLE, "+parallel=fsdp", f"++training.{option}")
    with pytest.raises(UserError) as refusal:
        run_configuration(config)
    assert f"training.fsdp=true does not work with training.{option}" == str(
        refusal.value
    )
