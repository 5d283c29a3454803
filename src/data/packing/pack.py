"""The packing of text into a stream of tokens (`stream.py`), in the cache's folder `packed`.

The ids are those that the tokenizer gives for whole documents. A long document is encoded in
windows, which overlap: each holds a piece of the document and some text before and after it.
Where two pieces meet, both windows must give the same tokens; otherwise the pieces are joined.
(A Unigram model leaves the choice between two splits of equal probability to the rounding of
sums over the whole text. There, as in a letter repeated hundreds of times, a window may choose
the other split.)
"""

import functools
import hashlib
import itertools
import logging
import os
import re
from collections import Counter, deque
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
from src.data.text.documents import CONTEXT, Piece, join
from src.data.text.words import word_starts
from src.foundation import UserError, counted

logger = logging.getLogger(__name__)

# How special tokens of language models are usually written.
SPECIAL_TOKEN = (
    r"<\|\w+\|>|</s>|<(?:s|pad|unk|bos|eos|mask)>|\[(?:PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]"
)


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
        special = [*map(re.escape, tokenizer.all_special_tokens), SPECIAL_TOKEN]
        self.special_token = re.compile("|".join(special))

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
        digest = hashlib.sha256(self.description.encode()).hexdigest()
        texts = [source.identity for source in sources]
        names = [source.name for source in sources]
        stream = self.cache.get(
            "packed",
            [VERSION, digest, self.bos_eos, self.document_boundary, texts],
            lambda folder: Stream(folder, names),
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
        before = writer.totals.copy()
        loss = None
        special_tokens: Counter[str] = Counter()
        for packed in self._packed_pieces(source, boundary):
            loss = loss or packed.loss
            if loss and not self.lossy:
                raise _loss_error(source.name, loss)
            writer.append(packed)
            special_tokens.update(packed.special_tokens)
            bar.update(packed.totals["bytes"])
        writer.end_document()
        sizes = {name: total - before[name] for name, total in writer.totals.items()}
        if not sizes["words"]:
            raise UserError(f"{source.where} has no text")
        separated = sizes["separators"] or boundary == "line"
        return {
            "boundary": boundary if separated else source.unit,
            "start": before["tokens"],
            "end": before["tokens"] + sizes.pop("tokens"),
            **sizes,
            "loss": loss,
            "special_tokens": special_tokens,
        }

    def _packed_pieces(self, source: Source, boundary: str) -> Iterator[PackedPiece]:
        """Yield all pieces in order. Where two do not have the same tokens, join them."""
        pieces = source.pieces(boundary)
        first = next(pieces, Piece("", []))
        encoder = self.encoder.checked(first.split())
        last, size = None, 0
        for piece, packed in self._in_threads(
            encoder, itertools.chain([first], pieces)
        ):
            if last is not None and last[1] is not None and _meet(*last, packed):
                yield last[1]
            elif last is not None:
                piece, packed = join([last[0], piece]), None
                # Each attempt is twice as long, so that all take linear time.
                if not piece.after or len(piece.text) >= 2 * size:
                    packed = self._pack(piece, encoder)
            size = size if packed is None else len(piece.text)
            last = piece, packed
        yield last[1]

    def _in_threads(
        self, encoder: Encoder, pieces: Iterator[Piece]
    ) -> Iterator[tuple[Piece, PackedPiece]]:
        """Yield each piece and its tokens. Threads pack them."""
        waiting: deque[tuple[Piece, Future]] = deque()
        with ThreadPoolExecutor(self.num_workers) as pool:
            for piece in pieces:
                waiting.append((piece, pool.submit(self._pack, piece, encoder)))
                # Two pieces per thread: no thread waits, and the memory stays bounded.
                if len(waiting) > 2 * self.num_workers:
                    piece, future = waiting.popleft()
                    yield piece, future.result()
            for piece, future in waiting:
                yield piece, future.result()

    def _pack(self, piece: Piece, encoder: Encoder) -> PackedPiece:
        """Encode a piece and count the words and bytes before the end of each token.

        The tokens are those of whole documents: the piece is encoded with the text before and
        after it, and the tokens of that text are left out.
        """
        data, texts = piece.text.encode(), piece.split()
        # The first text may be the rest of a document that begins in another piece.
        rest = len(texts) - len(piece.documents)
        texts[0] = piece.before + texts[0]
        texts[-1] += piece.after
        ids, ends, tokens, starts, loss = encoder.encode(texts)
        shift = len(piece.before.encode())
        ends, starts = ends - shift, starts[rest:] - shift
        seams = [_around(ids, ends - seam) for seam in (0, len(data))]
        # A token belongs to the piece with its last byte.
        first = np.searchsorted(ends, 0, side="right") if piece.before else 0
        inside = slice(first, np.searchsorted(ends, len(data), side="right"))
        words = np.zeros(len(data) + 1, np.int64)  # those that begin before each byte
        np.cumsum(word_starts(data, piece.continues_word, starts), out=words[1:])
        documents = np.stack([tokens[rest:] - first, words[starts], starts], axis=1)
        totals = dict(
            documents=len(documents),
            words=int(words[-1]),
            bytes=len(data),
            separators=piece.num_separators,
            empty_texts=piece.num_empty_texts,
        )
        special = Counter(self.special_token.findall(piece.text))
        ids, ends = ids[inside], ends[inside]
        sums = words[ends], ends
        return PackedPiece(ids, *sums, documents, totals, loss, seams, special)

    def _warn(self, row: dict[str, Any]) -> None:
        """Log warnings for lost or skipped text of a source, and for missing boundaries."""
        name, boundary = row["name"], self.document_boundary
        if row["loss"]:
            logger.warning(
                f"tokenizer.lossy=true: in {name} {_change(row['loss'])}; scores per byte"
                " and per word ignore what is lost"
            )
        if boundary not in ("auto", "line", "file") and not row["separators"]:
            unit = "it" if row["boundary"] == "file" else "every row"
            logger.warning(
                f"data.document_boundary={boundary}: {name} has none; {unit} is one document"
            )
        for token, count in row["special_tokens"].items():
            logger.warning(
                f"{name}: the special token {token} is written {counted(count, 'time')} in"
                " the text; it is packed as characters and counted as a word. If it separates"
                f" documents, set \"data.document_boundary='{token}'\""
            )
        if skipped := row["empty_texts"]:
            logger.warning(f"{name}: skipped {counted(skipped, 'row')} without text")


def num_cores() -> int:
    """Return the number of cores that this process may use. Clusters limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _around(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the ids and ends [2, n] of the tokens that end near byte 0."""
    near = np.abs(ends) <= CONTEXT // 2
    return np.stack([ids[near].astype(np.int64), ends[near]])


def _meet(piece: Piece, packed: PackedPiece, following: PackedPiece) -> bool:
    """Return whether a piece and the next have the same tokens around the place between them."""
    end, start = packed.seams[1], following.seams[0]
    return not piece.after or (end.size > 0 and np.array_equal(end, start))


def _loss_error(name: str, loss: Loss) -> UserError:
    return UserError(
        f"tokenizer: its tokens do not decode to the text of {name}: {_change(loss)}; to"
        " allow it: tokenizer.lossy=true"
    )


def _change(loss: Loss) -> str:
    """Return `'text' becomes 'decoded text'`."""
    return " becomes ".join(map(repr, loss.values()))
