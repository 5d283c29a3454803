"""Muon with AdamW: which parameter has which, the same steps after a resume."""

import copy

import pytest
import torch
from torch import distributed
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    MixtralConfig,
    Qwen3Config,
    get_scheduler,
)

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.optimization.optimizer import (
    MuonAdamW,
    _shared_orthogonal,
    check_optimizer,
    muon_with_adamw,
    nearly_orthogonal,
)
from src.training.optimization.parameters import kinds, layout, split_by_kind

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


def optimizer_of(model, **options) -> MuonAdamW:
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1]},
        {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    values = {"learning_rate": 0.01, "weight_decay": 0.1, "use_cpu": True, **options}
    training = TrainingArguments(**values)
    optimizer = muon_with_adamw(torch.optim.AdamW(groups, **ADAMW), model, training)
    split_by_kind(optimizer, model, training)
    return optimizer


def matrices_of(model) -> dict[str, list[torch.Tensor]]:
    """The matrices that have an update of their own, as views [outputs, inputs] or turned."""
    names = [name for name, kind in kinds(model).items() if kind == "matrices"]
    return {
        name: [
            part.squeeze(arrangement.outputs)
            for part in arrangement.split(model.get_parameter(name).detach())
        ]
        for name in names
        for arrangement in [layout(model, name)]
    }


def take_steps(model, optimizer, seeds) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("config", [GPT2Config(**GPT2), Qwen3Config(**QWEN3)])
def test_each_part_takes_the_step_of_its_own_optimizer(config):
    """A parameter moves as torch's Muon or torch's AdamW alone would move it.

    GPT-2's queries, keys and values are three matrices for Muon.
    """
    model = model_of(config)
    twin = copy.deepcopy(model)
    take_steps(model, optimizer_of(model), [1, 2])
    alone = {
        name: [torch.nn.Parameter(part.clone()) for part in parts]
        for name, parts in matrices_of(twin).items()
    }
    flat = [part for parts in alone.values() for part in parts]
    muon = torch.optim.Muon(flat, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for name, p in twin.named_parameters() if name not in alone]
    decayed = [p for p in rest if p.ndim > 1]
    vectors = [p for p in rest if p.ndim == 1]
    groups = [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, **ADAMW)
    for seed in (1, 2):
        take_steps(twin, adamw, [seed])
        for name, parts in alone.items():
            arrangement = layout(twin, name)
            gradient = arrangement.split(twin.get_parameter(name).grad)
            for part, of_part in zip(parts, gradient):
                part.grad = of_part.squeeze(arrangement.outputs)
        muon.step()
    theirs = {name: p for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        if name not in alone:
            assert torch.equal(p, theirs[name]), name
    for name, parts in matrices_of(model).items():
        for part, expected in zip(parts, alone[name], strict=True):
            assert torch.equal(part, expected), name


def changes(config, steps=1, **options) -> dict[str, list[torch.Tensor]]:
    """By how much steps from the same weights change each matrix."""
    model = model_of(config)
    before = {n: [p.clone() for p in m] for n, m in matrices_of(model).items()}
    take_steps(model, optimizer_of(model, **options), range(steps))
    after = matrices_of(model)
    return {n: [b - a for a, b in zip(before[n], after[n])] for n in before}


@pytest.mark.parametrize(
    "config, inputs", [(GPT2Config(**GPT2), 0), (Qwen3Config(**QWEN3), 1)]
)
def test_normuon_first_moves_all_outputs_equally_far(config, inputs):
    """And the whole matrix as far as Muon does. GPT-2 stores matrices as [inputs, outputs]."""
    plain = changes(config, weight_decay=0.0)
    for name, parts in changes(config, weight_decay=0.0, normuon=True).items():
        for part, without in zip(parts, plain[name]):
            norms = part.norm(dim=inputs)
            assert torch.allclose(norms, norms.mean(), rtol=1e-3), name
            assert torch.allclose(part.norm(), without.norm(), rtol=1e-3), name
            assert without.norm(dim=inputs).std() > 1e-3 * norms.mean()


def test_normuon_divides_by_an_average_over_the_steps():
    name = "model.layers.0.self_attn.o_proj.weight"
    config, options = Qwen3Config(**QWEN3), dict(weight_decay=0.0)
    first, both = (changes(config, n, **options)[name][0] for n in (1, 2))
    moment, expected = torch.zeros(len(first), 1), torch.zeros_like(first)
    for step in (first, both - first):
        moment = 0.95 * moment + 0.05 * step.square().mean(1, keepdim=True)
        scaled = step / moment.sqrt()
        expected += scaled * step.norm() / scaled.norm()
    found = changes(config, 2, **options, normuon=True)[name][0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_cautious_weight_decay_only_helps_the_update():
    """It spares the weights that the update makes larger."""
    config = GPT2Config(**GPT2)
    before = matrices_of(model_of(config))
    free = changes(config, weight_decay=0.0)
    cautious = changes(config, weight_decay=0.5, cautious_weight_decay=True)
    for name, parts in cautious.items():
        for part, update, weight in zip(parts, free[name], before[name]):
            decay = -0.01 * 0.5 * weight * (update * weight <= 0)
            assert torch.allclose(part, update + decay, atol=1e-7), name


@pytest.mark.parametrize("name", ["polynomial", "cosine_with_min_lr"])
def test_schedules_that_need_the_initial_rate_find_it(name):
    kwargs = {"min_lr": 0.001} if name == "cosine_with_min_lr" else None
    optimizer = optimizer_of(model_of(GPT2Config(**GPT2)))
    get_scheduler(name, optimizer, 0, 10, scheduler_specific_kwargs=kwargs)
    assert optimizer.param_groups[0]["lr"] == 0.01


VARIANTS = dict(
    normuon=True,
    cautious_weight_decay=True,
    lr_scales={"embedding": 0.3, "vectors": 0.5},
    weight_decay_scales={"matrices": 2.0},
)


def test_muon_also_has_rates_by_kind():
    model = model_of(Qwen3Config(**QWEN3))
    groups = optimizer_of(model, **VARIANTS).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        *((0.01, 0.2), (0.003, 0.1), (0.005, 0.0))
    ]


@pytest.mark.parametrize("options", [{}, VARIANTS])
def test_the_state_that_is_saved_continues_bit_for_bit(tmp_path, options):
    whole = model_of(Qwen3Config(**QWEN3))
    take_steps(whole, optimizer_of(whole, **options), range(6))
    first = model_of(Qwen3Config(**QWEN3))
    optimizer = optimizer_of(first, **options)
    take_steps(first, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = copy.deepcopy(first)
    continued = optimizer_of(second, **options)
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
