"""The cutting of text into documents, and into the pieces that are tokenized."""

import itertools
import re
from typing import Iterable, Iterator, NamedTuple, TextIO

# The number of characters that are read, tokenized and written together.
PIECE_LENGTH = 32_768
# The characters before and after a piece that are tokenized with it, if its document goes on.
CONTEXT = 512

LINE = re.compile(r"[^\n]*\n|[^\n]+")
# The separators between two documents. A match ends where the second document begins.
SEPARATORS = {
    "blank_line": re.compile(r"\n\s*\n"),
    "heading": re.compile(
        r"\n(?=[^\S\n]*= = = (?!=)[^\n]*(?<![= ]) = = =[^\S\n]*(?:\n|\Z))"
    ),
    "line": re.compile(r"\n(?=[^\S\n]*\S)"),
    "file": re.compile(r"(?!)"),
}
BOUNDARIES = ("auto", *SEPARATORS)  # any other `data.document_boundary` is a separator


class Piece(NamedTuple):
    """Consecutive text, and the documents in it."""

    text: str
    documents: list[int]  # offsets in `text`, in characters, where documents begin
    num_separators: int = 0
    num_empty_texts: int = 0  # texts without words, which were skipped
    # The text around the piece, if its first document begins or its last one ends outside.
    before: str = ""
    after: str = ""

    @property
    def continues_word(self) -> bool:
        """True if the piece begins inside a word."""
        return self.before != "" and not self.before[-1].isspace()

    def split(self) -> list[str]:
        """Return the documents; the first may begin, and the last may end, in other pieces."""
        edges = [0, *filter(None, self.documents), len(self.text)]
        return [self.text[start:end] for start, end in zip(edges, edges[1:])]


def join(pieces: list[Piece]) -> Piece:
    """Return one piece that consists of consecutive ones."""
    offsets = itertools.accumulate((len(piece.text) for piece in pieces), initial=0)
    return Piece(
        "".join(piece.text for piece in pieces),
        [at + start for at, piece in zip(offsets, pieces) for start in piece.documents],
        sum(piece.num_separators for piece in pieces),
        sum(piece.num_empty_texts for piece in pieces),
        pieces[0].before,
        pieces[-1].after,
    )


def split_by_kind(text: Iterable[str], kind: str) -> Iterator[Piece]:
    """Yield the parts of a text as pieces. The first one begins a document.

    A part ends at a line end, or inside a line that is longer than a part. A separator
    belongs to the document before it. White space alone is not a document.

    Args:
        kind: A key of `SEPARATORS`.
    """
    # The end of the previous part, where a separator may begin.
    before, first_start, has_content = "\n", [0], False
    for part in text:
        matches = SEPARATORS[kind].finditer(before + part)
        starts = [match.end() - len(before) for match in matches]
        # A separator at the end of the part counts only if text follows in the next one.
        pending = starts and not part[starts[-1] :].strip()
        starts = starts[:-1] if pending else starts
        before = "\n\n" if pending else "\n" if part.endswith("\n") else ""
        # The heading of the first document counts: it shows that the text has headings.
        num_headings = len(starts)
        if not has_content:
            first = re.search(r"\S", part)
            has_content = first is not None
            starts = [start for start in starts if first and start > first.start()]
        num_separators = num_headings if kind == "heading" else len(starts)
        yield Piece(part, first_start + starts, num_separators)
        first_start = []


def split_by_string(text: Iterable[str], separator: str) -> Iterator[Piece]:
    """Yield the parts of a text as pieces, without the separators.

    A line end that follows a separator belongs to it. A document of white space is left out.
    """
    rest, begins_document = "", True
    for part in itertools.chain(text, [None]):
        is_end = part is None
        following = r"\n?" if is_end else r"(?:\n|(?!\Z))"
        text_so_far = rest if is_end else rest + part
        *documents, rest = re.split(re.escape(separator) + following, text_so_far)
        # Hold back the end of the part, where a separator may begin.
        is_line = not is_end and part.endswith("\n") and "\n" not in separator
        size = len(rest) if is_end or is_line else max(0, len(rest) - len(separator))
        last, rest = rest[:size], rest[size:]
        kept, starts = "", []
        for number, document in enumerate([*documents, last]):
            begins_document |= number > 0
            if document and not (begins_document and document.isspace()):
                starts += [len(kept)] * begins_document
                kept += document
                begins_document = False
        yield Piece(kept, starts, len(documents))


def find_boundary(texts: Iterable[Iterator[str]]) -> str:
    """Return the boundary between the documents of some texts, which come in parts.

    It is `heading` if there is any heading, else `blank_line` if there is any, else `file`.
    """
    boundary = "file"
    for text in texts:
        first, second = itertools.tee(text)
        by_kind = split_by_kind(first, "heading"), split_by_kind(second, "blank_line")
        for by_heading, by_blank_line in zip(*by_kind):
            if by_heading.num_separators:
                return "heading"
            if by_blank_line.num_separators:
                boundary = "blank_line"
    return boundary


def read_parts(file: TextIO) -> Iterator[str]:
    """Yield a text in parts of about `PIECE_LENGTH` characters, to bound the memory.

    A part ends at a line end. A line longer than a part is cut before a space, or anywhere if
    it has no space.
    """
    rest = ""
    while text := file.read(PIECE_LENGTH):
        end_of_line = file.readline(PIECE_LENGTH)
        text = rest + text + end_of_line
        rest = ""
        if len(end_of_line) == PIECE_LENGTH and not text.endswith("\n"):
            end = max(text.rfind("\n") + 1, text.rfind(" ", text.rfind("\n") + 2))
            if end > 0:
                text, rest = text[:end], text[end:]
        yield text
    if rest:
        yield rest


def cut(texts: Iterable[Iterator[str]], boundary: str) -> Iterator[Piece]:
    """Yield the pieces of some texts. Joined, the pieces are the texts.

    A piece has about `PIECE_LENGTH` characters. It comes with the text of its documents before
    and after it. Each text begins a document. A text without words is skipped and counted.

    Args:
        texts: Iterators over the parts of each text (see `read_parts`).
        boundary: What separates documents inside a text: a key of `SEPARATORS`, or a string,
            which is left out, as is a document of white space.
    """
    previous = None
    # The last piece is not yielded. It begins a document, so no text follows the one before.
    for piece in itertools.chain(_in_pieces(texts, boundary), [Piece("", [0])]):
        if previous is not None:
            after = piece.text[: min([CONTEXT, *piece.documents])]
            if after:
                *_, text = previous.split()
                text = text if previous.documents else previous.before + text
                piece = piece._replace(before=text[-CONTEXT:])
            yield previous._replace(after=after)
        previous = piece


def _in_pieces(texts: Iterable[Iterator[str]], boundary: str) -> Iterator[Piece]:
    """Yield the pieces without the text around them."""
    split = split_by_kind if boundary in SEPARATORS else split_by_string
    pieces, size = [], 0
    for text in texts:
        first_part = next(text, None)
        if first_part is None:
            pieces.append(Piece("", [], num_empty_texts=1))
            continue
        for piece in split(itertools.chain([first_part], text), boundary):
            pieces.append(piece)
            size += len(piece.text)
            if size >= PIECE_LENGTH:
                yield join(pieces)
                pieces, size = [], 0
    if pieces:
        yield join(pieces)
