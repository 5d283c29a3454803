"""The surprisal of the words of a text."""

import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoModelForMaskedLM

from src.data.packing.tokenizer import save
from src.evaluation.models import find_checkpoints
from src.evaluation.scoring.scorer import Scorer
from src.foundation import UserError
from src.reporting.surprisal import word_surprisals, write_surprisals
from tests.conftest import sentences
from tests.evaluation.scoring.test_scorer import (
    TOKENIZER,
    build,
    with_mask,
    without_bos,
)

TEXT = "The dog  sees\nEin Bär!\n\n\tthe teacher hears him \n"
LONG = "\n".join(sentences(30, 5))  # 255 tokens; the context has 64


@torch.no_grad()
def bits(model, ids: list[int]) -> np.ndarray:
    """Return -log2 p of each token but the first, from one pass over all [n - 1]."""
    logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    targets = torch.tensor(ids[1:])
    return torch.nn.functional.cross_entropy(
        logits, targets, reduction="none"
    ).numpy() / math.log(2)


def test_the_sum_over_words_is_that_of_the_text():
    model = build("gpt2")
    rows = word_surprisals(Scorer(model, TOKENIZER), TEXT)
    ids = TOKENIZER(TEXT)["input_ids"]
    assert rows["surprisal"].sum() == pytest.approx(bits(model, ids).sum(), rel=1e-5)
    assert rows["tokens"].sum() == len(ids) - 1  # all but BOS


def test_words_have_their_lines_and_positions():
    rows = word_surprisals(Scorer(build("gpt2"), TOKENIZER), TEXT)
    assert list(rows) == ["line", "position", "word", "surprisal", "tokens"]
    assert rows["word"].tolist() == TEXT.split()
    assert rows["line"].tolist() == [1, 1, 1, 2, 2, 4, 4, 4, 4]
    assert rows["position"].tolist() == [1, 2, 3, 1, 2, 1, 2, 3, 4]


def test_a_word_s_surprisal_is_what_it_adds_to_the_text_before():
    """White space counts with the word after it, and at the end with the last word."""
    model = build("llama")
    rows = word_surprisals(Scorer(model, TOKENIZER), TEXT)
    totals, end = [0.0], 0
    for word in TEXT.split():
        end = TEXT.index(word, end) + len(word)
        before = TEXT if word == "him" else TEXT[:end]
        totals.append(bits(model, TOKENIZER(before)["input_ids"]).sum())
    assert rows["surprisal"].tolist() == pytest.approx(np.diff(totals), rel=1e-3)


@pytest.mark.parametrize("context", [64, 7])
def test_a_long_text_is_read_in_windows_that_overlap_by_half(context):
    model, step = build("gpt2", max_position_embeddings=context), (context + 1) // 2
    rows = word_surprisals(Scorer(model, TOKENIZER), LONG)
    ids = TOKENIZER(LONG)["input_ids"]
    expected = []
    for index in range(1, len(ids)):
        start = max(0, math.ceil((index - context) / step)) * step
        assert start == 0 or index - start >= context // 2
        expected.append(bits(model, ids[start : index + 1])[-1])
    assert len(ids) > 3 * context
    assert rows["tokens"].sum() == len(expected)
    assert rows["surprisal"].sum() == pytest.approx(sum(expected), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend, shift", [("mlm", 0), ("mntp", 1)])
def test_a_masked_model_sees_the_text_before_a_token_and_three_masks(backend, shift):
    model, tokenizer = build("bert", AutoModelForMaskedLM, vocab_size=330), with_mask()
    rows = word_surprisals(Scorer(model, tokenizer, backend), LONG)
    bos, *ids, eos = tokenizer(LONG)["input_ids"]
    expected = []
    for index, token in enumerate(ids):
        before = [
            bos,
            *ids[max(0, index - 59) : index],
        ]  # 64 with BOS, EOS and the masks
        asked = [*before, *[tokenizer.mask_token_id] * 3, eos]
        logits = model(input_ids=torch.tensor([asked])).logits[0, len(before) - shift]
        expected.append(-logits.log_softmax(-1)[token].item() / math.log(2))
    assert rows["tokens"].sum() == len(ids)
    assert rows["surprisal"].sum() == pytest.approx(sum(expected), rel=1e-5)
    first = rows["tokens"][0]
    assert rows["surprisal"][0] == pytest.approx(sum(expected[:first]), rel=1e-5)


def test_without_bos_the_first_word_has_no_surprisal():
    model, tokenizer = build("gpt2"), without_bos()
    rows = word_surprisals(Scorer(model, tokenizer), TEXT)
    assert rows["surprisal"].isna().tolist() == [True] + [False] * 8
    ids = tokenizer(TEXT)["input_ids"]
    rest = bits(model, ids)[rows["tokens"][0] - 1 :].sum()
    assert rows["surprisal"].sum() == pytest.approx(rest, rel=1e-5)
    alone = word_surprisals(Scorer(model, tokenizer), "é")
    assert alone["surprisal"].isna().all() and alone["tokens"].tolist() == [3]


@pytest.fixture
def checkpoint(tmp_path: Path):
    directory = tmp_path / "model"
    build("gpt2").save_pretrained(directory)
    save(TOKENIZER, directory)
    return find_checkpoints(str(directory))[0]


def test_the_table_of_a_file_is_that_of_its_text(checkpoint, tmp_path):
    (tmp_path / "my.txt").write_bytes(
        b"\xef\xbb\xbf" + TEXT.encode()
    )  # a BOM is dropped
    write_surprisals(checkpoint, tmp_path / "my.txt", tmp_path / "my.csv")
    rows = word_surprisals(Scorer(build("gpt2"), TOKENIZER), TEXT)
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "my.csv"), rows)


@pytest.mark.parametrize(
    "content, fault", [(b" \n", "has no words"), (b"caf\xe9", "cannot be read")]
)
def test_a_text_that_cannot_be_used_is_named(checkpoint, tmp_path, content, fault):
    (tmp_path / "my.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"my.txt.*{fault}"):
        write_surprisals(checkpoint, tmp_path / "my.txt", tmp_path / "my.csv")
    assert not (tmp_path / "my.csv").exists()
