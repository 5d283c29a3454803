"""Text files: they are found, checked and read, and cut into documents and pieces."""

import csv
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from src.data.text.corpus import (
    Source,
    find_files,
    read_corpus,
)
from src.foundation import UserError


def read(path: Path, column: str = "text", cache: str = "cache") -> Source:
    return read_corpus(str(path), path.parent / cache, column)[0]


def text_of(source: Source) -> str:
    return "".join(piece.text for piece in source.pieces("file"))


def refused(path: Path, **options) -> str:
    """Return the message of the error when the file is read."""
    with pytest.raises(UserError) as error:
        text_of(read(path, **options))
    return str(error.value)


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    """Each text a row of a table, or all of them one after another in a text file."""
    rows = [{"id": i, column: text} for i, text in enumerate(texts)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["id", column])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(texts).encode()))
    else:
        path.write_bytes("".join(texts).encode())
    return path


# Which files


def names(patterns, folder: Path) -> list[str]:
    found = find_files(patterns)
    return [str(path.relative_to(folder)) for path in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.train", "a.train", "c.txt", "d.dev"):
        (tmp_path / name).write_text("The dog.\n")
    return tmp_path


def test_a_path_a_glob_and_a_list_of_both_name_files(folder: Path):
    assert names(f"{folder}/c.txt", folder) == ["c.txt"]
    assert names(folder / "c.txt", folder) == ["c.txt"]
    assert names(f"{folder}/*.train", folder) == ["a.train", "b.train"]
    both = [f"{folder}/d.dev", f"{folder}/*.train"]
    assert names(both, folder) == ["d.dev", "a.train", "b.train"]


def test_a_tilde_is_the_home_folder(folder: Path):
    assert names("~/?.train", folder) == ["a.train", "b.train"]


def test_a_file_is_taken_once_however_often_it_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = find_files(["a.train", f"{folder}/*.train", "./a.train"])
    assert [path.name for path in found] == ["a.train", "b.train"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder: Path):
    write(folder / "x[1].jsonl", ["The dog."])
    assert names(f"{folder}/x[1].jsonl", folder) == ["x[1].jsonl"]
    assert text_of(read(folder / "x[1].jsonl")) == "The dog."


@pytest.mark.parametrize("pattern", ["none.train", "none*.train"])
def test_the_message_for_a_missing_file_names_the_folder_that_was_searched(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_files(pattern)
    assert str(error.value) == (f"no file matches '{pattern}' (looked in {tmp_path}).")


def test_the_message_for_a_missing_challenge_corpus_says_how_to_get_it(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"\./download_data\.sh fetches .* smaller parts"
    ):
        find_files("babylm_data/train_10M/*.train")


def test_a_folder_is_refused_with_what_to_write_instead(tmp_path: Path):
    with pytest.raises(UserError, match=f"is a directory; .*{tmp_path}/\\*.train"):
        find_files(str(tmp_path))


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path):
    (tmp_path / "a.pdf").write_text("x")
    known = ".train .dev .test .txt .txt.gz .csv .json .jsonl .parquet"
    with pytest.raises(UserError) as error:
        find_files(f"{tmp_path}/a.pdf")
    assert str(error.value).endswith(f"a.pdf must end in one of {known}")


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "a.train").touch()
    with pytest.raises(UserError, match="^/.*a.train is empty"):
        find_files(f"{tmp_path}/*")


def find_as_nobody(pattern: str, messages: Any) -> None:
    os.setuid(65534)
    try:
        find_files(pattern)
        messages.put("found")
    except UserError as error:
        messages.put(str(error))


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, processes: Any):
    """As a user who is not root, whom no permission stops."""
    secret = tmp_path / "a.train"
    secret.write_text("The dog.\n")
    secret.chmod(0)
    if os.getuid() != 0:
        with pytest.raises(UserError, match="a.train cannot be read: Permission"):
            find_files(str(secret))
        return
    # Opened up as far as a folder of another user's: the imports are done before.
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == "root" and "pytest" in str(parent):
            parent.chmod(0o755)
    messages = processes.SimpleQueue()
    process = processes.Process(target=find_as_nobody, args=(str(secret), messages))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    expected = f"{secret} cannot be read: Permission denied"
    assert messages.get() == expected


def test_names_are_the_stems_and_with_the_folder_where_those_are_the_same(tmp_path):
    paths = ["x/childes.train", "x/wiki.txt.gz", "y/childes.train", "y/wiki.dev.csv"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("The dog.\n")

    def named(*patterns: str) -> list[str]:
        patterns = [f"{tmp_path}/{pattern}" for pattern in patterns]
        found = read_corpus(patterns, tmp_path / "cache")
        return [source.name for source in found]

    assert named("x/*") == ["childes", "wiki"]
    assert named("x/c*", "y/*.csv") == ["childes", "wiki"]
    assert named("x/c*", "y/c*") == ["x-childes", "y-childes"]
    (tmp_path / "x/childes.txt").write_text("Another.\n")
    assert named("x/childes.*") == [
        f"{tmp_path}/x/childes.train",
        f"{tmp_path}/x/childes.txt",
    ]


# What is in them


@pytest.mark.parametrize(
    "ending", ".train .dev .test .txt .txt.gz .csv .json .jsonl .parquet".split()
)
def test_every_kind_of_file_gives_the_same_text(ending: str, tmp_path: Path):
    texts = ["The dog sees\na “cat”, 🐈.\n", "NA", "007", "null", " a, b\n\n"]
    path = write(tmp_path / f"a{ending}", texts)
    assert text_of(read(path)) == "The dog sees\na “cat”, 🐈.\nNA007null a, b\n\n"


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_row_of_a_table_is_a_document_unless_it_is_empty(ending, tmp_path: Path):
    path = write(tmp_path / f"a{ending}", ["The dog.\n", "", " \n", "A\r\ncat."])
    (piece,) = read(path).pieces("file")
    assert piece.texts == ["The dog.\n", "A\ncat."]
    assert piece.documents == [0, 9]
    assert piece.num_empty_texts == 2


def test_rows_without_a_value_are_passed_over(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The dog."}\n{"text": null}\n{"text": "A cat."}\n')
    (piece,) = read(path).pieces("file")
    assert piece.texts == ["The dog.", "A cat."]
    assert piece.num_empty_texts == 1


def test_a_csv_of_nothing_but_numbers_keeps_their_zeros(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text\n007\n0\n")
    (piece,) = read(path).pieces("file")
    assert piece.texts == ["007", "0"]


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_message_for_a_missing_column_lists_the_columns(
    ending: str, tmp_path: Path
):
    path = write(tmp_path / f"a{ending}", ["The dog."], column="content")
    message = refused(path)
    assert message == (
        f"data.text_column: {path} has no column 'text'; it has id, content"
    )
    assert text_of(read(path, column="content")) == "The dog."


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_message_for_a_broken_table_names_the_file(ending: str, tmp_path: Path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b'{"text": "The dog\xff"\n"')
    assert refused(path).startswith(f"{path} cannot be read as ")


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path: Path):
    path = tmp_path / "a.train"
    path.write_bytes(b"\xef\xbb\xbfThe dog.\r\nA cat.\rA king.\n")
    assert text_of(read(path)) == "The dog.\nA cat.\nA king.\n"


def test_the_message_for_half_a_letter_in_a_table_names_the_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "dog \ud83d cat"}' + "\n")
    assert refused(path).startswith(f"{path} cannot be read as json: ")


def test_nul_bytes_are_text(tmp_path: Path):
    path = tmp_path / "a.train"
    path.write_bytes(b"The\x00 dog\x00\n\x00")
    assert text_of(read(path)) == "The\0 dog\0\n\0"


BAD = {
    "a latin-1 letter": (b"caf", b"\xe9", b" is\n", 3, 0xE9),
    "far into the file": (b"x" * 3_000_000, b"\xff", b"y\n", 3_000_000, 0xFF),
    "in a character that a buffer's border cuts": (
        b"x" * ((1 << 20) - 1), b"\xe2\x82", b"A\n", (1 << 20) - 1, 0xE2,
    ),
    "in a character that the file's end cuts": (b"abc\n", b"\xf0\x9f", b"", 4, 0xF0),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".train", ".txt.gz"])
@pytest.mark.parametrize("what", BAD)
def test_the_message_for_text_that_is_not_utf8_names_the_byte(
    what, ending, tmp_path: Path
):
    before, bad, after, offset, value = BAD[what]
    path = tmp_path / f"a{ending}"
    content = before + bad + after
    path.write_bytes(gzip.compress(content, 1) if ending == ".txt.gz" else content)
    message = refused(path)
    assert message.startswith(f"{path} is not UTF-8: byte {offset:,} is 0x{value:02x}")


def test_a_gzip_file_that_ends_early_or_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "a.txt.gz"
    rng = random.Random(0)
    whole = gzip.compress(bytes(rng.choices(b"abc \n", k=100_000)))
    for content in (
        whole[:-9],  # ends early
        b"The dog.\n",  # is plain text
        whole[:20_000] + bytes(64) + whole[20_064:],  # has a hole
        gzip.compress(b"\xff")[:-5] + b"\0\0\0\0\0",  # not UTF-8, and damaged
    ):
        path.write_bytes(content)
        assert refused(path).startswith(f"{path} is not a complete gzip file: ")


def test_another_column_or_another_ending_is_another_text(tmp_path: Path):
    """The bytes are the same, so that the checksum does not tell them apart."""
    content = '{"text": "The dog.", "title": "Dogs"}\n'
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(content)
    sources = [
        read(tmp_path / "a.jsonl"),
        read(tmp_path / "a.jsonl", column="title"),
        read(tmp_path / "a.txt"),
    ]
    assert [text_of(source) for source in sources] == ["The dog.", "Dogs", content]
    assert len({source.checksum for source in sources}) == 1
    assert len({source.identity for source in sources}) == 3
