"""Shared foundations: the error type, atomic writing, permissions and checksums of files."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Iterable, Iterator

# The codes of `OSError` if a disk is full or write-protected, or a permission is missing.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """An input that cannot be used. Users see its message, without a traceback."""


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Put `key: ` before the message of every `UserError` that the block raises.

    A function that reads a file names only the file in its messages. Its caller knows the
    key under which the user gave the file, and adds it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message. Libraries add long advice below it."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def write_atomically(file: Path, content: Any, indent: int | None = 1) -> None:
    """Write text, or any other content as JSON, so that the file is never incomplete.

    The content is written to a temporary file first, which then replaces `file`. A reader
    sees the old content or the new, even if the process is killed.

    Args:
        file: The file to write, in an existing folder.
        content: Text, or values that JSON can hold.
        indent: The indentation of the JSON; None puts it on one line.
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
    _update(digest, path)
    return digest.hexdigest()


def checksum_of_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 of the names, sizes and bytes of several files, ordered by name.

    Folders do not count, so a copy in another folder has the same 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        _update(digest, path)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    """Add the bytes of a file to a digest of `hashlib`."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)


def apply_umask(file: Path) -> None:
    """Give a file the permissions of a new file.

    safetensors creates files that only their owner can read, whatever the umask.
    """
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
