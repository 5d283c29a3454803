"""Blocks: their inputs and targets, and how much text they hold."""

import random
from pathlib import Path

import numpy as np
import pytest

from src.data.blocks import (
    IGNORE_INDEX,
    NO_BLOCK,
    Blocks,
    file_spans,
    split,
)
from src.data.cache import Cache
from src.data.packing.pack import Packer
from src.data.packing.stream import Stream
from src.data.packing.tokenizer import train
from src.data.text.corpus import read_corpus

LETTERS = train(["a"], 259)  # every byte is one token


def stream_of(folder: Path, boundary: str = "auto", **texts: str) -> Stream:
    for name, text in texts.items():
        (folder / f"{name}.train").write_text(text)
    paths = [f"{folder}/{name}.train" for name in texts]
    sources = read_corpus(paths, folder / "cache")
    return Packer(LETTERS, boundary, Cache(folder / "cache")).pack(sources)


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    """Three documents in two files, 17 tokens (written as `written` does):

    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
    < a _ b | | > < c | >  <  d  e  _  f  >
    """
    return stream_of(tmp_path, first="a b\n\nc\n", second="de f")


def written(ids) -> str:
    """A character a token: `<` BOS, `>` EOS, `_` space, `|` line end, `.` no target."""
    names = {1: "<", 2: ">", IGNORE_INDEX: "."}
    texts = [names.get(i) or LETTERS.decode([i]) for i in np.asarray(ids).tolist()]
    return "".join(texts).replace(" ", "_").replace("\n", "|")


def rows(blocks: Blocks) -> list[tuple[str, str]]:
    """Inputs and targets of every block."""
    found = [blocks[i] for i in range(len(blocks))]
    return [(written(row["input_ids"]), written(row["labels"])) for row in found]


def test_blocks_continue_across_documents(stream: Stream):
    assert written(stream.tokens) == "<a_b||><c|><de_f>"
    assert rows(Blocks(stream, [(0, 17)], 4, False)) == [
        ("<a_b", "a_b|"),
        ("||><", "|>.c"),
        ("c|><", "|>.d"),
        ("de_f", "e_f>"),
    ]


def test_the_remainder_is_left_out_of_training(stream: Stream):
    blocks = Blocks(stream, [(0, 17)], 6, False)
    assert rows(blocks) == [("<a_b||", "a_b||>"), ("><c|><", ".c|>.d")]
    assert blocks.remainder == 4


def test_the_remainder_is_evaluated_with_padding_that_is_no_target(stream: Stream):
    blocks = Blocks(stream, [(0, 17)], 6, True)
    assert rows(blocks)[2] == ("de_fdd", "e_f>..")
    assert blocks.remainder == 4


def test_a_block_lies_in_one_file(stream: Stream):
    assert file_spans(stream) == [(0, 11), (11, 17)]
    blocks = Blocks(stream, file_spans(stream), 4, True)
    assert rows(blocks) == [
        ("<a_b", "a_b|"),
        ("||><", "|>.c"),
        ("c|cc", "|>.."),
        ("<de_", "de_f"),
        ("ffff", ">..."),
    ]
    assert blocks.owners_of(range(len(blocks))).tolist() == [0, 0, 0, 1, 1]
    assert len(Blocks(stream, file_spans(stream), 4, False)) == 3


def test_a_block_across_files_belongs_to_the_one_it_begins_in(stream: Stream):
    blocks = Blocks(stream, [(0, 17)], 4, False)
    assert [row[0] for row in rows(blocks)] == ["<a_b", "||><", "c|><", "de_f"]
    assert blocks.owners_of(range(len(blocks))).tolist() == [0, 0, 0, 1]


def test_positions_restart_with_each_document_where_attention_stays_inside(stream):
    """Block by block: `<a_b` `||><` `c|><` `de_f`; a block begins at 0 too."""
    blocks = Blocks(stream, [(0, 17)], 4, True, restart_positions=True)
    positions = [blocks[i]["position_ids"].tolist() for i in range(4)]
    assert positions == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2, 3]]
    whole = Blocks(stream, [(0, 17)], 16, False, restart_positions=True)[0]
    assert whole["position_ids"].tolist() == [*range(7), *range(4), *range(5)]
    assert "position_ids" not in Blocks(stream, [(0, 17)], 4, True)[0]


def test_no_block_has_no_targets(stream: Stream):
    blocks = Blocks(stream, [(0, 17)], 4, False)
    empty = blocks[NO_BLOCK]
    assert empty["labels"].tolist() == [IGNORE_INDEX] * 4
    assert empty["input_ids"].shape == (4,)
    assert rows(blocks)[0] == ("<a_b", "a_b|")  # not a view of the first


def test_spans_too_short_for_a_target_have_no_blocks(stream: Stream):
    assert len(Blocks(stream, [], 4, True)) == 0
    assert len(Blocks(stream, [(3, 3), (5, 6)], 4, True)) == 0
    assert len(Blocks(stream, [(0, 4)], 4, False)) == 0
    assert rows(Blocks(stream, [(0, 5)], 4, False)) == [("<a_b", "a_b|")]


@pytest.mark.parametrize("block_size", [2, 3, 5, 16, 100])
def test_in_an_epoch_every_token_but_bos_is_a_target_once(block_size, tmp_path: Path):
    rng = random.Random(block_size)
    texts = ["\n" + "".join(rng.choices("ab \n", k=n)) + "a" for n in (40, 90, 7)]
    stream = stream_of(tmp_path, "line", **dict(zip("xyz", texts)))
    blocks = Blocks(stream, [(0, len(stream))], block_size, True)
    seen = np.zeros(len(stream), int)
    for index, (start, end) in enumerate(zip(*blocks.bounds(range(len(blocks))))):
        row = blocks[index]
        labels = row["labels"].numpy()[: end - start]
        targets = np.arange(start + 1, end + 1)[labels != IGNORE_INDEX]
        assert (stream.tokens[targets] == labels[labels != IGNORE_INDEX]).all()
        inputs = row["input_ids"].numpy()[: end - start]
        assert (inputs == stream.tokens[start:end]).all()
        seen[targets] += 1
    assert seen.tolist() == (stream.tokens != 1).astype(int).tolist()
    assert blocks.words.sum() == sum(len(text.split()) for text in texts)
    assert blocks.bytes.sum() == sum(map(len, texts))


def test_the_words_and_bytes_of_a_block_are_those_of_its_targets(stream: Stream):
    blocks = Blocks(stream, [(0, 17)], 4, False)
    assert blocks.words.tolist() == [2, 1, 1, 1]  # a b | c | d | f
    assert blocks.bytes.tolist() == [4, 2, 2, 3]
    rest = Blocks(stream, file_spans(stream), 4, True)
    assert rest.words.tolist() == [2, 1, 0, 2, 0]
    assert rest.bytes.tolist() == [4, 2, 1, 4, 0]


def test_max_samples_is_a_fixed_subset(tmp_path: Path):
    stream = stream_of(tmp_path, a="abcdefgh " * 100)
    every = Blocks(stream, [(0, len(stream))], 8, False)
    some = Blocks(stream, [(0, len(stream))], 8, False, max_samples=10)
    assert len(some) == len(some.words) == 10 < len(every)
    assert set(rows(some)) <= set(rows(every))
    starts, _ = some.bounds(range(10))
    assert (np.diff(starts) > 0).all()
    # Drawn from everywhere, not the first; the same again.
    assert starts[-1] > 400
    again = Blocks(stream, [(0, len(stream))], 8, False, max_samples=10)
    assert rows(again) == rows(some)
    for more in (len(every), 10_000):
        blocks = Blocks(stream, [(0, len(stream))], 8, False, max_samples=more)
        assert rows(blocks) == rows(every)


# Held-out text


@pytest.mark.parametrize(
    "percentage, cut", [(5, 99), (10, 99), (25, 77), (50, 55), (80, 22), (99, 11)]
)
def test_the_held_out_part_begins_with_the_nearest_document(percentage, cut, tmp_path):
    """Ten documents of 11 tokens: BOS, eight letters, a line end, EOS."""
    stream = stream_of(tmp_path, "line", a="abcdefgh\n" * 10)
    assert stream.documents.tolist() == list(range(0, 110, 11))
    assert split(stream, percentage) == ([(0, cut)], [(cut, 110)])


def test_a_file_that_is_one_document_is_cut_inside(tmp_path: Path):
    stream = stream_of(tmp_path, "file", a="x" * 98)
    assert split(stream, 5) == ([(0, 95)], [(95, 100)])


def test_a_document_far_from_the_cut_does_not_move_it(tmp_path: Path):
    # 12 tokens, then a document of 188: 5 % of 200 are 10.
    stream = stream_of(tmp_path, "line", a="x" * 9 + "\n" + "y" * 186)
    assert stream.documents.tolist() == [0, 12]
    assert split(stream, 5) == ([(0, 190)], [(190, 200)])


def test_a_part_of_every_file_is_held_out_and_nothing_is_lost(tmp_path: Path):
    rng = random.Random(0)
    texts = {
        name: "".join(rng.choices("ab \n", k=length)) + "a"
        for name, length in zip("vwxyz", (1, 5, 60, 500, 2000))
    }
    for boundary in ("line", "file"):
        stream = stream_of(tmp_path, boundary, **texts)
        for percentage in (0.01, 5, 50, 99.9):
            train_spans, held_out = split(stream, percentage)
            for file, (a, b), (c, d) in zip(stream.files, train_spans, held_out):
                assert file["start"] == a <= b == c < d == file["end"]
