"""What is kept under `model.cache_dir`: complete or absent, built once, known by content."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Callable, Iterator, Optional, TypeVar

from filelock import FileLock

from src.foundation import UserError, sha256

T = TypeVar("T")


def build_once(
    directory: Path,
    load: Callable[[Path], Optional[T]],
    build: Callable[[Path], None],
    overwrite: bool = False,
) -> T:
    """What `load(directory)` gives; where that is None, `build(temporary)` fills it first.

    Processes that ask for it together build it once: the others wait. It is filled under
    another name beside its own (the cache may be a link to another disk) and renamed when
    complete; what a failure leaves is removed, what a kill leaves is removed by the next.
    What is there already is loaded without writing: the cache may be read-only.
    """
    if not overwrite and (loaded := load(directory)) is not None:
        return loaded
    with _writing(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if not overwrite and (loaded := load(directory)) is not None:
                return loaded
            temporary = directory.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                build(temporary)
                shutil.rmtree(directory, ignore_errors=True)
                os.replace(temporary, directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return load(directory)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Names the cache where it cannot be written."""
    try:
        yield
    except OSError as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        at = str(error.filename or directory)
        ours = at.startswith(str(directory)) or str(directory).startswith(at)
        refused = (*full, errno.EROFS, errno.EACCES, errno.EPERM)
        if error.errno not in refused or not ours:
            raise
        raise UserError(
            f"model.cache_dir: {directory} cannot be written: {error.strerror};"
            + (" make room, or" if error.errno in full else "")
            + " choose another with model.cache_dir="
        ) from error


def file_checksums(paths: list[Path], cache_dir: Path) -> dict[Path, str]:
    """SHA-256 of every file's bytes; read again only where size or time has changed.

    Where the cache cannot be written they are not remembered, and read again next time.
    """
    index = cache_dir / "checksums.json"
    known = _read_index(index)
    changed = {}
    for path in paths:
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        if known.get(str(path.resolve()), [None])[:2] != seen:
            changed[str(path.resolve())] = [*seen, sha256(path)]
    if changed:
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{index}.lock"):  # others may have added theirs
                temporary = index.with_suffix(".tmp")
                entries = {**_read_index(index), **changed}
                temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
                os.replace(temporary, index)
    known.update(changed)
    return {path: known[str(path.resolve())][2] for path in paths}


def _read_index(index: Path) -> dict[str, list]:
    try:
        known = dict(json.loads(index.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or damaged: made anew
        return {}
    return {
        path: entry
        for path, entry in known.items()
        if isinstance(entry, list) and len(entry) == 3
    }
