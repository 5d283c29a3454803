"""Text of every supported kind: text files, tables and datasets of the hub."""

import contextlib
import csv
import functools
import glob
import gzip
import hashlib
import io
import os
import re
import reprlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

from tqdm.auto import tqdm

from src.arguments import DataTrainingArguments, ModelArguments
from src.data.cache import file_checksums
from src.data.text.documents import BOUNDARIES, Piece, cut, find_boundary, read_parts
from src.foundation import UserError, sha256, shows_bars

TEXT_SUFFIXES = (".train", ".dev", ".test", ".txt", ".txt.gz")
# Endings of tables, and the builders of `datasets` that read them.
BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


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


def check_boundary(boundary: str, sources: list[Source]) -> None:
    """Raise `UserError` if `data.document_boundary` is a separator that no source has."""
    if boundary not in BOUNDARIES and not any(
        piece.num_separators for source in sources for piece in source.pieces(boundary)
    ):
        raise UserError(
            f"data.document_boundary={boundary!r} must be {', '.join(BOUNDARIES)} or a"
            " string that separates documents; this string occurs in no file"
        )


def reading_bar(title: str, sources: list[Source], show: bool) -> tqdm:
    """Return a progress bar over the bytes of some sources.

    Args:
        title: The text before the bar.
        sources: The sources that will be read.
        show: Show the bar if all output goes to a terminal. It vanishes when it is closed.
    """
    size = sum(source.size for source in sources)
    disable = not (show and shows_bars())
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
        matches = sorted(glob.glob(_escape_folder(pattern), recursive=True))
        if os.path.exists(pattern):  # even if its name looks like a glob
            matches = [pattern]
        if not matches:
            raise UserError(
                f"no file matches {pattern!r} (looked in {Path.cwd()})."
                + _advice(pattern)
            )
        for path in map(Path, matches):
            _check_file(path)
            files.setdefault(path.resolve(), path)
    return list(files.values())


def _escape_folder(pattern: str) -> str:
    """Escape the existing folder at the start of a glob; its name may look like a glob."""
    folder = next(filter(os.path.isdir, Path(pattern).parents), Path())
    return os.path.join(glob.escape(str(folder)), os.path.relpath(pattern, folder))


def _advice(pattern: str) -> str:
    """Return how to get missing files of the challenge, after a space."""
    if subset := re.search(r"(.*babylm_)(dev_)?(\d+)k(?=/)", pattern):
        folder, dev, words = subset.groups()
        whole = folder + ("dev" if dev else "10M")
        return (
            f" Make them of {whole}, which ./download_data.sh fetches, with: python -m"
            f" tests.benchmarks.subset {whole} {subset[0]} --words {words}000"
        )
    return (
        " ./download_data.sh fetches the challenge's text; for smaller parts of it, see"
        ' "Use a recipe" in the README.'
    ) * ("babylm_data" in pattern)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; name its files: {path}/*.train")
    if not path.name.endswith((*TEXT_SUFFIXES, *BUILDERS)):
        kinds = " ".join([*TEXT_SUFFIXES, *BUILDERS])
        raise UserError(f"{path} must end in one of {kinds}")
    try:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty")
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_corpus(
    patterns: Any, cache_dir: Path, text_column: str = "text"
) -> list[Source]:
    """Return the sources that `patterns` name (see `find_files`), with their checksums.

    New files are read once, so that errors in their text are found before other work.
    """
    paths = find_files(patterns)
    names = dict(zip(paths, _names(paths)))

    def source(path: Path, checksum: str) -> Source:
        reading = "gzip" if path.suffix == ".gz" else "text"
        if not path.name.endswith(TEXT_SUFFIXES):
            reading = f"{BUILDERS[path.suffix]}:{text_column}"
        texts = functools.partial(_read_file, path, checksum, text_column)
        size = path.stat().st_size
        return Source(names[path], checksum, size, texts, str(path), reading)

    def read(path: Path) -> str:
        checked = source(path, sha256(path))
        # All text is read, also after the first words, but not kept.
        if not sum(bool(part.strip()) for text in checked.texts() for part in text):
            raise UserError(f"{path} has no text")
        return checked.checksum

    checksums = file_checksums(paths, cache_dir, read, f"text:{text_column}")
    return [source(path, checksum) for path, checksum in checksums.items()]


def _names(paths: list[Path]) -> list[str]:
    """Return the file names without endings, with their folders if two would be equal."""
    ending = r"(\.(train|dev|test))?\.(txt\.gz|[a-z]+)$"
    stems = [re.sub(ending, "", path.name) or path.name for path in paths]
    longer = [f"{p.resolve().parent.name}-{stem}" for p, stem in zip(paths, stems)]
    for names in (stems, longer):
        if len(set(names)) == len(paths):
            return names
    return list(map(str, paths))


def _read_file(path: Path, checksum: str, column: str) -> Iterator[Iterator[str]]:
    """Yield the texts of a file, which must be the one that had this checksum.

    Otherwise the new text would be cached under the checksum of the old one.

    Raises:
        UserError: The file cannot be read, or has changed.
    """
    if path.name.endswith(TEXT_SUFFIXES):
        yield _read_text(path)
    else:
        yield from _read_table(path, column)
    if not path.is_file() or sha256(path) != checksum:
        raise UserError(
            f"{path} has changed since the start of this command; start again"
        )


def _read_text(path: Path) -> Iterator[str]:
    """Yield the parts of a text file. Line ends become `\\n`, and a BOM is dropped."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as binary:
            try:
                file = io.TextIOWrapper(binary, encoding="utf-8-sig")
                for part in read_parts(file):
                    if 3 * part.count("\0") > len(part):
                        raise UserError(
                            f"{path} has many NUL bytes: is it UTF-16 or binary?"
                        )
                    yield part
            except UnicodeDecodeError as error:
                # The error's offset is within the bytes that were read last.
                offset = binary.tell() - len(error.object) + error.start
                value = error.object[error.start]
                binary.read()  # a damaged gzip file is named as such
                encoding = "utf-16" if offset == 0 and value >= 0xFE else "latin1"
                advice = f"`iconv -f {encoding} -t utf-8` may convert it"
                if encoding == "latin1" and b"\0" in error.object:
                    advice = "it seems to be binary"
                raise UserError(
                    f"{path} is not UTF-8: byte {offset:,} is 0x{value:02x}"
                    f" ({error.reason}); {advice}"
                ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _read_table(path: Path, column: str) -> Iterator[Iterator[str]]:
    """Yield the text of every row of a table."""
    import datasets

    builder, files = BUILDERS[path.suffix], [glob.escape(str(path))]
    with _refusing(f"{path} cannot be read as {builder}"):
        if builder == "csv":
            rows = _csv_rows(path)
        else:
            options = dict(split="train", streaming=True)
            rows = datasets.load_dataset(builder, data_files=files, **options)
        yield from _row_texts(rows, column, str(path))


@contextlib.contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Raise `UserError` with a message and the reason if rows cannot be read."""
    import datasets

    errors = (ValueError, TypeError, OSError, csv.Error)
    try:
        yield
    except (*errors, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{message}: {error.__cause__ or error}") from error


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file. Each must have as many fields as the header."""
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}: the row that ends in line {reader.line_num} has not as many"
                    f" fields as the header ({', '.join(reader.fieldnames)}): {row}; a text"
                    " with a comma must be in quotes"
                )
            yield row


def _row_texts(rows: Any, column: str, where: str) -> Iterator[Iterator[str]]:
    """Yield the text of every row, as an iterator over parts; empty for one without words."""
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise UserError(
                f"{where} has no column {column!r} (data.text_column); it has"
                f" {', '.join(row)}"
            )
        text = "" if row[column] is None else row[column]
        if not isinstance(text, str):
            raise UserError(
                f"{where}, row {number}: {column!r} (data.text_column) holds no text but"
                f" {type(text).__name__}: {reprlib.repr(text)}"
            )
        has_words = text and not text.isspace()
        yield read_parts(io.StringIO(text, newline=None)) if has_words else iter(())


def read_hub(data: DataTrainingArguments, model: ModelArguments) -> dict[str, Source]:
    """Return the splits of the hub dataset `data.dataset_name`, by name."""
    import datasets

    hub = dict(
        revision=data.dataset_revision, token=model.token, cache_dir=model.cache_dir
    )
    with _refusing(data.dataset_name):
        builder = datasets.load_dataset_builder(
            data.dataset_name, data.dataset_config_name, **hub
        )
        builder.download_and_prepare()

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
