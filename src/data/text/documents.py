"""The cutting of text into documents, and into the pieces that are tokenized."""

import itertools
import re
from typing import Iterable, Iterator, NamedTuple, TextIO

# The number of characters that are read, tokenized and written together. Each line is tokenized
# by itself, so the ends of pieces change tokens only in lines that are longer than a piece.
PIECE_LENGTH = 32_768

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


class Piece(NamedTuple):
    """Consecutive text of about `PIECE_LENGTH` characters, and the documents in it."""

    texts: list[str]  # the text in parts, which are tokenized separately
    documents: list[int]  # offsets in `text`, in characters, where documents begin
    continues_word: bool  # the previous piece ended inside a word
    num_separators: int
    num_empty_texts: int  # texts without words, which were skipped

    @property
    def text(self) -> str:
        """The text of the piece as one string."""
        return "".join(self.texts)


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


def cut(texts: Iterable[Iterator[str]], boundary: str) -> Iterator[Piece]:
    """Yield the pieces of some texts. Joined, the pieces are the texts.

    Each text begins a document. A text without words is skipped and counted.

    Args:
        texts: Iterators over the parts of each text (see `read_parts`).
        boundary: The separator of documents inside a text: a key of `SEPARATORS`.
    """
    parts, documents, size, inside_word = [], [], 0, False
    num_separators = num_empty = 0
    for text in texts:
        boundaries, before = Boundaries(boundary), 0
        first = next(text, None)
        if first is None:
            num_empty += 1
            continue
        documents.append(size)
        inside_word = inside_word and size > 0
        for part in itertools.chain([first], text):
            documents += [size + start for start in boundaries.starts(part)]
            num_separators += boundaries.num_found - before
            before = boundaries.num_found
            parts.append(part)
            size += len(part)
            if size >= PIECE_LENGTH:
                yield Piece(parts, documents, inside_word, num_separators, num_empty)
                parts, documents, size, num_separators, num_empty = [], [], 0, 0, 0
                inside_word = not part[-1].isspace()
    if parts or num_empty:
        yield Piece(parts, documents, inside_word, num_separators, num_empty)
