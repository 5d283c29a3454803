"""Batches for scoring, in which common prefixes of sequences are computed only once.

A causal model's state at a token depends only on the tokens before it. So the sorted sequences
of a task form a tree: the first two tokens of `The dogs bark` and `The dogs howl` are computed
once. A row of a batch is a part of the tree in depth-first order, and its tokens attend only to
their ancestors. In this order the descendants of a token follow it without a gap, so the
attention mask is described by one number per token, the end of its descendants.

Without a tree, a batch holds sequences of equal length.
"""

import os
from dataclasses import dataclass, field
from typing import Iterator

import numpy as np

# Tokens of a row. In shorter rows, more prefixes are repeated; longer rows slow attention down.
MIN_ROW = 256

Sequence = tuple[int, ...]
Wanted = list[tuple[int, int, int]]  # (index of a token, target, slot)


@dataclass(frozen=True)
class Query:
    """A request for the log-probabilities of `targets`, read at `positions` of the output.

    In a causal model, position i predicts the token after `ids[: i + 1]`. The `name` is for
    error messages.
    """

    ids: Sequence
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    name: str = ""


@dataclass
class Batch:
    """The tokens of one forward pass, and the W log-probabilities that are read from it.

    Of tree rows, `depths` and `ends` are used as well: the position of each token in its
    sequence, and the index in its row at which its descendants end (exclusive).
    """

    ids: np.ndarray  # [B, T]
    outputs: np.ndarray  # [W] flat indices into [B, T], ascending
    targets: np.ndarray  # [W]
    slots: np.ndarray  # [W] indices into the flat list of all answers
    depths: np.ndarray  # [B, T]
    ends: np.ndarray  # [B, T]
    tree: bool


@dataclass
class Row:
    """A part of the tree in depth-first order; possibly a single sequence."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    wanted: Wanted = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    # Indices of the last sequence's tokens.
    path: list[int] = field(default_factory=list)

    def add(self, ids: Sequence, shared: int, wanted: Wanted) -> None:
        """Add a sequence that has its first `shared` tokens in common with the last one."""
        length = len(self.ids) + len(ids) - shared
        self.path[shared:] = range(len(self.ids), length)
        self.ids += ids[shared:]
        self.depths += range(shared, len(ids))
        self.ends += [length] * (len(ids) - shared)
        for index in self.path[:shared]:
            self.ends[index] = length
        self.wanted += [(self.path[i], target, slot) for i, target, slot in wanted]
        self.sequences.append(ids)


def wanted_of_sequences(
    queries: list[Query], causal: bool, max_length: float
) -> dict[Sequence, Wanted]:
    """Return a dictionary: sequence -> (position, target, slot) of all its queries.

    Each distinct sequence is computed once, so equal texts get exactly equal scores and ties
    remain ties. For a causal model, tokens after the last position are left out, since they change
    nothing. Queries of more than `max_length` tokens are left out.
    """
    sequences: dict[Sequence, Wanted] = {}
    slot = 0
    for query in queries:
        slots = range(slot, slot + len(query.positions))
        slot = slots.stop
        if slots and len(query.ids) <= max_length:
            length = max(query.positions) + 1 if causal else len(query.ids)
            wanted = sequences.setdefault(query.ids[:length], [])
            wanted += zip(query.positions, query.targets, slots)
    return sequences


def tree_rows(sequences: dict[Sequence, Wanted], batch_tokens: int) -> list[Row]:
    """Return the rows into which the tree of all sequences is cut.

    A row may be twice as long as a long sequence, so that several continuations of one long
    context fit into it. It has at most `batch_tokens` tokens, unless it is a single sequence.
    """
    rows: list[Row] = []
    previous: Sequence = ()
    for ids in sorted(sequences):
        shared = len(os.path.commonprefix([previous, ids])) if rows else 0
        longest = max(len(ids), min(batch_tokens, max(MIN_ROW, 2 * len(ids))))
        if not rows or len(rows[-1].ids) + len(ids) - shared > longest:
            rows.append(Row())
            shared = 0
        rows[-1].add(ids, shared, sequences[ids])
        previous = ids
    return rows


def single_rows(sequences: dict[Sequence, Wanted]) -> list[Row]:
    """Return a row for each sequence."""
    rows = [Row() for _ in sequences]
    for row, (ids, wanted) in zip(rows, sequences.items()):
        row.add(ids, 0, wanted)
    return rows


def batches(rows: list[Row], batch_tokens: int, tree: bool) -> Iterator[Batch]:
    """Yield batches of at most `batch_tokens` positions, or of one row, the longest rows first.

    Rows of a tree are padded with tokens that attend only to themselves. Single sequences
    share a batch with others of the same length. They need no padding and no mask, so their
    results are exact by construction.
    """
    rows = sorted(rows, key=lambda row: -len(row.ids))
    start = 0
    while start < len(rows):
        length = len(rows[start].ids)
        chosen = rows[start : start + max(1, batch_tokens // length)]
        if not tree:
            chosen = [row for row in chosen if len(row.ids) == length]
        yield _batch(chosen, length, tree)
        start += len(chosen)


def _batch(rows: list[Row], length: int, tree: bool) -> Batch:
    ids, depths, ends = tokens = np.zeros((3, len(rows), length), np.int64)
    ends[:] = np.arange(1, length + 1)  # padding has no descendants
    wanted = []
    for i, row in enumerate(rows):
        tokens[:, i, : len(row.ids)] = row.ids, row.depths, row.ends
        wanted += [(i * length + index, *rest) for index, *rest in row.wanted]
    outputs, targets, slots = np.array(sorted(wanted), np.int64).T
    return Batch(ids, outputs, targets, slots, depths, ends, tree)
