"""The beginnings of documents, and the pieces in which they are packed."""

import io
import random
from pathlib import Path

import pytest

from src.data.text import documents
from src.data.text.documents import (
    PIECE_LENGTH,
    cut,
    find_boundary,
    read_parts,
    split_by_kind,
)
from src.data.text.words import word_starts
from tests.data.text.test_corpus import read, write


def split(texts: list[str], boundary: str) -> list[str]:
    """The documents of some texts, as strings."""
    found: list[str] = []
    for piece in cut((read_parts(io.StringIO(t)) for t in texts), boundary):
        edges = [0, *piece.documents, len(piece.text)]
        before, *others = [piece.text[a:b] for a, b in zip(edges, edges[1:])]
        assert not before or found
        if before:
            found[-1] += before
        found += others
    return found


TEXT = """
= = = Cats = = =
A cat.

It sees.
= = = Dogs = = =

A dog.
"""
DOCUMENTS = {
    "file": [TEXT],
    "heading": [
        "\n= = = Cats = = =\nA cat.\n\nIt sees.\n",
        "= = = Dogs = = =\n\nA dog.\n",
    ],
    "blank_line": [
        "\n= = = Cats = = =\nA cat.\n\n",
        "It sees.\n= = = Dogs = = =\n\n",
        "A dog.\n",
    ],
    "line": [
        "\n= = = Cats = = =\n",
        "A cat.\n\n",
        "It sees.\n",
        "= = = Dogs = = =\n\n",
        "A dog.\n",
    ],
}


@pytest.mark.parametrize("boundary", DOCUMENTS)
@pytest.mark.parametrize("length", [17, 40, PIECE_LENGTH])
def test_documents_end_where_the_boundary_says(boundary, length, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_LENGTH", length)
    assert split([TEXT], boundary) == DOCUMENTS[boundary]


@pytest.mark.parametrize(
    "text, boundary, expected",
    [
        ("\n\n \nA\n\nB\n\n \n", "blank_line", ["\n\n \nA\n\n", "B\n\n \n"]),
        ("A\n\n\n\t\n  B", "blank_line", ["A\n\n\n\t\n", "  B"]),
        ("A\n\x0c\n\u3000\nB", "blank_line", ["A\n\x0c\n\u3000\n", "B"]),
        ("= = = A = = =\nx\n= = = B = = =", "heading",
         ["= = = A = = =\nx\n", "= = = B = = ="]),
        ("x\n= = = = A = = = =\ny\n = = = B = = =\n", "heading",
         ["x\n= = = = A = = = =\ny\n", " = = = B = = =\n"]),
        ("x\n= = = A = = = \t\ny", "heading", ["x\n", "= = = A = = = \t\ny"]),
        ("A\n \n  B\nC", "line", ["A\n \n", "  B\n", "C"]),
        ("\n\n", "line", ["\n\n"]),
    ],
)  # fmt: skip
def test_white_space_stays_with_the_document_before(text, boundary, expected):
    assert split([text], boundary) == expected


@pytest.mark.parametrize("boundary", ["blank_line", "line", "heading"])
@pytest.mark.parametrize("end", ["  ", "\u2003"])
def test_white_space_behind_the_last_blank_line_is_no_document(boundary, end):
    assert split(["A\n\n" + end], boundary) == ["A\n\n" + end]


SEAMS = {
    "between the two line ends": ("blank_line", ["A\n", "\nB\n"], [[], [1]]),
    "behind the blank line": ("blank_line", ["A\n\n", "B\n"], [[], [0]]),
    "inside the blank lines": ("blank_line", ["A\n \n", "\t\n\nB\n"], [[], [3]]),
    "a part of blank lines": ("blank_line", ["A\n", "\n", " \n", "B"], [[], [], [], [0]]),
    "blank lines in front": ("blank_line", ["\n\n", " \n", "B"], [[], [], []]),
    "blank lines behind": ("blank_line", ["A\n", "\n", "\n"], [[], [], []]),
    "in front of a heading": ("heading", ["A\n", "= = = B = = =\n"], [[], [0]]),
    "behind a heading": ("heading", ["A\n= = = B = = =\n", "C\n"], [[2], []]),
    "between lines": ("line", ["A\n", "\n", "B\nC\n", "D"], [[], [], [0, 2], [0]]),
    "in a long line": ("line", ["A\nB", " B\nC"], [[2], [3]]),
    "a blank line's end": ("blank_line", ["A", "\n", "\n", "B"], [[], [], [], [0]]),
}  # fmt: skip


@pytest.mark.parametrize("seam", SEAMS)
def test_documents_are_found_across_the_seams_of_parts(seam: str):
    boundary, parts, expected = SEAMS[seam]
    first, *others = [piece.documents for piece in split_by_kind(parts, boundary)]
    assert first[:1] == [0] and [first[1:], *others] == expected


@pytest.mark.parametrize("boundary", DOCUMENTS)
def test_documents_do_not_depend_on_where_parts_end(boundary: str, monkeypatch):
    rng = random.Random(boundary)
    lines = ["A\n", "\n", " \n", "= = = B = = =\n", "It sees.\n", "\t\n", "\x0c\n", "Z"]
    for _ in range(60):
        texts = ["".join(rng.choices(lines, k=rng.randrange(1, 20))) for _ in "ab"]
        monkeypatch.setattr(documents, "PIECE_LENGTH", 1000)
        whole = split(texts, boundary)
        for length in (16, 20, 31):
            monkeypatch.setattr(documents, "PIECE_LENGTH", length)
            assert split(texts, boundary) == whole


def test_a_heading_in_front_of_a_very_long_word_is_found():
    text = "A\n= = = B = = =\n" + "x" * 3 * PIECE_LENGTH
    assert len(split([text], "heading")) == 2


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A\n\n= = = B = = =\nC\n", "heading"),
        ("= = = B = = =\nC\n", "heading"),
        ("A\n \t\nB\n", "blank_line"),
        ("A\nB\n", "file"),
        ("A\n\n", "file"),
        ("\n\nA\n", "file"),
        ("A = = = B = = =\n", "file"),
        ("x" * 3 * PIECE_LENGTH + "\nB\n", "file"),
    ],
)
def test_auto_finds_headings_then_blank_lines(text: str, expected: str, tmp_path: Path):
    assert find_boundary([iter([text])]) == expected
    source = read(write(tmp_path / "a.train", [text]))
    assert source.boundary("auto") == expected
    assert source.boundary("line") == "line"


def test_the_end_of_a_long_line_is_no_blank_line():
    text = "x" * PIECE_LENGTH + "\nB\n\nC\n"
    assert split([text], "blank_line") == [text[:-2], "C\n"]


# Pieces


def test_every_text_begins_a_document_and_one_without_words_is_passed_over():
    texts = [iter(["The dog\n"]), iter([]), iter(["s bark.\n", "Yes"])]
    (piece,) = cut(iter(texts), "file")
    assert piece.split() == ["The dog\n", "s bark.\nYes"]
    assert piece.documents == [0, 8]
    assert (piece.num_separators, piece.num_empty_texts) == (0, 1)


def test_a_new_text_does_not_continue_the_word_before(monkeypatch):
    monkeypatch.setattr(documents, "PIECE_LENGTH", 3)
    pieces = list(cut(iter([iter(["dogs", "led"]), iter(["cat"])]), "file"))
    found = [(p.text, p.documents, p.continues_word) for p in pieces]
    assert found == [
        ("dogs", [0], False), ("led", [], True), ("cat", [0], False)
    ]  # fmt: skip


def random_text(rng: random.Random) -> str:
    """Words, every kind of white space, and sometimes a very long line."""
    white = [" ", " ", "\n", "\n", "\n\n", "\t", "\u2003", "\x1c", "\x85", "\u3000"]
    parts = []
    for _ in range(rng.randrange(1, 80)):
        word = rng.choice(["a", "dog", "café", "🐈", "= = = Cats = = =\n", "\u200b"])
        parts.append(word * rng.choice([1, 1, 1, 1, 1, 30, 3000]))
        parts.append(rng.choice(white) * rng.choice([0, 1, 1, 1, 1, 2, 2000]))
    return "".join(parts) * rng.choice([1, 1, 5])


@pytest.mark.parametrize("boundary", DOCUMENTS)
def test_joined_the_pieces_are_the_text_and_their_words_are_its_words(boundary: str):
    rng = random.Random(boundary)
    for _ in range(12):
        text = random_text(rng)
        pieces = list(cut(iter([read_parts(io.StringIO(text))]), boundary))
        assert "".join(piece.text for piece in pieces) == text
        assert all(0 < len(piece.text) <= 5 * PIECE_LENGTH for piece in pieces)
        starts = [word_starts(p.text.encode(), p.continues_word) for p in pieces]
        assert sum(int(start.sum()) for start in starts) == len(text.split())
        assert pieces[0].documents[0] == 0


def test_a_line_of_10_mb_is_cut_before_spaces():
    text = "house " * 1_700_000
    pieces = list(cut(iter([read_parts(io.StringIO(text))]), "line"))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= 4 * PIECE_LENGTH
    assert all(piece.text.startswith(" house") for piece in pieces[1:-1])


def test_a_word_of_10_mb_is_one_word():
    text = "The dog sees " + "x" * 10_000_000 + "\na cat\n"
    pieces = list(cut(iter([read_parts(io.StringIO(text))]), "file"))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= 4 * PIECE_LENGTH
    assert sum(len(p.text.split()) - p.continues_word for p in pieces) == 6


def test_the_pieces_are_the_same_from_a_text_file_and_from_a_table(tmp_path: Path):
    rng = random.Random(0)
    text = "The dog.\n" + "".join(rng.choice(["cats ", "é"]) for _ in range(300_000))
    sources = [read(write(tmp_path / f"a{end}", [text])) for end in (".txt", ".jsonl")]
    first, second = [list(source.pieces("file")) for source in sources]
    assert first == second
    assert len(first) > 3


# A string between documents

END = "<|endoftext|>"


@pytest.mark.parametrize(
    "text, separator, expected",
    [
        (f"A dog.\n{END}\nA cat.\n{END}\n", END, ["A dog.\n", "A cat.\n"]),
        (f"A dog.{END}A cat.", END, ["A dog.", "A cat."]),
        (f"{END}A dog.\n \n{END}\n \n{END}", END, ["A dog.\n \n"]),
        ("A dog.\n\n\n\nA cat.\n", "\n\n\n", ["A dog.", "A cat.\n"]),
        ("A [x]* dog.[y]*\nA cat.", "]*\n", ["A [x]* dog.[y", "A cat."]),
        ("one###two\n###three", "###", ["one", "two\n", "three"]),
        ("A dog.\n", "###", ["A dog.\n"]),
    ],
)
@pytest.mark.parametrize("length", [4, 20, PIECE_LENGTH])
def test_a_string_between_documents_is_no_text(
    text: str, separator: str, expected: list[str], length: int, monkeypatch
):
    monkeypatch.setattr(documents, "PIECE_LENGTH", length)
    assert split([text], separator) == expected


def test_a_string_at_the_end_of_a_text_is_found():
    (piece,) = cut(iter([read_parts(io.StringIO(f"A dog.\n{END}"))]), END)
    assert (piece.text, piece.num_separators) == ("A dog.\n", 1)
