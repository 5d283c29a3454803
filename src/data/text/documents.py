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
    """Consecutive text of about `PIECE_LENGTH` characters, and the documents in it."""

    texts: list[str]  # the text in parts, which are tokenized separately
    documents: list[int]  # offsets in `text`, in characters, where documents begin
    continues_word: bool  # the previous piece ended inside a word
    num_separators: int
    num_empty_texts: int  # texts without words, which were skipped
    # The text around the piece, if its first document begins or its last one ends outside.
    before: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        """The text of the piece as one string."""
        return "".join(self.texts)

    def split(self) -> list[str]:
        """Return the documents; the first may begin, and the last may end, in other pieces."""
        text = self.text
        edges = sorted({0, *self.documents, len(text)})
        return [text[start:end] for start, end in zip(edges, edges[1:])]

    def joined(self, other: "Piece") -> "Piece":
        """Return one piece that consists of this one and the next."""
        size = len(self.text)
        return self._replace(
            texts=self.texts + other.texts,
            documents=self.documents + [size + start for start in other.documents],
            num_separators=self.num_separators + other.num_separators,
            num_empty_texts=self.num_empty_texts + other.num_empty_texts,
            after=other.after,
        )


class Boundaries:
    """A scanner for document boundaries in one text that it gets in parts.

    A part ends at a line end, or inside a line that is longer than a part. A separator
    belongs to the document before it. White space alone is not a document.

    Args:
        kind: A key of `SEPARATORS`.
    """

    def __init__(self, kind: str):
        self.kind, self.separator = kind, SEPARATORS[kind]
        self.num_found = 0
        # The end of the previous part, where a separator may begin.
        self._before = "\n"
        self._has_content = False

    def starts(self, part: str) -> list[int]:
        """Return the offsets in the next part at which documents begin, except the first."""
        shift = len(self._before)
        starts = [m.end() - shift for m in self.separator.finditer(self._before + part)]
        # A separator at the end of the part counts only if text follows in the next one.
        pending = starts and not part[starts[-1] :].strip()
        starts = starts[:-1] if pending else starts
        self._before = "\n\n" if pending else "\n" if part.endswith("\n") else ""
        num_separators = len(starts)
        if not self._has_content:
            first = re.search(r"\S", part)
            self._has_content = first is not None
            starts = [start for start in starts if first and start > first.start()]
        # The heading of the first document counts, too: it shows that the text has headings.
        self.num_found += num_separators if self.kind == "heading" else len(starts)
        return starts


def find_boundary(texts: Iterable[Iterator[str]]) -> str:
    """Return the boundary between the documents of some texts, which come in parts.

    It is `heading` if there is any heading, else `blank_line` if there is any, else `file`.
    """
    boundary = "file"
    for parts in texts:
        headings, blank_lines = Boundaries("heading"), Boundaries("blank_line")
        for part in parts:
            headings.starts(part)
            if headings.num_found:
                return "heading"
            if blank_lines.starts(part):
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


def split_at(text: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text without the separators, and whether one came before each part.

    A line end that follows a separator belongs to it.
    """
    rest, separated = "", False
    for part in itertools.chain(text, [None]):
        is_end = part is None
        following = r"\n?" if is_end else r"(?:\n|(?!\Z))"
        text_so_far = rest if is_end else rest + part
        *documents, rest = re.split(re.escape(separator) + following, text_so_far)
        for document in documents:
            yield document, separated
            separated = True
        # Hold back the end of the part, where a separator may begin.
        is_line = not is_end and part.endswith("\n") and "\n" not in separator
        length = len(rest) - (0 if is_end or is_line else len(separator))
        if length > 0 or is_end:
            yield rest[:length], separated
            rest, separated = rest[length:], False


def cut(texts: Iterable[Iterator[str]], boundary: str) -> Iterator[Piece]:
    """Yield the pieces of some texts. Joined, the pieces are the texts.

    Each text begins a document. A text without words is skipped and counted.

    Args:
        texts: Iterators over the parts of each text (see `read_parts`).
        boundary: What separates documents inside a text: a key of `SEPARATORS`, or a string,
            which is left out, as is a document of white space.
    """
    parts, documents, size, inside_word = [], [], 0, False
    num_separators = num_empty = 0
    for text in texts:
        is_kind = boundary in SEPARATORS
        boundaries, before = Boundaries(boundary if is_kind else "file"), 0
        first = next(text, None)
        if first is None:
            num_empty += 1
            continue
        whole = itertools.chain([first], text)
        begins_document = True
        for part, separated in (
            zip(whole, itertools.repeat(False))
            if is_kind
            else split_at(whole, boundary)
        ):
            num_separators += separated
            begins_document |= separated
            if not part or (begins_document and not is_kind and part.isspace()):
                continue
            if begins_document:
                documents.append(size)
                inside_word = inside_word and size > 0
                begins_document = False
            documents += [size + start for start in boundaries.starts(part)]
            num_separators += boundaries.num_found - before
            before = boundaries.num_found
            parts.append(part)
            size += len(part)
            if size >= PIECE_LENGTH:
                yield Piece(parts, documents, inside_word, num_separators, num_empty)
                parts, documents, size, num_separators, num_empty = [], [], 0, 0, 0
                inside_word = not part[-1].isspace()
    if parts or num_empty or num_separators:
        yield Piece(parts, documents, inside_word, num_separators, num_empty)


def with_context(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces with the text of their documents before and after them."""
    previous = None
    for piece in pieces:
        if previous is not None:
            after = piece.text[: min([CONTEXT, *piece.documents])]
            yield previous._replace(after=after)
            if after:
                text, starts = previous.text, previous.documents
                text = text[starts[-1] :] if starts else previous.before + text
                piece = piece._replace(before=text[-CONTEXT:])
        previous = piece
    if previous is not None:
        yield previous
