"""The cache in `model.cache_dir`. Each entry is built once and is complete or absent."""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, TypeVar

from filelock import FileLock

from src.foundation import CANNOT_WRITE, UserError, sha256, write_atomically

T = TypeVar("T")


@dataclass(frozen=True)
class Cache:
    """A folder of entries. The key of an entry is a hash of all that determines its content.

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

        If several processes need the same entry, one builds it and the others wait. The
        build fills a temporary folder, which is renamed when it is complete. The folder is
        beside the final one, because the cache may be a link to another disk. A failed build
        leaves nothing, and the next build removes the remains of a killed one. Loading
        writes nothing, so a complete cache may be read-only.

        Args:
            kind: The subfolder of the cache that holds such entries.
            identity: The values that determine the content; they must be JSON-serializable.
            load: Reads an entry's folder; returns None if it is missing or damaged.
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
    """Fill a temporary folder and rename it to `directory` when it is complete."""
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
        path = Path(error.filename or directory)
        in_cache = path.is_relative_to(directory) or directory.is_relative_to(path)
        if error.errno not in CANNOT_WRITE or not in_cache:
            raise
        raise UserError(
            f"model.cache_dir: {directory} cannot be written: {error.strerror}; make room"
            " or choose another directory with model.cache_dir="
        ) from error


def file_checksums(paths: list[Path], cache_dir: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file. Only new and changed files are read.

    A file counts as changed if its size or its time of modification has changed. If the
    cache cannot be written, the checksums are not kept for the next call.
    """
    index = cache_dir / "checksums.json"
    # {path: [size, time, checksum]}; starts empty if the file is missing or damaged.
    known: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        entries = json.loads(index.read_text(encoding="utf-8"))
        known = {
            path: [*version, digest] for path, (*version, digest) in entries.items()
        }
    before, checksums = dict(known), {}
    for path in paths:
        name, stat = str(path.resolve()), path.stat()
        version = [stat.st_size, stat.st_mtime_ns]
        if known.get(name, [])[:2] != version:
            known[name] = [*version, sha256(path)]
        checksums[path] = known[name][2]
    if known != before:
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(index, known)
    return checksums
