"""Text of every admitted kind, found, checked and read in bounded pieces."""

import codecs
import glob
import gzip
import hashlib
import io
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from src.arguments import DataTrainingArguments
from src.data.packing.cache import file_checksums
from src.data.text.documents import Piece, cut, find_boundary, read_parts
from src.foundation import UserError

TEXT_SUFFIXES = (".train", ".dev", ".test", ".txt", ".txt.gz")
TABLE_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Source:
    """One file, or one hub dataset: its name in reports, its checksum, its texts.

    `texts()` yields iterators of parts (`read_parts`): one for a text file, one a row for a
    table, which is empty where the row has no text.
    """

    name: str
    checksum: str
    size: int  # bytes; 0 where it is not known
    texts: Callable[[], Iterator[Iterator[str]]]
    where: str = ""  # path, or name on the hub
    reading: str = "text"  # how the bytes become text: another reading, another text

    @property
    def unit(self) -> str:
        """What is a document where nothing separates them: a `file` or a `row`."""
        return "file" if self.reading in ("text", "gzip") else "row"

    @property
    def identity(self) -> tuple[str, str]:
        """What determines the text: the key of what is cached of it."""
        return self.checksum, self.reading

    def boundary(self, chosen: str) -> str:
        """What separates documents here: `chosen`, or what `auto` finds in the text."""
        return find_boundary(self.texts()) if chosen == "auto" else chosen

    def pieces(self, boundary: str) -> Iterator[Piece]:
        """The text, every character once and in order, cut in pieces at line ends."""
        return cut(self.texts(), boundary)


def find_files(patterns: Any, key: str) -> list[Path]:
    """The files that a path, a glob or a list of either names, in order, each once.

    Raises `UserError`, naming `key`, for a pattern without a file, for a file that cannot
    be read, is empty, or is of a kind that is not known.
    """
    patterns = [patterns] if isinstance(patterns, (str, Path)) else list(patterns)
    found: dict[Path, Path] = {}
    for pattern in map(os.path.expanduser, map(str, patterns)):
        matches = (
            [pattern]
            if os.path.exists(pattern)
            else sorted(glob.glob(pattern, recursive=True))
        )
        if not matches:
            advice = (
                " Get the challenge's text with ./download_data.sh."
                if "babylm_data" in pattern
                else ""
            )
            raise UserError(
                f"{key}: no file matches {pattern!r} (looked in {Path.cwd()}).{advice}"
            )
        for path in map(Path, matches):
            found.setdefault(path.resolve(), path)
    for path in found.values():
        _check_file(path, key)
    return list(found.values())


def _check_file(path: Path, key: str) -> None:
    if path.is_dir():
        raise UserError(f"{key}: {path} is a directory; name its files: {path}/*.train")
    if not path.name.endswith((*TEXT_SUFFIXES, *TABLE_BUILDERS)):
        kinds = " ".join([*TEXT_SUFFIXES, *TABLE_BUILDERS])
        raise UserError(f"{key}: {path} must end in one of {kinds}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from error
    if empty:
        raise UserError(f"{key}: {path} is empty")


def read_corpus(
    patterns: Any, key: str, data: DataTrainingArguments, cache_dir: Path
) -> list[Source]:
    """The sources behind `patterns` (see `find_files`), with checksums of their bytes."""
    paths = find_files(patterns, key)
    checksums = file_checksums(paths, cache_dir)
    return [
        Source(
            name,
            checksums[path],
            path.stat().st_size,
            _reader(path, data.text_column),
            str(path),
            _reading(path, data.text_column),
        )
        for name, path in zip(_names(paths), paths)
    ]


def _names(paths: list[Path]) -> list[str]:
    """File names without their endings; with the folder where two would be the same."""
    stems = [re.sub(r"\.(txt\.gz|[a-z]+)$", "", path.name) for path in paths]
    stems = [re.sub(r"\.(train|dev|test)$", "", stem) for stem in stems]
    if len(set(stems)) == len(stems):
        return stems
    longer = [
        f"{path.resolve().parent.name}-{stem}" for path, stem in zip(paths, stems)
    ]
    return longer if len(set(longer)) == len(longer) else list(map(str, paths))


def _reading(path: Path, column: str) -> str:
    if path.name.endswith(TEXT_SUFFIXES):
        return "gzip" if path.suffix == ".gz" else "text"
    return f"{TABLE_BUILDERS[path.suffix]}:{column}"


def _reader(path: Path, column: str) -> Callable[[], Iterator[Iterator[str]]]:
    if path.name.endswith(TEXT_SUFFIXES):
        return lambda: iter([_read_text(path)])
    return lambda: _read_table(path, column)


def _read_text(path: Path) -> Iterator[str]:
    """A text file in parts, with `\\n` whatever the line ends were, without a BOM."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        try:
            with opened(path, "rt", encoding="utf-8-sig") as file:
                yield from read_parts(file)
        except UnicodeDecodeError as error:
            byte, value = _first_bad_byte(path)
            likely = "utf-16" if byte == 0 and value in b"\xff\xfe" else "latin1"
            raise UserError(
                f"{path} is not UTF-8: byte {byte:,} is 0x{value:02x} ({error.reason});"
                f" `iconv -f {likely} -t utf-8` may mend it"
            ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error


def _first_bad_byte(path: Path) -> tuple[int, int]:
    """Offset (in the unpacked file) and value of the byte where UTF-8 ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        read = 0
        while True:
            chunk = file.read(1 << 20)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                carried = len(error.object) - len(chunk)
                return read - carried + error.start, error.object[error.start]
            read += len(chunk)


def _read_table(path: Path, column: str) -> Iterator[Iterator[str]]:
    import datasets

    builder = TABLE_BUILDERS[path.suffix]
    options: dict[str, Any] = {}
    if builder == "csv":  # a text may be `NA` or `007`
        options = dict(na_filter=False, converters={column: str})
    try:
        rows = datasets.load_dataset(
            builder,
            data_files=[glob.escape(str(path))],
            split="train",
            streaming=True,
            **options,
        )
        yield from row_texts(rows, column, str(path))
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise UserError(f"{path} cannot be read as {builder}: {reason}") from error


def row_texts(rows: Any, column: str, where: str) -> Iterator[Iterator[str]]:
    """Every row's text in parts; none where it is nothing but white space."""
    for row in rows:
        if column not in row:
            raise UserError(
                f"data.text_column: {where} has no column {column!r}; it has"
                f" {', '.join(row)}"
            )
        text = "" if row[column] is None else str(row[column])
        has_text = text and not text.isspace()
        yield read_parts(io.StringIO(text, newline=None)) if has_text else iter(())


def read_hub(
    data: DataTrainingArguments, split: str, cache_dir: Path, token: Optional[str]
) -> Optional[Source]:
    """A split of a hub dataset as a source; None where the dataset has no such split."""
    import datasets

    options = dict(
        revision=data.dataset_revision, token=token, cache_dir=str(cache_dir)
    )
    try:
        builder = datasets.load_dataset_builder(
            data.dataset_name, data.dataset_config_name, **options
        )
        builder.download_and_prepare()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.dataset_name={data.dataset_name}: {error}") from error
    if split not in builder.info.splits:
        return None
    identity = f"{builder.dataset_name}/{builder.config_id}/{builder.hash}/{split}"
    rows = builder.as_dataset(split=split)
    where = f"{data.dataset_name} ({split})"
    return Source(
        name=builder.dataset_name,
        checksum=hashlib.sha256(identity.encode()).hexdigest(),
        size=builder.info.splits[split].num_bytes or 0,
        texts=lambda: row_texts(rows, data.text_column, where),
        where=where,
        reading=f"rows:{data.text_column}",
    )
