"""The order of blocks as a pure function, the words seen and the length of blocks."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from src.arguments import DataTrainingArguments
from src.data.blocks import Blocks
from src.data.order import Order, Plan, check_budget, check_names, order_of
from src.foundation import UserError
from tests.data.test_blocks import stream_of

TWO_FILES = np.array([0, 6, 10])  # six blocks of the first, four of the second


def order(kind="shuffled", seed=0, edges=TWO_FILES, times=(1, 1), files=(0, 1)):
    return Order(kind, seed, edges, list(times), list(files))


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    """Ten blocks of ten tokens, of 5, 5, 5, 5, 5, 10, 10, … words; two files."""
    stream = stream_of(tmp_path, "file", first="a " * 24, second="b\n" * 26)
    found = Blocks(stream, [(0, len(stream))], 10, False)
    assert (
        len(found) == 10
        and found.owners_of(range(len(found))).tolist() == [0] * 5 + [1] * 5
    )
    return found


def plan(blocks, batch=4, epochs=1, order=None, **limits) -> Plan:
    return Plan(
        blocks,
        order_of(DataTrainingArguments(), blocks, 0) if order is None else order,
        batch,
        epochs,
        **limits,
    )


# Order


def test_the_order_is_a_function_of_its_arguments():
    # Written down: a run that continues after an update has to go on in this order.
    assert order(edges=np.array([0, 8, 8])).blocks(0).tolist() == [
        5,
        6,
        3,
        2,
        7,
        4,
        1,
        0,
    ]
    seen = {
        tuple(order(seed=seed).blocks(epoch))
        for seed, epoch in product(range(3), range(3))
    }
    assert len(seen) == 9
    assert all(sorted(blocks) == list(range(10)) for blocks in seen)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("shuffled", [[9, 3, 4, 1, 8, 6, 9, 7, 6], [9, 2, 5, 7, 0, 7, 6, 8, 8]]),
        ("by_file", [[7, 8, 9, 6, 9, 6, 3, 1, 4], [8, 7, 9, 8, 7, 6, 0, 2, 5]]),
    ],
)
def test_the_order_of_a_mix_is_that_of_earlier_versions(kind, expected):
    mixed = order(kind, seed=3, times=[0.5, 1.5], files=[1, 0])
    assert [mixed.blocks(epoch).tolist() for epoch in (0, 1)] == expected


def test_sequential_is_the_order_of_the_text():
    for epoch in range(3):
        assert order("sequential").blocks(epoch).tolist() == list(range(10))


def test_by_file_is_one_file_after_the_other_each_shuffled():
    first = order("by_file", files=[1, 0]).blocks(0).tolist()
    assert sorted(first[:4]) == [6, 7, 8, 9] and sorted(first[4:]) == list(range(6))
    assert first[4:] != list(range(6))
    second = order("by_file", files=[1, 0]).blocks(1).tolist()
    assert second != first and sorted(second[:4]) == [6, 7, 8, 9]


@pytest.mark.parametrize("kind", ["shuffled", "sequential", "by_file"])
def test_a_mix_draws_each_file_as_often_as_it_says(kind):
    """Half of the first file, the second two and a half times: 3 and 10 an epoch."""
    mixed = order(kind, times=[0.5, 2.5])
    assert len(mixed) == 13
    counts = np.zeros(10, int)
    for epoch in range(6):
        drawn = mixed.blocks(epoch)
        assert len(drawn) == 13 and np.count_nonzero(drawn < 6) == 3
        counts += np.bincount(drawn, minlength=10)
        # No block more than once more than another of its file.
        assert np.ptp(counts[:6]) <= 1 and np.ptp(counts[6:]) <= 1
    assert counts.tolist() == [3] * 6 + [15] * 4


def test_a_file_that_is_drawn_not_at_all_is_left_out():
    assert sorted(order(times=[0, 1]).blocks(0)) == [6, 7, 8, 9]


def test_a_file_without_a_block_of_its_own_is_no_trouble():
    lone = order(edges=np.array([0, 0, 2, 2]), times=[3, 1, 2], files=[0, 1, 2])
    assert sorted(lone.blocks(0)) == [0, 1]


def test_sequential_passes_come_one_after_the_other():
    twice = order("sequential", edges=np.array([0, 3]), times=[2], files=[0])
    assert twice.blocks(0).tolist() == [0, 1, 2, 0, 1, 2]


# Steps


def test_the_sampler_gives_the_epoch_that_is_set_and_fills_up_its_last_batch(blocks):
    sampler = plan(blocks, epochs=3)
    assert len(sampler) == 12 and sampler.steps_per_epoch == 3
    assert list(sampler) == list(sampler) == [*sampler.order.blocks(0), -1, -1]
    sampler.set_epoch(2)
    assert list(sampler) == [*sampler.order.blocks(2), -1, -1]


def test_the_words_after_every_step(blocks):
    sampler = plan(blocks, epochs=2.4)
    assert sampler.num_steps == 8  # of 3 an epoch
    words, expected = blocks.words, [0]
    for epoch in range(3):
        drawn = sampler.order.blocks(epoch)
        for step in (drawn[:4], drawn[4:8], drawn[8:]):
            expected.append(expected[-1] + words[step].sum())
    assert [sampler.words_seen(step) for step in range(9)] == expected[:9]
    assert expected[3] == blocks.words.sum()
    assert plan(blocks, max_steps=4).words.tolist() == expected[:5]


def test_the_words_do_not_depend_on_how_a_batch_is_divided(blocks):
    """4 blocks a step: one device or two, one micro-batch or four."""
    assert (
        plan(blocks).words.tolist()
        == plan(blocks, batch=2).words[[0, 2, 4, 5]].tolist()
    )


def test_the_last_step_does_not_exceed_the_words_allowed(blocks):
    every = plan(blocks, epochs=3).words.tolist()
    for allowed in (every[4], every[5] - 1):
        assert plan(blocks, epochs=3, max_words=allowed).words.tolist() == every[:5]
    assert plan(blocks, epochs=3, max_words=10**9).words.tolist() == every
    assert plan(blocks, max_steps=2, max_words=every[4]).num_steps == 2
    with pytest.raises(
        UserError,
        match=rf"max_words=3 must be .* {every[1]}, the words of the first step",
    ):
        plan(blocks, max_words=3)


def test_a_schedule_has_shorter_blocks_for_its_share_of_the_steps(blocks):
    ramp = plan(blocks, epochs=4, schedule={2: 0.5, 5: 0.25, 10: 0.25})
    sizes = [ramp.block_size(step) for step in range(ramp.num_steps)]
    assert sizes == [2] * 6 + [5] * 3 + [10] * 3
    assert plan(blocks).block_size(0) == 10
    # What is seen is the same.
    assert ramp.words.tolist() == plan(blocks, epochs=4).words.tolist()
    assert list(ramp) == list(plan(blocks))


# The data section


def test_files_are_mixed_and_ordered_by_their_names(blocks):
    data = DataTrainingArguments(
        order="by_file", file_order=["second", "first"], mix={"first": 2}
    )
    found = order_of(data, blocks, 7)
    assert found.times == [2, 1] and found.files == [1, 0] and found.seed == 7
    assert len(found) == 15 and set(found.blocks(0)[:5]) == {5, 6, 7, 8, 9}


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(mix={"fist": 2}),
            "data.mix: no file is named 'fist'; the files are first, second",
        ),
        (dict(file_order=["first", "x"]), "data.file_order: no file is named 'x'"),
        (dict(file_order=["first"]), "must name every file; missing: second"),
    ],
)
def test_files_that_are_not_there_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_names(DataTrainingArguments(**options), ["first", "second"])


def test_a_mix_that_leaves_nothing_is_refused(blocks):
    data = DataTrainingArguments(mix={"first": 0, "second": 0.01})
    with pytest.raises(UserError, match="data.mix: an epoch would have no block"):
        plan(blocks, order=order_of(data, blocks, 0))


def test_more_words_than_the_budget_are_refused_with_the_numbers(blocks):
    unique = blocks.stream.info["words"]
    assert unique == 50
    check_budget(DataTrainingArguments(), plan(blocks, epochs=99))
    check_budget(DataTrainingArguments(word_budget=50), plan(blocks, epochs=10))
    with pytest.raises(
        UserError, match="word_budget=49: the training text has 50 words"
    ):
        check_budget(DataTrainingArguments(word_budget=49), plan(blocks))
    seen = plan(blocks, epochs=11)
    words = rf"{seen.words_seen(seen.num_steps)} words, more than 500"
    with pytest.raises(UserError, match=f"the run would see {words}"):
        check_budget(DataTrainingArguments(word_budget=50), seen)
    loose = DataTrainingArguments(word_budget=1, strict_rules=False)
    check_budget(loose, seen)
