"""The cache in `model.cache_dir`: each entry is complete or absent, and is built once."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, TypeVar

from filelock import FileLock

from src.foundation import UserError, sha256, write_atomically

T = TypeVar("T")


@dataclass(frozen=True)
class Cache:
    """A folder of entries, each under a key made of everything that determines its content.

    Args:
        directory: The value of `model.cache_dir`; created when something is written.
        overwrite: Build an entry again even if it exists.
        progress: Show progress bars while building.
    """

    directory: Path
    overwrite: bool = False
    progress: bool = False

    def get(
        self,
        kind: str,
        identity: list,
        load: Callable[[Path], Optional[T]],
        build: Callable[[Path], None],
    ) -> T:
        """Return an entry; build it first if it is missing, damaged or to be overwritten.

        Processes that ask for an entry at the same time build it once: the others wait. It
        is built in a folder beside its final one (the cache may be a link to another disk)
        that is renamed when complete. A failed build leaves nothing; what a killed one has
        left is removed by the next. Loading writes nothing, so the cache may be read-only.

        Args:
            kind: The folder of the cache that holds the entry.
            identity: What determines the content, as values that JSON can hold.
            load: Reads an entry's folder; None if it is missing or damaged.
            build: Fills an empty folder.

        Raises:
            UserError: The cache cannot be written.
        """
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        directory = self.directory / kind / key
        if not self.overwrite and (entry := load(directory)) is not None:
            return entry
        with _explaining_write_errors(directory.parent):
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{directory}.lock"):
                if not self.overwrite and (entry := load(directory)) is not None:
                    return entry
                _build(directory, build)
                return load(directory)


def _build(directory: Path, build: Callable[[Path], Any]) -> None:
    """Build under another name; replace the directory when it is complete."""
    temporary = directory.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        build(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _explaining_write_errors(directory: Path) -> Iterator[None]:
    """Raise a `UserError` that names `model.cache_dir` if the cache cannot be written."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        path = str(error.filename or directory)
        in_cache = path.startswith(str(directory)) or str(directory).startswith(path)
        if not (full or refused) or not in_cache:
            raise
        raise UserError(
            f"model.cache_dir: {directory} cannot be written: {error.strerror};"
            + " make room, or" * full
            + " choose another with model.cache_dir="
        ) from error


def file_checksums(paths: list[Path], cache_dir: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file; reads only files whose size or time has changed.

    If the cache cannot be written, the checksums are not kept for the next call.
    """
    index = cache_dir / "checksums.json"
    known, changed = _read_index(index), False
    for path in paths:
        name, stat = str(path.resolve()), path.stat()
        version = [stat.st_size, stat.st_mtime_ns]
        if known.get(name, [])[:2] != version:
            known[name] = [*version, sha256(path)]
            changed = True
    if changed:
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(index, json.dumps(known, indent=1))
    return {path: known[str(path.resolve())][2] for path in paths}


def _read_index(index: Path) -> dict[str, list]:
    """Return {path: [size, time, checksum]}; empty if the file is missing or damaged."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        return {
            path: [size, time, checksum]
            for path, (size, time, checksum) in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
