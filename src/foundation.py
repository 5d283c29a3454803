"""Shared foundations: the error type, atomic writing, permissions and checksums of files."""

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional

from filelock import AcquireReturnProxy, FileLock, SoftFileLease

# The codes of `OSError` if a disk is full or write-protected, a permission is missing, or a
# directory takes the place of a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
CANNOT_WRITE = (*FULL, errno.EACCES, errno.EPERM, errno.EISDIR)
# What torch.save and NumPy say instead of the reason.
NOT_WRITTEN = (
    r"PytorchStreamWriter failed|unexpected pos \d+ vs|requested and \d+ written"
    r"|basic_ios::clear"
)
MANIFEST = "manifest.json"
# The codes of `OSError` if a file system has no locks. Lustre and NFS can be mounted so.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
LEASE = 60  # seconds


class UserError(Exception):
    """An input that cannot be used. Users see its message, without a traceback."""


def write_fault(error: BaseException) -> Optional[str]:
    """Return why a file or folder could not be written; None for any other error.

    The reasons are a full disk, a quota, a limit on the size of a file, write protection, a
    missing permission and a link to nothing. Libraries raise them as errors of many types.
    """
    if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError)):
        try:
            check_folder(Path(error.filename or "."))
        except UserError as reason:
            return str(reason)
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror if error.errno in CANNOT_WRITE else None
    if match := re.search("|".join(map(os.strerror, FULL)), str(error)):
        return match[0]
    return "the disk may be full" if re.search(NOT_WRITTEN, str(error)) else None


def check_folder(folder: Path) -> None:
    """Raise `UserError` if a link to nothing or a file takes the place of a folder."""
    for path in (folder, *folder.parents):
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which does not exist"
            )
        if os.path.isfile(path):
            raise UserError(f"{path} is a file, not a folder")


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


def fault_in_loading(error: BaseException, trust_key: str) -> str:
    """Return why a library cannot load a model or tokenizer, in one line.

    Args:
        trust_key: the option that allows Python code that comes with a model. It is named if
            the library refuses such code.
    """
    if "trust_remote_code" in str(error):
        return f"it comes with Python code, which runs only with {trust_key}=true"
    return first_line(error)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2,000 steps"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def parse_words(text: str) -> Optional[int]:
    """Return a number of words that is written as 250000, 300k or 1M; None for other text."""
    match = re.fullmatch(r"([1-9]\d*)([kM]?)", text)
    return match and int(match[1]) * {"": 1, "k": 1000, "M": 1_000_000}[match[2]]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean x?` with the nearest of the choices; "" if none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def shows_bars() -> bool:
    """Return whether progress bars are shown: only if all output goes to a terminal.

    With `python … | tee file`, bars on stderr would get between the lines of stdout.
    """
    return sys.stdout.isatty() and sys.stderr.isatty()


def blaming(
    build: Callable[[dict[str, Any]], Any],
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    section: str,
) -> Any:
    """Return `build(values)`. If a library refuses, name the values that are to blame.

    To blame is each value without which `build` works: with its default instead, or without
    its name if it has no default.

    Args:
        build: Builds something from values that only a library can judge.
        values: The user's values by name.
        defaults: The defaults of the names that cannot be left out.
        section: The section of the names, as in `section.name=value`. If no single value is
            to blame, its first part is named.

    Raises:
        UserError: With the values to blame and the library's words.
    """
    try:
        return build(dict(values))
    except UserError:
        raise
    except Exception as error:
        if write_fault(error):  # the machine is to blame
            raise
        blamed = []
        for name, value in values.items():
            others = {key: values[key] for key in values if key != name}
            others |= {name: defaults[name]} if name in defaults else {}
            if value is not None and others != values:
                with contextlib.suppress(Exception):
                    build(others)
                    shown = getattr(value, "value", value)  # of an enum
                    shown = "<secret>" if name.endswith("token") else shown
                    blamed.append(f"{section}.{name}={shown}")
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        reason = reason if " " in reason else f"{type(error).__name__} {reason}".strip()
        named = ", ".join(blamed) or section.partition(".")[0]
        raise UserError(f"{named}: {reason}") from error


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
    with replacing(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Name a temporary file for the block to write, which then replaces `file`.

    If the block fails, `file` stays as it is.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or an empty dictionary if there is no such file.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise UserError(f"{file} is not JSON: {error}") from error


def acquired(path: Path, timeout: float = -1) -> AcquireReturnProxy:
    """Acquire the lock `path`, and return a context that releases it.

    The system releases the lock of a process that ends in any way. On a file system without
    locks, a file `<path>.lease` takes the lock's place, which its holder renews. If it has not
    been renewed for a minute, its holder was killed, and it is taken over.

    Args:
        timeout: Seconds to wait for another holder; -1: without limit. To them is added the
            time after which a lease is taken over.

    Raises:
        filelock.Timeout: Another process holds the lock.
    """
    try:
        return FileLock(path, timeout=timeout, fallback_to_soft=False).acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        limit = timeout if timeout < 0 else timeout + LEASE
        lease = f"{path}.lease"
        return SoftFileLease(lease, lease_duration=LEASE, timeout=limit).acquire()


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


def write_manifest(directory: Path) -> None:
    """Write the checksums of all files of a directory to its `manifest.json`."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(directory)) for path in files]
    sums = {name: sha256(directory / name) for name in names if name != MANIFEST}
    write_atomically(directory / MANIFEST, sums)


def fault_by_manifest(
    directory: Path, patterns: Iterable[str] = ("*",)
) -> Optional[str]:
    """Return the first difference from a directory's `manifest.json` in words.

    Args:
        patterns: patterns of the names of the files that are compared.

    Returns:
        None if there is no difference, or no manifest.
    """
    manifest = directory / MANIFEST
    try:
        sums = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
        for name, checksum in sums.items():
            if not any(fnmatch(name, pattern) for pattern in patterns):
                continue
            file = directory / name
            if not (file.is_file() and sha256(file) == checksum):
                return f"is damaged ({name})"
    except (ValueError, AttributeError):  # not JSON, or no dictionary
        return f"is damaged ({MANIFEST})"
    return None


def apply_umask(file: Path) -> None:
    """Give a file the permissions of a new file.

    safetensors creates files that only their owner can read, whatever the umask.
    """
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
