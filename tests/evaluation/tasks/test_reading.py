"""Reading times: which probabilities are asked for, and what they add to a regression."""

import math

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from src.data.packing.tokenizer import train
from src.evaluation.scoring.prefix_tree import wanted_of_sequences
from src.evaluation.scoring.scorer import Scored, Scorer
from src.evaluation.tasks import reading
from src.evaluation.tasks.task import Answer
from src.foundation import UserError

TOKENIZER = train(["a"], 259)  # bytes: a word is its leading space and its letters
COLUMNS = (*reading.TEXTS, *reading.NUMBERS)


def write(folder, rows):
    lines = [",".join(COLUMNS)]
    lines += [",".join(str(row.get(name, "")) for name in COLUMNS) for row in rows]
    (folder / "reading_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def rows(number, seed=0):
    """Words with random numbers; the first has no word before it."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(number):
        row = {name: random.normal() for name in reading.NUMBERS}
        row.update(item="A b"[: 1 + 2 * (index > 0)], word="c")
        if index:
            row.update(prev_item="A", prev_word="b")
        made.append(row)
    return made


def load(folder, protocol=2026):
    return reading.ReadingTimes.load(
        folder, name="reading", folder="reading", protocol=protocol
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_layer=1, n_embd=8, n_head=2, n_positions=16,
        bos_token_id=1, eos_token_id=2)  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def test_a_missing_context_is_the_word_none_and_numbers_may_be_missing(tmp_path):
    """As the pipelines read it: "None of them" lost its first word to pandas, twice."""
    made = [{"word": "of", "length": 2}, *rows(2)[1:]]
    made.append(
        {"item": "None of", "word": "us", "prev_item": "None", "prev_word": "of"}
    )
    data = load(write(tmp_path, made))
    assert data.contexts == [("None", "of"), ("A b", "c"), ("None of", "us")]
    assert data.previous == [None, ("A", "b"), None]
    assert data.numbers["length"][0] == 2 and np.isnan(data.numbers["prev_length"][0])


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda text: text.replace("Subtlex_log10", "x"), r"lacks .*Subtlex_log10"),
        (lambda text: text.split("\n")[0] + "\n", "is empty"),
        (
            lambda text: text.split("\n")[0] + "\n" + "x," * 12 + "x",
            "reading_data.csv, row 1 below the header, column Subtlex_log10: must be a"
            " number, got 'x'",
        ),
        # pandas would fill up a row that is cut short.
        (
            lambda text: text.rstrip("\n").rpartition(",")[0],
            "reading_data.csv, row 3 below the header has 12 fields, but the header 13",
        ),
        (
            lambda text: text.rstrip("\n") + ",1",
            "reading_data.csv: .*Expected 13 fields in line 4, saw 14",
        ),
    ],
)
def test_a_bad_table_is_refused(tmp_path, spoil, told):
    file = write(tmp_path, rows(3)) / "reading_data.csv"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(UserError, match=told):
        load(tmp_path)


def test_no_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="no reading_data.csv in"):
        load(tmp_path)


def test_each_token_is_asked_for_by_way_of_its_text():
    """The tokenizer gives the text of a later token, too, a leading space: as the pipeline
    does, the token that is asked for is then the space."""
    first, second = reading.word_queries(TOKENIZER, "A", "b", "causal")
    context = tuple(TOKENIZER("A")["input_ids"])
    space, letter = TOKENIZER("b", add_special_tokens=False)["input_ids"]
    assert (first.ids, first.positions, first.targets) == (
        context, (len(context) - 1,), (space,)
    )  # fmt: skip
    assert second.ids == (*context, space) and second.targets == (space,)
    assert letter not in second.targets


def test_without_a_leading_space_the_word_is_glued_to_its_context():
    bare = train(["a"], 259)
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    queries = reading.word_queries(bare, "A", "bc", "causal")
    a, b, c = bare("Abc", add_special_tokens=False)["input_ids"]
    assert [query.targets for query in queries] == [(b,), (c,)]
    assert queries[1].ids[-2:] == (a, b)


@pytest.mark.parametrize("backend, shift", [("mlm", 0), ("mntp", 1)])
def test_a_masked_model_is_asked_at_the_first_of_three_masks(backend, shift):
    masked = train(["a"], 259)
    masked.add_special_tokens({"mask_token": "<mask>"})
    query = reading.word_queries(masked, "A", "b", backend)[0]
    mask = masked.mask_token_id
    assert query.ids[-3:] == (mask,) * 3 and mask not in query.ids[:-3]
    assert query.positions == (len(query.ids) - 3 - shift,)


def test_a_masked_model_without_a_mask_token_is_refused(model, tmp_path):
    task = load(write(tmp_path, rows(2)))
    with pytest.raises(UserError, match="backend=mlm needs a tokenizer with a mask"):
        task.prepare(Scorer(model, TOKENIZER, "mlm"))


def test_a_text_among_numbers_is_named_with_its_row(tmp_path):
    file = write(tmp_path, rows(3)) / "reading_data.csv"
    lines = file.read_text().split("\n")
    lines[2] = lines[2].rsplit(",", 1)[0] + ",12 ms"
    file.write_text("\n".join(lines))
    told = "row 2 below the header, column self_paced.*: must be a number, got '12 ms'"
    with pytest.raises(UserError, match=told):
        load(tmp_path)


@torch.no_grad()
def test_a_words_surprisal_is_that_of_its_tokens_one_at_a_time(model, tmp_path):
    task, scorer = load(write(tmp_path, rows(8))), Scorer(model, TOKENIZER)
    prepared = task.prepare(scorer)
    surprisal, previous = -task.ask(scorer, prepared).log_probability.reshape(2, -1)
    total = 0.0
    for query in reading.word_queries(TOKENIZER, "A b", "c", "causal"):
        logits = model(torch.tensor([query.ids])).logits[0, -1]
        total -= logits.log_softmax(-1)[query.targets[0]].item()
    assert surprisal[3] == pytest.approx(total, abs=1e-5)
    assert previous[0] == 0 and (previous[1:] > 0).all()
    # What many rows ask is computed once: two tokens behind "A", two behind "A b".
    flat = [query for of_word in prepared for query in of_word]
    assert len(wanted_of_sequences(flat, causal=True, max_length=16)) == 2 + 2


def test_a_word_beyond_the_models_positions_is_named(model, tmp_path):
    long = {**rows(2)[1], "item": "x" * 30}
    task, scorer = load(write(tmp_path, [*rows(40), long])), Scorer(model, TOKENIZER)
    result = task.result([Answer(task.ask(scorer, task.prepare(scorer)))])
    assert result.too_long == ("reading_40",) and math.isfinite(result.score)


def test_what_surprisal_adds_is_a_share_of_what_was_unexplained():
    """y = x + z with x, z, e uncorrelated and of variance 1, 1: x explains a half, and
    z the other half, that is all that was left; noise of variance 2 leaves a half."""
    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
    x, z, e = np.concatenate([signs, -signs]).T.astype(float)
    columns = {"x": x, "pred": z, "clean": x + z, "noisy": x + z + e}
    assert reading.added_variance(columns, "clean", ["x"]) == pytest.approx(1)
    assert reading.added_variance(columns, "noisy", ["x"]) == pytest.approx(1 / 2)


def test_products_of_predictors_belong_to_the_baseline():
    random = np.random.default_rng(0)
    first, second, pred = random.normal(size=(3, 50))
    columns = {"a": first, "b": second, "pred": pred, "y": first * second + 0.01 * pred}
    assert reading.added_variance(columns, "y", ["a", "b"]) == pytest.approx(1)
    columns["y"][0] = np.nan  # a word without this measure is left out
    assert reading.added_variance(columns, "y", ["a", "b"]) == pytest.approx(1)


def test_the_score_is_the_mean_of_eye_tracking_and_self_paced_reading(tmp_path):
    task = load(write(tmp_path, rows(60)), protocol=2025)
    surprisals = np.random.default_rng(1).normal(size=60)
    previous = np.array([np.nan, *surprisals[:-1]])
    nats = np.concatenate([-surprisals, [0], -surprisals[:-1]])
    result = task.result([Answer(Scored(nats, np.ones(120)))])
    columns = {**task.numbers, "pred": surprisals, "prev_pred": previous}
    eye = [
        reading.added_variance(columns, name, reading.WORDS)
        for name in reading.EYE_TRACKING
    ]
    paced = reading.added_variance(columns, reading.SELF_PACED, reading.SPILL_OVER)
    assert result.score == pytest.approx(100 * (np.mean(eye) + paced) / 2)
    predictions = result.files["predictions.json"]["reading"]["predictions"]
    assert predictions[1] == {
        "id": 1, "pred": surprisals[1], "prev_pred": surprisals[0]
    }  # fmt: skip
    assert math.isnan(predictions[0]["prev_pred"])
    assert (result.folder, result.protocol) == ("reading", 2025)
