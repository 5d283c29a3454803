import random
from pathlib import Path

import pytest

from src.data.documents import PIECE_LENGTH, cut
from tests.data.test_corpus import read, write


def documents(text: str, boundary: str) -> list[str]:
    """The documents of a text, as strings."""
    found: list[str] = []
    for piece in cut(iter(text.splitlines(keepends=True)), boundary):
        if piece.starts_document:
            found.append("")
        found[-1] += piece.text
    return found


TEXT = """
= = = Cats = = =
A cat.

It sees.
= = = Dogs = = =

A dog.
"""


@pytest.mark.parametrize(
    "boundary, expected",
    [
        ("file", [TEXT]),
        (
            "heading",
            [
                "\n= = = Cats = = =\nA cat.\n\nIt sees.\n",
                "= = = Dogs = = =\n\nA dog.\n",
            ],
        ),
        (
            "blank_line",
            [
                "\n= = = Cats = = =\nA cat.\n\n",
                "It sees.\n= = = Dogs = = =\n\n",
                "A dog.\n",
            ],
        ),
        (
            "line",
            [
                "\n= = = Cats = = =\n",
                "A cat.\n\n",
                "It sees.\n",
                "= = = Dogs = = =\n\n",
                "A dog.\n",
            ],
        ),
    ],
)
def test_documents_end_where_the_boundary_says(boundary: str, expected: list[str]):
    assert documents(TEXT, boundary) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A\n\n= = = B = = =\nC\n", "heading"),
        ("A\n \t\nB\n", "blank_line"),
        ("A\nB\n", "file"),
        ("A\n\n", "file"),
        ("A = = = B = = =\n", "file"),
        ("x" * 3 * PIECE_LENGTH + "\nB\n", "file"),
    ],
)
def test_auto_finds_headings_then_blank_lines(text: str, expected: str, tmp_path: Path):
    source = read(write(tmp_path / "a.train", [text]))
    assert source.boundary("auto") == expected
    assert source.boundary("line") == "line"


def test_the_end_of_a_long_line_is_no_blank_line(tmp_path: Path):
    """It arrives by itself where the line is as long as a part."""
    path = write(tmp_path / "a.train", ["x" * PIECE_LENGTH + "\nB\n\nC\n"])
    pieces = read(path).pieces("blank_line")
    assert [(p.text.strip("x"), p.starts_document) for p in pieces] == [
        ("", True),
        ("\nB\n\n", False),
        ("C\n", True),
    ]


# Pieces


def random_text(rng: random.Random) -> str:
    """Words, every kind of white space, and sometimes a very long line."""
    white = [" ", " ", "\n", "\n", "\n\n", "\t", "\u2003", "\x1c", "\x85", "\u3000"]
    parts = []
    for _ in range(rng.randrange(1, 80)):
        word = rng.choice(["a", "dog", "café", "🐈", "= = = Cats = = =\n", "\u200b"])
        parts.append(word * rng.choice([1, 1, 1, 1, 1, 30, 3000]))
        parts.append(rng.choice(white) * rng.choice([0, 1, 1, 1, 1, 2, 2000]))
    return "".join(parts) * rng.choice([1, 1, 5])


@pytest.mark.parametrize("boundary", ["file", "line", "blank_line", "heading"])
def test_joined_the_pieces_are_the_text_and_their_words_are_its_words(
    boundary: str, tmp_path: Path
):
    rng = random.Random(boundary)
    for number in range(12):
        text = random_text(rng)
        path = write(tmp_path / f"{number}.train", [text])
        pieces = list(read(path).pieces(boundary))
        assert "".join(piece.text for piece in pieces) == text
        assert all(0 < len(piece.text) < 2 * PIECE_LENGTH for piece in pieces)
        words = 0
        for piece in pieces:
            words += len(piece.text.split())
            words -= piece.continues_word and not piece.text[0].isspace()
        assert words == len(text.split())
        assert pieces[0].starts_document


def test_a_line_of_10_mb_is_cut_before_spaces(tmp_path: Path):
    text = "house " * 1_700_000
    pieces = list(read(write(tmp_path / "a.train", [text])).pieces("line"))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 2 * PIECE_LENGTH
    assert all(piece.text.startswith(" house") for piece in pieces[1:-1])
    assert not any(piece.continues_word for piece in pieces)


def test_a_word_of_10_mb_is_one_word(tmp_path: Path):
    text = "The dog sees " + "x" * 10_000_000 + "\na cat\n"
    pieces = list(read(write(tmp_path / "a.train", [text])).pieces("file"))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 2 * PIECE_LENGTH
    words = sum(len(p.text.split()) - p.continues_word for p in pieces)
    assert words == 6


def test_the_pieces_are_the_same_from_a_text_file_and_from_a_table(tmp_path: Path):
    """A text file's long lines arrive in parts, a table's rows are there at once."""
    rng = random.Random(0)
    text = "The dog.\n" + "".join(rng.choice(["cats ", "é"]) for _ in range(90_000))
    sources = [read(write(tmp_path / f"a{end}", [text])) for end in (".txt", ".jsonl")]
    first, second = [list(source.pieces("file")) for source in sources]
    assert first == second
    assert len(first) > 10
