"""Blocks that are cut anew in each epoch, after the documents are permuted.

With fixed blocks, a token near the start of a block has the same short context in every epoch. If
documents are permuted before they are cut, its context changes. The tokens on disk are not moved:
blocks are read from the packed stream in pieces.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from src.data.blocks import NO_BLOCK, Blocks


class Pieces(NamedTuple):
    """The stream as a pass reads it: its pieces in another order."""

    starts: np.ndarray  # [n] index of the piece's first token in the stream
    offsets: np.ndarray  # [n] tokens before the piece in this order
    words: np.ndarray  # [n] words before the piece in this order
    has_bos: np.ndarray  # [n] whether the piece begins with the BOS of a document

    def find(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the piece of each position in this order, and its token's index in the stream."""
        piece = np.searchsorted(self.offsets, positions, side="right") - 1
        return piece, self.starts[piece] + positions - self.offsets[piece]


class ReshuffledBlocks(Blocks):
    """The blocks of all passes over a text, each cut from its documents in another order.

    Block i of pass p has the index p * len(blocks) + i. In a pass, the documents of each file are
    permuted, and the first of them is cut at a random token; its beginning comes last. So a file
    that is one document is cut into other blocks, too. Each file stays at its place in the stream.
    So all passes have the same number of blocks, with the same `bounds` and `edges`.

    Args:
        blocks: The blocks of the text in its own order.
        seed: The seed of the permutations.
    """

    def __init__(self, blocks: Blocks, seed: int):
        stream, spans, restart = blocks.stream, blocks.spans, blocks.restart_positions
        super().__init__(stream, spans, blocks.block_size, False, None, restart)
        self.seed = seed
        # Documents stay in their file, and on their side of the beginning of held-out text.
        files = [file["start"] for file in stream.files]
        bounds = np.unique([*files, *np.ravel(spans), len(stream)])
        edges = np.union1d(np.asarray(stream.documents, np.int64), bounds)
        self._documents, self._lengths = edges[:-1], np.diff(edges)
        self._groups = np.searchsorted(bounds, self._documents, side="right")

    # The blocks of a batch come from one or two passes, or more with `data.mix`.
    @functools.lru_cache(maxsize=4)
    def _pieces(self, number: int) -> Pieces:
        """Return the pieces of a pass, which depend only on the seed and the number."""
        rng = np.random.default_rng([self.seed, number, 0, 1])
        order = np.lexsort((rng.random(len(self._groups)), self._groups))
        starts, lengths = self._documents[order], self._lengths[order]
        _, first = np.unique(self._groups, return_index=True)  # of each group
        end, cut = np.append(first[1:], len(order)), 1 + rng.integers(lengths[first])
        starts = np.insert(starts, end, starts[first])
        lengths = np.insert(lengths, end, cut)
        first = first + np.arange(len(first))
        starts[first] += cut
        lengths[first] -= cut
        has_bos = np.ones(len(starts), bool)
        has_bos[first] = False
        words = self.stream.num_words(starts, starts + lengths)
        offsets, words = (np.cumsum(values) - values for values in (lengths, words))
        return Pieces(starts, offsets, words, has_bos)

    def _by_pass(self, indices: np.ndarray) -> Iterator[tuple]:
        """Yield for each pass: its blocks' rows, its pieces, and where its blocks begin."""
        numbers, blocks = np.divmod(indices, len(self))
        for number in np.unique(numbers[indices != NO_BLOCK]).tolist():
            own = numbers == number
            yield own, self._pieces(number), self.bounds(blocks[own])[0]

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        tokens = np.zeros((len(indices), self.block_size + 1), np.int64)
        is_bos = np.zeros(tokens.shape, bool)
        for own, pieces, starts in self._by_pass(indices):
            positions = starts[:, None] + np.arange(self.block_size + 1)
            piece, places = pieces.find(positions)
            tokens[own] = self.stream.tokens[places]
            is_bos[own] = pieces.has_bos[piece] & (positions == pieces.offsets[piece])
        rows, begins = np.nonzero(is_bos[:, 1:])
        return tokens, np.full(len(tokens), self.block_size), rows, begins + 1

    def owners_of(self, indices: Any) -> np.ndarray:
        return super().owners_of(np.mod(indices, len(self)))

    def words_of(self, indices: np.ndarray) -> np.ndarray:
        words = np.zeros(len(indices), np.int64)
        for own, pieces, starts in self._by_pass(indices):
            for sign, position in ((-1, starts + 1), (1, starts + self.block_size + 1)):
                piece, places = pieces.find(position)
                inside = self.stream.num_words(pieces.starts[piece], places)
                words[own] += sign * (pieces.words[piece] + inside)
        return words
