"""Blocks: views of a fixed number of tokens of a stream.

A block of T tokens that starts at s has the inputs tokens[s : s + T] and the targets
tokens[s + 1 : s + T + 1]. The next block starts at s + T. So every token of a span is a target
exactly once. The exceptions are the first token of the span and the BOS of each document: no
earlier token predicts them.
"""

import bisect
import functools
from typing import Any, Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from src.data.packing.stream import Stream

IGNORE_INDEX = -100  # a target that counts neither in the loss nor in a metric
NO_BLOCK = -1  # the index of a block without targets, which fills the last batch
PART = 1 << 16  # blocks that are counted or listed at a time


class Blocks(Dataset):
    """A dataset of the blocks of some spans of a stream.

    Args:
        stream: The packed corpus.
        spans: Pairs (start, end) in tokens; each block lies in one span.
        block_size: T, the number of targets of a block.
        keep_remainder: Keep the last, shorter block of each span, padded with ignored
            targets (for evaluation); otherwise leave it out (for training).
        max_samples: Keep only this many blocks, drawn at random, the same for every seed.
        restart_positions: Count positions from the beginning of each document, which keeps
            attention inside documents (see `src/training/step/document_masking.py`).
    """

    def __init__(
        self,
        stream: Stream,
        spans: list[tuple[int, int]],
        block_size: int,
        keep_remainder: bool,
        max_samples: Optional[int] = None,
        restart_positions: bool = False,
    ):
        self.stream, self.block_size = stream, block_size
        self.restart_positions = restart_positions
        # Nothing here is as long as the text, since every process keeps it.
        self.spans = np.array(spans, np.int64).reshape(-1, 2)
        num_targets = np.maximum(0, np.diff(self.spans)[:, 0] - 1)
        whole, rest = np.divmod(num_targets, block_size)
        self.remainder = int(rest.sum())  # targets in shorter blocks
        sizes = whole + (rest > 0) if keep_remainder else whole
        # The blocks of span i are those from `_first[i]` to before `_first[i + 1]`.
        self._first = np.append(0, np.cumsum(sizes))
        self._length, self._drawn = int(self._first[-1]), None
        if max_samples is not None and max_samples < self._length:
            drawn = np.random.default_rng(0).permutation(self._length)[:max_samples]
            self._drawn, self._length = np.sort(drawn), max_samples

    def __len__(self) -> int:
        return self._length

    def bounds(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token of blocks and the token after each, both [n].

        Args:
            indices: The indices of the blocks [n], without `NO_BLOCK`.
        """
        indices = np.asarray(indices, np.int64)
        if self._drawn is not None:
            indices = self._drawn[indices]
        spans = np.searchsorted(self._first, indices, side="right") - 1
        starts = self.spans[spans, 0]
        starts = starts + (indices - self._first[spans]) * self.block_size
        return starts, np.minimum(starts + self.block_size, self.spans[spans, 1] - 1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one block, as `__getitems__` does, without the dimension of the batch."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return a batch: `input_ids` [B, T] and `labels` [B, T], the token after each input.

        If `restart_positions` is set, the batch also has `position_ids` [B, T]. PyTorch's
        `DataLoader` calls this method, which is faster than a call for each block.
        """
        is_filler = np.equal(indices, NO_BLOCK)
        tokens, lengths, rows, begins = self._read(np.where(is_filler, 0, indices))
        offsets = np.arange(self.block_size + 1)
        is_padding = offsets[1:] > lengths[:, None]
        inputs = np.where(is_padding, tokens[:, :1], tokens[:, :-1])
        is_padding |= is_filler[:, None]
        labels = np.where(is_padding, IGNORE_INDEX, tokens[:, 1:])
        labels[rows, begins - 1] = IGNORE_INDEX
        batch = {"input_ids": inputs, "labels": labels}
        if self.restart_positions:
            begun = np.zeros_like(tokens)
            begun[rows, begins] = begins
            positions = offsets - np.maximum.accumulate(begun, axis=1)
            batch["position_ids"] = positions[:, :-1]
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Read the blocks of a batch.

        Returns:
            The tokens [B, T + 1], the number of targets of each block [B], and for each BOS
            that is a target, its row in the batch and its offset from 1 to T.
        """
        starts, ends = self.bounds(indices)
        offsets = np.arange(self.block_size + 1)
        places = np.minimum(starts[:, None] + offsets, ends[:, None])
        tokens = self.stream.tokens[places].astype(np.int64)
        documents = self.stream.documents
        first, last = self.stream.documents_before([starts + 1, ends + 1])
        rows = np.repeat(np.arange(len(starts)), last - first)
        found = [documents[i:j] for i, j in zip(first, last)]
        begins = np.concatenate(found).astype(np.int64) - starts[rows]
        return tokens, ends - starts, rows, begins

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """The number of blocks that begin before each file, and of all [num_files + 1].

        The blocks that begin in file i are those from `edges[i]` to before `edges[i + 1]`.
        """
        blocks = range(len(self))
        edges = [
            bisect.bisect_left(blocks, file["start"], key=lambda i: self.bounds(i)[0])
            for file in self.stream.files
        ]
        return np.array([*edges, len(self)])

    def owners_of(self, indices: Any) -> np.ndarray:
        """Return the index of the stream's file in which each of these blocks begins [n]."""
        return np.searchsorted(self.edges, indices, side="right") - 1

    def words_of(self, indices: Any) -> np.ndarray:
        """Return the words that begin in the targets of each of these blocks [n]."""
        starts, ends = self.bounds(indices)
        return self.stream.num_words(starts + 1, ends + 1)

    @property
    def words(self) -> np.ndarray:
        """Words that begin in the targets of each block, uint32 [num_blocks]."""
        edges = [*range(0, len(self), PART), len(self)]  # in parts, to bound the memory
        parts = map(np.arange, edges, edges[1:])
        none = np.zeros(0, np.uint32)
        return np.concatenate([none, *(self.words_of(p).astype("u4") for p in parts)])

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of text in the targets of each block [num_blocks]."""
        starts, ends = self.bounds(np.arange(len(self)))
        return self.stream.num_bytes(starts + 1, ends + 1)


def split(stream: Stream, percentage: float) -> tuple[list, list]:
    """Return the spans for training, and those for validation at the end of each file.

    The held-out part is `percentage` % of the file's tokens. It begins at the nearest
    beginning of a document if that changes its size by at most a factor of two.
    """
    train, held_out = [], []
    documents = stream.documents
    for start, end in file_spans(stream):
        cut = end - max(1, round((end - start) * percentage / 100))
        # Of the documents that begin inside, the last before the cut, and the first after it.
        first, after, last = stream.documents_before([start + 1, cut, end])
        beside = documents[max(first, after - 1) : min(max(first, after) + 1, last)]
        factors = (end - beside.astype(np.int64)) / (end - cut)
        near = beside[(factors >= 0.5) & (factors <= 2)].astype(np.int64)
        if len(near):
            cut = int(near[np.argmin(np.abs(near - cut))])
        train.append((start, cut))
        held_out.append((cut, end))
    return train, held_out


def file_spans(stream: Stream) -> list[tuple[int, int]]:
    """Return one span (start, end) for each file."""
    return [(file["start"], file["end"]) for file in stream.files]
