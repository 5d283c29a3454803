"""Figures of a text from sums over its blocks, and the sums themselves."""

import math
import socket

import evaluate
import numpy as np
import pytest
import torch

from src.evaluation import language_modeling
from src.evaluation.language_modeling import (
    block_statistics,
    next_token_accuracy,
    summarize,
)

# Three blocks: nats, hits, targets. Two of the file `a`, one of `b`.
STATISTICS = np.array([[4.0, 1, 4], [2.0, 1, 2], [3.0, 2, 2]], np.float32)
WORDS, BYTES, FILES = np.array([2, 1, 1]), np.array([8, 4, 4]), np.array([0, 0, 1])


def test_two_files_are_summarized_each_and_together():
    e, bit = math.e, 1 / math.log(2)
    expected = {
        "loss": 9 / 8, "perplexity": e ** (9 / 8), "accuracy": 4 / 8,
        "bits_per_byte": 9 / 16 * bit, "word_perplexity": e ** (9 / 4),
        "files/a/loss": 6 / 6, "files/a/perplexity": e, "files/a/accuracy": 2 / 6,
        "files/a/bits_per_byte": 6 / 12 * bit, "files/a/word_perplexity": e**2,
        "files/b/loss": 3 / 2, "files/b/perplexity": e**1.5, "files/b/accuracy": 2 / 2,
        "files/b/bits_per_byte": 3 / 4 * bit, "files/b/word_perplexity": e**3,
    }  # fmt: skip
    found = summarize(STATISTICS, WORDS, BYTES, FILES, ["a", "b"])
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_file_may_be_called_as_a_metric_is():
    overall = summarize(STATISTICS, WORDS, BYTES, FILES * 0, ["a"])
    names = ["word", "loss"]
    found = summarize(STATISTICS, WORDS, BYTES, FILES, names)
    assert found["word_perplexity"] == overall["word_perplexity"]
    assert found["loss"] == overall["loss"] != found["files/loss/loss"]
    assert found["files/word/perplexity"] == pytest.approx(math.e)


def test_a_single_file_is_not_repeated_behind_its_name():
    found = summarize(STATISTICS, WORDS, BYTES, np.zeros(3, int), ["a"])
    assert list(found) == [
        "loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity"
    ]  # fmt: skip


def test_a_file_without_a_block_is_left_out():
    found = summarize(STATISTICS, WORDS, BYTES, FILES, ["a", "b", "c"])
    assert "files/b/loss" in found and "files/c/loss" not in found


def test_sums_of_many_blocks_are_exact():
    """In float32, 2**24 + 1 is 2**24: a large text would lose targets."""
    rows = np.array([[1.0, 2**24, 2**24], [1.0, 1, 1]], np.float32)
    ones = np.ones(2, int)
    assert summarize(rows, ones, ones, ones, ["a"])["loss"] == 2 / (2**24 + 1)


def test_a_hopeless_model_has_infinite_perplexity():
    rows = np.array([[1600.0, 0, 2]], np.float32)
    one = np.ones(1, int)
    found = summarize(rows, one, one, one * 0, ["a"])
    assert found["loss"] == 800 and found["perplexity"] == math.inf


def test_the_accuracy_is_an_evaluate_metric_that_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    metric = next_token_accuracy()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=[3], references=[4]) == {"accuracy": 0.75}


def test_the_accuracy_of_several_counts_is_that_of_their_sums():
    metric = next_token_accuracy()
    found = metric.compute(predictions=[3, 0], references=[4, 6])
    assert found == {"accuracy": pytest.approx(0.3)}


def test_a_block_gives_its_nats_hits_and_targets():
    """Two blocks of two targets over three tokens; -100 is no target."""
    logits = torch.log(
        torch.tensor(
            [
                [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]],
                [[0.2, 0.2, 0.6], [0.1, 0.8, 0.1]],
            ]
        )
    )
    labels = torch.tensor([[0, 2], [-100, 1]])
    expected = [[math.log(2) + math.log(4), 1, 2], [-math.log(0.8), 1, 1]]
    found = block_statistics(logits, labels)
    assert torch.allclose(found, torch.tensor(expected))


def test_pieces_of_several_blocks_give_the_same_statistics(monkeypatch):
    logits = torch.randn(5, 3, 7, generator=torch.manual_seed(0))
    labels = torch.randint(0, 7, (5, 3))
    labels[1, 1:] = -100
    alone = block_statistics(logits, labels)
    monkeypatch.setitem(language_modeling.MAX_LOGITS, "cpu", 2 * 3 * 7)
    assert torch.allclose(block_statistics(logits, labels), alone)


def test_a_shift_of_the_logits_and_half_precision_change_no_loss():
    logits = torch.tensor([[[8.0, 8.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    labels = torch.tensor([[1, 0]])
    found = block_statistics(logits, labels)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([[2 * math.log(2), 1.0, 2.0]]))
