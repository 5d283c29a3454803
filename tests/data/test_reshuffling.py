"""Documents anew each epoch: every pass has the whole text, cut into other blocks."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from src.arguments import DataTrainingArguments
from src.data.blocks import IGNORE_INDEX, NO_BLOCK, Blocks, split
from src.data.order import Plan, order_of
from src.data.reshuffling import ReshuffledBlocks
from src.foundation import UserError
from tests.data.test_blocks import stream_of, written


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    """Sixteen documents of different letters in one file, and one long document in another."""
    texts = {"many": "\n".join(c * 3 for c in "abcdefghijklmnop"), "one": "xyz " * 12}
    stream = stream_of(tmp_path, "line", **texts)
    return Blocks(stream, [(0, len(stream))], 8, False, restart_positions=True)


def of_pass(blocks: ReshuffledBlocks, number: int) -> np.ndarray:
    return number * len(blocks) + np.arange(len(blocks))


def text_of(blocks: ReshuffledBlocks, number: int) -> str:
    """The inputs of a pass, block after block."""
    batch = blocks.__getitems__(of_pass(blocks, number))
    return "".join(map(written, batch["input_ids"]))


def test_each_pass_has_the_same_documents_in_another_order(blocks):
    new = ReshuffledBlocks(blocks, seed=7)
    assert len(new) == len(blocks) and new.remainder == blocks.remainder
    passes = [text_of(new, number) for number in range(3)]
    assert len(set(passes)) == 3
    for text in passes:
        # 15 of the 16 documents are whole: the first one is cut, and its beginning comes last.
        assert sum(f"<{c * 3}|>" in text for c in "abcdefghijklmnop") >= 14
        assert text.index("x") > max(text.index(c) for c in "abcdefghijklmnop")
    # The long document is the same text, which is cut at other tokens.
    assert len({text[-8:] for text in passes}) > 1
    assert passes == [text_of(ReshuffledBlocks(blocks, seed=7), n) for n in range(3)]
    assert passes[0] != text_of(ReshuffledBlocks(blocks, seed=8), 0)


@pytest.mark.parametrize("block_size", [2, 3, 7, 50])
@pytest.mark.parametrize("held_out", [None, 20])
def test_in_a_pass_every_token_is_read_once_with_its_words(
    block_size, held_out, tmp_path: Path
):
    """By hand: the pieces of the stream that a pass consists of, and the words in them."""
    rng = random.Random(block_size)
    texts = ["\n".join("ab " * rng.randint(1, 9) for _ in range(n)) for n in (30, 1, 9)]
    stream = stream_of(tmp_path, "line", **dict(zip("xyz", texts)))
    spans = split(stream, held_out)[0] if held_out else [(0, len(stream))]
    new = ReshuffledBlocks(Blocks(stream, spans, block_size, False), 3)
    for number in (0, 4):
        pieces = new._pieces(number)
        sizes = np.diff(np.append(pieces.offsets, len(stream)))
        order = np.concatenate(
            [np.arange(s, s + n) for s, n in zip(pieces.starts, sizes)]
        )
        for start, end in spans:  # held-out text stays outside
            own = order[start:end].tolist()
            assert sorted(own) == list(range(start, end)) != own
        indices = of_pass(new, number)
        words, owners = new.words_of(indices), new.owners_of(range(len(new)))
        starts, _ = new.bounds(np.arange(len(new)))
        for i, row in enumerate(map(new.__getitem__, indices)):
            own = order[starts[i] : starts[i] + block_size + 1]
            assert row["input_ids"].tolist() == stream.tokens[own[:-1]].tolist()
            labels = row["labels"].numpy()
            counts = ~np.isin(own[1:], stream.documents)  # no BOS is predicted
            assert ((labels != IGNORE_INDEX) == counts).all()
            assert (labels[counts] == stream.tokens[own[1:]][counts]).all()
            assert words[i] == stream.num_words(own[1:], own[1:] + 1).sum()
            file = stream.files[owners[i]]
            assert file["start"] <= own[0] < file["end"]


def test_positions_restart_with_each_document_in_its_new_place(blocks):
    new = ReshuffledBlocks(blocks, 0)
    for index in range(3 * len(new)):
        row = new[index]
        expected, position = [], 0
        for token in row["input_ids"].tolist():
            position = 0 if token == 1 else position  # BOS
            expected.append(position)
            position += 1
        assert row["position_ids"].tolist() == expected


def test_a_batch_may_hold_blocks_of_several_passes_and_fillers(blocks):
    new = ReshuffledBlocks(blocks, 0)
    indices = [0, 5 * len(new) + 1, NO_BLOCK, 2]
    batch = new.__getitems__(indices)
    for row, index in zip(batch["labels"], indices):
        assert row.tolist() == new[index]["labels"].tolist()
    assert batch["labels"][2].tolist() == [IGNORE_INDEX] * 8
    assert new.words_of(np.array(indices))[2] == 0


def test_a_worker_of_the_loader_reads_the_same(blocks):
    new = ReshuffledBlocks(blocks, 0)
    copy = pickle.loads(pickle.dumps(new))
    assert text_of(copy, 2) == text_of(new, 2)


@pytest.mark.parametrize(
    "options", [{}, {"order": "by_file"}, {"order": "sequential"}, {"mix": {"many": 2}}]
)
def test_the_plan_knows_the_words_of_every_step(blocks, options):
    data = DataTrainingArguments(reshuffle_documents=True, **options)
    new = ReshuffledBlocks(blocks, 1)
    plan = Plan(new, order_of(data, new, 1), 3, epochs=3)
    seen = [0]
    for epoch in range(3):
        plan.set_epoch(epoch)
        steps = np.array(list(plan)).reshape(-1, 3)
        for step in steps:
            seen.append(seen[-1] + new.words_of(step).sum())
    assert plan.words.tolist() == seen
    blocks_seen = np.concatenate([plan.order.blocks(epoch) for epoch in range(3)])
    assert len(set(blocks_seen)) == len(blocks_seen)  # no block of a pass comes twice
    passes = 6 if "mix" in options else 3
    assert set(blocks_seen // len(new)) == set(range(passes))


def test_half_a_pass_in_an_epoch_goes_on_in_the_next(blocks):
    data = DataTrainingArguments(reshuffle_documents=True, mix={"many": 0.5, "one": 0})
    new = ReshuffledBlocks(blocks, 1)
    order = order_of(data, new, 1)
    own = np.flatnonzero(new.owners_of(range(len(new))) == 0)
    two = np.sort(np.concatenate([order.blocks(0), order.blocks(1)]))
    assert set(two) <= {*own, *(own + len(new))} and len(set(two)) == len(two)
    assert set(own) <= set(two) or len(own) % 2


def test_a_sample_of_blocks_is_refused():
    with pytest.raises(UserError, match="max_train_samples: no block stays the same"):
        DataTrainingArguments(reshuffle_documents=True, max_train_samples=5).check()
