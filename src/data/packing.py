"""Text into a stream of tokens (`stream.py`), cached under `<cache_dir>/packed/`."""

import hashlib
import itertools
import json
import time
from pathlib import Path
from typing import Iterator, Optional

import numpy as np
import tokenizers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from src.arguments import UserError
from src.data.cache import build_once
from src.data.corpus import Source
from src.data.documents import Piece
from src.data.stream import VERSION, Stream, StreamWriter, is_whole
from src.data.tokenizer import boundary_tokens, byte_lengths, plain

BATCH = 256  # pieces tokenized at once: about 4 MB of text

WHITE_SPACE = np.array([chr(code).isspace() for code in range(0x3001)])


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
            disable=None if progress else True,
        ) as bar:
            _write(sources, backend, tokenizer, document_boundary, temporary, bar)

    build_once(directory, is_whole, build, overwrite)
    return Stream(directory)


def _write(
    sources: list[Source],
    backend: tokenizers.Tokenizer,
    tokenizer: PreTrainedTokenizerBase,
    document_boundary: str,
    directory: Path,
    bar: tqdm,
) -> None:
    lengths = byte_lengths(backend)
    lengths = None if lengths is None else np.array(lengths)
    max_id = max(backend.get_vocab().values())
    writer = StreamWriter(directory, max_id, *boundary_tokens(tokenizer))
    rows, began = [], time.perf_counter()
    for source in sources:
        before = writer.totals()
        boundary = source.boundary(document_boundary)
        for batch in _batches(source.pieces(boundary)):
            for piece, arrays in zip(batch, encode(batch, backend, lengths)):
                if piece.starts_document:
                    writer.begin_document()
                writer.append(*arrays)
            bar.update(writer.num_bytes - bar.n)
            speed = writer.num_words / (time.perf_counter() - began)
            bar.set_postfix_str(f"{speed:,.0f} words/s")
        writer.end_document()
        after = writer.totals()
        row = {"name": source.name, "checksum": source.checksum, "boundary": boundary}
        row.update(start=before["tokens"], end=after["tokens"])
        row.update({k: after[k] - before[k] for k in ("documents", "words", "bytes")})
        if not row["words"]:
            raise UserError(f"{source.name} ({source.reading}) has no text")
        rows.append(row)
    writer.close(rows)


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
