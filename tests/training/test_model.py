"""The network: what can be asked for, what is refused, what comes out."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM

from src.arguments import (
    Arguments,
    DataTrainingArguments,
    ModelArguments,
    TrainingArguments,
)
from src.data.packing.tokenizer import save, train
from src.foundation import UserError
from src.training.model import architecture, build_model, model_config, save_config
from tests.evaluation.test_models import own, tokenizer  # noqa: F401

LETTERS = train(["a"], 259)  # 256 bytes, padding, BOS, EOS
WORDS = train(["the dog the dog the dog"], 262)
SMALL = {
    "gpt2": dict(n_layer=1, n_embd=16, n_head=2, n_positions=32),
    "opt": dict(
        num_hidden_layers=1, hidden_size=16, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=32,
    ),
    "llama": dict(
        num_hidden_layers=1, hidden_size=16, intermediate_size=32,
        num_attention_heads=2, max_position_embeddings=32,
    ),
    "bert": dict(
        num_hidden_layers=1, hidden_size=16, intermediate_size=32,
        num_attention_heads=2, max_position_embeddings=32,
    ),
}  # fmt: skip


def arguments(model_type: str = "gpt2", **overrides) -> ModelArguments:
    return ModelArguments(
        model_type=model_type, config_overrides={**SMALL[model_type], **overrides}
    )


def built(args: ModelArguments, tokenizer=LETTERS, seed: int = 1):
    training = TrainingArguments(use_cpu=True, seed=seed)
    all_args = Arguments(model=args, training=training)
    return build_model(all_args, architecture(args), tokenizer)


def config_for(args: ModelArguments, block_size: int):
    data = DataTrainingArguments(block_size=block_size)
    training = TrainingArguments(use_cpu=True)
    return model_config(Arguments(model=args, data=data, training=training))


def refusal(args: ModelArguments, tokenizer=LETTERS) -> str:
    with pytest.raises(UserError) as raised:
        config_for(args, block_size=32)
        built(args, tokenizer)
    return str(raised.value)


def test_overrides_change_the_architecture_by_any_of_its_names():
    config = architecture(arguments(resid_pdrop=0, scale_attn_weights=False))
    assert (config.n_layer, config.n_embd, config.n_positions) == (1, 16, 32)
    assert config.resid_pdrop == 0 and config.scale_attn_weights is False
    args = ModelArguments(model_type="gpt2", config_overrides={"hidden_size": 24})
    assert architecture(args).n_embd == 24


def test_what_follows_from_an_override_follows():
    llama = architecture(arguments("llama"))
    assert llama.head_dim == 8 and llama.num_key_value_heads == 2
    assert architecture(arguments("opt")).word_embed_proj_dim == 16


@pytest.mark.parametrize(
    "overrides, told",
    [
        ({"n_layers": 1}, ("config_overrides.n_layers", "did you mean n_layer?")),
        ({"n_layer": "two"}, ("n_layer", "int", "two")),
        ({"n_layer": True}, ("n_layer", "int", "bool")),
        ({"n_layer": 1.5}, ("n_layer", "int", "1.5")),
        ({"scale_attn_weights": 1}, ("scale_attn_weights", "bool", "1")),
        ({"resid_pdrop": "much"}, ("resid_pdrop", "much")),
        ({"activation_function": 5}, ("activation_function", "str", "5")),
        (
            {"activation_function": "gelu_newest"},
            ("activation_function", "gelu_newest"),
        ),
        ({"n_embd": 15}, ("15",)),
        (["n_layer"], ("{key: value, …}", "n_layer")),
    ],
)
def test_a_bad_override_is_refused_with_its_name(overrides, told):
    if isinstance(overrides, dict):
        overrides = {**SMALL["gpt2"], **overrides}
    args = ModelArguments(model_type="gpt2", config_overrides=overrides)
    message = refusal(args)
    assert all(part in message for part in told), message
    assert len(message) < 300 and "\n" not in message


@pytest.mark.parametrize("model_type", ["t5", "vit", "gemma3"])
def test_an_architecture_without_a_causal_language_model_is_refused(model_type):
    message = refusal(ModelArguments(model_type=model_type))
    assert message == f"model: {model_type} has no causal language model"


def test_an_architecture_that_does_not_exist_is_refused_with_the_nearest():
    assert "did you mean gpt2" in refusal(ModelArguments(model_type="gpt-2"))


@pytest.mark.parametrize("model_type", SMALL)
def test_a_prediction_depends_on_nothing_behind_it(model_type):
    model = built(arguments(model_type)).eval()
    ids = torch.tensor([[1, 50, 60, 70], [1, 50, 61, 71]])
    logits = model(input_ids=ids).logits
    assert torch.equal(logits[0, :2], logits[1, :2])
    assert not torch.allclose(logits[0, 2:], logits[1, 2:])


@pytest.mark.parametrize("tokenizer, size", [(LETTERS, 259), (WORDS, 262)])
def test_the_vocabulary_and_the_special_tokens_follow_the_tokenizer(tokenizer, size):
    config = built(arguments(), tokenizer).config
    assert config.vocab_size == size
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_a_larger_vocabulary_may_be_asked_for_and_a_smaller_one_is_refused():
    model = built(arguments(vocab_size=320))
    assert model.get_input_embeddings().weight.shape == (320, 16)
    assert refusal(arguments(vocab_size=258)) == (
        "the model's vocabulary of 258 is too small for the tokenizer's 259 entries"
    )


def test_the_weights_are_a_function_of_the_seed():
    first, again, other = (built(arguments(), seed=seed) for seed in (1, 1, 2))
    weights = [list(model.parameters()) for model in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1]))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert all(p.dtype == torch.float32 for p in weights[0])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_attention_kernel_is_the_one_asked_for(kernel):
    args = replace(arguments(), attn_implementation=kernel)
    assert built(args).config._attn_implementation == kernel


def test_a_kernel_that_is_not_installed_is_refused():
    args = replace(arguments(), attn_implementation="flash_attention_2")
    assert refusal(args).startswith("model: FlashAttention2 has been toggled on, but")


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "llama"])
def test_blocks_longer_than_the_positions_are_refused(model_type):
    assert config_for(arguments(model_type), block_size=32)
    with pytest.raises(UserError) as raised:
        config_for(arguments(model_type), block_size=33)
    told = "data.block_size=33 exceeds the model's 32 positions"
    assert str(raised.value) == told


def test_a_model_without_positions_takes_any_block():
    args = ModelArguments(model_type="mamba", config_overrides={"hidden_size": 16})
    assert config_for(args, block_size=100_000)


@pytest.fixture
def saved(tmp_path):
    model = built(arguments(), seed=7)
    model.save_pretrained(tmp_path / "saved")
    save(LETTERS, tmp_path / "saved")
    return model, str(tmp_path / "saved")


def test_saved_weights_are_continued_from(saved):
    model, path = saved
    args = ModelArguments(
        model_name_or_path=path, config_overrides={"resid_pdrop": 0.5}
    )
    loaded = built(args, seed=1)
    assert loaded.config.n_layer == 1 and loaded.config.resid_pdrop == 0.5
    pairs = zip(model.parameters(), loaded.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_saved_weights_of_a_smaller_vocabulary_than_the_tokenizer_are_refused(saved):
    args = ModelArguments(model_name_or_path=saved[1])
    assert refusal(args, WORDS) == (
        "the model's vocabulary of 259 is too small for the tokenizer's 262 entries"
    )


def test_weights_that_are_not_there_are_refused(tmp_path):
    message = refusal(ModelArguments(model_name_or_path=str(tmp_path / "gone")))
    assert message.startswith("model.model_name_or_path=") and "gone" in message


@pytest.mark.parametrize(
    "overrides, told",
    [
        ({"n_layer": 3}, "GPT2LMHeadModel has no weights for transformer.h.1."),
        ({"vocab_size": 300}, "wte.weight is [259, 16]"),
        ({"n_positions": 64}, "wpe.weight is [32, 16]"),
        ({"tie_word_embeddings": False}, "GPT2LMHeadModel has no weights for lm_head"),
    ],
)
def test_weights_that_do_not_fit_the_overrides_are_refused(saved, overrides, told):
    args = ModelArguments(model_name_or_path=saved[1], config_overrides=overrides)
    message = refusal(args)
    assert message.startswith(f"model.model_name_or_path={saved[1]}: its weights do")
    assert told in message


def test_a_revision_is_for_names_of_the_hub(saved):
    args = ModelArguments(model_name_or_path=saved[1], revision="chck_1M")
    assert f"revision=chck_1M is for hub names, not for {saved[1]}" in refusal(args)


@pytest.mark.parametrize("name", ["exp/nope", "owner/nope"])
def test_a_model_that_does_not_exist_is_refused_by_its_name(name):
    message = refusal(ModelArguments(model_name_or_path=name))
    told = "does not exist" if name.startswith("exp") else "neither a local path nor"
    assert message.startswith(f"model.model_name_or_path={name}: {name} ")
    assert told in message


def saved_config(tmp_path, model_type, **overrides):
    """The `config.json` of a saved model."""
    args = ModelArguments(model_type=model_type, config_overrides=overrides)
    model = AutoModelForCausalLM.from_config(architecture(args))
    model.save_pretrained(tmp_path)
    save_config(model, tmp_path)
    ids = torch.arange(3, 33)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    return json.loads((tmp_path / "config.json").read_text())


def test_rotary_settings_are_saved_under_their_old_names_too(tmp_path):
    """transformers 4.51.3 ignores `rope_parameters`."""
    config = saved_config(
        tmp_path / "llama", "llama", **SMALL["llama"],
        rope_parameters={"rope_theta": 100.0, "rope_type": "linear", "factor": 2.0},
    )  # fmt: skip
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100.0
    scaling = {"rope_type": "linear", "type": "linear", "factor": 2.0}
    assert config["rope_scaling"] == scaling
    small = dict(SMALL["llama"], vocab_size=300, pad_token_id=0)
    of_gemma = dict(small, head_dim=8, num_key_value_heads=2)
    parameters = {"rope_theta": 100.0, "partial_rotary_factor": 0.5}
    for model_type in ("phi", "gpt_neox"):
        config = saved_config(
            tmp_path / model_type, model_type, **small, rope_parameters=parameters
        )
        assert (config["rope_theta"], config["partial_rotary_factor"]) == (100.0, 0.5)
        assert "rope_scaling" not in config
    assert (config["rotary_emb_base"], config["rotary_pct"]) == (100.0, 0.5)
    config = saved_config(
        tmp_path / "gemma3", "gemma3_text", **of_gemma,
        rope_parameters={
            "full_attention": {"rope_theta": 100.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
        },
    )  # fmt: skip
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (100.0, 50.0)
    assert "rope_theta" not in saved_config(tmp_path / "gpt2", "gpt2", **SMALL["gpt2"])


def test_attention_that_must_be_written_out_is_saved_as_such(tmp_path):
    of_gemma = dict(head_dim=8, num_key_value_heads=2, pad_token_id=0)
    small = {**SMALL["llama"], "vocab_size": 300, **of_gemma}
    config = saved_config(tmp_path / "gemma2", "gemma2", **small)
    if not Gemma2ForCausalLM._supports_sdpa:  # transformers 5.20 supports it
        assert config["_attn_implementation"] == "eager"
    config = saved_config(tmp_path / "llama", "llama", **SMALL["llama"])
    assert "_attn_implementation" not in config


@pytest.mark.parametrize(
    "model_type, overrides, told",
    [
        ("llama", {}, None),
        ("gpt2", {}, None),
        ("apertus", {}, "does not reproduce a apertus"),
        ("phi3", {"rope_type": "longrope"}, "does not reproduce rope_type=longrope"),
    ],
)
def test_models_that_the_challenges_library_does_not_reproduce_are_told(
    model_type, overrides, told, caplog
):
    if overrides:
        factors = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)
        overrides = {"rope_parameters": {**overrides, **factors, "rope_theta": 1e4}}
    small = dict(SMALL.get(model_type, SMALL["llama"]), pad_token_id=0)
    config_for(
        ModelArguments(model_type=model_type, config_overrides={**small, **overrides}),
        16,
    )
    assert (told or "") in caplog.text and bool(caplog.text) == bool(told)


def test_code_of_its_own_is_trained_only_if_it_is_trusted(own):  # noqa: F811
    args = ModelArguments(model_name_or_path=str(own))
    told = (
        "it comes with Python code, which runs only with model.trust_remote_code=true"
    )
    assert refusal(args).endswith(told)
    model = built(replace(args, trust_remote_code=True))
    assert type(model).__name__ == "OwnForCausalLM"
    assert torch.equal(model.scales[:3, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_old_keys_of_rotary_positions_are_taken_where_they_count():
    llama = architecture(
        ModelArguments(model_type="llama", config_overrides={"rope_theta": 100.0})
    )
    assert llama.rope_parameters["rope_theta"] == 100
    neox = architecture(
        ModelArguments(model_type="gpt_neox", config_overrides={"rotary_pct": 0.5})
    )
    assert neox.rope_parameters["partial_rotary_factor"] == 0.5
    for kind, name in [("gpt_neox", "rope_theta"), ("gpt2", "rope_scaling")]:
        with pytest.raises(UserError, match=f"unknown key .*{name}. for {kind}"):
            architecture(
                ModelArguments(model_type=kind, config_overrides={name: 100.0})
            )
