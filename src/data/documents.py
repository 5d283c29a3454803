"""Documents and pieces: where a text is cut before it is tokenized."""

import re
from typing import Iterable, Iterator, NamedTuple

HEADING = re.compile(r"= = = (?!=).*(?<![= ]) = = =\s*$")
# Characters a piece holds before it ends at the next line end. Tokens do not cross pieces,
# so this number is part of the packed format (see stream.VERSION).
PIECE_LENGTH = 16_384


class Piece(NamedTuple):
    """Consecutive text of one document, tokenized by itself."""

    text: str
    starts_document: bool
    continues_word: bool  # the piece before was cut inside a word


def find_boundary(texts: Iterable[Iterator[str]]) -> str:
    """What separates documents: `heading` where there is one, else `blank_line`, else `file`."""
    found = "file"
    for lines in texts:
        blank_seen, line_start = False, True
        for line in lines:
            if line_start and HEADING.match(line):
                return "heading"
            if not line.isspace():
                found = "blank_line" if blank_seen else found
            elif line_start:
                blank_seen = True
            line_start = line.endswith("\n")
    return found


def cut(lines: Iterator[str], boundary: str) -> Iterator[Piece]:
    """Cut one text in pieces of about `PIECE_LENGTH` characters.

    A piece ends at a line end, or before a space where a line is longer than a piece, or
    anywhere where it has no space. Separators stay in the text, behind the document before
    them: joined, the pieces are the text. `boundary` is one of blank_line, heading, line,
    file; white space alone never makes a document.
    """
    buffer: list[str] = []
    size, first, inside_word, blank = 0, True, False, False
    content = False  # the document has more than white space
    line_start = True
    for line in lines:
        if content and line_start and _begins(line, boundary, blank):
            if buffer:
                yield Piece("".join(buffer), first, inside_word)
            buffer, size, first, inside_word, content = [], 0, True, False, False
        blank = line.isspace() and (blank or line_start)
        content = content or not line.isspace()
        line_start = line.endswith("\n")
        buffer.append(line)
        size += len(line)
        if size >= PIECE_LENGTH:
            text = "".join(buffer)
            end = len(text) if line_start else text.rfind(" ")
            end = end if end > 0 else len(text)
            yield Piece(text[:end], first, inside_word)
            buffer, size = [text[end:]] if end < len(text) else [], len(text) - end
            first = False
            inside_word = not text[:end][-1].isspace() and end == len(text)
    if buffer:
        yield Piece("".join(buffer), first, inside_word)


def _begins(line: str, boundary: str, after_blank: bool) -> bool:
    if boundary == "line":
        return not line.isspace()
    if boundary == "blank_line":
        return after_blank and not line.isspace()
    return boundary == "heading" and HEADING.match(line) is not None
