"""Text files: they are found, checked and read, and cut into documents and pieces."""

import csv
import gzip
import json
import os
import random
import zipfile
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


@pytest.mark.parametrize("name", ["x[1]", "[a-z]", "ü ö", "it's", "a*b", "a,b=c"])
def test_a_glob_may_be_in_a_folder_of_any_name(name: str, folder: Path, monkeypatch):
    (folder / name).mkdir()
    for file in ("b.train", "a.train", "[c].train"):
        write(folder / name / file, ["The dog.\n"])
    monkeypatch.chdir(folder)
    for start in ("", f"{folder}/", "~/", "./"):
        found = find_files([f"{start}{name}/?.train", f"{start}{name}/[[]c].train"])
        assert [path.name for path in found] == ["a.train", "b.train", "[c].train"]
    assert len(find_files(f"{folder}/**/[[]c].train")) == 1


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


@pytest.mark.parametrize(
    "pattern, command",
    [
        (
            "babylm_data/babylm_300k/*.train",
            "babylm_data/babylm_10M babylm_data/babylm_300k --words 300000",
        ),
        (
            "/x/babylm_data/babylm_dev_60k/*.dev",
            "/x/babylm_data/babylm_dev /x/babylm_data/babylm_dev_60k --words 60000",
        ),
    ],
)
def test_the_message_for_a_missing_part_of_a_corpus_has_the_command_that_makes_it(
    pattern: str, command: str
):
    with pytest.raises(UserError) as error:
        find_files(pattern)
    assert str(error.value).endswith(f"python -m tests.benchmarks.subset {command}")


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


def test_a_link_to_nothing_is_refused(tmp_path: Path):
    (tmp_path / "a.train").symlink_to("/no/text")
    for pattern in ("*", "?.train"):
        with pytest.raises(UserError, match="a.train cannot be read: No such file"):
            find_files(f"{tmp_path}/{pattern}")


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
        write(tmp_path / path, ["The dog.\n"])

    def named(*patterns: str) -> list[str]:
        patterns = [f"{tmp_path}/{pattern}" for pattern in patterns]
        found = read_corpus(patterns, tmp_path / "cache")
        return [source.name for source in found]

    assert named("x/*") == ["childes", "wiki"]
    assert named("x/c*", "y/*.csv") == ["childes", "wiki"]
    assert named("x/c*", "y/c*") == ["x-childes", "y-childes"]
    assert named("x/wiki*", "x/c*") == ["wiki", "childes"]
    (tmp_path / "x/.dev").write_text("The dog.\n")
    assert named("x/.dev") == [".dev"]
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
    assert piece.split() == ["The dog.\n", "A\ncat."]
    assert piece.documents == [0, 9]
    assert piece.num_empty_texts == 2


def test_rows_without_a_value_are_passed_over(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The dog."}\n{"text": null}\n{"text": "A cat."}\n')
    (piece,) = read(path).pieces("file")
    assert piece.split() == ["The dog.", "A cat."]
    assert piece.num_empty_texts == 1


def test_a_csv_of_nothing_but_numbers_keeps_their_zeros(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text\n007\n0\n")
    (piece,) = read(path).pieces("file")
    assert piece.split() == ["007", "0"]


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_message_for_a_missing_column_lists_the_columns(
    ending: str, tmp_path: Path
):
    path = write(tmp_path / f"a{ending}", ["The dog."], column="content")
    message = refused(path)
    assert message == (
        f"{path} has no column 'text' (data.text_column); it has id, content"
    )
    assert text_of(read(path, column="content")) == "The dog."


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_message_for_a_broken_table_names_the_file(ending: str, tmp_path: Path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b'{"text": "The dog\xff"\n"')
    assert refused(path).startswith(f"{path} cannot be read as ")


@pytest.mark.parametrize(
    "content, line, found",
    [
        ("text\nA dog.\nWell , it is a good day .\n", 3, "it is a good day ."),
        ("id,text\n1,A dog.\n2\n", 3, "'text': None"),
        ('id,text\n1,"A\ndog."\n2,A cat, a dog.\n', 4, "[' a dog.']"),
    ],
)
def test_a_csv_row_with_more_or_fewer_fields_than_the_header_is_refused(
    content: str, line: int, found: str, tmp_path: Path
):
    path = tmp_path / "a.csv"
    path.write_text(content)
    message = refused(path)
    assert message.startswith(f"{path}: the row that ends in line {line} has not as")
    assert found in message


@pytest.mark.parametrize("text", ['"Hello" she said', '"A dog.'])
def test_quotes_that_do_not_enclose_a_field_are_refused(text: str, tmp_path: Path):
    """A reader that forgives them drops the quotes, or all rows that follow."""
    path = tmp_path / "a.csv"
    path.write_text(f"text\n{text}\nA cat.\n")
    assert refused(path).startswith(f"{path} cannot be read as csv: ")


def test_a_field_of_a_csv_may_be_long(tmp_path: Path):
    path = write(tmp_path / "a.csv", ["dog " * 100_000])
    assert text_of(read(path)) == "dog " * 100_000


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "value, kind",
    [
        (7, "int: 7"),
        (0.5, "float: 0.5"),
        (True, "bool: True"),
        ([{"role": "user", "content": "A dog."}], "list: [{'content'"),
        ({"en": "A dog."}, "dict: {'en': 'A dog.'}"),
        (["A dog.", "A cat."], "list: ['A dog.', 'A cat.']"),
    ],
)
def test_a_column_that_holds_no_text_is_refused(ending, value, kind, tmp_path: Path):
    path = write(tmp_path / f"a{ending}", [None, value])
    message = refused(path)
    assert message.startswith(f"{path}, row 2: 'text' (data.text_column) holds no text")
    assert kind in message or ("role" in str(value) and "list: [{" in message)


def test_bytes_and_structs_in_a_parquet_file_are_refused(tmp_path: Path):
    path = write(tmp_path / "a.parquet", [b"A dog."])
    message = refused(path)
    assert (
        "row 1: 'text' (data.text_column) holds no text but bytes: b'A dog.'" in message
    )


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


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_without_a_mark_is_no_text_of_nul_bytes(encoding: str, tmp_path: Path):
    """The bytes of English are valid UTF-8, with a NUL before or after each letter."""
    path = tmp_path / "a.train"
    path.write_bytes(
        "\n".join(["The dog."] * 99).encode(encoding).lstrip(b"\xff\xfe\0")
    )
    assert refused(path) == f"{path} has many NUL bytes: is it UTF-16 or binary?"


def test_a_binary_file_is_not_to_be_converted(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.txt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.train", "The dog.\n" * 9)
    assert refused(tmp_path / "a.txt").endswith("; it seems to be binary")


@pytest.mark.parametrize("name", ["a.train", "a.txt.gz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("text", [" \n\n\t", ""])
def test_a_file_without_a_word_is_refused(name: str, text: str, tmp_path: Path):
    path = write(tmp_path / name, [text])
    assert refused(path) in (f"{path} has no text", f"{path} is empty")
    (tmp_path / "a.train").write_bytes(b"\xef\xbb\xbf")
    assert refused(tmp_path / "a.train") == f"{tmp_path}/a.train has no text"


def test_errors_in_the_text_are_found_before_other_work(tmp_path: Path):
    """Even if the file had no error for another column."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "The dog."}\n')
    read(path, column="title")
    with pytest.raises(UserError, match="a.jsonl has no column 'text'"):
        read(path)


@pytest.mark.parametrize("ending", [".train", ".txt.gz", ".jsonl", ".parquet"])
def test_text_that_changes_while_it_is_read_is_refused(ending: str, tmp_path: Path):
    path = write(tmp_path / f"a{ending}", ["The dog.\n"])
    source = read(path)
    assert text_of(source) == "The dog.\n"
    write(path, ["The cat.\n"])
    message = f"^{path} has changed since the start of this command; start again$"
    with pytest.raises(UserError, match=message):
        text_of(source)
    path.unlink()
    with pytest.raises(UserError, match=f"^{path} cannot be read"):
        text_of(source)


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
