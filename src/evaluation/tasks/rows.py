"""Folders and JSON lines of a task, with errors that name the file and the line."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src.foundation import UserError

# What a field must hold: a type, or a tuple of types, as `isinstance` takes it.
Fields = Mapping[str, Any]


def find_folder(root: Path, name: str) -> Path | None:
    """The folder called `name` below `root`, at whatever depth; None where there is none.

    Two of that name are refused: an archive that was unpacked into its own folder would
    otherwise be scored twice, or the older copy instead of the newer.
    """
    found = sorted(path for path in root.rglob(name) if path.is_dir())
    if len(found) > 1:
        folders = ", ".join(map(str, found))
        raise UserError(
            f"evaluation.data: only one folder may be called {name}, found {folders}"
        )
    return found[0] if found else None


def read_rows(
    folder: Path, fields: Fields, key: str = "evaluation.data"
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, number of the line, row) of every line of every *.jsonl, in order of names.

    Raises `UserError` for a folder without such a file, an empty file, a line that is no
    JSON object, lacks one of `fields` or holds something else in it. It names `key`, where
    the folder was given.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{key}: no *.jsonl file in {folder}")
    for file in files:
        content = file.read_bytes().removesuffix(b"\n")
        if not content.strip():
            raise UserError(f"{key}: {file} is empty")
        # Not `splitlines`: a text may hold what it takes for a line's end (U+2028).
        for number, line in enumerate(content.split(b"\n"), start=1):
            if fault := _fault(line, fields):
                raise UserError(f"{key}: {file}, line {number}: {fault}")
            yield file, number, json.loads(line)


def _fault(line: bytes, fields: Fields) -> str:
    """What is wrong with a line, or nothing."""
    try:
        row = json.loads(line)
    except ValueError as error:  # of JSON, or of its UTF-8
        return f"no JSON: {error}"
    if not isinstance(row, dict):
        return f"must be a JSON object, got {type(row).__name__}"
    for field, kind in fields.items():
        if field not in row:
            return f"lacks the field {field}"
        if not isinstance(row[field], kind):
            return f"{field} is a {type(row[field]).__name__}: {row[field]!r}"
    return ""


def checksum(paths: list[Path]) -> str:
    """SHA-256 of the files' names and bytes, in order of names: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
