"""Blocks: views of a stream.

A block of T tokens that starts at s has inputs tokens[s : s + T] and targets
tokens[s + 1 : s + T + 1]. The next block starts at s + T, so that every token of a span is a
target exactly once, but for the first of the span and the BOS of each document, which
nothing comes before.
"""

from typing import Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from src.data.packing.stream import Stream

IGNORE_INDEX = -100  # a target that counts neither in the loss nor in a metric
NO_BLOCK = -1  # the index of a block without targets, which fills up a batch


class Blocks(Dataset):
    """The blocks of spans of a stream.

    Args:
        stream: the packed corpus.
        spans: (start, end) in tokens; a block lies in one span.
        block_size: T, targets a block has.
        keep_remainder: whether the last, shorter block of each span is kept (for
            evaluation; padded, with ignored targets) or left out (for training).
        max_samples: keep this many blocks, drawn once, the same for every seed.
        restart_positions: whether positions count from each document's beginning: what
            keeps attention inside documents (`src/training/documents_apart.py`).
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
        starts, ends = [], []
        self.remainder = 0  # targets in remainders, kept or not
        for start, end in spans:
            firsts = np.arange(start, max(end - 1, start), block_size)
            lasts = np.minimum(firsts + block_size, end - 1)
            whole = lasts - firsts == block_size
            self.remainder += int((lasts - firsts)[~whole].sum())
            kept = slice(None) if keep_remainder else whole
            starts.append(firsts[kept])
            ends.append(lasts[kept])
        self.starts = np.concatenate(starts or [np.zeros(0, np.int64)])
        self.ends = np.concatenate(ends or [np.zeros(0, np.int64)])
        if max_samples is not None and max_samples < len(self.starts):
            drawn = np.random.default_rng(0).permutation(len(self.starts))[:max_samples]
            drawn.sort()
            self.starts, self.ends = self.starts[drawn], self.ends[drawn]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` [T], `labels` [T] (already shifted: the next tokens).

        And `position_ids` [T] with `restart_positions`.
        """
        if index == NO_BLOCK:
            block = {key: value.clone() for key, value in self[0].items()}
            block["labels"].fill_(IGNORE_INDEX)
            return block
        start, end = int(self.starts[index]), int(self.ends[index])
        tokens = self.stream.tokens[start : end + 1].astype(np.int64)
        inputs = np.full(self.block_size, tokens[0])  # padding that no loss sees
        labels = np.full(self.block_size, IGNORE_INDEX, np.int64)
        inputs[: end - start], labels[: end - start] = tokens[:-1], tokens[1:]
        documents = self.stream.documents
        # Of the same type: else NumPy converts, and so reads, all documents.
        edges = np.array([start + 1, end + 1], documents.dtype)
        first, last = np.searchsorted(documents, edges)
        begins = documents[first:last].astype(np.int64) - start  # of BOS, from 1 to T
        labels[begins - 1] = IGNORE_INDEX
        block = {"input_ids": inputs, "labels": labels}
        if self.restart_positions:
            begun = np.zeros(self.block_size, np.int64)
            inside = begins[begins < self.block_size]
            begun[inside] = inside
            positions = np.arange(self.block_size) - np.maximum.accumulate(begun)
            block["position_ids"] = positions
        return {key: torch.from_numpy(value) for key, value in block.items()}

    @property
    def owners(self) -> np.ndarray:
        """The file of the stream that each block begins in [num_blocks]."""
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
    """Spans for training and validation: the last `percentage` of each file is held out.

    The cut is moved to the nearest beginning of a document, if one is so near that what is
    held out at most doubles or halves.
    """
    train, held_out = [], []
    starts = np.asarray(stream.documents).astype(np.int64)
    for start, end in file_spans(stream):
        cut = end - max(1, round((end - start) * percentage / 100))
        inside = starts[(starts > start) & (starts < end)]
        near = inside[(end - inside) / (end - cut) <= 2]
        near = near[(end - near) / (end - cut) >= 0.5]
        if len(near):
            cut = int(near[np.argmin(np.abs(near - cut))])
        train.append((start, cut))
        held_out.append((cut, end))
    return train, held_out


def file_spans(stream: Stream) -> list[tuple[int, int]]:
    """One span a file."""
    return [(file["start"], file["end"]) for file in stream.files]
