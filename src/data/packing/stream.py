"""The packed corpus on disk: one flat stream of tokens with prefix sums of words and bytes.

    tokens.bin     uint16 or uint32 [num_tokens]       BOS text EOS BOS text EOS …
    words.bin      uint32 [num_tokens + 1]             words that begin before token i
    bytes.bin      uint32 [num_tokens + 1]             bytes that begin before token i
    documents.bin  uint64 [num_documents]              where each document's BOS is
    stream.json    the totals, file by file; nothing that depends on names or machines

A word is what `str.split()` gives; it begins in the token that holds its first byte. So the
words and bytes of any span of tokens are a difference of two numbers. The sums are kept
modulo 2^32: the difference is right for every span of less than four billion bytes, however
large the corpus. All numbers are little-endian.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Optional

import numpy as np

from src.foundation import UserError

VERSION = 3  # of the packing: another value makes every cached stream stale


class Stream:
    """A packed corpus, memory-mapped. See the module's docstring for the arrays."""

    def __init__(self, directory: Path):
        text = (Path(directory) / "stream.json").read_text(encoding="utf-8")
        self.__setstate__((Path(directory), json.loads(text)))

    def __getstate__(self) -> tuple[Path, dict[str, Any]]:
        """Without the arrays: a loader's process maps them itself instead of copying."""
        return self.directory, self.info

    def __setstate__(self, state: tuple[Path, dict[str, Any]]) -> None:
        self.directory, self.info = state
        self.tokens = self._array("tokens", self.info["token_type"])
        self.words = self._array("words", "<u4")
        self.bytes = self._array("bytes", "<u4")
        self.documents = self._array("documents", "<u8")

    def _array(self, name: str, dtype: Any) -> np.ndarray:
        return np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode="r")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def files(self) -> list[dict[str, Any]]:
        """One row a source: name, boundary, start, end, documents, words, bytes, …"""
        return self.info["files"]

    @property
    def size_on_disk(self) -> int:
        """Bytes."""
        return sum(self.info["sizes"].values())

    def name_files(self, names: list[str]) -> None:
        """Give every row its source's name: the same text may be called otherwise."""
        self.info["files"] = [
            {"name": name, **row} for name, row in zip(names, self.files)
        ]

    def num_words(self, start: Any, end: Any) -> Any:
        """Words that begin in tokens `start` to `end` (exclusive); numbers or arrays [n]."""
        return _difference(self.words, start, end)

    def num_bytes(self, start: Any, end: Any) -> Any:
        """Bytes of text in tokens `start` to `end` (exclusive); numbers or arrays [n]."""
        return _difference(self.bytes, start, end)


def _difference(sums: np.ndarray, start: Any, end: Any) -> Any:
    return (sums[end].astype(np.int64) - sums[start].astype(np.int64)) % 2**32


def open_stream(directory: Path) -> Optional[Stream]:
    """The stream; None where not every file is there with the size that stream.json says."""
    try:
        info = json.loads((directory / "stream.json").read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
        if all(sizes.get(name) == size for name, size in info["sizes"].items()):
            return Stream(directory)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


class StreamWriter:
    """Appends documents, piece by piece, to the files of a stream.

    Args:
        directory: where the files go.
        max_id: the largest token id; decides the stored type.
        bos, eos: ids put around each document.
    """

    def __init__(self, directory: Path, max_id: int, bos: int, eos: int):
        if max_id >= 2**32:
            raise UserError(
                f"tokenizer: the id {max_id:,} is beyond what packed tokens hold, which is"
                f" {2**32 - 1:,}"
            )
        self.directory, self.bos, self.eos = directory, bos, eos
        self.token_type = np.dtype("<u2" if max_id < 2**16 else "<u4")
        self.num_tokens = self.num_words = self.num_bytes = self.num_documents = 0
        self._document_open = False
        names = ("tokens", "words", "bytes", "documents")
        self._files: dict[str, BinaryIO] = {
            name: (directory / f"{name}.bin").open("wb") for name in names
        }
        self._write("words", np.zeros(1), "<u4")
        self._write("bytes", np.zeros(1), "<u4")

    def append(
        self,
        ids: np.ndarray,
        words: np.ndarray,
        num_bytes: np.ndarray,
        documents: np.ndarray,
        piece_words: int,
        piece_bytes: int,
    ) -> None:
        """Append a piece of text; BOS and EOS are put around its documents.

        Args:
            ids: [n].
            words, num_bytes: that begin in the piece before the end of each token [n].
            documents: [num_documents, 3] tokens, words and bytes of the piece before each
                document's beginning. The one before it ends there.
            piece_words, piece_bytes: of the whole piece. What no token covers counts in the
                next one, which may be the document's EOS.
        """
        tokens, *before = documents.T
        if len(tokens):
            # EOS of the document before, if one is open, and BOS.
            places = np.repeat(tokens, 2)[0 if self._document_open else 1 :]
            marks = np.tile([self.eos, self.bos], len(tokens))[-len(places) :]
            before = [np.repeat(sums, 2)[-len(places) :] for sums in before]
            ids = np.insert(ids, places, marks)
            words = np.insert(words, places, before[0])
            num_bytes = np.insert(num_bytes, places, before[1])
            starts = tokens + 2 * np.arange(len(tokens)) + self._document_open
            self._write("documents", self.num_tokens + starts, "<u8")
            self.num_documents += len(tokens)
            self._document_open = True
        self._append(ids, words, num_bytes)
        self.num_words += piece_words
        self.num_bytes += piece_bytes

    def end_document(self) -> None:
        """Append EOS, if a document is open."""
        if self._document_open:
            self._append(np.array([self.eos]), np.zeros(1, int), np.zeros(1, int))
        self._document_open = False

    def _append(
        self, ids: np.ndarray, words: np.ndarray, num_bytes: np.ndarray
    ) -> None:
        self._write("tokens", ids, self.token_type)
        self._write("words", self.num_words + words, "<u4")
        self._write("bytes", self.num_bytes + num_bytes, "<u4")
        self.num_tokens += len(ids)

    def _write(self, name: str, values: np.ndarray, dtype: Any) -> None:
        # From 64 bits to 32 the sums are taken modulo 2^32.
        self._files[name].write(values.astype(dtype).tobytes())

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
            "token_type": self.token_type.str,
            **self.totals(),
            "files": files,
            "sizes": {p.name: p.stat().st_size for p in self.directory.iterdir()},
        }
        text = json.dumps(info, indent=1)
        (self.directory / "stream.json").write_text(text, encoding="utf-8")
