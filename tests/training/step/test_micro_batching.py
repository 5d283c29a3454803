"""How a step is divided never changes what it computes."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.setup import train_within_memory
from src.training.step.forward import find_fast_forward, install
from src.training.step.micro_batching import (
    StepLayout,
    activation_bytes,
    divided,
    find_layout,
    is_long,
    logit_chunk,
    sequences_per_step,
)
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
    layout = divided(sequences, limit)
    assert (layout.sequences, layout.micro_batches) == expected


def test_halving_keeps_the_step():
    assert divided(12, 6, True).halved() == StepLayout(3, 4, True)
    assert StepLayout(3, 4).halved() == StepLayout(1, 12)
    assert StepLayout(1, 12).halved() is None


def test_a_layout_for_other_devices_does_not_fit():
    assert StepLayout(4, 2).fits(16, 2) and not StepLayout(4, 2).fits(16, 1)


def test_a_layout_is_kept_with_the_run(tmp_path):
    assert StepLayout.load(tmp_path) is None
    StepLayout(3, 4, True).save(tmp_path)
    assert StepLayout.load(tmp_path) == StepLayout(3, 4, True)
    (tmp_path / "step_layout.json").write_text("{")
    with pytest.raises(UserError, match="step_layout.json is damaged"):
        StepLayout.load(tmp_path)


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
    with pytest.raises(UserError, match="a multiple of 32 = 16 x 2 "):
        sequences_per_step(two, 16)


def test_a_processor_takes_4096_tokens_at_a_time(tmp_path):
    args = arguments(tmp_path, tokens_per_step=16384)
    assert find_layout(args, gpt2(), 512, 1) == StepLayout(8, 4)
    assert find_layout(args, gpt2(), 8192, 1) == StepLayout(1, 2)
    given = arguments(tmp_path, per_device_train_batch_size=32, torch_compile=True)
    assert find_layout(given, gpt2(), 512, 1) == StepLayout(32, 1, True)


def test_the_fused_loss_is_left_out_where_it_would_be_wrong(tmp_path):
    args = arguments(tmp_path, label_smoothing_factor=0.1, logit_chunk=64)
    assert logit_chunk(args) == 0
    args.label_smoothing_factor = 0.0
    assert logit_chunk(args) == 64
    args.fp16 = True
    assert logit_chunk(args) == 0


def test_only_long_runs_are_compiled():
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2))
    assert not is_long(small, 1_000_000)
    assert is_long(small, 100_000_000)


def test_what_autograd_keeps_is_measured_and_nothing_else_changes():
    model = gpt2().eval()
    install(model, find_fast_forward(model, False))
    state = torch.get_rng_state()
    one, two, three = (activation_bytes(model, n, 16) for n in (1, 2, 3))
    assert three - two == two - one > 16 * 16 * 4
    longer = activation_bytes(model, 2, 32) - activation_bytes(model, 1, 32)
    assert 1.5 * (two - one) < longer < 3 * (two - one)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_out_of_memory_halves_the_micro_batch_and_not_the_step(
    trainer_of, tmp_path, caplog  # noqa: F811
):
    """The allocator really fails: a forward pass of more than two asks for a petabyte."""
    settings = dict(max_steps=3, logging_steps=1)
    tried = []

    def build(layout=None):
        layout = layout or StepLayout(8, 1)
        trainer = trainer_of(
            per_device_train_batch_size=layout.sequences,
            gradient_accumulation_steps=layout.micro_batches,
            **settings,
        )
        tried.append(layout)

        def exhaust(module, args, kwargs):
            if len(kwargs["input_ids"]) > 4:
                torch.empty(2**50, dtype=torch.uint8)

        trainer.model.register_forward_pre_hook(exhaust, with_kwargs=True)
        return trainer

    run = tmp_path / "run"
    run.mkdir()
    with caplog.at_level(logging.WARNING):
        trainer, finished = train_within_memory(build, run)
    assert finished and tried == [StepLayout(8, 1), StepLayout(4, 2)]
    assert StepLayout.load(run) == StepLayout(4, 2)
    assert "Out of memory: going on in micro-batches of 4 sequences" in caplog.text
    whole = trainer_of(**settings)
    whole.train()
    assert losses(trainer) == [pytest.approx(loss, abs=1e-6) for loss in losses(whole)]
    assert trainer.plan.words_seen(3) == whole.plan.words_seen(3)


def test_memory_that_never_suffices_is_an_error(trainer_of, tmp_path):  # noqa: F811
    def build(layout=None):
        trainer = trainer_of()
        trainer.layout = layout or StepLayout(8, 1)
        trainer.model.register_forward_pre_hook(
            lambda *_: torch.empty(2**50, dtype=torch.uint8) and None
        )
        return trainer

    (tmp_path / "run").mkdir()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train_within_memory(build, Path(tmp_path / "run"))
