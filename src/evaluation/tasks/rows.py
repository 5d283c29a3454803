"""Readers of a task's files: JSON lines and tables. Errors name the file and the line."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from src.foundation import UserError, first_line, naming

if TYPE_CHECKING:
    import pandas as pd

# Field -> its type, or a tuple of types, as `isinstance` takes it.
Fields = Mapping[str, Any]
T = TypeVar("T")


def read_rows(
    file: Path, fields: Fields, convert: Callable[[dict[str, Any]], T]
) -> list[T]:
    """Return the rows of a file of JSON lines, each one converted by `convert`.

    Raises:
        UserError: the file is empty, or a line is not a JSON object, lacks one of `fields`,
            has a field of another type, or is refused by `convert`.
    """
    content = existing(file).read_bytes().removesuffix(b"\n")
    if not content.strip():
        raise UserError(f"{file} is empty")
    rows = []
    # `splitlines` would also split at U+2028 and similar characters, which a text may hold.
    for number, line in enumerate(content.split(b"\n"), start=1):
        with naming(f"{file}, line {number}"):
            rows.append(convert(_parse(line, fields)))
    return rows


def _parse(line: bytes, fields: Fields) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise UserError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"must be a JSON object, got {type(row).__name__}")
    for field, kind in fields.items():
        if field not in row:
            raise UserError(f"lacks the field {field}")
        if not isinstance(row[field], kind):
            raise UserError(f"{field} is a {type(row[field]).__name__}: {row[field]!r}")
    return row


def read_table(
    file: Path, texts: Iterable[str], numbers: Iterable[str]
) -> "pd.DataFrame":
    """Return columns of a CSV file: `texts` as str, `numbers` as float64.

    The file is read with the defaults of pandas, which are part of the challenge's protocol.
    The text "None", for example, is read as a missing value, NaN.

    Raises:
        UserError: the file is missing, has no rows, lacks a column, or has another text in a
            column of numbers.
    """
    import pandas as pd

    try:
        with existing(file).open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.reader(lines) if row]
        table = pd.read_csv(file, index_col=False, dtype=dict.fromkeys(texts, str))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: {first_line(error)}") from error
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):  # pandas would fill the row up, or cut it
            lengths = f"{len(row)} fields, but the header {len(rows[0])}"
            raise UserError(f"{file}, row {number} below the header has {lengths}")
    if lacking := {*texts, *numbers} - set(table.columns):
        raise UserError(f"{file} lacks the columns {sorted(lacking)}")
    if table.empty:
        raise UserError(f"{file} is empty")
    for name in numbers:
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        refused = table[name][values.isna() & table[name].notna()]
        if len(refused):
            raise UserError(
                f"{file}, row {refused.index[0] + 1} below the header, column {name}:"
                f" must be a number, got {refused.iloc[0]!r}"
            )
        table[name] = values
    return table[[*texts, *numbers]]


def existing(file: Path) -> Path:
    """Return the path `file`.

    Raises:
        UserError: the file does not exist.
    """
    if not file.exists():
        raise UserError(f"no {file.name} in {file.parent}")
    return file
