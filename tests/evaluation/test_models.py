"""Loading a model: its weights are exactly those that it needs, and its own code is obeyed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

from src.data.packing.tokenizer import save, train
from src.evaluation.models import find_checkpoints, load, load_config, load_model
from src.foundation import UserError, write_manifest
from tests.conftest import sentences

GPT2 = GPT2Config(vocab_size=300, n_layer=2, n_embd=16, n_head=2, n_positions=32)
BERT = BertConfig(
    vocab_size=300, num_hidden_layers=1, hidden_size=16, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=32,
)  # fmt: skip
# The faults of GPT-BERT's code: its configuration cannot be printed with a dtype, `post_init` is
# not called, layer norms without weights are initialized, and a buffer is not stored.
CONFIGURATION = """
import json
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own"
    def __init__(self, vocab_size=300, hidden_size=16, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
    def to_json_string(self, use_diff=True):
        return json.dumps(self.__dict__)
    def __repr__(self):
        return self.to_json_string()
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_own import OwnConfig

class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig
    _tied_weights_keys = ["head.weight"]
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, elementwise_affine=False)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.head.weight = self.embedding.weight
        scales = torch.arange(1.0, 33.0)[:, None]
        self.register_buffer("scales", scales, persistent=False)
    def _init_weights(self, module):
        if isinstance(module, nn.LayerNorm):
            module.bias.data.zero_()
    def get_input_embeddings(self):
        return self.embedding
    def get_output_embeddings(self):
        return self.head.weight
    def forward(self, input_ids, **kwargs):
        states = self.embedding(input_ids) * self.scales[: input_ids.shape[1]]
        return CausalLMOutput(logits=self.head(self.norm(states.cumsum(1))))
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train([sentences(100, 1)], 300)


@pytest.fixture
def own(tmp_path, tokenizer, monkeypatch):
    """A model with code of its own in `own/`."""
    monkeypatch.chdir(tmp_path)
    folder = Path("own")
    save(tokenizer, folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    config = {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config |= {"auto_map": classes, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    weights = {"embedding.weight": torch.randn(300, 16), "head.bias": torch.randn(300)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def loaded(folder, trust=False, backend="causal"):
    (checkpoint,) = find_checkpoints(str(folder))
    return load(checkpoint, backend, trust)[0]


def refusal(folder, trust=False, backend="causal"):
    with pytest.raises(UserError) as raised:
        loaded(folder, trust, backend)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_own_code_computes_the_buffers_that_are_not_stored(own):
    weights = load_file(own / "model.safetensors")
    ids = torch.tensor([[5, 6, 7]])
    states = weights["embedding.weight"][ids] * torch.arange(1.0, 4.0)[:, None]
    states = torch.nn.functional.layer_norm(states.cumsum(1), (16,))
    expected = states @ weights["embedding.weight"].T + weights["head.bias"]
    for _ in range(2):
        model = loaded(own, trust=True)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        assert model.head.weight is model.embedding.weight
    model.save_pretrained("again")
    save(load(*find_checkpoints("own"), "causal", True)[1], Path("again"))
    assert torch.equal(loaded("again", trust=True)(ids).logits, model(ids).logits)


def test_own_code_is_run_only_if_it_is_trusted(own):
    told = "it comes with Python code, which runs only with trust_remote_code=true"
    assert told in refusal(own)


def test_the_weights_of_own_code_are_checked_as_well(own):
    weights = load_file(own / "model.safetensors")
    one = {"embedding.weight": weights["embedding.weight"]}
    save_file(one, own / "model.safetensors")
    assert "OwnForCausalLM has no weights for head.bias" in refusal(own, trust=True)
    save_file({**weights, "extra": torch.ones(1)}, own / "model.safetensors")
    assert "OwnForCausalLM has no use for extra" in refusal(own, trust=True)
    save_file({**weights, "head.bias": torch.ones(7)}, own / "model.safetensors")
    assert "head.bias is [7], but by its configuration" in refusal(own, trust=True)


def test_whatever_own_code_raises_is_told_in_one_line(own):
    file = own / "modeling_own.py"
    file.write_text(MODELING + "raise ZeroDivisionError('that is theirs')\n")
    assert refusal(own, trust=True) == "cannot be loaded: that is theirs"


@pytest.fixture
def gpt2(tmp_path, tokenizer):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2).save_pretrained(tmp_path / "gpt2")
    save(tokenizer, tmp_path / "gpt2")
    return tmp_path / "gpt2"


def rewrite(folder, change):
    """Replace the stored weights by `change(weights)`, in PyTorch's old format."""
    weights = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    torch.save(change(weights), folder / "pytorch_model.bin")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_with_a_prefix_are_refused(gpt2, prefix):
    rewrite(gpt2, lambda weights: {prefix + k: v for k, v in weights.items()})
    message = refusal(gpt2)
    assert (
        "GPT2LMHeadModel has no weights for lm_head.weight, transformer.h.0" in message
    )
    assert f"no use for {prefix}transformer.h.0" in message


@pytest.mark.parametrize(
    "extra", ["transformer.h.7.ln_1.bias", "lm_head.bias", "extra.weight"]
)
def test_stored_weights_that_the_model_does_not_have_are_refused(gpt2, extra):
    rewrite(gpt2, lambda weights: {**weights, extra: torch.ones(16)})
    assert refusal(gpt2) == (
        f"its weights do not fit: GPT2LMHeadModel has no use for {extra}"
    )


def test_all_that_does_not_fit_is_told_at_once(gpt2):
    def change(weights):
        del weights["transformer.ln_f.weight"]
        other = {"transformer.wpe.weight": torch.ones(8, 16), "x": torch.ones(1)}
        return {**weights, **other}

    rewrite(gpt2, change)
    message = refusal(gpt2)
    for part in ("wpe.weight is [8, 16]", "no weights for transformer.ln_f", "for x"):
        assert part in message


def test_constants_and_heads_that_others_store_are_no_fault(gpt2, tokenizer):
    before = loaded(gpt2)(torch.tensor([[5, 6, 7]])).logits
    mask = {"attn.bias": torch.ones(1, 1, 32, 32), "attn.masked_bias": torch.ones(())}
    extra = {f"transformer.h.0.{name}": value for name, value in mask.items()}
    extra["v_head.summary.weight"] = torch.ones(1, 16)  # of reinforcement learning
    rewrite(gpt2, lambda weights: {**weights, **extra})
    assert torch.equal(loaded(gpt2)(torch.tensor([[5, 6, 7]])).logits, before)


def test_a_base_model_is_enough_if_the_output_layer_is_tied(tmp_path):
    base = GPT2Model(GPT2)
    base.save_pretrained(tmp_path)
    model = load_model(AutoModelForCausalLM, tmp_path, GPT2, False)
    assert torch.equal(model.lm_head.weight, base.wte.weight)
    untied = GPT2Config(**{**GPT2.to_dict(), "tie_word_embeddings": False})
    with pytest.raises(UserError, match="no weights for lm_head.weight"):
        load_model(AutoModelForCausalLM, tmp_path, untied, False)


def test_heads_of_bert_that_are_not_asked_are_no_fault(tmp_path):
    BertForPreTraining(BERT).save_pretrained(tmp_path / "bert")
    config = load_config(tmp_path / "bert", False)
    load_model(AutoModelForMaskedLM, tmp_path / "bert", config, False)
    BertModel(BERT).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="no weights for cls.predictions.bias"):
        load_model(AutoModelForMaskedLM, tmp_path / "base", config, False)


def test_a_damaged_bit_is_found_where_there_is_a_manifest(gpt2):
    write_manifest(gpt2)
    (gpt2 / "README.md").write_text("notes of the user")
    loaded(gpt2)
    file = gpt2 / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert refusal(gpt2).startswith("is damaged (model.safetensors)")
    os.remove(gpt2 / "manifest.json")
    loaded(gpt2)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_manifest_is_named(gpt2, content):
    (gpt2 / "manifest.json").write_text(content)
    assert refusal(gpt2).startswith("is damaged (manifest.json)")


def test_a_copy_of_a_model_needs_no_manifest(gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "copy")
    loaded(tmp_path / "copy")
