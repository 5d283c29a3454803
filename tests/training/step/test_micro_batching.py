"""How a step is divided never changes what it computes."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.step.forward import choose_compilation, choose_logit_chunk
from src.training.step.micro_batching import (
    MicroBatching,
    largest,
    recorded,
    sequences_per_step,
)
from tests.training import test_trainer
from tests.training.test_trainer import losses, stream_of, trainer_of  # noqa: F401


def arguments(tmp_path, **values):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **values)


def gpt2(**values):
    config = dict(vocab_size=64, n_layer=1, n_embd=16, n_head=2, n_positions=32)
    return GPT2LMHeadModel(GPT2Config(**{**config, **values}))


@pytest.mark.parametrize(
    "sequences, limit, expected",
    [(8, 8, (8, 1)), (8, 5, (4, 2)), (8, 0, (1, 8)), (7, 5, (1, 7)), (12, 9, (6, 2))],
)
def test_micro_batches_are_equal_and_as_large_as_fits(sequences, limit, expected):
    assert MicroBatching.divide(sequences, limit) == MicroBatching(*expected)


def test_halving_keeps_the_step():
    assert MicroBatching(6, 2).halved() == MicroBatching(3, 4)
    assert MicroBatching(3, 4).halved() == MicroBatching(1, 12)
    assert MicroBatching(1, 12).halved() is None


def test_the_micro_batching_is_kept_with_the_run(tmp_path):
    assert recorded(tmp_path, 12) is None
    MicroBatching(3, 4).save(tmp_path, compiled=True)
    size, compiled = recorded(tmp_path, 12)
    assert (size, compiled) == (MicroBatching(3, 4), True)
    assert recorded(tmp_path, 6) is None  # of twice as many devices
    for damaged in ("{", "[]", '{"sequences": 3}'):
        (tmp_path / "step_layout.json").write_text(damaged)
        with pytest.raises(UserError, match="step_layout.json is damaged"):
            recorded(tmp_path, 12)


def test_a_step_is_stated_in_tokens_or_in_sequences(tmp_path):
    assert sequences_per_step(arguments(tmp_path, tokens_per_step=128), 16) == 8
    given = dict(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert sequences_per_step(arguments(tmp_path, **given), 16) == 6
    with pytest.raises(
        UserError, match="=100 must be a multiple .*=16; the nearest is 96"
    ):
        sequences_per_step(arguments(tmp_path, tokens_per_step=100), 16)
    with pytest.raises(UserError, match="the nearest is 16"):
        sequences_per_step(arguments(tmp_path, tokens_per_step=3), 16)
    two = SimpleNamespace(tokens_per_step=100, world_size=2)
    with pytest.raises(
        UserError,
        match="a multiple of data.block_size=16 x 2 devices; the nearest is 96",
    ):
        sequences_per_step(two, 16)


def test_a_processor_takes_4096_tokens_at_a_time(tmp_path):
    args = arguments(tmp_path, tokens_per_step=16384)
    assert largest(args, 512, 32) == MicroBatching(8, 4)
    assert largest(args, 8192, 2) == MicroBatching(1, 2)
    given = arguments(tmp_path, per_device_train_batch_size=32)
    assert largest(given, 512, 64) == MicroBatching(32, 2)


def test_the_fused_loss_is_left_out_where_it_would_be_wrong(tmp_path):
    def chunk(**values):
        args = arguments(tmp_path, logit_chunk=64, **values)
        return choose_logit_chunk(args, gpt2(), 1000).value

    assert chunk() == 64
    assert chunk(label_smoothing_factor=0.1) is None
    assert chunk(fp16=True) is None


def test_only_long_runs_are_compiled(tmp_path):
    args = arguments(tmp_path)
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2))
    assert not choose_compilation(args, small, torch.float32, 1_000_000).value
    assert choose_compilation(args, small, torch.float32, 100_000_000).value
    for chosen in (True, False):
        args = arguments(tmp_path, torch_compile=chosen)
        decision = choose_compilation(args, small, torch.float32, 1)
        assert decision.value == chosen
        assert decision.reason == f"training.torch_compile={str(chosen).lower()}"


@pytest.fixture
def small_memory(monkeypatch):
    """`small_memory(n)`: the allocator really fails: a pass of more asks for a petabyte."""

    def call(most: int) -> None:
        def exhaust(module, args, kwargs):
            if module.training and len(kwargs["input_ids"]) > most:
                torch.empty(2**50, dtype=torch.uint8)

        def with_hook(*args):
            model = build_model(*args)
            model.register_forward_pre_hook(exhaust, with_kwargs=True)
            model.base_model.register_forward_pre_hook(exhaust, with_kwargs=True)
            return model

        monkeypatch.setattr(test_trainer, "build_model", with_hook)

    build_model = test_trainer.build_model
    return call


def test_one_batch_before_the_first_step_finds_what_fits(
    trainer_of, small_memory, tmp_path, caplog  # noqa: F811
):
    """The micro-batch is halved until it fits, and the step stays the same."""
    settings = dict(max_steps=3, logging_steps=1)
    (tmp_path / "run").mkdir()
    whole = trainer_of(**settings)
    whole.fit()
    small_memory(2)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(**settings, output_dir=str(tmp_path / "run2"))
        trainer.fit()
    assert "of 8 sequences: continuing with 2" in caplog.text
    assert recorded(tmp_path / "run2", 8) == (MicroBatching(2, 4), False)
    assert trainer.args.gradient_accumulation_steps == 4
    assert losses(trainer) == [pytest.approx(loss, abs=1e-6) for loss in losses(whole)]
    assert trainer.plan.words_seen(3) == whole.plan.words_seen(3)


def test_memory_that_never_suffices_is_an_error(trainer_of, small_memory):  # noqa: F811
    small_memory(0)
    with pytest.raises(
        UserError, match="data.block_size=8: there is not enough memory"
    ):
        trainer_of()


def test_memory_that_runs_out_later_halves_the_next_start(
    trainer_of, tmp_path  # noqa: F811
):
    """The message says what the same command will do, and it does it."""
    trainer = trainer_of(max_steps=3)

    def exhaust(*_):
        torch.empty(2**50, dtype=torch.uint8)

    hook = trainer.model.register_forward_pre_hook(exhaust)
    hook_of_base = trainer.model.base_model.register_forward_pre_hook(exhaust)
    told = "out of memory: the same command continues with micro-batches of 4 sequences"
    with pytest.raises(UserError, match=told):
        trainer.fit()
    hook.remove(), hook_of_base.remove()
    again = trainer_of(max_steps=3)
    assert again.args.per_device_train_batch_size == 4
    assert again.args.gradient_accumulation_steps == 2
    again.fit()
    assert again.stop.received is None


def test_the_trial_leaves_model_and_gradients_as_they_were(trainer_of):  # noqa: F811
    trainer = trainer_of()
    assert all(p.grad is None for p in trainer.model.parameters())
