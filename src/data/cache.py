"""What is kept under `model.cache_dir`: complete or absent, built once, known by content."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Callable

from filelock import FileLock


def build_once(
    directory: Path,
    is_whole: Callable[[Path], bool],
    build: Callable[[Path], None],
    overwrite: bool = False,
) -> None:
    """Make sure that `directory` is there and whole; `build(temporary)` fills it otherwise.

    Processes that ask for it together build it once: the others wait. It is filled under
    another name beside its own (the cache may be a link to another disk) and renamed when
    complete; what a failure leaves is removed, what a kill leaves is removed by the next.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if is_whole(directory) and not overwrite:
            return
        temporary = directory.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            build(temporary)
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def file_checksums(paths: list[Path], cache_dir: Path) -> dict[Path, str]:
    """SHA-256 of every file's bytes; read again only where size or time has changed."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    index = cache_dir / "checksums.json"
    with FileLock(f"{index}.lock"):
        try:
            known = dict(json.loads(index.read_text(encoding="utf-8")))
        except (
            FileNotFoundError,
            ValueError,
            TypeError,
        ):  # none, or damaged: made anew
            known = {}
        before = dict(known)
        for path in paths:
            stat = path.stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            if known.get(str(path.resolve()), [None])[:2] != seen:
                known[str(path.resolve())] = [*seen, sha256(path)]
        if known != before:
            temporary = index.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(temporary, index)
    return {path: known[str(path.resolve())][2] for path in paths}


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
