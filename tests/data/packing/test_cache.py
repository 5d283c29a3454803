import errno
import json
import os
from pathlib import Path
from typing import Optional

import pytest

from src.data.packing.cache import build_once, file_checksums
from src.foundation import UserError, sha256
from tests.data.text.test_corpus import write


def found(directory: Path) -> Optional[Path]:
    return directory if directory.is_dir() else None


def test_what_a_failure_leaves_half_written_is_removed(tmp_path: Path):
    def fail(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise OSError("no room")

    with pytest.raises(OSError):
        build_once(tmp_path / "a", found, fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lock"]


def test_what_a_kill_left_is_no_hindrance(tmp_path: Path):
    (tmp_path / "a.tmp").mkdir()
    (tmp_path / "a.tmp" / "half").write_text("x")
    build_once(tmp_path / "a", found, lambda t: (t / "whole").write_text("y"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["whole"]


def test_what_is_whole_is_not_built_again_unless_asked_to(tmp_path: Path):
    for text, overwrite in (("first", False), ("second", False)):
        build_once(
            tmp_path / "a", found, lambda t: (t / "f").write_text(text), overwrite
        )
    assert (tmp_path / "a/f").read_text() == "first"
    build_once(tmp_path / "a", found, lambda t: (t / "f").write_text("third"), True)
    assert (tmp_path / "a/f").read_text() == "third"


@pytest.mark.parametrize(
    "number, expected",
    [
        (
            errno.ENOSPC,
            "cannot be written: No space left on device; make room, or choose",
        ),
        (errno.EROFS, "cannot be written: Read-only file system; choose another with"),
    ],
)
def test_a_cache_that_cannot_be_written_is_told_by_its_key(number, expected, tmp_path):
    def fail(temporary: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=f"^model.cache_dir: {tmp_path} {expected}"):
        build_once(tmp_path / "a", found, fail)
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.tmp").exists()


def test_what_is_there_is_loaded_without_writing(tmp_path: Path):
    (tmp_path / "a").mkdir()
    build_once(tmp_path / "a", found, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
