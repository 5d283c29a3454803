import pytest

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")


@pytest.mark.parametrize(
    "override, told",
    [
        ("training.learning_rate=abc", ("training.learning_rate", "abc", "Float")),
        ("training.seed=null", ("training.seed", "null")),
        ("training.lr_scheduler_type=coseen", ("coseen", "linear, cosine")),
        ("data.document_boundary=''", ("data.document_boundary", "empty")),
        ("wandb.mode=on", ("wandb.mode", "auto, online, offline")),
        ("training.lerning_rate=1", ("lerning_rate", "training.learning_rate")),
        ("+training.lerning_rate=1", ("lerning_rate", "training.learning_rate")),
        ("++data.blok_size=8", ("data.blok_size", "data.block_size")),
        ("+models=gpt2-small", ("models", "+model=", "gpt2-small")),
        ("+foo=1", ("foo", "neither a section")),
        ("data.seed=1", ("data.seed", "write training.seed")),
        ("per_device_train_batch_size=8", ("training.per_device_train_batch_size",)),
        ("+per_device_train_batch_size=8", ("training.per_device_train_batch_size",)),
        ("+training.evaluation_strategy=steps", ("training.eval_strategy",)),
        ("evaluation_strategy=steps", ("training.eval_strategy",)),
        ("+training.no_cuda=true", ("training.use_cpu",)),
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
def test_a_bad_override_is_refused_with_what_would_be_right(refusal, override, told):
    first = () if override.startswith("+model=") else SAMPLE[:1]
    message = refusal(*first, SAMPLE[1], override)
    assert all(part in message for part in told), message
    assert "Traceback" not in message


def test_the_batch_is_stated_once(refusal):
    """What was given is named as it was typed; what was not, not at all."""
    tokens, size = "training.tokens_per_step", "training.per_device_train_batch_size"
    number = "training.gradient_accumulation_steps"
    message = refusal(*SAMPLE, f"{tokens}=2048", f"{size}=16")
    assert message.startswith(
        f"{tokens}=2048 and {size}=16 both set the size of a step"
    )
    message = refusal(*SAMPLE, f"{tokens}=2048", f"{size}=8", f"{number}=2")
    assert message.startswith(f"{tokens}=2048 and {size}=8, {number}=2 both set")
    message = refusal(*SAMPLE, f"{tokens}=null")
    assert message == f"{size} must be given if {tokens} is not, got null"


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
    refusal, overrides, told
):
    message = refusal(*overrides)
    assert all(part in message for part in told), message


def test_a_new_group_without_its_package_line_is_explained(refusal, own_group):
    own_group("speed/slow.yaml", "training:\n  learning_rate: 1e-5\n")
    assert "# @package _global_" in refusal(*SAMPLE, "+speed=slow")


def test_a_file_without_its_package_line_is_explained(refusal, own_group):
    own_group("model/nopkg.yaml", "model:\n  model_type: gpt2\n")
    assert "# @package _global_" in refusal("+model=nopkg", SAMPLE[1])


def test_a_flat_key_in_a_file_is_sent_to_its_section(refusal, own_group):
    own_group(
        "model/flat.yaml", "# @package _global_\nper_device_train_batch_size: 8\n"
    )
    message = refusal("+model=flat", "+dataset=sample")
    assert "model/flat" in message
    assert "training:\n  per_device_train_batch_size: 8" in message


def test_a_wrong_type_in_a_file_names_file_key_and_value(refusal, own_group):
    own_group("model/bad.yaml", "# @package _global_\ntraining:\n  max_steps: many\n")
    message = refusal("+model=bad", "+dataset=sample")
    assert all(part in message for part in ("model/bad", "training.max_steps", "many"))


def test_a_bare_no_in_a_file_is_explained(refusal, own_group):
    own_group(
        "model/no.yaml",
        "# @package _global_\ntraining:\n  eval_strategy: no\n",
    )
    assert "quotes" in refusal("+model=no", "+dataset=sample")
