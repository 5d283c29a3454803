import errno
import json
import os
from pathlib import Path
from typing import Any, Optional

import pytest

from src.data.cache import Cache, file_checksums
from src.foundation import UserError, sha256
from tests.data.text.test_corpus import write

IDENTITY = ["what", {"determines": "the content"}]


def load(directory: Path) -> Optional[Path]:
    return directory if directory.is_dir() else None


def get(cache_dir: Path, build: Any, overwrite: bool = False) -> Path:
    return Cache(cache_dir, overwrite).get("a", IDENTITY, load, build)


def test_an_entry_is_found_by_what_determines_its_content(tmp_path: Path):
    entry = get(tmp_path, lambda folder: (folder / "f").write_text("x"))
    assert entry == tmp_path / "a" / "0a8de875629ef17c"  # also by later versions
    other = Cache(tmp_path).get("a", ["another"], load, lambda folder: None)
    assert other.parent == entry.parent and other != entry


def test_what_a_failure_leaves_half_written_is_removed(tmp_path: Path):
    def fail(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise OSError("no room")

    with pytest.raises(OSError):
        get(tmp_path, fail)
    assert [p.suffix for p in (tmp_path / "a").iterdir()] == [".lock"]


def test_what_a_kill_left_is_no_hindrance(tmp_path: Path):
    entry = get(tmp_path, lambda t: None)
    entry.rename(entry.with_suffix(".tmp"))
    (entry.with_suffix(".tmp") / "half").write_text("x")
    get(tmp_path, lambda t: (t / "whole").write_text("y"))
    assert [p.name for p in entry.iterdir()] == ["whole"]
    assert not entry.with_suffix(".tmp").exists()


def test_what_is_complete_is_not_built_again_unless_asked_to(tmp_path: Path):
    for text in ("first", "second"):
        entry = get(tmp_path, lambda t: (t / "f").write_text(text))
    assert (entry / "f").read_text() == "first"
    get(tmp_path, lambda t: (t / "f").write_text("third"), overwrite=True)
    assert (entry / "f").read_text() == "third"


@pytest.mark.parametrize(
    "number, reason",
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_by_its_key(number, reason, tmp_path):
    def fail(temporary: Path) -> None:
        raise OSError(number, os.strerror(number))

    message = (
        f"^model.cache_dir: {tmp_path}/a cannot be written: {reason}; make room or choose"
        " another directory with model.cache_dir="
    )
    with pytest.raises(UserError, match=message):
        get(tmp_path, fail)
    assert [p.suffix for p in (tmp_path / "a").iterdir()] == [".lock"]


def test_what_exists_is_loaded_without_writing(tmp_path: Path):
    entry = get(tmp_path, lambda t: None)
    for lock in (tmp_path / "a").glob("*.lock"):
        lock.unlink()
    assert get(tmp_path, None) == entry
    assert list((tmp_path / "a").iterdir()) == [entry]


def test_a_changed_file_is_noticed(tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    before = file_checksums([path], tmp_path / "cache")[path]
    assert before == sha256(path)
    path.write_text("The cats.\n")
    assert file_checksums([path], tmp_path / "cache")[path] == sha256(path) != before
    # The same length: told by its time.
    path.write_text("The boys.\n")
    os.utime(path, ns=(1, 1))
    assert file_checksums([path], tmp_path / "cache")[path] == sha256(path)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    before = file_checksums([path], tmp_path / "cache")
    # Other text behind the same size and time: only a reader would notice.
    stat = path.stat()
    path.write_text("The cat.\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_checksums([path], tmp_path / "cache") == before


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"a', b"[]", b"null", b"[1]", b"\xff\xfe", b'{"%s": [1]}', b'{"%s": 5}'],
)
def test_a_damaged_index_is_made_anew(damage: bytes, tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/checksums.json").write_bytes(
        damage.replace(b"%s", bytes(path.resolve()))
    )
    assert file_checksums([path], tmp_path / "cache") == {path: sha256(path)}
    index = json.loads((tmp_path / "cache/checksums.json").read_text())
    assert index[str(path.resolve())][2] == sha256(path)
