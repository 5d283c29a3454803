"""Fine-tuning: the protocol's texts, token, recipe and metrics; padding changes nothing."""

import copy
import dataclasses
import json
import logging
import os
import random

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from src.evaluation.glue import finetuning
from src.evaluation.glue.classifier import Classifier
from src.evaluation.glue.data import RECIPES, Encoded, FineTuning, measure
from src.evaluation.scoring.scorer import Scorer
from src.evaluation.tasks.task import Answer
from src.foundation import UserError

WORDS = "[PAD] [BOS] [EOS] [UNK] yes no is it a b c d e f".split()
QUICK = dataclasses.replace(
    RECIPES["rte"],
    batch_size=4, num_epochs=5, learning_rate=0.01, classifier_dropout=0.0, warmup=0.1,
)  # fmt: skip
SMALL = dict(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, intermediate_size=32, max_position_embeddings=16,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2,
)  # fmt: skip


def words(bos: bool = True, **options) -> PreTrainedTokenizerFast:
    """A word a token: BOS, both texts; EOS ends each of them where there is no BOS."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = ("[BOS] $A", "[BOS] $A $B") if bos else ("$A", "$A [EOS] $B [EOS]")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]", **options
    )


TOKENIZER = words(pad_token="[PAD]")


def build(name: str = "gpt2", **values):
    torch.manual_seed(1)
    auto = AutoModelForMaskedLM if name in ("bert", "roberta") else AutoModelForCausalLM
    config = AutoConfig.for_model(name, **{**SMALL, **values})
    return auto.from_config(config).eval()


def write(folder, name: str, train: list, valid: list) -> None:
    for split, rows in (("train", train), ("valid", valid)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")


def rows(number: int) -> list[dict]:
    """The first text's first word says which label it is; lengths differ."""
    rng = random.Random(number)
    found = []
    for index in range(number):
        rest = " ".join(rng.choices("abcdef", k=rng.randint(0, 5)))
        first = f"{('no', 'yes')[index % 2]} {rest}"
        found.append({"sentence1": first, "sentence2": "is it", "label": index % 2})
    return found


def load(folder, name="rte", **fields):
    common = {"seed": 42, "bf16": None, **fields}
    return FineTuning.load(folder, name, folder=f"finetune/{name}", **common)


@pytest.fixture
def rte(tmp_path):
    """The task with short training."""
    write(tmp_path, "rte", rows(18), rows(10))
    return dataclasses.replace(load(tmp_path), recipe=QUICK)


def finetune(task, model, tokenizer=TOKENIZER, backend="causal", batch_tokens=16384):
    """The result of fine-tuning a model on a task."""
    scorer = Scorer(model, tokenizer, backend, batch_tokens)
    answer = task.ask(scorer, task.prepare(scorer))
    return task.result([Answer(answer, seconds=1.0)])


def batch(texts: list[list[int]], side="left") -> tuple[torch.Tensor, torch.Tensor]:
    """The padded ids and mask of some texts."""
    rows = range(len(texts))
    return Encoded(texts, [0] * len(texts), 0, 0, side).batch(rows)[:2]


@pytest.mark.parametrize(
    "name, row, expected",
    [
        ("boolq", {"question": "is it", "passage": "It is."}, ("is it", "It is.")),
        ("mnli", {"premise": "P {x}", "hypothesis": "H"}, ("P {x}", "H")),
        ("mrpc", {"sentence1": "A", "sentence2": "B"}, ("A", "B")),
        (
            "multirc",
            {"question": "Who?", "answer": "Ann", "paragraph": "Ann came."},
            ("Question: Who? Answer: Ann", "Ann came."),
        ),
        ("qqp", {"question1": "A?", "question2": "B?"}, ("A?", "B?")),
        ("rte", {"sentence1": "A", "sentence2": "B"}, ("A", "B")),
        (
            "wsc",
            {"span1_text": "Mark", "span2_text": "He", "text": "Mark lied. He did."},
            ('Does "He" refer to "Mark" in this passage?', "Mark lied. He did."),
        ),
    ],
)
def test_texts_are_put_together_as_the_protocol_says(tmp_path, name, row, expected):
    row = {**row, "label": 1, "idx": 7}
    write(tmp_path, name, [row], [row, {**row, "label": 0}])
    task = load(tmp_path, name)
    assert task.valid == [(*expected, 1), (*expected, 0)]
    assert task.train == [(*expected, 1)]


def test_recipes_are_the_protocols():
    assert {name: recipe.batch_size for name, recipe in RECIPES.items()} == {
        **dict.fromkeys(("mnli", "mrpc", "qqp", "rte", "wsc"), 32),
        **dict.fromkeys(("boolq", "multirc"), 16),
    }
    assert [n for n, f in RECIPES.items() if f.metric == "f1"] == ["mrpc", "qqp"]
    assert [n for n, f in RECIPES.items() if f.num_epochs != 10] == ["wsc"]
    assert RECIPES["wsc"].num_epochs == 30
    assert [n for n, f in RECIPES.items() if f.num_labels == 3] == ["mnli"]


GOOD = {"sentence1": "A", "sentence2": "B", "label": 1}


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"sentence1": ', "rte.valid.jsonl, line 2: not JSON"),
        ("[1]", "line 2: must be a JSON object, got list"),
        ({"sentence1": "A", "label": 1}, "line 2: lacks the field sentence2"),
        ({**GOOD, "sentence1": 3}, "line 2: sentence1 is a int: 3"),
        ({**GOOD, "label": 2}, "line 2: label must be one of 0 … 1, got 2"),
        ({**GOOD, "label": True}, "label must be one of 0 … 1, got True"),
        ({"sentence1": "A", "sentence2": "B"}, "got None"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    write(tmp_path, "rte", [GOOD], [GOOD, line])
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert message in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="no rte.train.jsonl in .*0$"):
        load(tmp_path)
    write(tmp_path, "rte", [GOOD], [GOOD])
    write(tmp_path, "mrpc", [GOOD], [GOOD])
    assert [load(tmp_path, name).name for name in ("rte", "mrpc")] == ["rte", "mrpc"]
    (tmp_path / "mrpc.train.jsonl").unlink()
    with pytest.raises(UserError, match="no mrpc.train.jsonl in .*0$"):
        load(tmp_path, "mrpc")
    (tmp_path / "rte.train.jsonl").write_text("\n")
    with pytest.raises(UserError, match="rte.train.jsonl is empty"):
        load(tmp_path)


def test_the_longer_text_is_cut_and_counted_and_the_tokenizer_forgets_it(
    tmp_path, caplog
):
    long = {"sentence1": "a b c d e f", "sentence2": "is it", "label": 0}
    fits = {"sentence1": "a b c", "sentence2": "is it", "label": 1}
    write(tmp_path, "rte", [fits], [long, fits])
    model = build(max_position_embeddings=6)
    found = load(tmp_path).prepare(Scorer(model, TOKENIZER))
    told = [[WORDS[token] for token in ids] for ids in found["valid"].texts]
    assert told == [["[BOS]", *"a b c is it".split()]] * 2
    assert (found["train"].num_cut, found["valid"].num_cut) == (0, 1)
    assert "rte: 1 of 2 texts of the valid file are cut at 6 tokens" in caplog.text
    assert len(TOKENIZER("a b c d e f a b c")["input_ids"]) == 10
    assert TOKENIZER.backend_tokenizer.truncation is None


def test_metrics_by_hand():
    labels = np.array([1, 1, 1, 0, 0])
    # 2 hits, 1 false alarm, 1 miss, 1 right refusal
    found = measure(np.array([1, 1, 0, 1, 0]), labels)
    assert list(found) == ["accuracy", "f1", "mcc"]
    assert found["accuracy"] == 3 / 5
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["mcc"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 2 * 3 * 2) ** 0.5)
    nothing = np.zeros(2, int)
    assert measure(nothing, nothing) == {"accuracy": 1.0, "f1": 0.0, "mcc": 0.0}
    assert measure(np.array([0, 2]), np.array([1, 2]), 3) == {"accuracy": 0.5}


def test_batches_are_padded_on_the_side_that_is_asked_for():
    left, right = (batch([[5, 6, 7], [8]], side) for side in ("left", "right"))
    assert left[0].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left[1].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right[0].tolist() == [[5, 6, 7], [8, 0, 0]]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "bloom", "bert", "roberta"])
def test_a_padded_text_gives_the_logits_of_the_text_alone(name, last):
    more = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 8}}.get(name, {})
    classifier = Classifier(build(name, **more), QUICK, last, True).eval()
    texts = [[1, 6, 7, 8], [1, 9, 10, 11, 12, 13, 4, 5]]
    side = "left" if last else "right"
    together = classifier(*batch(texts, side))
    for text, found in zip(texts, together):
        alone = classifier(*batch([text]))[0]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    assert classifier.gives_positions == (last and name in ("gpt2", "bert"))
    assert not classifier.depends_on_padding


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize("exact", [False, True])
def test_positions_are_numbered_from_the_padding_unless_asked_otherwise(name, exact):
    """The challenge's script gives ids and mask only, and reads the last state."""
    model = build(name)
    classifier = Classifier(model, QUICK, True, exact).eval()
    ids, mask = batch([[1, 6, 7, 8], [1, 9, 10, 11, 12, 13, 4, 5]])
    found = classifier(ids, mask)
    states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    official = classifier.head(states[:, -1])
    differs = exact and name != "llama"
    assert torch.equal(found[1], official[1])  # not padded
    assert torch.allclose(found[0], official[0], atol=1e-6) == (not differs)
    assert classifier.depends_on_padding == (not exact and name != "llama")


def test_each_text_is_padded_as_in_the_protocols_batch(rte, monkeypatch):
    """The bound on memory is 20 tokens, so that batches are computed in parts."""
    recipe = dataclasses.replace(QUICK, num_epochs=1)
    task = dataclasses.replace(rte, recipe=recipe)
    shapes = {True: [], False: []}
    forward = Classifier.forward

    def remember(self, ids, mask):
        shapes[self.training].append(tuple(ids.shape))
        return forward(self, ids, mask)

    monkeypatch.setattr(Classifier, "forward", remember)
    scorer = Scorer(build(), TOKENIZER, "causal", 20)
    prepared = task.prepare(scorer)
    task.ask(scorer, prepared)
    lengths = [len(ids) for ids in prepared["valid"].texts]
    assert len(set(lengths)) > 2
    size = 20 // max(lengths)
    assert shapes[False] == [(size, max(lengths))] * (10 // size)  # one batch of 64
    assert {number for number, _ in shapes[True]} == {2}  # four texts in two parts
    assert all(number * width <= 20 for number, width in shapes[True])


def test_the_head_reads_the_last_token_of_the_model_as_it_is():
    model = build()
    classifier = Classifier(model, QUICK, True, False).eval()
    ids = torch.tensor([[1, 6, 7, 8]])
    states = model(ids, output_hidden_states=True).hidden_states[-1]
    found = classifier(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, classifier.head(states[:, -1]))
    other = ids.clone()
    other[0, -1] = 9
    assert not torch.allclose(found, classifier(other, torch.ones_like(ids)))
    first = Classifier(model, QUICK, False, False).eval()
    first.head.load_state_dict(classifier.head.state_dict())
    found = first(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, first.head(states[:, 0]))


@pytest.mark.parametrize(
    "name, backend, protocol",
    [("gpt2", "causal", 2026), ("bert", "mlm", 2026), ("bert", "mlm", 2025)],
)
def test_what_can_be_learnt_is_learnt(tmp_path, name, backend, protocol):
    write(tmp_path, "rte", rows(64), rows(10))
    tokenizer = words(bos=name == "gpt2", pad_token="[PAD]")
    rte = load(tmp_path, protocol=protocol, exact_positions=True)
    rte = dataclasses.replace(rte, recipe=QUICK)
    result = finetune(rte, build(name), tokenizer, backend)
    assert result.score == 100 and result.num_items == 10
    assert (result.task, result.folder, result.protocol) == (
        "rte",
        "finetune/rte",
        protocol,
    )
    assert result.files["results.txt"] == "accuracy: 1.0\nf1: 1.0\nmcc: 1.0"
    answers = result.files["predictions.json"]["rte"]["predictions"]
    assert answers == [{"id": f"rte_{i}", "pred": i % 2} for i in range(10)]
    assert result.seconds == 1 and len(result.subscores["epoch"]) == 5


def test_the_same_seed_gives_the_same_and_all_is_left_as_it_was(rte, caplog):
    caplog.set_level(logging.INFO)
    model, kept = build(attn_pdrop=0.5), dict(os.environ)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    recipe = dataclasses.replace(QUICK, num_epochs=2, classifier_dropout=0.5)

    def run(seed: int) -> tuple:
        states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
        task = dataclasses.replace(rte, seed=seed, recipe=recipe)
        result = finetune(task, model)
        assert (result.seed, result.data_checksum) == (seed, rte.data_checksum)
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert (np.random.get_state()[1] == states[2]).all()
        return result.files, result.subscores

    model.requires_grad_(False)
    verbosity = transformers.logging.get_verbosity()
    first = run(3)
    assert transformers.logging.get_verbosity() == verbosity
    random.random(), torch.rand(1), np.random.rand()
    assert run(3) == first
    assert all(torch.equal(before[k], w) for k, w in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.training and dict(os.environ) == kept
    assert "rte, epoch 2 of 2: accuracy" in caplog.text


def trained(monkeypatch, **options) -> tuple[Classifier, Classifier]:
    """The classifier before and after its training."""
    seen = []

    def remember(*args, **kwargs):
        seen[:] = [Classifier(*args, **kwargs)] * 2
        seen[0] = copy.deepcopy(seen[1])
        return seen[1]

    monkeypatch.setattr(finetuning, "Classifier", remember)
    finetune(**options)
    return tuple(seen)


def outputs(classifier: Classifier) -> torch.Tensor:
    """Logits of two texts. (Weights without influence, such as the biases of GPT-2's keys,
    follow the rounding of their gradients.)"""
    with torch.no_grad():
        return classifier.eval()(*batch([[1, 4, 8, 6, 7], [1, 5, 6, 7]]))


def still(**values):
    """A model without dropout."""
    return build(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **values)


def test_training_is_adamw_on_all_weights_with_warmup_and_cosine(rte, monkeypatch):
    """The protocol's loop, written out: 18 rows in batches of 4, 3 epochs, 12 steps."""
    recipe = dataclasses.replace(
        QUICK, num_epochs=3, warmup=0.2, weight_decay=0.5, learning_rate=1e-3
    )
    task = dataclasses.replace(rte, recipe=recipe)
    model, found = trained(monkeypatch, task=task, model=still())
    data = task.prepare(Scorer(still(), TOKENIZER))["train"]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    order, step = torch.Generator().manual_seed(42), 0
    for _ in range(3):
        rows = torch.randperm(18, generator=order).tolist()
        for start in range(0, 16, 4):
            cosine = 0.5 + 0.5 * np.cos(np.pi * (step - 2) / 10)
            share = step / 2 if step < 2 else 0.1 + 0.9 * cosine
            optimizer.param_groups[0]["lr"] = 1e-3 * share
            optimizer.zero_grad()
            ids, mask, labels = data.batch(rows[start : start + 4])
            torch.nn.functional.cross_entropy(model(ids, mask), labels).backward()
            optimizer.step()
            step += 1
    torch.testing.assert_close(outputs(found), outputs(model), atol=1e-5, rtol=1e-4)


def test_a_bound_on_memory_changes_no_result(rte, monkeypatch):
    recipe = dataclasses.replace(QUICK, num_epochs=2, learning_rate=1e-3)
    options = dict(task=dataclasses.replace(rte, recipe=recipe), model=still())
    _, whole = trained(monkeypatch, **options)
    for batch_tokens in (1, 20, 30):  # parts of 1, 2 and 3 of the batch's 4 texts
        _, parts = trained(monkeypatch, **options, batch_tokens=batch_tokens)
        expected = outputs(whole)
        torch.testing.assert_close(outputs(parts), expected, atol=1e-5, rtol=1e-4)


def test_the_first_of_the_best_epochs_counts(rte, monkeypatch):
    scores = iter([0.4, 0.6, 0.6, 0.5])
    monkeypatch.setattr(
        finetuning,
        "measure",
        lambda *_: {"accuracy": (score := next(scores)), "f1": 1 - score, "mcc": 0.0},
    )
    recipe = dataclasses.replace(QUICK, num_epochs=4)
    result = finetune(dataclasses.replace(rte, recipe=recipe), build())
    assert result.score == 60
    assert result.subscores["metric"] == {"accuracy": 60, "f1": 40, "mcc": 0}
    assert result.subscores["epoch"] == {"1": 40, "2": 60, "3": 60, "4": 50}


def test_what_cannot_be_finetuned_is_refused(rte):
    with pytest.raises(
        UserError, match="18 training rows are fewer than a batch of 32"
    ):
        finetune(dataclasses.replace(rte, recipe=RECIPES["rte"]), build())
    with pytest.raises(UserError, match="vocabulary of 10 is too small for"):
        finetune(rte, build(vocab_size=10))
    model = build()
    model.transformer.wte.weight.data[8] = torch.nan
    with pytest.raises(UserError, match="NaN after epoch 1 of fine-tuning"):
        finetune(rte, model)


def test_a_processor_trains_in_bfloat16_where_it_is_asked_for(rte):
    recipe = dataclasses.replace(QUICK, num_epochs=1)
    task = dataclasses.replace(rte, recipe=recipe, bf16=True)
    assert finetune(task, build()).num_items == 10


def test_a_masked_model_needs_no_mask_token(rte):
    assert TOKENIZER.mask_token is None
    recipe = dataclasses.replace(QUICK, num_epochs=1)
    task = dataclasses.replace(rte, recipe=recipe)
    assert finetune(task, build("bert"), backend="mlm").num_items == 10


def test_a_tokenizer_without_padding_pads_with_its_end(rte):
    for tokenizer, pad_id in ((TOKENIZER, 0), (words(), WORDS.index("[EOS]"))):
        assert rte.prepare(Scorer(build(), tokenizer))["train"].pad_id == pad_id
