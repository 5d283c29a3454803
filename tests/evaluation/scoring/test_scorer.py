"""Log-probabilities of texts: each equals that of the text alone, whatever they share."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GPT2Model,
)

from src.data.packing.tokenizer import train
from src.evaluation.scoring.network import Network, num_positions
from src.evaluation.scoring.prefix_tree import Query, tree_rows
from src.evaluation.scoring.scorer import Item, Scored, Scorer
from src.foundation import UserError
from tests.conftest import sentences

TOKENIZER = train(sentences(200, 1), 320)
SMALL = dict(
    vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, intermediate_size=32, max_position_embeddings=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.5,
)  # fmt: skip
CAUSAL = {
    "gpt2": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 8},
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 0.5},
    "bloom": {},
    "mamba": {"state_size": 4},
}
TAKE_TREES = {"gpt2", "opt", "llama", "qwen3"}
ITEMS = [
    Item("The dog sees the cat."),
    Item("The dog sees the cats."),
    Item("The dog sees the cat."),
    Item("The dog hears a bird and the bird hears the dog again."),
    Item("the"),
    Item(""),
    Item("The dog"),
    Item("The dog sees the cat.", start=8),
    Item("The dog sees the cat.", start=10),  # in mid-word
    Item("The dog sees the cat.", start=21),  # behind the end
    Item("Ein Bär"),
]


def without_bos():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


def with_mask():
    """BOS and EOS around a text, and a mask, as masked models have them."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


def build(name: str, auto=AutoModelForCausalLM, **values):
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **{**SMALL, **CAUSAL.get(name, {}), **values})
    return auto.from_config(config).eval()


@torch.no_grad()
def alone(model, tokenizer, item: Item) -> list[float]:
    """Return the scored tokens' log-probabilities, one forward pass over each one's prefix."""
    encoded = tokenizer(item.text, return_offsets_mapping=True)
    ids, found = encoded["input_ids"], []
    for place, (_, end) in enumerate(encoded["offset_mapping"]):
        if place and end > item.start:
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            found.append(logits.log_softmax(-1)[ids[place]].item())
    return found


def score(model, tokenizer, items, backend="causal", **settings) -> Scored:
    scorer = Scorer(model, tokenizer, backend, **settings)
    return scorer.score(scorer.queries(items))


def token_log_probabilities(
    model, tokenizer, items, backend="causal", batch_tokens=16384
) -> list[np.ndarray]:
    """Return those of the scored tokens of each item."""
    scorer = Scorer(model, tokenizer, backend, batch_tokens)
    queries = scorer.queries(items)
    flat = [query for of_item in queries for query in of_item]
    answers = iter(scorer.log_probabilities(flat))
    return [
        np.concatenate([np.zeros(0), *(next(answers) for _ in of_item)])
        for of_item in queries
    ]


def close(found: list[np.ndarray], expected: list[list[float]]) -> bool:
    assert [len(x) for x in found] == [len(x) for x in expected]
    return np.allclose(np.concatenate(found), np.concatenate(expected), atol=2e-5)


@pytest.mark.parametrize(
    "name, attention",
    [(name, "eager") for name in sorted(CAUSAL)]
    + [(name, "sdpa") for name in sorted(TAKE_TREES)],
)
def test_a_token_has_the_log_probability_it_has_alone(name, attention, caplog):
    caplog.set_level("INFO")
    model = build(name, attn_implementation=attention)
    expected = [alone(model, TOKENIZER, item) for item in ITEMS]
    assert [len(expected[i]) for i in (4, 5, 9)] == [1, 0, 0]
    for batch_tokens in (1, 40, 16384):
        found = token_log_probabilities(
            model, TOKENIZER, ITEMS, batch_tokens=batch_tokens
        )
        assert close(found, expected)
    assert ("no prefix tree" not in caplog.text) == (name in TAKE_TREES)


def test_a_score_is_the_sum_and_equal_texts_tie_to_the_last_bit():
    model = build("gpt2")
    tokens = token_log_probabilities(model, TOKENIZER, ITEMS)
    found = score(model, TOKENIZER, ITEMS)
    assert found.log_probability.tolist() == [x.sum() for x in tokens]
    assert found.num_tokens.tolist() == [len(x) for x in tokens]
    assert found.log_probability[0] == found.log_probability[2]


def test_the_order_and_company_of_items_change_no_tie():
    """However rows are cut, a text that is asked twice is computed once."""
    model = build("llama")
    many = [Item(text) for text in sentences(60, 2)] * 2
    found = score(model, TOKENIZER, many, batch_tokens=300).log_probability
    assert found[:60].tolist() == found[60:].tolist()
    alone_each = [score(model, TOKENIZER, [item]).log_probability[0] for item in many]
    assert np.allclose(found, alone_each, atol=1e-4)


def test_without_bos_the_first_token_is_not_scored():
    model, tokenizer = build("gpt2"), without_bos()
    expected = [alone(model, tokenizer, item) for item in ITEMS]
    assert [len(expected[i]) for i in (4, 5)] == [0, 0]
    assert close(token_log_probabilities(model, tokenizer, ITEMS), expected)


def test_a_trailing_special_token_is_never_scored():
    model, tokenizer = build("gpt2", vocab_size=321), with_mask()
    plain = token_log_probabilities(model, TOKENIZER, ITEMS)
    assert close(token_log_probabilities(model, tokenizer, ITEMS), plain)


def test_a_start_in_a_word_scores_the_token_that_reaches_over_it():
    items = [Item("The dog sees", start) for start in (5, 7)]
    (query,), (later,) = Scorer(build("gpt2"), TOKENIZER).queries(items)
    assert TOKENIZER.convert_ids_to_tokens(query.targets) == ["Ġdog", "Ġ", "sees"]
    assert TOKENIZER.convert_ids_to_tokens(later.targets) == ["Ġ", "sees"]
    assert query.ids == later.ids == tuple(TOKENIZER("The dog sees")["input_ids"][:-1])
    assert (query.positions, later.positions) == ((2, 3, 4), (3, 4))


@torch.no_grad()
def masked_alone(model, tokenizer, item: Item, shift: int) -> list[float]:
    encoded = tokenizer(item.text, return_offsets_mapping=True)
    found = []
    for place, (_, end) in enumerate(encoded["offset_mapping"]):
        if end > item.start:
            ids = torch.tensor([encoded["input_ids"]])
            target = ids[0, place].item()
            ids[0, place] = tokenizer.mask_token_id
            logits = model(input_ids=ids).logits[0, place - shift]
            found.append(logits.log_softmax(-1)[target].item())
    return found


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("backend, shift", [("mlm", 0), ("mntp", 1)])
def test_a_masked_model_sees_both_sides_of_each_token(name, backend, shift):
    model = build(name, AutoModelForMaskedLM, vocab_size=321, pad_token_id=0)
    tokenizer = with_mask()
    expected = [masked_alone(model, tokenizer, item, shift) for item in ITEMS]
    for batch_tokens in (1, 40, 16384):
        found = token_log_probabilities(model, tokenizer, ITEMS, backend, batch_tokens)
        assert close(found, expected)


def test_a_masked_model_needs_a_mask():
    scorer = Scorer(build("bert", AutoModelForMaskedLM), TOKENIZER, "mlm")
    with pytest.raises(UserError, match="backend=mlm needs a tokenizer with a mask"):
        scorer.queries(ITEMS)


@pytest.mark.parametrize("name, limit", [("gpt2", 64), ("llama", 64)])
def test_a_text_beyond_the_models_positions_is_named_and_the_others_scored(name, limit):
    model = build(name)
    fits, beyond = Item("x" * (limit - 1)), Item("x" * limit)  # behind BOS and a space
    assert len(TOKENIZER(fits.text)["input_ids"]) == limit + 1
    found = score(model, TOKENIZER, [beyond, fits, ITEMS[0]])
    assert np.isnan(found.log_probability).tolist() == [True, False, False]
    assert found.num_tokens.tolist()[:2] == [limit + 1, limit]


def test_roberta_has_fewer_positions_than_its_table_has_rows():
    model = build("roberta", AutoModelForMaskedLM, pad_token_id=1, vocab_size=321)
    assert num_positions(model) == 64 - 2
    tokenizer = with_mask()
    found = score(model, tokenizer, [Item("x" * 59), Item("x" * 60)], "mlm")
    assert np.isnan(found.log_probability).tolist() == [False, True]


def test_ids_can_be_asked_for_directly():
    model = build("llama")
    ids = tuple(TOKENIZER("The dog sees the cat.")["input_ids"])
    scorer = Scorer(model, TOKENIZER)
    first, second, none = scorer.log_probabilities(
        [Query(ids, (2, 1), (7, 8)), Query(ids[:3], (2,), (7,)), Query(ids, (), ())]
    )
    expected = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert np.allclose(first, [expected[2, 7].item(), expected[1, 8].item()], atol=1e-5)
    assert first[0] == second[0] and len(none) == 0
    assert scorer.log_probabilities([]) == []


def test_common_prefixes_are_computed_once():
    """a b c, a b d, a e: five tokens; of `a b c`, all is below `a`, `c` below `b`."""
    (row,) = tree_rows({(1, 2, 3): [], (1, 5): [(1, 7, 0)], (1, 2, 4): []}, 5)
    assert row.ids == [1, 2, 3, 4, 5]
    assert row.depths == [0, 1, 2, 2, 1]
    assert row.ends == [5, 4, 3, 4, 5]
    assert row.wanted == [(4, 7, 0)]


def test_options_behind_one_long_context_stay_in_its_row():
    context = tuple(range(600))
    sequences = {(*context, 1000 + i): [] for i in range(50)}
    assert [len(row.ids) for row in tree_rows(sequences, 16384)] == [650]
    # Memory is bounded: what does not fit begins anew, and a sequence is never cut.
    rows = tree_rows(sequences, 620)
    assert [len(row.ids) for row in rows] == [620, 620, 610]
    assert {len(row.ids) for row in tree_rows(sequences, 1)} == {601}


def test_a_window_is_found_on_the_longest_text(monkeypatch):
    """A mask along the tree would let a token see farther than the model's window."""
    long = "The dog sees the cat and the bird hears the dog."
    items = [Item(long), Item(long[:-1]), Item("The dog"), Item("The cat")]
    model = build("gpt2")
    original = Network._tree_mask

    def narrow(self, ends):
        here = torch.arange(ends.shape[1])
        return original(self, ends).masked_fill(here[:, None] - here >= 5, -1e9)

    monkeypatch.setattr(Network, "_tree_mask", narrow)
    expected = [alone(model, TOKENIZER, item) for item in items]
    assert close(token_log_probabilities(model, TOKENIZER, items), expected)


def test_nothing_of_the_model_or_of_chance_is_changed():
    model = build("gpt2").train()
    model.transformer.h[0].eval()  # frozen, say
    modes = [module.training for module in model.modules()]
    state, use_cache = torch.get_rng_state(), model.config.use_cache
    first = score(model, TOKENIZER, ITEMS).log_probability
    assert score(model, TOKENIZER, ITEMS).log_probability.tolist() == first.tolist()
    assert not any("forward" in vars(module) for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache == use_cache
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_configuration_without_use_cache_stays_without():
    sizes = {
        "vocab_size": 321,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 32,
    }
    config = AutoConfig.for_model("distilbert", **sizes)
    assert not hasattr(config, "use_cache")
    model = AutoModelForMaskedLM.from_config(config)
    before = model.config.to_dict()
    score(model, with_mask(), ITEMS, "mlm")
    assert model.config.to_dict() == before


def test_autocast_around_it_changes_nothing_and_its_own_is_undone():
    model = build("gpt2")
    exact = score(model, TOKENIZER, ITEMS).log_probability
    with torch.autocast("cpu", torch.bfloat16):
        assert score(model, TOKENIZER, ITEMS).log_probability.tolist() == exact.tolist()
        half = score(model, TOKENIZER, ITEMS, dtype=torch.bfloat16).log_probability
        loss = model(input_ids=torch.tensor([[1, 5, 6]])).logits.sum()
    loss.backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad is not None
    assert half.tolist() != exact.tolist()
    assert np.allclose(half, exact, rtol=0.02, atol=0.5)


def test_scores_are_float32_while_training_uses_tf32(monkeypatch):
    precisions = []
    forward = GPT2Model.forward

    def recorded(*args, **kwargs):
        precisions.append(torch.get_float32_matmul_precision())
        return forward(*args, **kwargs)

    monkeypatch.setattr(GPT2Model, "forward", recorded)
    torch.set_float32_matmul_precision("high")
    try:
        score(build("gpt2"), TOKENIZER, ITEMS)
        assert set(precisions) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(UserError, match="vocabulary of 300 is too small for .* 320"):
        Scorer(build("gpt2", vocab_size=300), TOKENIZER)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_nan_is_refused_with_the_text_that_gives_it(name):
    model = build(name)
    bad = TOKENIZER("The dog")["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = float("nan")
    texts = ["A cat", "A king sees the dog now", "A bird"]
    if name == "bloom":  # its embedding is its vocabulary layer: all is NaN
        texts = texts[1:2]
    with pytest.raises(UserError, match="gives NaN for 'A king sees the dog now'"):
        score(model, TOKENIZER, [Item(text) for text in texts])
