"""Sequences into batches: common prefixes computed once, or equal lengths side by side.

A causal model's state at a token depends on what stands before it, and on nothing else. So the
sequences of a task, sorted, are a tree: of `The dogs bark` and `The dogs howl` the first two
tokens are computed once. A row of a batch is a piece of the tree, written down depth first;
its tokens see their ancestors only. Depth first, the tokens below a token follow it without a
gap, so that one number a token (the end of what is below it) describes the mask.
"""

import os
from dataclasses import dataclass, field
from typing import Iterator, Optional

import numpy as np

# Tokens: below, rows repeat prefixes; above, attention across a row costs.
MIN_ROW = 256

Sequence = tuple[int, ...]
Wanted = list[tuple[int, int, int]]  # (position or place, target, slot)


@dataclass(frozen=True)
class Query:
    """How probable is `targets[i]`, read off the model's output at `positions[i]`?

    For a causal model that is the token after `ids[: positions[i] + 1]`. `name` is what an
    error calls the query.
    """

    ids: Sequence
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    name: str = ""


@dataclass
class Batch:
    """Tokens for one forward pass, and which log-probabilities are wanted of it.

    `depths` and `ends` are there for rows of a tree: a token's position in its sequence, and
    the end (exclusive) of what is below it in its row.
    """

    ids: np.ndarray  # [B, T]
    places: np.ndarray  # [W] where the output is read: indices into B x T, ascending
    targets: np.ndarray  # [W] whose log-probability
    slots: np.ndarray  # [W] where it goes in the flat list of all queries' answers
    depths: Optional[np.ndarray] = None  # [B, T]
    ends: Optional[np.ndarray] = None  # [B, T]


@dataclass
class Row:
    """A piece of the tree, depth first (a single sequence is one too)."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    wanted: Wanted = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    # Places of the last sequence's tokens.
    path: list[int] = field(default_factory=list)

    def add(self, ids: Sequence, shared: int, wanted: Wanted) -> None:
        """A sequence whose first `shared` tokens are those of the one before it."""
        for place in self.path[shared:]:
            self.ends[place] = len(self.ids)
        new = range(len(self.ids), len(self.ids) + len(ids) - shared)
        self.path[shared:] = new
        self.ids += ids[shared:]
        self.depths += range(shared, len(ids))
        self.ends += [0] * len(new)
        self.wanted += [(self.path[at], target, slot) for at, target, slot in wanted]
        self.sequences.append(ids)

    def close(self) -> None:
        for place in self.path:
            self.ends[place] = len(self.ids)


def wanted_of_sequences(
    queries: list[Query], causal: bool, num_positions: Optional[int] = None
) -> dict[Sequence, Wanted]:
    """Each different sequence, once → (position, target, slot) of all that ask about it.

    Equal texts so get equal numbers, to the last bit: a tie stays a tie. What a causal model
    would read behind the last position asked for changes nothing and is left out; so are
    queries of more than `num_positions` tokens.
    """
    sequences: dict[Sequence, Wanted] = {}
    slot = 0
    for query in queries:
        slots = range(slot, slot + len(query.positions))
        slot = slots.stop
        if slots and len(query.ids) <= (num_positions or len(query.ids)):
            length = max(query.positions) + 1 if causal else len(query.ids)
            wanted = sequences.setdefault(query.ids[:length], [])
            wanted += zip(query.positions, query.targets, slots)
    return sequences


def tree_rows(sequences: dict[Sequence, Wanted], batch_tokens: int) -> list[Row]:
    """The tree of all sequences, cut into rows.

    A row may be twice as long as a long sequence, so that the options that follow one long
    context stay together; but it has at most `batch_tokens`, or one sequence.
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
    for row in rows:
        row.close()
    return rows


def single_rows(sequences: dict[Sequence, Wanted]) -> list[Row]:
    """Each sequence by itself."""
    rows = [Row() for _ in sequences]
    for row, (ids, wanted) in zip(rows, sequences.items()):
        row.add(ids, 0, wanted)
        row.close()
    return rows


def tree_batches(rows: list[Row], batch_tokens: int) -> Iterator[Batch]:
    """Rows of similar length together; what they lack in length sees itself only."""
    rows = sorted(rows, key=lambda row: -len(row.ids))
    while rows:
        length = len(rows[0].ids)
        number = max(1, batch_tokens // length)
        yield _batch(rows[:number], length, tree=True)
        rows = rows[number:]


def equal_length_batches(rows: list[Row], batch_tokens: int) -> Iterator[Batch]:
    """Rows of equal length together: no padding and no mask, so exact by construction."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(len(row.ids), []).append(row)
    for length, same in sorted(by_length.items(), reverse=True):
        number = max(1, batch_tokens // length)
        for start in range(0, len(same), number):
            yield _batch(same[start : start + number], length, tree=False)


def _batch(rows: list[Row], length: int, tree: bool) -> Batch:
    ids = np.zeros((len(rows), length), np.int64)
    depths = np.zeros_like(ids)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))
    wanted = []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        depths[i, : len(row.ids)] = row.depths
        ends[i, : len(row.ids)] = row.ends
        wanted += [(i * length + at, target, slot) for at, target, slot in row.wanted]
    places, targets, slots = np.array(sorted(wanted), np.int64).reshape(-1, 3).T
    if not tree:
        return Batch(ids, places, targets, slots)
    return Batch(ids, places, targets, slots, depths, ends)
