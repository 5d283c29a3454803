"""Text of every supported kind: text files, tables and datasets of the hub."""

import functools
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

from tqdm.auto import tqdm

from src.arguments import DataTrainingArguments
from src.data.cache import file_checksums
from src.data.text.documents import Piece, cut, find_boundary, read_parts
from src.foundation import UserError

TEXT_SUFFIXES = (".train", ".dev", ".test", ".txt", ".txt.gz")
# Endings of tables, and the builders of `datasets` that read them.
TABLE_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Source:
    """One text file, one table, or one split of a hub dataset."""

    name: str  # in reports and in `data.mix`
    checksum: str  # SHA-256 of the file, or of what identifies the hub dataset
    size: int  # bytes; 0 if unknown
    # Returns an iterator over texts, which are iterators over parts (`read_parts`). A file is
    # one text. A table has one text per row; a row without words has no parts.
    texts: Callable[[], Iterator[Iterator[str]]]
    where: str = ""  # path, or name on the hub
    reading: str = "text"  # the reader of the bytes; another one gives another text

    @property
    def unit(self) -> str:
        """The unit that is one document if nothing separates documents: `file` or `row`."""
        return "file" if self.reading in ("text", "gzip") else "row"

    @property
    def identity(self) -> tuple[str, str]:
        """The pair that determines the text. It is part of the key of what is cached."""
        return self.checksum, self.reading

    def boundary(self, document_boundary: str) -> str:
        """Return the document boundary; for `auto`, the one that occurs in the text."""
        if document_boundary == "auto":
            return find_boundary(self.texts())
        return document_boundary

    def pieces(self, boundary: str) -> Iterator[Piece]:
        """Yield the whole text, in order, in pieces that end at line ends."""
        return cut(self.texts(), boundary)


def reading_bar(title: str, sources: list[Source], show: bool) -> tqdm:
    """Return a progress bar over the bytes of some sources.

    Args:
        title: The text before the bar.
        sources: The sources that will be read.
        show: Show the bar if the output is a terminal.
    """
    size = sum(source.size for source in sources)
    disable = None if show else True  # None: disabled unless the output is a terminal
    return tqdm(desc=title, total=size, unit="B", unit_scale=True, disable=disable)


def find_files(patterns: Any) -> list[Path]:
    """Return the files that a path, a glob or a list of them names, in order, without repeats.

    Raises:
        UserError: A pattern matches nothing, or a file cannot be read, is empty or is of an
            unknown kind.
    """
    patterns = [patterns] if isinstance(patterns, (str, Path)) else patterns
    files: dict[Path, Path] = {}
    for pattern in map(os.path.expanduser, map(str, patterns)):
        matches = sorted(glob.glob(pattern, recursive=True))
        if os.path.exists(pattern):  # even if its name looks like a glob
            matches = [pattern]
        if not matches:
            advice = (
                " ./download_data.sh fetches the challenge's text; for smaller parts of it,"
                ' see "Use a recipe" in the README.'
            )
            raise UserError(
                f"no file matches {pattern!r} (looked in {Path.cwd()})."
                + advice * ("babylm_data" in pattern)
            )
        for path in map(Path, matches):
            _check_file(path)
            files.setdefault(path.resolve(), path)
    return list(files.values())


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; name its files: {path}/*.train")
    if not path.name.endswith((*TEXT_SUFFIXES, *TABLE_BUILDERS)):
        kinds = " ".join([*TEXT_SUFFIXES, *TABLE_BUILDERS])
        raise UserError(f"{path} must end in one of {kinds}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: Permission denied")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")


def read_corpus(
    patterns: Any, cache_dir: Path, text_column: str = "text"
) -> list[Source]:
    """Return the sources that `patterns` name (see `find_files`), with their checksums.

    The text itself is read later, piece by piece.
    """
    paths = find_files(patterns)
    checksums = file_checksums(paths, cache_dir)
    sources = []
    for name, path in zip(_names(paths), paths):
        if path.name.endswith(TEXT_SUFFIXES):
            texts = functools.partial(_read_text, path)
            reading = "gzip" if path.suffix == ".gz" else "text"
        else:
            texts = functools.partial(_read_table, path, text_column)
            reading = f"{TABLE_BUILDERS[path.suffix]}:{text_column}"
        size = path.stat().st_size
        sources.append(Source(name, checksums[path], size, texts, str(path), reading))
    return sources


def _names(paths: list[Path]) -> list[str]:
    """Return the file names without endings, with their folders if two would be equal."""
    ending = r"(\.(train|dev|test))?\.(txt\.gz|[a-z]+)$"
    stems = [re.sub(ending, "", path.name) for path in paths]
    longer = [f"{p.resolve().parent.name}-{stem}" for p, stem in zip(paths, stems)]
    for names in (stems, longer):
        if len(set(names)) == len(paths):
            return names
    return list(map(str, paths))


def _read_text(path: Path) -> Iterator[Iterator[str]]:
    """Yield the one text of a file. Line ends become `\\n`, and a BOM is dropped."""
    yield _read_text_parts(path)


def _read_text_parts(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        try:
            with opener(path, "rt", encoding="utf-8-sig") as file:
                yield from read_parts(file)
        except UnicodeDecodeError:
            # The error has an offset within a buffer. Decode the whole file, to raise an error
            # with the offset within the file.
            with opener(path, "rb") as file:
                file.read().decode()
            raise
    except UnicodeDecodeError as error:
        offset, value = error.start, error.object[error.start]
        encoding = "utf-16" if offset == 0 and value in b"\xff\xfe" else "latin1"
        raise UserError(
            f"{path} is not UTF-8: byte {offset:,} is 0x{value:02x} ({error.reason});"
            f" `iconv -f {encoding} -t utf-8` may convert it"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}") from error


def _read_table(path: Path, column: str) -> Iterator[Iterator[str]]:
    import datasets

    builder = TABLE_BUILDERS[path.suffix]
    options: dict[str, Any] = {}
    if builder == "csv":  # keep texts such as `NA` and `007` unchanged
        options = dict(na_filter=False, converters={column: str})
    try:
        rows = datasets.load_dataset(
            builder,
            data_files=[glob.escape(str(path))],
            split="train",
            streaming=True,
            **options,
        )
        yield from _row_texts(rows, column, str(path))
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise UserError(f"{path} cannot be read as {builder}: {reason}") from error


def _row_texts(rows: Any, column: str, where: str) -> Iterator[Iterator[str]]:
    """Yield the text of every row, as an iterator over parts; empty for one without words."""
    for row in rows:
        if column not in row:
            raise UserError(
                f"data.text_column: {where} has no column {column!r}; it has"
                f" {', '.join(row)}"
            )
        text = "" if row[column] is None else str(row[column])
        has_words = text and not text.isspace()
        yield read_parts(io.StringIO(text, newline=None)) if has_words else iter(())


def read_hub(
    data: DataTrainingArguments, cache_dir: Path, token: Optional[str]
) -> dict[str, Source]:
    """Return the splits of the hub dataset `data.dataset_name`, by name."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(
            data.dataset_name,
            data.dataset_config_name,
            revision=data.dataset_revision,
            token=token,
            cache_dir=str(cache_dir),
        )
        builder.download_and_prepare()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{data.dataset_name}: {error}") from error

    def source(split: str) -> Source:
        identity = f"{builder.dataset_name}/{builder.config_id}/{builder.hash}/{split}"
        rows, where = builder.as_dataset(split=split), f"{data.dataset_name} ({split})"
        return Source(
            name=builder.dataset_name,
            checksum=hashlib.sha256(identity.encode()).hexdigest(),
            size=builder.info.splits[split].num_bytes or 0,
            texts=functools.partial(_row_texts, rows, data.text_column, where),
            where=where,
            reading=f"rows:{data.text_column}",
        )

    return {split: source(split) for split in builder.info.splits}
