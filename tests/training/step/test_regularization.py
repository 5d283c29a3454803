"""Noise in training: layers that are skipped and inputs that are replaced, at random."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.data.blocks import IGNORE_INDEX
from src.foundation import UserError
from src.training.step.forward import build_forward
from src.training.step.regularization import add_stochastic_depth, with_random_tokens
from tests.training.step.test_forward import MODELS, batch, model_of
from tests.training.test_trainer import (  # noqa: F401
    StopAfter,
    losses,
    stream_of,
    trainer_of,
)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_skips_layers_evaluates_and_is_saved_as_before(name):
    model, same = model_of(name), model_of(name)
    add_stochastic_depth(model, 0.5)
    ids, _ = batch()
    assert list(model.state_dict()) == list(same.state_dict())
    expected = same.eval()(input_ids=ids).logits
    assert torch.equal(model.eval()(input_ids=ids).logits, expected)
    assert not torch.equal(model.train()(input_ids=ids).logits, expected)


def test_layers_are_skipped_more_often_the_deeper_they_are():
    """Two layers and 0.8: the first is skipped with 0.4, the second with 0.8."""
    model = model_of("llama")
    add_stochastic_depth(model, 0.8)
    changes = {0: [], 1: []}

    def record(number, layer, args, output):
        changes[number].append((output - args[0]).flatten(1).abs().sum(1) > 0)

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *x, number=number: record(number, *x))
    ids = torch.randint(3, 64, (500, 4))
    model(input_ids=ids)
    skipped = [1 - torch.cat(changes[i]).float().mean().item() for i in (0, 1)]
    assert skipped == [pytest.approx(0.4, abs=0.07), pytest.approx(0.8, abs=0.07)]


def test_the_mean_of_a_layer_s_outputs_is_the_whole_layer_s():
    model = model_of("llama", num_hidden_layers=1)
    layer, inputs = model.model.layers[0], torch.randn(1, 4, 16)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)  # so that the layer changes much
    cos, sin = model.model.rotary_emb(inputs, torch.arange(4)[None])
    expected = layer(inputs, position_embeddings=(cos, sin))
    add_stochastic_depth(model, 0.5)
    many = layer(inputs.expand(4000, -1, -1), position_embeddings=(cos, sin))
    added, whole = many.mean(0) - inputs[0], (expected - inputs)[0]
    assert torch.allclose(added, whole, rtol=0.1, atol=1e-3)


def test_every_parameter_has_a_gradient_even_if_all_sequences_skip_its_layer():
    """DDP waits for the gradient of every parameter in every step."""
    model = model_of("gpt2")
    add_stochastic_depth(model, 0.999999)
    ids, _ = batch()
    model(input_ids=ids).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.transformer.h[1].mlp.c_fc.weight.grad.any()


def test_an_architecture_without_known_layers_is_refused():
    config = AutoConfig.for_model("openai-gpt", n_embd=8, n_layer=1, n_head=1)
    with pytest.raises(UserError, match="the layers of openai-gpt are unknown"):
        add_stochastic_depth(AutoModelForCausalLM.from_config(config), 0.5)


def test_a_share_of_the_inputs_becomes_other_tokens_of_the_batch():
    torch.manual_seed(0)
    ids = torch.randint(1000, 1100, (50, 40))
    masked = with_random_tokens(ids, 0.25)
    assert 0.22 < (masked != ids).float().mean() < 0.28
    assert set(masked.unique().tolist()) <= set(ids.unique().tolist())


def test_the_targets_and_the_evaluation_have_no_replaced_tokens():
    model = model_of("gpt2")
    ids, labels = batch()
    given, kept = ids.clone(), labels.clone()
    evaluated = model.eval()(input_ids=ids).logits
    model.train().forward = build_forward(model, None, 7, input_masking=0.5)
    torch.manual_seed(0)
    first = model(input_ids=ids, labels=labels).loss.item()
    assert first != model(input_ids=ids, labels=labels).loss.item()
    torch.manual_seed(0)
    assert first == model(input_ids=ids, labels=labels).loss.item()
    assert torch.equal(ids, given) and torch.equal(labels, kept)
    assert torch.equal(model.eval()(input_ids=ids).logits, evaluated)
    assert (labels == IGNORE_INDEX).any()


NOISE = dict(stochastic_depth=0.3, input_masking=0.2, z_loss=1e-3)


def test_a_continued_run_draws_the_same_noise(trainer_of, tmp_path):  # noqa: F811
    data = dict(reshuffle_documents=True)
    values = dict(NOISE, data=data, max_steps=4, per_device_train_batch_size=2)
    whole = trainer_of(**values, output_dir=str(tmp_path / "whole"))
    whole.fit()
    plain = trainer_of(
        max_steps=4, per_device_train_batch_size=2, output_dir=str(tmp_path / "plain")
    )
    plain.fit()
    values["output_dir"] = str(tmp_path / "parts")
    stopped = trainer_of(**values)
    stopped.add_callback(StopAfter(2))
    stopped.fit()
    continued = trainer_of(**values)
    continued.fit()
    pairs = zip(whole.model.parameters(), continued.model.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)
    assert losses(continued) == losses(whole) != losses(plain)
