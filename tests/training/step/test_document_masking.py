"""Packed documents have the logits they have alone, for every model of `src/conf/`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from src.arguments import DataTrainingArguments, ModelArguments
from src.configuration.schema import CONF_DIR
from src.foundation import UserError
from src.training.model import architecture
from src.training.step.document_masking import (
    add_mask,
    choose_document_masking,
    document_mask,
)

SMALL = dict(
    n_layer=2, num_hidden_layers=2, n_embd=32, hidden_size=32, word_embed_proj_dim=32,
    n_head=2, num_attention_heads=2, num_key_value_heads=2, ffn_dim=32, head_dim=16,
    intermediate_size=32, vocab_size=50,
)  # fmt: skip
APART = DataTrainingArguments(attend_across_documents=False)
GROUPS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
OTHERS = ["llama", "qwen3", "olmo2"]


def model_of(args: ModelArguments, attention: str = "sdpa"):
    """The architecture of `args`, made small; in training mode."""
    config = architecture(args)
    known = {**config.to_dict(), **config.attribute_map}
    values = {name: SMALL[name] for name in SMALL if name in known}
    values = {config.attribute_map.get(name, name): values[name] for name in values}
    kept = {k: v for k, v in (args.config_overrides or {}).items() if k not in SMALL}
    args = ModelArguments(
        model_type=args.model_type, config_overrides={**kept, **values}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        architecture(args), attn_implementation=attention
    )
    model.config.use_cache = False
    return model.train()


def test_the_mask_by_hand():
    mask = document_mask(torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]))
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert torch.equal(mask[1, 0], torch.ones(5, 5, dtype=torch.bool).tril())
    added = document_mask(torch.tensor([[0, 0]]), additive=True)[0, 0]
    lowest = torch.finfo(torch.float32).min
    assert added.tolist() == [[0, lowest], [lowest, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", GROUPS + OTHERS)
def test_a_packed_document_has_the_logits_it_has_alone(name, attention, composed):
    if name in OTHERS:
        args = ModelArguments(model_type=name)
    else:
        config = composed(f"+model={name}", "+dataset=sample").model
        args = ModelArguments(
            model_type=config.model_type, config_overrides=dict(config.config_overrides)
        )
    model = model_of(args, attention)
    mask = choose_document_masking(APART, model).value
    assert model.training
    model.eval()
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    lengths = [[3, 1, 8], [5, 7]]
    positions = [[p for n in row for p in range(n)] for row in lengths]
    inputs = {"input_ids": ids, "position_ids": torch.tensor(positions)}
    with torch.no_grad():
        packed = model(**(add_mask(inputs, model) if mask else inputs)).logits
        for row, packed_row, sizes in zip(ids, packed, lengths):
            for document, found in zip(row.split(sizes), packed_row.split(sizes)):
                alone = model(input_ids=document[None]).logits[0]
                assert torch.allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_an_architecture_without_positions_is_refused_with_the_reason(name):
    args = ModelArguments(model_type=name, config_overrides={"hidden_size": 32})
    with pytest.raises(UserError, match=f"{name} with .* cannot: it takes no position"):
        choose_document_masking(APART, model_of(args, "eager"))


def test_a_model_that_looks_across_whatever_it_is_told_is_refused():
    model = model_of(ModelArguments(model_type="gpt2"))
    forward = model.transformer.forward

    def blind(*args, position_ids=None, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    model.transformer.forward = blind
    with pytest.raises(
        UserError, match="gpt2 with sdpa attention cannot: a document's"
    ):
        choose_document_masking(APART, model)


def test_a_small_leak_is_a_leak():
    """A convolution across the boundary moves logits by little before training."""
    model = model_of(
        ModelArguments(
            model_type="lfm2",
            config_overrides=dict(
                layer_types=["conv", "full_attention"], num_hidden_layers=2
            ),
        )
    )
    with pytest.raises(UserError, match="lfm2 with .* cannot: a document's logits"):
        choose_document_masking(APART, model)


def test_our_mask_does_not_undo_a_window():
    windows = ["sliding_attention", "sliding_attention"]
    model = model_of(
        ModelArguments(
            model_type="gpt_oss",
            config_overrides=dict(
                layer_types=windows, num_hidden_layers=2, num_local_experts=4
            ),
        ),
        "eager",
    )
    with pytest.raises(UserError, match="gpt_oss with eager attention cannot"):
        choose_document_masking(APART, model)


def test_documents_that_may_attend_to_each_other_need_nothing():
    model = model_of(ModelArguments(model_type="bloom"), "eager")
    assert not choose_document_masking(DataTrainingArguments(), model).value
