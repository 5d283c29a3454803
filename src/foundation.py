"""What every room stands on: the error type, whole files, checksums."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Iterator


class UserError(Exception):
    """An input that cannot be used: shown as its message, without a traceback."""


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Put `key: ` before the message of every `UserError` that the block raises.

    What reads a file names the file; the caller, who knows under which key the file was
    given, adds the key.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message: libraries add long advice below it."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def write_atomically(file: Path, content: Any, indent: int | None = 1) -> None:
    """Write text, or any other content as JSON, so that the file is complete or absent.

    The content goes to a file beside it first, which then takes its name: who reads while
    it is written, or after a kill, sees the old content or the new.

    Args:
        indent: of the JSON; None: one line.
    """
    if not isinstance(content, str):
        content = json.dumps(content, indent=indent, ensure_ascii=False)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
