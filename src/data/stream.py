"""The packed corpus on disk: one flat stream of tokens with prefix sums of words and bytes.

    tokens.bin     uint16 or uint32 [num_tokens]       BOS text EOS BOS text EOS …
    words.bin      uint32 [num_tokens + 1]             words that begin before token i
    bytes.bin      uint64 [num_tokens + 1]             bytes that begin before token i
    documents.bin  uint64 [num_documents]              where each document's BOS is
    stream.json    the totals, file by file

A word is what `str.split()` gives; it begins in the token that holds its first byte. So the
words and bytes of any span of tokens are a difference of two numbers.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

VERSION = 1  # of the format: another value makes every cached stream stale


class Stream:
    """A packed corpus, memory-mapped. See the module's docstring for the arrays."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.info: dict[str, Any] = json.loads(
            (self.directory / "stream.json").read_text(encoding="utf-8")
        )
        self.tokens = self._array("tokens", self.info["token_type"])
        self.words = self._array("words", np.uint32)
        self.bytes = self._array("bytes", np.uint64)
        self.documents = self._array("documents", np.uint64)

    def _array(self, name: str, dtype: Any) -> np.ndarray:
        return np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode="r")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def files(self) -> list[dict[str, Any]]:
        """One row a source: name, boundary, start, end, documents, words, bytes."""
        return self.info["files"]

    def num_words(self, start: Any, end: Any) -> Any:
        """Words that begin in tokens `start` to `end` (exclusive); numbers or arrays [n]."""
        return self.words[end].astype(np.int64) - self.words[start].astype(np.int64)

    def num_bytes(self, start: Any, end: Any) -> Any:
        """Bytes of text in tokens `start` to `end` (exclusive); numbers or arrays [n]."""
        return self.bytes[end].astype(np.int64) - self.bytes[start].astype(np.int64)


def is_whole(directory: Path) -> bool:
    """Whether every file is there with the size that stream.json says."""
    try:
        info = json.loads((directory / "stream.json").read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
        return all(sizes.get(name) == size for name, size in info["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


class StreamWriter:
    """Appends documents, piece by piece, to the files of a stream.

    Args:
        directory: where the files go.
        max_id: the largest token id; decides the stored type.
        bos, eos: ids put around each document.
    """

    def __init__(self, directory: Path, max_id: int, bos: int, eos: int):
        self.directory, self.bos, self.eos = directory, bos, eos
        self.token_type = np.dtype(np.uint16 if max_id < 2**16 else np.uint32)
        self.num_tokens = self.num_words = self.num_bytes = self.num_documents = 0
        self._document_open = False
        self._untold = np.zeros(2, np.int64)  # words and bytes of text without a token
        names = ("tokens", "words", "bytes", "documents")
        self._files: dict[str, BinaryIO] = {
            name: (directory / f"{name}.bin").open("wb") for name in names
        }
        self._files["words"].write(np.zeros(1, np.uint32).tobytes())
        self._files["bytes"].write(np.zeros(1, np.uint64).tobytes())

    def begin_document(self) -> None:
        """End the document before, if one is open, and append BOS."""
        self.end_document()
        self._files["documents"].write(np.uint64(self.num_tokens).tobytes())
        self.num_documents += 1
        self._document_open = True
        self._mark(self.bos)

    def end_document(self) -> None:
        """Append EOS, if a document is open."""
        if self._document_open:
            self._mark(self.eos)
        self._document_open = False

    def append(self, ids: np.ndarray, words: np.ndarray, num_bytes: np.ndarray) -> None:
        """Three arrays [n]: ids, and the words and bytes that begin in each token.

        Without ids, the words and the bytes count in the token that is appended next.
        """
        if not len(ids):
            self._untold += [words.sum(), num_bytes.sum()]
            return
        words[0] += self._untold[0]
        num_bytes[0] += self._untold[1]
        self._untold[:] = 0
        words = self.num_words + np.cumsum(words)
        num_bytes = self.num_bytes + np.cumsum(num_bytes)
        self._files["tokens"].write(ids.astype(self.token_type).tobytes())
        self._files["words"].write(words.astype(np.uint32).tobytes())
        self._files["bytes"].write(num_bytes.astype(np.uint64).tobytes())
        self.num_tokens += len(ids)
        self.num_words, self.num_bytes = int(words[-1]), int(num_bytes[-1])

    def _mark(self, token: int) -> None:
        self.append(np.array([token]), np.zeros(1, np.int64), np.zeros(1, np.int64))

    def totals(self) -> dict[str, int]:
        """What has been appended so far."""
        return {
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "words": self.num_words,
            "bytes": self.num_bytes,
        }

    def close(self, files: list[dict[str, Any]]) -> None:
        """Write what is buffered, and stream.json with one row for each of the `files`."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        info = {
            "version": VERSION,
            "token_type": self.token_type.name,
            **self.totals(),
            "files": files,
            "sizes": {p.name: p.stat().st_size for p in self.directory.iterdir()},
        }
        text = json.dumps(info, indent=1)
        (self.directory / "stream.json").write_text(text, encoding="utf-8")
