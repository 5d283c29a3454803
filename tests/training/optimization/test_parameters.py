"""Kinds of parameters, their own rates and decays, and the matrices in fused layers."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    MptConfig,
    Phi3Config,
    Qwen3Config,
)

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.optimization.optimizer import check_optimizer
from src.training.optimization.parameters import kinds, layout, split_by_kind

GPT2 = dict(n_layer=1, n_embd=16, n_head=4, n_positions=16, vocab_size=32)
QWEN3 = dict(
    num_hidden_layers=1,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=32,
)
FALCON = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=4, vocab_size=32)
NEOX = dict(**FALCON, intermediate_size=24)
MPT = dict(n_layers=1, d_model=16, n_heads=4, vocab_size=32, max_seq_len=16)


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def training(**options) -> TrainingArguments:
    return TrainingArguments(
        use_cpu=True, learning_rate=0.01, weight_decay=0.1, **options
    )


def adamw_of(model, groups=None) -> torch.optim.AdamW:
    named = dict(model.named_parameters())
    decayed = [p for p in named.values() if p.ndim > 1]
    others = [p for p in named.values() if p.ndim < 2]
    groups = groups or [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def take_steps(model, optimizer, number=2) -> None:
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_every_parameter_has_a_kind():
    found = kinds(model_of(GPT2Config(**GPT2)))
    assert {name for name, kind in found.items() if kind == "embedding"} == {
        *("transformer.wte.weight", "transformer.wpe.weight")
    }
    assert found["transformer.h.0.attn.c_attn.weight"] == "matrices"
    assert found["transformer.h.0.attn.c_attn.bias"] == "vectors"
    assert found["transformer.ln_f.weight"] == "vectors"
    assert "head" not in found.values()  # it is tied to the embedding


def test_an_untied_head_is_a_kind_of_its_own():
    found = kinds(model_of(Qwen3Config(**QWEN3, tie_word_embeddings=False)))
    assert [name for name, kind in found.items() if kind == "head"] == [
        "lm_head.weight"
    ]


def test_kinds_have_multiples_of_the_rate_and_of_the_decay():
    """As if the groups had been written by hand, for AdamW."""
    model, twin = (model_of(GPT2Config(**GPT2)) for _ in range(2))
    optimizer = adamw_of(model)
    options = dict(
        lr_scales={"embedding": 0.3, "vectors": 0.5},
        weight_decay_scales={"matrices": 2, "vectors": 0.1},
    )
    split_by_kind(optimizer, model, training(**options))
    take_steps(model, optimizer)
    of_kind = {kind: [] for kind in ("matrices", "embedding", "vectors")}
    for name, kind in kinds(twin).items():
        of_kind[kind].append(twin.get_parameter(name))
    values = [(0.01, 0.2), (0.3 * 0.01, 0.1), (0.5 * 0.01, 0.1 * 0.1)]
    groups = [
        {"params": params, "lr": lr, "weight_decay": decay}
        for params, (lr, decay) in zip(of_kind.values(), values)
    ]
    take_steps(twin, adamw_of(twin, groups))
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert torch.equal(ours, theirs)


def test_a_schedule_multiplies_the_rates_of_all_kinds():
    model = model_of(GPT2Config(**GPT2))
    optimizer = adamw_of(model)
    split_by_kind(optimizer, model, training(lr_scales={"embedding": 0.5}))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    take_steps(model, optimizer, 1)
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.005, 0.0025, 0.005])


@pytest.mark.parametrize("none", [None, {}])
def test_without_multiples_the_groups_stay_as_they_are(none):
    model = model_of(GPT2Config(**GPT2))
    optimizer = adamw_of(model)
    before = [dict(group) for group in optimizer.param_groups]
    options = training(lr_scales=none, weight_decay_scales=none)
    split_by_kind(optimizer, model, options)
    assert all(a == b for a, b in zip(before, optimizer.param_groups, strict=True))


@pytest.mark.parametrize("option", ["lr_scales", "weight_decay_scales"])
@pytest.mark.parametrize(
    "value, told",
    [
        ({"vectors": -1}, "vectors must be a finite number of at least 0, got -1"),
        ({"vectors": "x"}, "vectors must be a finite number of at least 0, got 'x'"),
        (0.3, "=0.3 must be {kind: multiple, …}"),
    ],
)
def test_multiples_that_are_no_numbers_are_refused(option, value, told):
    with pytest.raises(UserError, match=f"training.{option}.*{told}") as caught:
        training(**{option: value}, per_device_train_batch_size=1).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bias", "head"])
def test_kinds_that_the_model_does_not_have_are_refused(kind):
    told = (
        f"no parameters of the kind '{kind}'; choose among embedding, vectors, matrices"
    )
    with pytest.raises(UserError, match=told):
        options = training(lr_scales={kind: 0.5})
        check_optimizer(options, model_of(GPT2Config(**GPT2)))
    untied = Qwen3Config(**QWEN3, tie_word_embeddings=False)
    check_optimizer(training(lr_scales={"head": 0.5}), model_of(untied))


def split_matrices(config):
    """The model, and the matrices of each of its fused layers."""
    model = model_of(config).eval()
    named = [name for name, kind in kinds(model).items() if kind == "matrices"]
    weights = {name: model.get_parameter(name) for name in named}
    with torch.no_grad():
        for weight in weights.values():
            weight.normal_(std=0.3)
    parts = [layout(model, name).split(w) for name, w in weights.items()]
    return model, [p for p in parts if len(p) > 1]


@torch.no_grad()
def logits(model, *zero: torch.Tensor) -> torch.Tensor:
    """The model's output while these matrices are 0."""
    before = [part.clone() for part in zero]
    for part in zero:
        part.zero_()
    found = model(torch.arange(12)[None]).logits
    for part, values in zip(zero, before):
        part.copy_(values)
    return found


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**GPT2),
        GPTBigCodeConfig(**GPT2),
        GPTBigCodeConfig(**GPT2, multi_query=False),
        BloomConfig(n_layer=1, hidden_size=16, n_head=4, vocab_size=32),
        FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
        FalconConfig(**FALCON, multi_query=True),
        GPTNeoXConfig(**NEOX),
        MptConfig(**MPT),
        Phi3Config(**NEOX, num_key_value_heads=2, pad_token_id=0),
    ],
    ids=lambda config: config.model_type,
)
def test_the_matrices_of_a_fused_layer_are_query_key_and_value(config):
    """Attention is the same without queries as without keys, and needs neither for no values."""
    model, fused = split_matrices(config)
    query, key, value = next(parts for parts in fused if len(parts) == 3)
    whole, even, none = logits(model), logits(model, query), logits(model, value)
    assert torch.allclose(logits(model, key), even, atol=1e-5)
    assert torch.allclose(logits(model, value, query), none, atol=1e-5)
    assert not torch.allclose(whole, even, atol=1e-3)
    assert not torch.allclose(even, none, atol=1e-3)


def test_the_matrices_of_a_fused_feed_forward_layer_are_gate_and_values():
    config = Phi3Config(**NEOX, num_key_value_heads=2, pad_token_id=0)
    model, fused = split_matrices(config)
    gate, values = next(parts for parts in fused if len(parts) == 2)
    assert torch.allclose(logits(model, gate), logits(model, values), atol=1e-5)
    assert not torch.allclose(logits(model, gate), logits(model), atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**QWEN3),
        CodeGenConfig(**GPT2, rotary_dim=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_layer_whose_matrices_are_not_certain_stays_whole(config):
    assert split_matrices(config)[1] == []
