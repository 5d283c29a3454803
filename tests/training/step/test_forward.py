"""The fast step gives the numbers of the plain one."""

import functools
import json
import logging

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import IGNORE_INDEX
from src.training.step.forward import (
    CAUSAL,
    WRITTEN_OUT,
    attention_of,
    build_forward,
    choose_attention,
    choose_logit_chunk,
    written_out,
)
from src.training.step.loss import fused_loss, loss_of_chunk
from tests.training.test_trainer import losses, stream_of, trainer_of  # noqa: F401

LLAMA = dict(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
HEADS = dict(head_dim=4, pad_token_id=0)
MODELS = {
    "gpt2": dict(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "opt": dict(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=2, word_embed_proj_dim=16, max_position_embeddings=64,
    ),
    "llama": LLAMA,
    "qwen3": {**LLAMA, **HEADS},
    "olmo2": {**LLAMA, "pad_token_id": 0},
    "mistral": {**LLAMA, "sliding_window": 4},
    "gemma2": {**LLAMA, **HEADS, "final_logit_softcapping": 1.0},
    "bloom": dict(vocab_size=64, hidden_size=16, n_layer=2, n_head=2),
}  # fmt: skip
DROPOUTS = "resid_pdrop embd_pdrop attn_pdrop dropout hidden_dropout".split()


def model_of(name, **values):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**MODELS[name], **values})
    for dropout in DROPOUTS:
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config).train()


def chosen(model, compiles=False, chunk=None):
    """(attention, tokens whose logits exist at once) of the training forward pass."""
    training = TrainingArguments(use_cpu=True, logit_chunk=chunk)
    chunk = choose_logit_chunk(training, model, 1000).value
    args = Arguments(training=training)
    return choose_attention(args, model, compiles, False).value, chunk


def install(model, compiles=False, chunk=None):
    """Let the model train by the forward pass that is chosen for it."""
    model.forward = build_forward(model, *chosen(model, compiles, chunk), compiles)


def batch(size=3, length=12):
    """Inputs and next tokens [B, T], some of which do not count."""
    ids = torch.randint(3, 64, (size, length + 1), generator=torch.manual_seed(1))
    labels = ids[:, 1:].clone()
    labels[0, 5:] = IGNORE_INDEX
    return ids[:, :-1], labels


def plain_loss(model, ids, labels):
    logits = model(input_ids=ids).logits.flatten(0, 1)
    return F.cross_entropy(
        logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("num_tokens", [1, 5, 100])
def test_the_fused_loss_is_the_cross_entropy_and_so_are_its_gradients(num_tokens):
    torch.manual_seed(0)
    hidden = torch.randn(14, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    labels = torch.randint(0, 20, (14,))
    labels[[0, 7, 13]] = IGNORE_INDEX
    loss = fused_loss(hidden, weight, labels, num_tokens) / 11
    ours = torch.autograd.grad(loss, (hidden, weight))
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORE_INDEX)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("num_tokens", [5, 100])
def test_the_z_loss_is_the_squared_normalizer_of_every_target(num_tokens):
    """Against autograd on whole logits; large ones, so that the z-loss is no trifle."""
    torch.manual_seed(0)
    hidden = torch.randn(14, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    labels = torch.randint(0, 20, (14,))
    labels[[0, 7, 13]] = IGNORE_INDEX
    of_chunk = functools.partial(loss_of_chunk, z_loss=0.1)
    loss = fused_loss(hidden, weight, labels, num_tokens, of_chunk) / 11
    ours = torch.autograd.grad(loss, (hidden, weight))
    logits = (hidden @ weight.T)[labels != IGNORE_INDEX]
    plain = F.cross_entropy(logits, labels[labels != IGNORE_INDEX])
    expected = plain + 0.1 * logits.logsumexp(-1).square().mean()
    theirs = torch.autograd.grad(expected, (hidden, weight))
    assert expected > plain + 1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("vocab_size", [20, 24])
def test_padding_the_vocabulary_for_products_of_16_bits_changes_nothing(vocab_size):
    torch.manual_seed(0)
    hidden = torch.randn(14, 8, requires_grad=True)
    weight = torch.randn(vocab_size, 8, requires_grad=True)
    labels = torch.randint(0, vocab_size, (14,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_loss(hidden, weight, labels, 5)
    ours = torch.autograd.grad(loss, (hidden, weight))
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    theirs = torch.autograd.grad(expected, (hidden, weight))
    assert ours[1].shape == weight.shape
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(ours, theirs))


def test_without_a_label_that_counts_there_is_no_loss_and_no_gradient():
    hidden = torch.randn(4, 8, requires_grad=True)
    labels = torch.full((4,), IGNORE_INDEX)
    loss = fused_loss(hidden, torch.randn(20, 8), labels, 2)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gets_its_own_loss_and_gradients(name):
    """Also those that an optimisation does not fit, which train without it."""
    model = model_of(name)
    ids, labels = batch()
    expected = plain_loss(model, ids, labels)
    theirs = gradients(expected, model)
    install(model, chunk=7)
    loss = model(input_ids=ids, labels=labels).loss
    ours = gradients(loss, model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs))
    assert model.training and model.config._attn_implementation != CAUSAL


def test_a_vocabulary_layer_that_scales_its_logits_is_not_fused():
    class ScaledHead(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    model = model_of("llama")
    model.lm_head.__class__ = ScaledHead
    ids, labels = batch()
    expected = plain_loss(model, ids, labels).item()
    install(model, chunk=7)
    loss = model(input_ids=ids, labels=labels).loss.item()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name, key", [("mixtral", "router_"), ("jetmoe", "")])
def test_experts_keep_the_loss_that_balances_them(name, key):
    values = {**LLAMA, "num_local_experts": 4, "output_router_logits": True}
    values |= {f"{key}aux_loss_coef": 0.5, "kv_channels": 4, "pad_token_id": 0}
    config = AutoConfig.for_model(name, **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    ids, _ = batch()
    theirs = model(input_ids=ids, labels=ids)  # the library shifts the labels itself
    expected = gradients(theirs.loss, model)
    labels = F.pad(ids[:, 1:], (0, 1), value=IGNORE_INDEX)
    install(model)
    loss = model(input_ids=ids, labels=labels).loss / (labels != IGNORE_INDEX).sum()
    assert theirs.aux_loss > 1
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    ours = gradients(loss, model)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, expected))


def test_what_does_not_fit_is_left_out():
    found = {name: chosen(model_of(name), False, 7) for name in MODELS}
    for name in ("gpt2", "opt", "llama", "qwen3", "olmo2"):
        assert found[name] == (CAUSAL, 7)
    assert found["mistral"] == (None, 7)
    assert found["gemma2"] == (None, None)  # it caps its logits
    assert found["bloom"][0] is None  # positions are in its scores
    assert chosen(model_of("gpt2"), True, 7) == (WRITTEN_OUT, 7)
    # The attention does not depend on the loss.
    assert chosen(model_of("gpt2"), False, 0) == (CAUSAL, None)


@pytest.mark.parametrize("chunk", [7, 0])
def test_the_z_loss_is_the_same_with_all_logits_at_once(chunk):
    model = model_of("gpt2")
    ids, labels = batch()
    log_sums = model(input_ids=ids).logits.logsumexp(-1)[labels != IGNORE_INDEX]
    expected = plain_loss(model, ids, labels) + 0.5 * log_sums.square().sum()
    theirs = gradients(expected, model)
    model.forward = build_forward(model, *chosen(model, chunk=chunk), z_loss=0.5)
    loss = model(input_ids=ids, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = gradients(loss, model)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(ours, theirs))


def test_without_labels_and_in_evaluation_the_model_is_what_it_was():
    model = model_of("gpt2")
    ids, labels = batch()
    expected = model(input_ids=ids).logits
    install(model)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert torch.equal(model.eval()(input_ids=ids, labels=labels).logits, expected)
    assert list(model.state_dict()) == list(model_of("gpt2").state_dict())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["none", "documents"])
def test_attention_written_out_is_the_librarys(name, kind):
    model = model_of(name)
    ids, _ = batch()
    mask = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    mask[:, :, 6:, :6] = False  # two documents
    given = {} if kind == "none" else {"attention_mask": mask}
    expected = model(input_ids=ids, **given).logits
    with attention_of(model, WRITTEN_OUT):
        found = model(input_ids=ids, **given).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_attention_drops_out_only_what_it_is_told_to():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8, 16).unbind(0)
    whole, _ = written_out(None, query, key, value, None)
    dropped, _ = written_out(None, query, key, value, None, dropout=0.5)
    assert not torch.equal(whole, dropped)
    assert torch.allclose(whole[:, 0], value[:, :, 0], atol=1e-6)  # it sees itself


def test_a_compiled_step_learns_the_same(tmp_path):
    """In float32 the losses of 50 steps agree to 1e-5; in bfloat16 to 0.05.

    Of 32 tokens, 9 at a time leave a remainder, which is one more shape to compile.
    """
    losses = {}
    for name, compiled, chunk, dtype in (
        ("plain", None, None, torch.float32),
        ("fast", False, 9, torch.float32),
        ("compiled", True, 9, torch.float32),
        ("compiled bf16", True, 16, torch.bfloat16),
    ):
        model = model_of("gpt2", n_layer=1)  # compiling takes long
        if compiled is not None:
            install(model, compiled, chunk)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
        losses[name] = []
        for step in range(50):
            ids = torch.randint(3, 20, (2, 17), generator=torch.manual_seed(step % 4))
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                ids, labels = ids[:, :-1], ids[:, 1:].contiguous()
                if compiled is None:
                    loss = plain_loss(model, ids, labels)
                else:
                    loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            (loss / labels.numel()).backward()
            optimizer.step()
            losses[name].append(loss.item() / labels.numel())
    plain = torch.tensor(losses["plain"])
    assert plain[-1] < 0.9 * plain[0]  # it learns, so a difference would show
    for name in ("fast", "compiled"):
        assert (torch.tensor(losses[name]) - plain).abs().max() < 1e-5
    assert (torch.tensor(losses["compiled bf16"]) - plain).abs().max() < 0.05


@pytest.mark.parametrize("fails_backward", [False, True])
def test_without_a_compiler_training_goes_on_and_says_so(
    fails_backward, monkeypatch, caplog, trainer_of, tmp_path  # noqa: F811
):
    import torch._inductor.compile_fx as inductor

    compile_graph = inductor._compile_fx_inner

    def broken(*args, is_backward=False, **kwargs):
        if is_backward == fails_backward:
            raise ValueError("no compiler")
        return compile_graph(*args, is_backward=is_backward, **kwargs)

    expected = trainer_of(max_steps=2)
    expected.fit()
    monkeypatch.setattr(inductor, "_compile_fx_inner", broken)
    torch._dynamo.reset()
    uncached = inductor.config.patch(force_disable_caches=True)
    with uncached, caplog.at_level(logging.INFO):
        trainer = trainer_of(
            max_steps=2, torch_compile=True, output_dir=str(tmp_path / "run2")
        )
        trainer.fit()
    assert caplog.text.count("torch.compile fails here, continuing without") == 1
    assert "; not compiled (it fails here: " in caplog.text
    assert not json.loads((tmp_path / "run2" / "step_layout.json").read_text())[
        "compiled"
    ]
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-5)
