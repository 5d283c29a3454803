"""Text into a stream of tokens (`stream.py`), cached under `<cache_dir>/packed/`."""

import functools
import hashlib
import json
import logging
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Optional

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from src.data.packing.cache import build_once
from src.data.packing.encoding import Encoder, Loss
from src.data.packing.stream import VERSION, Stream, StreamWriter, open_stream
from src.data.packing.tokenizer import boundary_tokens
from src.data.text.corpus import Source
from src.data.text.documents import Piece
from src.data.text.words import word_starts
from src.foundation import UserError

logger = logging.getLogger(__name__)


class Packed(NamedTuple):
    """A piece as tokens: ids [n]; words and bytes that begin before the end of each [n].

    `documents`: [num_documents, 3] tokens, words and bytes before each document's beginning.
    """

    ids: np.ndarray
    words: np.ndarray
    bytes: np.ndarray
    documents: np.ndarray
    num_words: int
    num_bytes: int
    loss: Optional[Loss]


def pack(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    document_boundary: str,
    cache_dir: Path,
    lossy: bool = False,
    num_workers: Optional[int] = None,
    overwrite: bool = False,
    progress: bool = False,
    description: str = "text",
) -> Stream:
    """The stream of `sources`, from the cache or packed now; complete or absent.

    The key holds what determines the bytes: the texts' checksums, the tokenizer, the chosen
    boundary and `VERSION`. Runs that start together build it once; `num_workers` threads
    (null: one a core) make no difference to it.

    Raises `UserError` where a source has no text, or the tokenizer does not give a text back
    when its tokens are decoded, unless `lossy`.
    """
    encoder, special = Encoder(tokenizer), boundary_tokens(tokenizer)
    key = _key(sources, encoder, special, document_boundary)

    num_workers = num_workers or num_cores()

    def build(temporary: Path) -> None:
        logger.info("Packing the %s …", description)
        bar = tqdm(
            desc=f"Packing the {description}", total=sum(s.size for s in sources),
            unit="B", unit_scale=True, disable=None if progress else True,
        )  # fmt: skip
        writer = StreamWriter(temporary, max(encoder.max_id, *special), *special)
        encoder.prepare()  # once, not by every thread
        with bar, ThreadPoolExecutor(num_workers) as pool:
            # Two pieces a thread: none waits for the next, and memory stays bounded.
            in_order = functools.partial(_in_order, pool, encoder, 2 * num_workers)
            rows = [
                _write(source, document_boundary, lossy, writer, in_order, bar)
                for source in sources
            ]
        writer.close(rows)

    stream = build_once(cache_dir / "packed" / key, open_stream, build, overwrite)
    stream.name_files([source.name for source in sources])
    words, tokens = f"{stream.info['words']:,}", f"{len(stream):,}"
    logger.info("The %s has %s words, %s tokens", description, words, tokens)
    _report(stream, document_boundary, lossy)
    return stream


def num_cores() -> int:
    """Cores that this process may use (a cluster gives it a few of the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(
    sources: list[Source], encoder: Encoder, special: tuple, document_boundary: str
) -> str:
    tokenizer = hashlib.sha256(encoder.description.encode()).hexdigest()
    texts = [source.identity for source in sources]
    parts = [VERSION, tokenizer, special, document_boundary, texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _write(
    source: Source,
    document_boundary: str,
    lossy: bool,
    writer: StreamWriter,
    in_order: Callable[[Iterable[Piece]], Iterator[tuple[Piece, Packed]]],
    bar: tqdm,
) -> dict:
    """Append a source to the stream. Returns its row for stream.json."""
    boundary = source.boundary(document_boundary)
    before, began = writer.totals(), time.perf_counter()
    num_separators = num_empty_texts = 0
    loss = None
    for piece, packed in in_order(source.pieces(boundary)):
        loss = loss or packed.loss
        if loss and not lossy:
            _refuse_loss(source.name, *loss)
        writer.append(*packed[:6])
        num_separators += piece.num_separators
        num_empty_texts += piece.num_empty_texts
        bar.update(packed.num_bytes)
        words = writer.num_words - before["words"]
        speed = words / (time.perf_counter() - began)
        bar.set_postfix_str(f"{speed:,.0f} words/s", refresh=False)
    writer.end_document()
    after = writer.totals()
    found = boundary if num_separators or boundary == "line" else source.unit
    row = dict(boundary=found, start=before["tokens"], end=after["tokens"])
    row.update({k: after[k] - before[k] for k in ("documents", "words", "bytes")})
    row.update(separators=num_separators, empty_texts=num_empty_texts)
    row["loss"] = loss and loss._asdict()
    if not row["words"]:
        raise UserError(f"{source.where or source.name} has no text")
    return row


def _in_order(
    pool: ThreadPoolExecutor, encoder: Encoder, limit: int, pieces: Iterable[Piece]
) -> Iterator[tuple[Piece, Packed]]:
    """Every piece, packed by the pool's threads; at most `limit` wait to be written."""
    waiting: deque[tuple[Piece, Future]] = deque()
    for piece in pieces:
        waiting.append((piece, pool.submit(pack_piece, piece, encoder)))
        if len(waiting) > limit:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def pack_piece(piece: Piece, encoder: Encoder) -> Packed:
    """Tokens of a piece, and the words and bytes before each token's end."""
    ids, ends, loss = encoder.encode(piece.texts)
    text = piece.text
    starts = _in_bytes(text, piece.documents)
    data = text.encode()
    words = np.zeros(len(data) + 1, np.int64)  # that begin before each byte
    np.cumsum(word_starts(data, piece.continues_word, starts), out=words[1:])
    documents = np.stack(
        [np.searchsorted(ends, starts, side="right"), words[starts], starts], axis=1
    )
    documents[starts == 0, 0] = 0  # before a token that stands for no byte
    return Packed(ids, words[ends], ends, documents, int(words[-1]), len(data), loss)


def _in_bytes(text: str, places: list[int]) -> np.ndarray:
    """Characters of a text → bytes of its UTF-8; ascending [n]."""
    if text.isascii():
        return np.array(places, np.int64)
    edges = zip([0, *places], places)
    widths = [len(text[start:end].encode()) for start, end in edges]
    return np.cumsum(np.array(widths, np.int64))


def _refuse_loss(name: str, text: str, decoded: str) -> None:
    raise UserError(
        f"tokenizer: it does not give the text of {name} back: {_short(text)} becomes"
        f" {_short(decoded)}; if that is meant: tokenizer.lossy=true"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _report(stream: Stream, document_boundary: str, lossy: bool) -> None:
    """Warn of what was asked for and not found; refuse a loss that another run allowed."""
    for row in stream.files:
        if row["loss"] and not lossy:
            _refuse_loss(row["name"], **row["loss"])
        if row["loss"]:
            logger.warning(
                "tokenizer.lossy=true: in %s %s becomes %s; figures a byte or a word leave"
                " out what is lost",
                row["name"],
                *map(_short, row["loss"].values()),
            )
        if document_boundary in ("blank_line", "heading") and not row["separators"]:
            logger.warning(
                "data.document_boundary=%s: %s has none; it is %s",
                document_boundary,
                row["name"],
                "one document" if row["boundary"] == "file" else "cut at its rows only",
            )
        if row["empty_texts"]:
            logger.warning(
                "%s: %s rows without text were passed over",
                row["name"],
                f"{row['empty_texts']:,}",
            )
