"""Blocks: views of a fixed number of tokens of a stream.

A block of T tokens that starts at s has the inputs tokens[s : s + T] and the targets
tokens[s + 1 : s + T + 1]. The next block starts at s + T. So every token of a span is a target
exactly once. The exceptions are the first token of the span and the BOS of each document: no
earlier token predicts them.
"""

from typing import Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from src.data.packing.stream import Stream

IGNORE_INDEX = -100  # a target that counts neither in the loss nor in a metric
NO_BLOCK = -1  # the index of a block without targets, which fills the last batch


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
        self.stream, self.spans, self.block_size = stream, spans, block_size
        self.restart_positions = restart_positions
        starts = [np.arange(start, end - 1, block_size) for start, end in spans]
        ends = np.array([end - 1 for _, end in spans], np.int64)
        self.starts = np.concatenate([np.zeros(0, np.int64), *starts])
        span_ends = np.repeat(ends, list(map(len, starts)))
        self.ends = np.minimum(self.starts + block_size, span_ends)
        lengths = self.ends - self.starts
        whole = lengths == block_size
        self.remainder = int(lengths[~whole].sum())  # targets in shorter blocks
        kept = np.flatnonzero(whole | keep_remainder)
        if max_samples is not None and max_samples < len(kept):
            drawn = np.random.default_rng(0).permutation(len(kept))[:max_samples]
            kept = kept[np.sort(drawn)]
        self.starts, self.ends = self.starts[kept], self.ends[kept]

    def __len__(self) -> int:
        return len(self.starts)

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
        starts, ends = self.starts[indices], self.ends[indices]
        offsets = np.arange(self.block_size + 1)
        places = np.minimum(starts[:, None] + offsets, ends[:, None])
        tokens = self.stream.tokens[places].astype(np.int64)
        documents = self.stream.documents
        # `edges` has the dtype of `documents`. Otherwise NumPy would convert all documents
        # and read them from disk.
        edges = np.stack([starts + 1, ends + 1]).astype(documents.dtype)
        first, last = np.searchsorted(documents, edges)
        rows = np.repeat(np.arange(len(starts)), last - first)
        found = [documents[i:j] for i, j in zip(first, last)]
        begins = np.concatenate(found).astype(np.int64) - starts[rows]
        return tokens, ends - starts, rows, begins

    def words_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the words that begin in the targets of blocks [n]; 0 for `NO_BLOCK`."""
        starts, ends = self.starts[indices], self.ends[indices]
        words = self.stream.num_words(starts + 1, ends + 1)
        return np.where(indices == NO_BLOCK, 0, words)

    @property
    def owners(self) -> np.ndarray:
        """The index of the stream's file in which each block begins [num_blocks]."""
        file_ends = [file["end"] for file in self.stream.files]
        return np.searchsorted(file_ends, self.starts, side="right")

    @property
    def words(self) -> np.ndarray:
        """Words that begin in the targets of each block [num_blocks]."""
        return self.stream.num_words(self.starts + 1, self.ends + 1)

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of text in the targets of each block [num_blocks]."""
        return self.stream.num_bytes(self.starts + 1, self.ends + 1)


def split(stream: Stream, percentage: float) -> tuple[list, list]:
    """Return the spans for training, and those for validation at the end of each file.

    The held-out part is `percentage` % of the file's tokens. It begins at the nearest
    beginning of a document if that changes its size by at most a factor of two.
    """
    train, held_out = [], []
    starts = np.asarray(stream.documents).astype(np.int64)
    for start, end in file_spans(stream):
        cut = end - max(1, round((end - start) * percentage / 100))
        inside = starts[(starts > start) & (starts < end)]
        factors = (end - inside) / (end - cut)
        near = inside[(factors >= 0.5) & (factors <= 2)]
        if len(near):
            cut = int(near[np.argmin(np.abs(near - cut))])
        train.append((start, cut))
        held_out.append((cut, end))
    return train, held_out


def file_spans(stream: Stream) -> list[tuple[int, int]]:
    """Return one span (start, end) for each file."""
    return [(file["start"], file["end"]) for file in stream.files]
