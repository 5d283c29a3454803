"""The packing of text into a stream of tokens (`stream.py`), in the cache's folder `packed`."""

import functools
import hashlib
import logging
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from src.data.cache import Cache
from src.data.packing.encoding import Encoder, Loss, plain_json
from src.data.packing.stream import VERSION, PackedPiece, Stream, StreamWriter
from src.data.packing.tokenizer import boundary_tokens
from src.data.text.corpus import Source, reading_bar
from src.data.text.documents import Piece
from src.data.text.words import word_starts
from src.foundation import UserError

logger = logging.getLogger(__name__)


class Packer:
    """A packer of text with one tokenizer.

    Args:
        tokenizer: Encodes the text and gives the ids of BOS and EOS.
        document_boundary: The value of `data.document_boundary`.
        cache: The cache that keeps the streams.
        lossy: Allow a tokenizer whose ids do not decode to the same text.
        num_workers: The number of threads that encode; None: one per core. It does not change
            the stream.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        document_boundary: str,
        cache: Cache,
        lossy: bool = False,
        num_workers: Optional[int] = None,
    ):
        self.description = plain_json(tokenizer)
        self.bos_eos = boundary_tokens(tokenizer)
        self.document_boundary, self.cache, self.lossy = document_boundary, cache, lossy
        self.num_workers = num_workers or num_cores()

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder. It is built at its first use, because cached streams need none."""
        return Encoder(self.description)

    def pack(self, sources: list[Source], title: str = "text") -> Stream:
        """Return the stream of `sources` from the cache; pack them first if it is missing.

        The key in the cache is made of everything that determines the bytes: the checksums of
        the texts, the tokenizer, the chosen boundary and `VERSION`.

        Args:
            title: The name of the text in messages.

        Raises:
            UserError: A source has no text, or the tokenizer loses some of it.
        """
        stream = self.cache.get(
            "packed",
            [
                VERSION,
                hashlib.sha256(self.description.encode()).hexdigest(),
                self.bos_eos,
                self.document_boundary,
                [source.identity for source in sources],
            ],
            lambda folder: Stream.open(folder, [source.name for source in sources]),
            lambda folder: self._build(sources, title, folder),
        )
        words, tokens = stream.info["words"], len(stream)
        logger.info(f"The {title} has {words:,} words, {tokens:,} tokens")
        for row in stream.files:
            if row["loss"] and not self.lossy:  # cached by a run with `lossy`
                raise _loss_error(row["name"], row["loss"])
            self._warn(row)
        return stream

    def _build(self, sources: list[Source], title: str, directory: Path) -> None:
        """Pack the sources into the files of a stream in an empty directory."""
        logger.info("Packing the %s …", title)
        writer = StreamWriter(directory, self.encoder.max_id, *self.bos_eos)
        with reading_bar(f"Packing the {title}", sources, self.cache.progress) as bar:
            writer.close([self._append(source, writer, bar) for source in sources])

    def _append(
        self, source: Source, writer: StreamWriter, bar: tqdm
    ) -> dict[str, Any]:
        """Append a source to the stream and return its row for stream.json."""
        boundary = source.boundary(self.document_boundary)
        before = dict(writer.totals)
        num_separators, num_empty_texts, loss = 0, 0, None
        for packed in self._packed_pieces(source, boundary):
            loss = loss or packed.loss
            if loss and not self.lossy:
                raise _loss_error(source.name, loss)
            writer.append(packed)
            num_separators += packed.num_separators
            num_empty_texts += packed.num_empty_texts
            bar.update(packed.num_bytes)
        writer.end_document()
        sizes = {name: writer.totals[name] - before[name] for name in before}
        if not sizes["words"]:
            raise UserError(f"{source.where} has no text")
        separated = num_separators or boundary == "line"
        return {
            "boundary": boundary if separated else source.unit,
            "start": before["tokens"],
            "end": before["tokens"] + sizes.pop("tokens"),
            **sizes,
            "separators": num_separators,
            "empty_texts": num_empty_texts,
            "loss": loss,
        }

    def _packed_pieces(self, source: Source, boundary: str) -> Iterator[PackedPiece]:
        """Yield all pieces in order. Threads pack them."""
        waiting: deque[Future] = deque()
        with ThreadPoolExecutor(self.num_workers) as pool:
            for piece in source.pieces(boundary):
                waiting.append(pool.submit(pack_piece, piece, self.encoder))
                # Two pieces per thread: no thread waits, and the memory stays bounded.
                if len(waiting) > 2 * self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _warn(self, row: dict[str, Any]) -> None:
        """Log warnings for lost or skipped text of a source, and for missing boundaries."""
        name, boundary = row["name"], self.document_boundary
        if row["loss"]:
            logger.warning(
                f"tokenizer.lossy=true: in {name} {_change(row['loss'])}; scores per byte"
                " and per word ignore what is lost"
            )
        if boundary in ("blank_line", "heading") and not row["separators"]:
            unit = "it" if row["boundary"] == "file" else "every row"
            logger.warning(
                f"data.document_boundary={boundary}: {name} has none; {unit} is one document"
            )
        if skipped := row["empty_texts"]:
            logger.warning(f"{name}: {skipped:,} rows without text were skipped")


def num_cores() -> int:
    """Return the number of cores that this process may use. Clusters limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pack_piece(piece: Piece, encoder: Encoder) -> PackedPiece:
    """Encode a piece and count the words and bytes before the end of each token."""
    ids, ends, loss = encoder.encode(piece.texts)
    text = piece.text
    starts = _byte_offsets(text, piece.documents)
    data = text.encode()
    words = np.zeros(
        len(data) + 1, np.int64
    )  # number of words that begin before a byte
    np.cumsum(word_starts(data, piece.continues_word, starts), out=words[1:])
    documents = np.stack(
        [np.searchsorted(ends, starts, side="right"), words[starts], starts], axis=1
    )
    documents[starts == 0, 0] = 0  # even if the first token stands for no byte
    sizes = int(words[-1]), len(data), piece.num_separators, piece.num_empty_texts
    return PackedPiece(ids, words[ends], ends, documents, *sizes, loss)


def _byte_offsets(text: str, offsets: list[int]) -> np.ndarray:
    """Convert ascending offsets [n] in characters to offsets in the text's UTF-8."""
    if text.isascii():
        return np.array(offsets, np.int64)
    edges = zip([0, *offsets], offsets)
    widths = [len(text[start:end].encode()) for start, end in edges]
    return np.cumsum(np.array(widths, np.int64))


def _loss_error(name: str, loss: Loss) -> UserError:
    return UserError(
        f"tokenizer: its tokens do not decode to the text of {name}: {_change(loss)}; to"
        " allow it: tokenizer.lossy=true"
    )


def _change(loss: Loss) -> str:
    """Return `'text' becomes 'decoded text'`, each cut to 60 characters."""
    short = [text if len(text) <= 60 else text[:60] + "…" for text in loss.values()]
    return " becomes ".join(map(repr, short))
