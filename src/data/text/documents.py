"""Documents and pieces: where a text is cut before it is tokenized."""

import itertools
import re
from typing import Iterable, Iterator, NamedTuple, TextIO

# Characters that are read, tokenized and written at once. A line is tokenized by itself, so
# that where a piece ends makes no difference, but in a line that is longer than a piece.
PIECE_LENGTH = 32_768

LINE = re.compile(r"[^\n]*\n|[^\n]+")
# What separates documents: a match ends where a document begins.
SEPARATORS = {
    "blank_line": re.compile(r"\n\s*\n"),
    "heading": re.compile(
        r"\n(?=[^\S\n]*= = = (?!=)[^\n]*(?<![= ]) = = =[^\S\n]*(?:\n|\Z))"
    ),
    "line": re.compile(r"\n(?=[^\S\n]*\S)"),
    "file": re.compile(r"(?!)"),
}


class Piece(NamedTuple):
    """Consecutive text."""

    texts: list[str]  # joined, they are the piece; tokenized one by one
    documents: list[int]  # characters of the joined texts at which a document begins
    continues_word: bool  # the piece before was cut inside a word
    num_separators: int
    num_empty_texts: int  # texts of nothing but white space that were passed over

    @property
    def text(self) -> str:
        """The whole piece."""
        return "".join(self.texts)


class Boundaries:
    """Finds the beginnings of documents in one text that comes in parts.

    A part ends at a line end, or inside a line that is longer than a part. Separators stay
    in the text, behind the document before them; white space alone never makes a document.
    """

    def __init__(self, kind: str):
        self.kind, self.separator = kind, SEPARATORS[kind]
        self.num_found = 0
        # What of the part before decides about the beginning of this one.
        self._before = "\n"
        self._has_content = False

    def starts(self, part: str) -> list[int]:
        """Characters of `part` at which another document begins than the first."""
        shift = len(self._before)
        found = [m.end() - shift for m in self.separator.finditer(self._before + part)]
        pending = found and not part[found[-1] :].strip()  # the text goes on, or ends
        found = found[:-1] if pending else found
        self._before = "\n\n" if pending else "\n" if part.endswith("\n") else ""
        headings = len(found)  # the first may stand at the very beginning
        if not self._has_content:
            first = re.search(r"\S", part)
            self._has_content = first is not None
            found = [start for start in found if first and start > first.start()]
        self.num_found += headings if self.kind == "heading" else len(found)
        return found


def find_boundary(texts: Iterable[Iterator[str]]) -> str:
    """What separates documents: `heading` where there is one, else `blank_line`, else `file`."""
    found = "file"
    for parts in texts:
        headings, blank_lines = Boundaries("heading"), Boundaries("blank_line")
        for part in parts:
            headings.starts(part)
            if headings.num_found:
                return "heading"
            if blank_lines.starts(part):
                found = "blank_line"
    return found


def read_parts(file: TextIO) -> Iterator[str]:
    """A text in parts of about `PIECE_LENGTH` characters, so that memory stays bounded.

    A part ends at a line end; or, in a line that is longer, before a space; or anywhere where
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
    """Cut texts that come in parts (see `read_parts`) in pieces; every character once.

    Each text begins a document; where its others begin says `boundary`, one of blank_line,
    heading, line, file. A text without words is no document: it is passed over and counted.
    """
    parts_, documents, size, inside_word = [], [], 0, False
    num_separators = num_empty = 0
    for parts in texts:
        boundaries, before = Boundaries(boundary), 0
        first = next(parts, None)
        if first is None:
            num_empty += 1
            continue
        documents.append(size)
        inside_word = inside_word and size > 0
        for part in itertools.chain([first], parts):
            documents += [size + start for start in boundaries.starts(part)]
            num_separators += boundaries.num_found - before
            before = boundaries.num_found
            parts_.append(part)
            size += len(part)
            if size >= PIECE_LENGTH:
                yield Piece(parts_, documents, inside_word, num_separators, num_empty)
                parts_, documents, size, num_separators, num_empty = [], [], 0, 0, 0
                inside_word = not part[-1].isspace()
    if parts_ or num_empty:
        yield Piece(parts_, documents, inside_word, num_separators, num_empty)
