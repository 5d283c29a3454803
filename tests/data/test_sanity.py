"""The comparison of the dev text with the training text."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from src.data import sanity as module
from src.data.blocks import IGNORE_INDEX, Blocks, file_spans, split
from src.data.packing.stream import Stream
from src.data.sanity import (
    count_words,
    sanity,
    trigram_keys,
    trigram_probabilities,
)
from tests.data.test_blocks import LETTERS, stream_of

SIZE = len(LETTERS)  # 259: three special tokens and all bytes


def stream(tmp_path: Path, folder: str, **texts: str) -> Stream:
    (tmp_path / folder).mkdir()
    return stream_of(tmp_path / folder, **texts)


def key(trigram: str) -> int:
    """Return the key of three tokens; `<` is BOS and `>` is EOS."""
    special = {"<": 1, ">": 2}
    ids = [special.get(x) or LETTERS.backend_tokenizer.token_to_id(x) for x in trigram]
    return (ids[0] * SIZE + ids[1]) * SIZE + ids[2]


def test_a_divergence_and_an_unseen_share_by_hand(tmp_path):
    """q has one added to the counts of a, b and c: 3/6, 2/6, 1/6. p is 1/2 for a and c."""
    train = stream(tmp_path, "train", text="a a b")
    dev = stream(tmp_path, "dev", text="a c\n")
    rows = sanity(train, Blocks(dev, file_spans(dev), 4, True), LETTERS)
    assert [row["name"] for row in rows] == ["text", "all"]
    by_hand = 0.5 * math.log2(0.5 / (3 / 6)) + 0.5 * math.log2(0.5 / (1 / 6))
    for row in rows:
        assert row["kl"] == pytest.approx(by_hand)
        assert row["unseen"] == 0.5


def test_a_trigram_probability_by_hand(tmp_path):
    """Ten tokens: < a b a b a c a b >. After "ab" comes "a" twice and the end once."""
    train = stream(tmp_path, "train", text="ababacab")
    assert len(train) == 10
    keys = np.array([key("aba"), key("cba"), key("xya")])
    found = trigram_probabilities(train, [(0, 10)], keys, SIZE)
    # Different tokens before a: < b c; before each of b, c and >: one. Four types, six in all.
    unigram = (3 - 0.75) / 6 + 0.75 * 4 / 6 / SIZE
    # Of "ba" and "b>", each comes after one token.
    bigram = (1 - 0.75) / 2 + 0.75 * 2 / 2 * unigram
    trigram = (2 - 0.75) / 3 + 0.75 * 2 / 3 * bigram
    assert found == pytest.approx([trigram, bigram, unigram])


@pytest.mark.parametrize("context", ["ab", "cb", "xa", "xy", "b>", "><"])
def test_the_probabilities_of_all_next_tokens_sum_to_one(tmp_path, context):
    train = stream(tmp_path, "train", text="ababacab", more="bc\n\nab")
    start = key(context + "a") // SIZE * SIZE
    keys = np.arange(start, start + SIZE)
    found = trigram_probabilities(train, file_spans(train), keys, SIZE)
    assert found.min() > 0
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_counting_in_parts_changes_nothing(tmp_path, monkeypatch):
    train = stream(tmp_path, "train", text="the cat saw the dog\n\nthe dog saw a cat\n")
    keys = trigram_keys(train, [(0, len(train))], SIZE)
    whole = trigram_probabilities(train, [(0, len(train))], keys, SIZE)
    for size in (20, 1):  # in 2 parts, and in so many that some are empty
        monkeypatch.setattr(module, "PART", size)
        parts = trigram_probabilities(train, [(0, len(train))], keys, SIZE)
        assert parts.tolist() == whole.tolist()


def test_the_trigrams_end_in_the_targets_of_a_network(tmp_path):
    dev = stream(tmp_path, "dev", first="a b\n\nc\n", second="de f")
    keys = trigram_keys(dev, file_spans(dev), SIZE)
    blocks = Blocks(dev, file_spans(dev), 4, True)
    labels = np.concatenate([blocks[i]["labels"] for i in range(len(blocks))])
    assert (keys % SIZE).tolist() == labels[labels != IGNORE_INDEX].tolist()
    assert keys[[0, 6]].tolist() == [key("><a"), key("><c")]


def test_the_perplexity_is_that_of_the_probabilities(tmp_path):
    train = stream(tmp_path, "train", first="the cat\n", second="a dog\n")
    dev = stream(tmp_path, "dev", x="the dog\n", y="my cat\n")
    rows = sanity(train, Blocks(dev, file_spans(dev), 4, True), LETTERS)
    for row, spans in zip(rows, [*[[s] for s in file_spans(dev)], file_spans(dev)]):
        keys = trigram_keys(dev, spans, SIZE)
        found = trigram_probabilities(train, [(0, len(train))], keys, SIZE)
        mean = sum(map(math.log, found)) / len(found)
        assert row["trigram"] == pytest.approx(math.exp(-mean))


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_words_are_counted_in_the_decoded_text(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    text = "Ein Bär und ein Bär\n\n„Größe“\u00a0zählt\nnicht\n\nein Bär"
    packed = stream(tmp_path, "train", text=text, more="x")
    counts = count_words(packed, file_spans(packed), LETTERS)
    assert counts == Counter(text.split() + ["x"])


def test_what_is_held_out_is_not_training_text(tmp_path):
    packed = stream(tmp_path, "all", first="aa aa\n\nbb cc\n", second="aa dd\n\nee a\n")
    train, held_out = split(packed, 50)
    assert len(train) == 2
    rows = sanity(packed, Blocks(packed, held_out, 4, True), LETTERS)
    assert [row["unseen"] for row in rows] == [1, 1, 1]
    # The same as with two corpora, though "first" and "second" are one stream here.
    seen = stream(tmp_path, "train", first="aa aa\n\n", second="aa dd\n\n")
    dev = stream(tmp_path, "dev", first="bb cc\n", second="ee a\n")
    assert rows == sanity(seen, Blocks(dev, file_spans(dev), 4, True), LETTERS)


def test_a_file_without_a_block_has_no_figures(tmp_path):
    train = stream(tmp_path, "train", text="a b\n")
    dev = stream(tmp_path, "dev", first="a b\n", second="a b\n")
    blocks = Blocks(dev, file_spans(dev), 8, True, max_samples=1)
    rows = sanity(train, blocks, LETTERS)
    empty = [all(map(math.isnan, list(row.values())[1:])) for row in rows]
    assert sorted(empty[:2]) == [False, True] and not empty[2]
