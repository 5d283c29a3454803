"""The cache in `model.cache_dir`. Each entry is built once and is complete or absent."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from src.foundation import (
    MANIFEST,
    UserError,
    acquired,
    sha256,
    write_atomically,
    write_fault,
    write_manifest,
)

T = TypeVar("T")
WEEK = 7 * 24 * 3600  # seconds

logger = logging.getLogger(__name__)


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
        load: Callable[[Path], T],
        build: Callable[[Path], None],
    ) -> T:
        """Return an entry; build it first if it is missing, damaged or to be overwritten.

        If several processes need the same entry, one builds it and the others wait. The
        build fills a temporary folder, which is renamed when it is complete. The folder is
        beside the final one, because the cache may be a link to another disk. A failed build
        leaves nothing, and the next build removes the remains of a killed one. A complete
        cache may be read-only.

        Args:
            kind: The subfolder of the cache that holds such entries.
            identity: The values that determine the content; they must be JSON-serializable.
            load: Reads an entry's folder.
            build: Fills an empty folder.

        Raises:
            UserError: The cache cannot be written.
        """
        directory = self.directory / kind / _checksum(identity)[:16]
        if (entry := self._load(directory, load)) is not None:
            return entry
        if directory.is_dir() and not self.overwrite:
            logger.warning(
                "%s has no manifest or is damaged; it is built again", directory
            )
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with acquired(Path(f"{directory}.lock")):
                if (entry := self._load(directory, load)) is None:
                    _build(directory, build)
                    entry = load(directory)
                return entry
        except UserError:
            raise
        except Exception as error:
            if (reason := write_fault(error)) is None:
                raise
            raise UserError(
                f"model.cache_dir: {directory.parent} cannot be written: {reason}; make"
                " room or choose another directory with model.cache_dir="
            ) from error

    def _load(self, directory: Path, load: Callable[[Path], T]) -> Optional[T]:
        """Return an entry; None if it is missing, damaged or to be overwritten."""
        if self.overwrite:
            return None
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            present = file_checksums([directory / f for f in manifest], self.directory)
            whole = list(present.values()) == list(manifest.values())
            return load(directory) if whole else None
        except (OSError, ValueError, TypeError, AttributeError, UserError):
            return None


def _build(directory: Path, build: Callable[[Path], Any]) -> None:
    """Fill a temporary folder and rename it to `directory` when it is complete."""
    temporary = directory.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        build(temporary)
        write_manifest(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_checksums(
    paths: list[Path],
    cache_dir: Path,
    read: Callable[[Path], str] = sha256,
    purpose: str = "",
) -> dict[Path, str]:
    """Return the SHA-256 of every file. Only new and changed files are read.

    A file counts as changed if its size, its inode or the time of its last change differs (the
    kernel's time, which nobody can set back), and once a week, because a disk changes bits
    without any of them. If several processes need the same checksums, one of them reads the files
    and the others wait. If the cache cannot be written, each process reads them, the checksums are
    not kept for the next call, and files are not read weekly.

    Args:
        paths: The files.
        cache_dir: The folder of the checksums that are known, in `checksums.json`.
        read: Returns the SHA-256 of a file.
        purpose: What else `read` checks. A file that was read for another purpose is read.
    """
    index = cache_dir / "checksums.json"
    oldest = time.time() - WEEK if os.access(cache_dir, os.W_OK) else 0

    names = {path: str(path.resolve()) for path in paths}

    def is_unread(path: Path) -> bool:
        row = known.get(names[path], [])
        return row[:-2] != _version(path, purpose) or row[-2] < oldest

    known = _read_index(index)
    if any(map(is_unread, paths)):
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                cache_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(acquired(cache_dir / "checksums.lock"))
            known = _read_index(index)  # another process may have read the files
            for path in filter(is_unread, paths):
                version = _version(path, purpose)
                known[names[path]] = [*version, int(time.time()), read(path)]
            with contextlib.suppress(OSError):
                write_atomically(index, {"checksum": _checksum(known), "files": known})
    return {path: known[name][-1] for path, name in names.items()}


def _version(path: Path, purpose: str) -> list:
    """Return what differs if a file has changed or is read for another purpose."""
    stat = path.stat()
    return [purpose, stat.st_size, stat.st_ino, stat.st_ctime_ns]


def _read_index(index: Path) -> dict[str, list]:
    """Return {path: [*version, time of reading, checksum]}; empty for a damaged file."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["checksum"] == _checksum(content["files"]):
            return content["files"]
    return {}


def _checksum(values: Any) -> str:
    """Return the SHA-256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
