"""Text into one flat stream of tokens on disk, with prefix sums of words and bytes.

A packed corpus is a directory under `<cache_dir>/packed/`:

    tokens.bin     uint16 or uint32 [num_tokens]       BOS text EOS BOS text EOS …
    words.bin      uint32 [num_tokens + 1]             words that begin before token i
    bytes.bin      uint64 [num_tokens + 1]             bytes that begin before token i
    documents.bin  uint64 [num_documents]              where each document's BOS is
    stream.json    the totals, file by file

A word is what `str.split()` gives; it begins in the token that holds its first byte. So the
words and bytes of any span of tokens are a difference of two numbers.
"""

import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional

import numpy as np
import tokenizers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from src.arguments import UserError
from src.data.cache import build_once
from src.data.corpus import Source
from src.data.documents import Piece
from src.data.tokenizer import boundary_tokens, byte_lengths, plain

VERSION = 1  # of the packed format: another value makes every cached stream stale
BATCH = 256  # pieces tokenized at once: about 4 MB of text

WHITE_SPACE = np.array([chr(code).isspace() for code in range(0x3001)])


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

    def num_words(self, start: int, end: int) -> int:
        """Words that begin in tokens `start` to `end` (exclusive)."""
        return int(self.words[end]) - int(self.words[start])

    def num_bytes(self, start: int, end: int) -> int:
        """Bytes of text in tokens `start` to `end` (exclusive)."""
        return int(self.bytes[end]) - int(self.bytes[start])


def pack(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    document_boundary: str,
    cache_dir: Path,
    overwrite: bool = False,
    progress: bool = False,
    description: str = "Packing",
) -> Stream:
    """The stream of `sources`, from the cache or packed now; complete or absent.

    The key holds what determines the bytes: the texts' checksums, the tokenizer, the chosen
    boundary and `VERSION`. Runs that start together build it once.
    """
    backend = plain(tokenizer)
    parts = [
        VERSION,
        hashlib.sha256(backend.to_str().encode()).hexdigest(),
        boundary_tokens(tokenizer),
        document_boundary,
        [(source.name, *source.identity) for source in sources],
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    directory = cache_dir / "packed" / key

    def build(temporary: Path) -> None:
        size = sum(source.size for source in sources)
        with tqdm(
            desc=description,
            total=size,
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            _write(sources, backend, tokenizer, document_boundary, temporary, bar)

    build_once(directory, _is_whole, build, overwrite)
    return Stream(directory)


def _is_whole(directory: Path) -> bool:
    """Whether every file is there with the size that stream.json says."""
    try:
        info = json.loads((directory / "stream.json").read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
        return all(sizes.get(name) == size for name, size in info["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Writer:
    """Appends tokens with their words and bytes to the files of a stream."""

    def __init__(self, directory: Path, dtype: type):
        self.dtype = dtype
        self.num_tokens = self.num_words = self.num_bytes = self.num_documents = 0
        self.untold = np.zeros(2, np.int64)  # words, bytes
        names = ("tokens", "words", "bytes", "documents")
        self.files: dict[str, BinaryIO] = {
            name: (directory / f"{name}.bin").open("wb") for name in names
        }
        self.files["words"].write(np.zeros(1, np.uint32).tobytes())
        self.files["bytes"].write(np.zeros(1, np.uint64).tobytes())

    def append(self, ids: np.ndarray, words: np.ndarray, num_bytes: np.ndarray) -> None:
        """Three arrays [n]: ids, and the words and bytes that begin in each token.

        Without ids, the words and the bytes count in the token that is appended next.
        """
        if not len(ids):  # text without a token: the next token's, or the EOS's
            self.untold += [words.sum(), num_bytes.sum()]
            return
        words[0] += self.untold[0]
        num_bytes[0] += self.untold[1]
        self.untold[:] = 0
        words = self.num_words + np.cumsum(words)
        num_bytes = self.num_bytes + np.cumsum(num_bytes)
        self.files["tokens"].write(ids.astype(self.dtype).tobytes())
        self.files["words"].write(words.astype(np.uint32).tobytes())
        self.files["bytes"].write(num_bytes.astype(np.uint64).tobytes())
        self.num_tokens += len(ids)
        self.num_words, self.num_bytes = int(words[-1]), int(num_bytes[-1])

    def mark(self, token: int) -> None:
        """Append a BOS or EOS, which holds no text."""
        self.append(np.array([token]), np.zeros(1, np.int64), np.zeros(1, np.int64))

    def begin_document(self, bos: int) -> None:
        self.files["documents"].write(np.uint64(self.num_tokens).tobytes())
        self.num_documents += 1
        self.mark(bos)


def _write(
    sources: list[Source],
    backend: tokenizers.Tokenizer,
    tokenizer: PreTrainedTokenizerBase,
    document_boundary: str,
    directory: Path,
    bar: tqdm,
) -> None:
    bos, eos = boundary_tokens(tokenizer)
    largest = max(backend.get_vocab().values())
    dtype = np.uint16 if largest < 2**16 else np.uint32
    lengths = byte_lengths(backend)
    lengths = None if lengths is None else np.array(lengths)
    writer, rows, began = _Writer(directory, dtype), [], time.perf_counter()
    for source in sources:
        boundary = source.boundary(document_boundary)
        row = {"name": source.name, "checksum": source.checksum, "boundary": boundary}
        before = (writer.num_tokens, writer.num_words, writer.num_bytes)
        num_documents = writer.num_documents
        for batch in _batches(source.pieces(boundary)):
            for piece, (ids, words, num_bytes) in zip(
                batch, encode(batch, backend, lengths)
            ):
                if piece.starts_document:
                    if writer.num_documents > num_documents:
                        writer.mark(eos)
                    writer.begin_document(bos)
                writer.append(ids, words, num_bytes)
            bar.update(writer.num_bytes - bar.n)
            seconds = time.perf_counter() - began
            bar.set_postfix_str(f"{writer.num_words / seconds:,.0f} words/s")
        if writer.num_documents > num_documents:
            writer.mark(eos)
        if writer.num_words == before[1]:
            raise UserError(f"{source.name} ({source.reading}) has no text")
        row.update(start=before[0], end=writer.num_tokens)
        row.update(documents=writer.num_documents - num_documents)
        row.update(
            words=writer.num_words - before[1], bytes=writer.num_bytes - before[2]
        )
        rows.append(row)
    for file in writer.files.values():
        file.flush()
        os.fsync(file.fileno())
        file.close()
    info = {
        "version": VERSION,
        "token_type": np.dtype(dtype).name,
        "tokens": writer.num_tokens,
        "documents": writer.num_documents,
        "words": writer.num_words,
        "bytes": writer.num_bytes,
        "files": rows,
        "sizes": {path.name: path.stat().st_size for path in directory.iterdir()},
    }
    (directory / "stream.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    while batch := list(itertools.islice(pieces, BATCH)):
        yield batch


def encode(
    pieces: list[Piece],
    backend: tokenizers.Tokenizer,
    lengths: Optional[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each piece three arrays [num_tokens]: ids, words and bytes that begin in each.

    With `lengths`, the bytes of every id, a token's place in the text is a sum of them;
    without, it is taken from the tokenizer's character offsets, which cost more. Where a
    text has no token at all, the last two arrays are of its characters.
    """
    texts = [piece.text for piece in pieces]
    fast = lengths is not None
    encode_batch = backend.encode_batch_fast if fast else backend.encode_batch
    for piece, encoding in zip(pieces, encode_batch(texts, add_special_tokens=False)):
        ids = np.array(encoding.ids, dtype=np.int64)
        starts, widths = word_starts(piece.text, piece.continues_word)
        places = np.cumsum(widths)  # byte where each character ends
        ends = np.cumsum(lengths[ids]) if fast else None
        if fast and (not len(ids) or ends[-1] != places[-1]):
            # A byte-level vocabulary that lacks some bytes: not all text became tokens.
            encoding = backend.encode(piece.text, add_special_tokens=False)
            ends = None
        if ends is None:
            # A token ends where its last character does; what no token covers (dropped by
            # a normalizer) belongs to the next, or to the last.
            last = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            ends = np.concatenate([[0], places])[np.maximum.accumulate(last)]
        if not len(ids):
            yield ids, starts, widths
            continue
        ends[-1] = places[-1]
        first_bytes = (places - widths)[starts]
        holders = np.searchsorted(ends, first_bytes, side="right")
        words = np.bincount(holders, minlength=len(ids))
        yield ids, words, np.diff(ends, prepend=0)


def word_starts(text: str, continues_word: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays [num_characters]: whether a word begins there; bytes of the character.

    A word is what `str.split()` gives: a run of characters that are not `str.isspace()`.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    white = (codes <= 0x3000) & WHITE_SPACE[np.minimum(codes, 0x3000)]
    before = np.concatenate([[not continues_word], white[:-1]])
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return ~white & before, widths.astype(np.int64)
