"""The packed corpus on disk: one flat stream of tokens with prefix sums of words and bytes.

    tokens.bin     uint16 or uint32 [num_tokens]       BOS text EOS BOS text EOS …
    words.bin      uint32 [num_tokens + 1]             words that begin before token i
    bytes.bin      uint32 [num_tokens + 1]             bytes that begin before token i
    documents.bin  uint64 [num_documents]              index of each document's BOS
    stream.json    totals of each file; nothing that depends on names or machines

A word is a part that `str.split()` returns. It begins in the token that holds its first byte.
So the number of words or bytes in a span of tokens is the difference of two sums. The sums are
stored modulo 2^32. For spans of less than four billion bytes the differences are right, whatever
the size of the corpus. All numbers are little-endian.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from src.data.packing.encoding import Loss
from src.foundation import write_atomically

VERSION = 4  # of the packing; with another value all text is packed again


class Stream:
    """A packed corpus, memory-mapped. See the module's docstring for the arrays.

    Args:
        directory: The folder of the arrays.
        names: The names of the sources, for the column `name` of `files`. They are not stored,
            because the same text may have another name in the next run.

    Attributes:
        info: The content of stream.json.
        files: The rows of the sources: name, boundary, start, end, documents, words, bytes, …
    """

    def __init__(self, directory: Path, names: Sequence[str]):
        self.directory, self.names = directory, names
        self.info = json.loads((directory / "stream.json").read_text(encoding="utf-8"))
        rows = zip(names, self.info["files"])
        self.files = [{"name": name, **row} for name, row in rows]
        self.tokens = self._array("tokens", self.info["token_type"])
        self.documents = self._array("documents", "<u8")

    # Both sums are opened anew at each use: a map that stays open holds all pages that were read.

    @property
    def words(self) -> np.ndarray:
        return self._array("words", "<u4")

    @property
    def bytes(self) -> np.ndarray:
        return self._array("bytes", "<u4")

    def _array(self, name: str, dtype: str) -> np.ndarray:
        return np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode="r")

    def __reduce__(self) -> tuple:
        """Pickle the stream without its arrays. Another process maps the files itself."""
        return Stream, (self.directory, self.names)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def size_on_disk(self) -> int:
        """The size of the arrays in bytes."""
        arrays = self.tokens, self.words, self.bytes, self.documents
        return sum(array.nbytes for array in arrays)

    def documents_before(self, tokens: Any) -> np.ndarray:
        """Return the number of documents that begin before each of these tokens, as `tokens`."""
        # With another dtype, NumPy would convert all documents and read them from disk.
        tokens = np.asarray(tokens).astype(self.documents.dtype)
        return np.searchsorted(self.documents, tokens)

    def num_words(self, start: Any, end: Any) -> Any:
        """Return the number of words that begin in tokens [start, end); ints or arrays [n]."""
        return _difference(self.words, start, end)

    def num_bytes(self, start: Any, end: Any) -> Any:
        """Return the number of bytes of text in tokens [start, end); ints or arrays [n]."""
        return _difference(self.bytes, start, end)


def _difference(sums: np.ndarray, start: Any, end: Any) -> Any:
    return (sums[end].astype(np.int64) - sums[start].astype(np.int64)) % 2**32


class PackedPiece(NamedTuple):
    """The tokens of a piece of text, and prefix sums of its words and bytes.

    Text that no token covers is counted with the next token, which may be an EOS.
    """

    ids: np.ndarray  # [n]
    words: np.ndarray  # [n] words of the piece that begin before the end of each token
    bytes: np.ndarray  # [n] bytes of the piece before the end of each token
    # The tokens, words and bytes before each document [num_documents, 3].
    documents: np.ndarray
    # Numbers of the whole piece: documents, words, bytes, separators and empty_texts.
    totals: Mapping[str, int]
    loss: Optional[Loss] = None
    # The ids and ends [2, n] of the tokens around the start and the end of the piece, with ends
    # relative to it.
    seams: Sequence[np.ndarray] = ()
    special_tokens: Mapping[str, int] = {}  # how often each is written in the text


class StreamWriter:
    """A writer that appends text, piece by piece, to the files of a stream.

    Args:
        directory: The folder for the files.
        max_id: The largest token id, which decides the stored type.
        bos, eos: The ids before and after each document.
    """

    def __init__(self, directory: Path, max_id: int, bos: int, eos: int):
        self.directory, self.bos, self.eos = directory, bos, eos
        self.token_type = np.dtype("<u2" if max_id < 2**16 else "<u4")
        self.totals: Counter[str] = Counter()  # tokens, words, bytes, … appended so far
        self._document_open = False
        names = ("tokens", "words", "bytes", "documents")
        self._files: dict[str, BinaryIO] = {
            name: (directory / f"{name}.bin").open("wb") for name in names
        }
        self._write("words", np.zeros(1), "<u4")
        self._write("bytes", np.zeros(1), "<u4")

    def append(self, piece: PackedPiece) -> None:
        """Append a piece, with BOS and EOS around its documents."""
        # The EOS of the previous document, if one is open, and the BOS of the next.
        skipped = 0 if self._document_open else 1
        positions, *sums = np.repeat(piece.documents, 2, axis=0)[skipped:].T
        marks = np.tile([self.eos, self.bos], len(piece.documents))[skipped:]
        num_marks = 2 * np.arange(len(piece.documents)) + self._document_open
        starts = self.totals["tokens"] + piece.documents[:, 0] + num_marks
        self._write("documents", starts, "<u8")
        columns = zip((piece.ids, piece.words, piece.bytes), (marks, *sums))
        self._append(*(np.insert(values, positions, at) for values, at in columns))
        self.totals.update(piece.totals)
        self._document_open |= len(piece.documents) > 0

    def end_document(self) -> None:
        """Append EOS if a document is open."""
        if self._document_open:
            self._append(np.array([self.eos]), np.zeros(1, int), np.zeros(1, int))
        self._document_open = False

    def _append(
        self, ids: np.ndarray, words: np.ndarray, num_bytes: np.ndarray
    ) -> None:
        self._write("tokens", ids, self.token_type)
        self._write("words", self.totals["words"] + words, "<u4")
        self._write("bytes", self.totals["bytes"] + num_bytes, "<u4")
        self.totals["tokens"] += len(ids)

    def _write(self, name: str, values: np.ndarray, dtype: Any) -> None:
        # A conversion from 64 to 32 bits takes the sums modulo 2^32.
        self._files[name].write(values.astype(dtype).tobytes())

    def close(self, files: list[dict[str, Any]]) -> None:
        """Complete the arrays and write stream.json, with one row for each of `files`."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        info = {
            "version": VERSION,
            "token_type": self.token_type.str,
            **self.totals,
            "files": files,
        }
        write_atomically(self.directory / "stream.json", info)
