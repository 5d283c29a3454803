"""Minimal pairs: scores of sentences, shares of pairs, files that cannot be read."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from src.arguments import UserError
from src.data.tokenizer import train
from src.evaluation.minimal_pairs import accuracies, load_pairs, score

LETTERS = train(["a"], 259)
TEXTS = [
    "The dogs bark.", "The dog bark.", "Who", "A bird sings in the tree.",
    "The dogs howl.", "Why", "He sees her.",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=259, n_layer=1, n_embd=16, n_head=2, n_positions=32,
        bos_token_id=1, eos_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@torch.no_grad()
def score_alone(model, text: str) -> float:
    """Sum of the log-probabilities of the tokens behind BOS, one token at a time."""
    ids = LETTERS(text)["input_ids"]
    assert ids[0] == 1
    total = 0.0
    for position in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
        total += logits.log_softmax(-1)[ids[position]].item()
    return total


def test_a_score_is_that_of_the_sentence_alone(model):
    expected = [score_alone(model.eval(), text) for text in TEXTS]
    assert len(set(expected)) == len(TEXTS)
    for batch_size in (1, 2, 64):
        model.train()  # whatever it was in
        found = score(model, LETTERS, TEXTS, batch_size)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_sentence_beyond_the_models_positions_is_refused(model):
    score(model, LETTERS, ["x" * 31])  # with its leading space, 32 tokens behind BOS
    with pytest.raises(UserError, match="33 tokens is beyond the model's 32 positions"):
        score(model, LETTERS, ["x" * 32])


def pair(good: str, bad: str) -> dict:
    return {"sentence_good": good, "sentence_bad": bad}


def test_a_pair_is_right_where_the_good_one_is_more_probable_and_a_tie_is_wrong(model):
    low, high = sorted(("The dog barks.", "The dog bark."), key=lambda t: score(
        model, LETTERS, [t]
    )[0])  # fmt: skip
    paradigms = {
        "agreement": [pair(high, low), pair(high, low), pair(low, high)],
        "order": [pair(high, low), pair(low, low)],
        "ties": [pair(high, high)],
    }
    assert accuracies(model, LETTERS, paradigms) == pytest.approx(
        {"pairs_agreement": 2 / 3, "pairs_order": 1 / 2, "pairs_ties": 0,
         "pairs": (2 / 3 + 1 / 2 + 0) / 3}
    )  # fmt: skip


GOOD = json.dumps(pair("A b.", "A c."))


def test_each_file_is_a_paradigm(tmp_path):
    (tmp_path / "order.jsonl").write_text(f"{GOOD}\n{GOOD}\n")
    (tmp_path / "agreement.jsonl").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("no pairs")
    found = load_pairs(tmp_path)
    assert {name: len(pairs) for name, pairs in found.items()} == {
        "agreement": 1, "order": 2
    }  # fmt: skip
    assert found["order"][0] == pair("A b.", "A c.")


def test_only_a_line_feed_ends_a_line(tmp_path):
    odd = pair("A\u2028b\x85c.", "A b.")
    text = json.dumps(odd, ensure_ascii=False) + "\r\n" + GOOD + "\r\n"
    (tmp_path / "odd.jsonl").write_bytes(text.encode())
    assert load_pairs(tmp_path)["odd"] == [odd, pair("A b.", "A c.")]


@pytest.mark.parametrize(
    "line, told",
    [
        (b"{not json", "JSONDecodeError"),
        (b'{"sentence_good": "A b."}', "sentence_bad"),
        (b"[1, 2]", "TypeError"),
        (b'{"sentence_good": "caf\xe9"}', "UnicodeDecodeError"),
        (b"", "JSONDecodeError"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_number(tmp_path, line, told):
    (tmp_path / "order.jsonl").write_bytes(GOOD.encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as raised:
        load_pairs(tmp_path)
    message = str(raised.value)
    assert message.startswith("evaluation.pairs: ") and told in message
    assert "order.jsonl, line 2" in message


@pytest.mark.parametrize("folder", ["", "gone"])
def test_a_folder_without_pairs_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="evaluation.pairs: no .*jsonl file in"):
        load_pairs(tmp_path / folder)
