import errno
import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from src import foundation
from src.data.cache import WEEK, Cache, file_checksums
from src.foundation import UserError, sha256
from tests.data.text.test_corpus import write

IDENTITY = ["what", {"determines": "the content"}]


def load(directory: Path) -> Path:
    return directory


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
    assert sorted(p.name for p in entry.iterdir()) == ["manifest.json", "whole"]
    assert not entry.with_suffix(".tmp").exists()


def test_what_is_complete_is_not_built_again_unless_asked_to(tmp_path: Path):
    for text in ("first", "second"):
        entry = get(tmp_path, lambda t: (t / "f").write_text(text))
    assert (entry / "f").read_text() == "first"
    get(tmp_path, lambda t: (t / "f").write_text("third"), overwrite=True)
    assert (entry / "f").read_text() == "third"


def damage_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["f", "manifest.json"])
@pytest.mark.parametrize(
    "damage", [damage_bit, Path.unlink, lambda f: f.write_text("")]
)
def test_a_damaged_entry_is_built_again(name, damage, tmp_path: Path, caplog):
    def build(folder: Path) -> None:
        (folder / "f").write_text("x")

    entry = get(tmp_path, build)
    whole = {path.name: path.read_bytes() for path in entry.iterdir()}
    damage(entry / name)
    assert get(tmp_path, build) == entry
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == whole
    assert f"{entry} has no manifest or is damaged; it is built again" in caplog.text


def test_an_entry_that_is_whole_is_read_once_a_week(tmp_path: Path):
    entry = get(tmp_path, lambda folder: (folder / "f").write_text("x"))
    for _ in range(2):  # the second call reads nothing, so it changes nothing
        get(tmp_path, None)
        index = (tmp_path / "checksums.json").read_text()
    (row,) = json.loads(index)["files"].values()
    assert row[-1] == sha256(entry / "f") and row[-2] == pytest.approx(
        time.time(), abs=60
    )
    assert (tmp_path / "checksums.json").read_text() == index


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "File too large"),
        # as `tokenizers` and NumPy raise it
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (OSError("25600 requested and 512 written"), "the disk may be full"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_by_its_key(error, reason, tmp_path):
    def fail(temporary: Path) -> None:
        raise error

    message = (
        f"^model.cache_dir: {tmp_path}/a cannot be written: {reason}; make room or choose"
        " another directory with model.cache_dir="
    )
    with pytest.raises(UserError, match=message):
        get(tmp_path, fail)
    assert [p.suffix for p in (tmp_path / "a").iterdir()] == [".lock"]


def test_a_bug_is_no_full_disk(tmp_path: Path):
    def fail(temporary: Path) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        get(tmp_path, fail)


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
    reads: list[Path] = []

    def read(file: Path) -> str:
        reads.append(file)
        return sha256(file)

    def checksum(purpose: str = "") -> str:
        return file_checksums([path], tmp_path / "cache", read, purpose)[path]

    assert checksum() == checksum() == sha256(path)
    assert len(reads) == 1
    # Other text of the same size, with the old time set again: the kernel's time tells.
    stat = path.stat()
    path.write_text("The cat.\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checksum() == sha256(path)
    # The same content in another file of this name.
    copy = write(tmp_path / "copy", ["The cat.\n"])
    copy.replace(path)
    checksum()
    assert len(reads) == 3
    # The reader may check more than before.
    checksum("text:title")
    assert len(reads) == 4


def test_a_file_is_read_again_after_a_week(tmp_path: Path, monkeypatch):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    cache_dir, now = tmp_path / "cache", time.time()
    reads: list[float] = []

    def read(file: Path) -> str:
        reads.append(round(time.time() - now))
        return sha256(file)

    for later in (0, WEEK - 9, WEEK + 9, WEEK + 18):
        monkeypatch.setattr(time, "time", lambda: now + later)
        file_checksums([path], cache_dir, read)
    assert reads == [0, WEEK + 9]


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"a', b"[]", b"null", b"[1]", b"\xff\xfe", b'{"%s": [1]}', b'{"files": 5}'],
)
def test_a_damaged_index_is_made_anew(damage: bytes, tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/checksums.json").write_bytes(
        damage.replace(b"%s", bytes(path.resolve()))
    )
    assert file_checksums([path], tmp_path / "cache") == {path: sha256(path)}
    index = json.loads((tmp_path / "cache/checksums.json").read_text())
    assert index["files"][str(path.resolve())][-1] == sha256(path)


def test_a_checksum_that_is_damaged_in_the_index_is_not_used(tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    file_checksums([path], tmp_path)
    index = tmp_path / "checksums.json"
    digest = sha256(path)
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    index.write_text(index.read_text().replace(digest, other))
    assert file_checksums([path], tmp_path) == {path: digest}


def test_one_of_several_processes_reads_a_new_file(tmp_path: Path):
    path = write(tmp_path / "a.train", ["The dog.\n"])
    reads: list[Path] = []

    def read(file: Path) -> str:
        time.sleep(0.1)
        reads.append(file)
        return sha256(file)

    with ThreadPoolExecutor(4) as pool:  # whose locks exclude each other like processes
        calls = [
            pool.submit(file_checksums, [path], tmp_path / "cache", read)
            for _ in range(4)
        ]
    assert [call.result() for call in calls] == 4 * [{path: sha256(path)}]
    assert reads == [path]


def test_without_flock_a_lock_of_another_machine_that_is_not_renewed_is_taken_over(
    tmp_path: Path, monkeypatch
):
    """As Lustre and NFS can be mounted, and a job that was killed on another node."""

    def flock(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(foundation, "LEASE", 0.4)
    lock = get(tmp_path, lambda folder: None, overwrite=True).with_suffix(".lock")
    left = "filelock/2\npid=1\nhost=n7\nmode=lease\ntoken=a\nduration=0.4\nstart=9\n"
    Path(f"{lock}.lease").write_text(left)
    entry = get(tmp_path, lambda f: (f / "f").write_text("x"), overwrite=True)
    assert (entry / "f").read_text() == "x" and not Path(f"{lock}.lease").exists()
    # One that works renews its lease.
    with foundation.acquired(lock), pytest.raises(Timeout):
        foundation.acquired(lock, timeout=0.2)
