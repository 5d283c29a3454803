"""Muon with AdamW: which parameter has which, the same steps after a resume."""

import copy

import pytest
import torch
from torch import distributed
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, Qwen3Config

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.optimization.optimizer import (
    MuonAdamW,
    _shared_orthogonal,
    check_optimizer,
    matrices_inside,
    muon_with_adamw,
    nearly_orthogonal,
)

GPT2 = dict(n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=32)
QWEN3 = dict(
    num_hidden_layers=1,
    hidden_size=8,
    intermediate_size=12,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=32,
    tie_word_embeddings=True,
)
ADAMW = dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def optimizer_of(model) -> MuonAdamW:
    decayed = [name for name, p in model.named_parameters() if p.ndim > 1]
    return muon_with_adamw(model, decayed, ADAMW)


def take_steps(model, optimizer, seeds) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("config", [GPT2Config(**GPT2), Qwen3Config(**QWEN3)])
def test_muon_has_the_layers_matrices_and_adamw_the_rest(config):
    inside, rest = matrices_inside(model_of(config))
    assert inside and all(p.ndim == 2 for p in inside.values())
    assert not [name for name in inside if "embed" in name or "wte" in name]
    assert not [name for name in inside if "wpe" in name or "lm_head" in name]
    vectors_and_tables = {
        p.ndim for name, p in rest.items() if "wte" not in name and "embed" not in name
    }
    assert vectors_and_tables <= {1, 2}  # 2: GPT-2's table of positions
    together = len(inside) + len(rest)
    assert together == len(list(model_of(config).parameters()))


def test_an_untied_head_is_adamws():
    model = model_of(Qwen3Config(**{**QWEN3, "tie_word_embeddings": False}))
    assert "lm_head.weight" in matrices_inside(model)[1]


def test_each_part_takes_the_step_of_its_own_optimizer():
    """A parameter moves as torch's Muon or torch's AdamW alone would move it."""
    model = model_of(GPT2Config(**GPT2))
    twin = copy.deepcopy(model)
    take_steps(model, optimizer_of(model), [1, 2])
    inside, rest = matrices_inside(twin)
    muon = torch.optim.Muon(
        list(inside.values()), 0.01, 0.1, adjust_lr_fn="match_rms_adamw"
    )
    decayed = [p for p in rest.values() if p.ndim > 1]
    vectors = [p for p in rest.values() if p.ndim == 1]
    groups = [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, **ADAMW)
    take_steps(twin, muon, [1])  # both see the same gradients
    adamw.step()
    take_steps(twin, muon, [2])
    adamw.step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters()):
        assert torch.equal(ours, theirs), name


def test_the_state_that_is_saved_continues_bit_for_bit(tmp_path):
    whole = model_of(Qwen3Config(**QWEN3))
    take_steps(whole, optimizer_of(whole), range(6))
    first = model_of(Qwen3Config(**QWEN3))
    optimizer = optimizer_of(first)
    take_steps(first, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = copy.deepcopy(first)
    continued = optimizer_of(second)
    continued.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    take_steps(second, continued, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters()):
        assert torch.equal(a, b)


def test_a_schedule_reaches_both_parts():
    model = model_of(GPT2Config(**GPT2))
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    take_steps(model, optimizer, [1])
    schedule.step()
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_model_whose_shapes_do_not_fit_is_refused():
    config = MixtralConfig(num_local_experts=2, **QWEN3)
    arguments = TrainingArguments(optimizer="muon", use_cpu=True)
    with pytest.raises(UserError, match=r"optimizer=muon .*experts.* 3 dimensions"):
        check_optimizer(arguments, model_of(config))
    check_optimizer(TrainingArguments(use_cpu=True), model_of(config))
    check_optimizer(arguments, model_of(GPT2Config(**GPT2)))


def _orthogonal_shares(rank: int, file: str, expected: torch.Tensor) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    try:
        stack = torch.randn(3, 4, 6, generator=torch.manual_seed(0))
        assert torch.equal(_shared_orthogonal(stack), expected)
    finally:
        distributed.destroy_process_group()


def test_two_processes_share_the_work_and_get_the_same_updates(tmp_path):
    stack = torch.randn(3, 4, 6, generator=torch.manual_seed(0))
    arguments = (str(tmp_path / "rendezvous"), nearly_orthogonal(stack))
    torch.multiprocessing.spawn(_orthogonal_shares, arguments, nprocs=2)
