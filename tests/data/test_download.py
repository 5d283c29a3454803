"""The download with the real hub client, from a server on this machine."""

import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("huggingface_hub", minversion="1.0")

ROOT = Path(__file__).resolve().parents[2]
SMALL = "BabyLM-community/BabyLM-2026-Strict-Small"
DEV = "BabyLM-community/BabyLM-dev"
EVALS = "BabyLM-community/BabyLM-2026-Strict-Evals"
SOURCES = (
    "bnc_spoken",
    "childes",
    "gutenberg",
    "open_subtitles",
    "simple_wiki",
    "switchboard",
)
LARGE = 1000  # bytes from which the pretended hub keeps a file in large file storage


class Hub(ThreadingHTTPServer):
    """The parts of the hub that the client uses: listings, and files behind a redirection.

    Larger files are identified by their SHA-256, the others by git's SHA-1.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.altered: dict[str, bytes] = {}  # sent in place of what is listed
        self.break_after: int | None = None  # bytes of a file, then the line goes dead
        self.no_ranges = False
        self.requests: list[tuple[str, str | None]] = []  # path, Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[tuple[str, str | None]]:
        return [(path, range_) for path, range_ in self.requests if "/cdn/" in path]

    def listing(self, dataset: str) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for path, data in self.datasets[dataset].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if len(data) >= LARGE:
                digest = hashlib.sha256(data).hexdigest()
                large = {"oid": digest, "size": len(data), "pointerSize": 130}
                entry |= {"lfs": large, "oid": hashlib.sha1(data).hexdigest()}
            entries.append(entry)
        folders = {path.rsplit("/", 1)[0] for path in self.datasets[dataset]}
        for folder in folders - set(self.datasets[dataset]):
            entries.append({"type": "directory", "path": folder, "size": 0, "oid": "0"})
        return entries


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((path, self.headers.get("Range")))
        if listing := re.fullmatch(r"/api/datasets/(.+)/tree/[0-9a-f]{40}", path):
            if listing[1] not in self.server.datasets:
                return self.send(404, b"{}", X_Error_Code="RepoNotFound")
            return self.send(200, json.dumps(self.server.listing(listing[1])).encode())
        if re.fullmatch(r"/datasets/.+/resolve/[0-9a-f]{40}/.+", path):
            return self.send(302, Location=f"/cdn{path}")
        if file := re.fullmatch(r"/cdn/datasets/(.+?)/resolve/[0-9a-f]{40}/(.+)", path):
            data = self.server.datasets[file[1]][file[2]]
            return self.send_file(self.server.altered.get(file[2], data))
        return self.send(200)

    def send_file(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not self.server.no_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            end = len(data) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.server.break_after is None:
            self.wfile.write(data[start:])
        else:
            self.wfile.write(data[start : max(start, self.server.break_after)])
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def texts(hub: Hub) -> dict[str, bytes]:
    """The six files of 10M; only switchboard is large."""
    files = {f"{source}.train.txt": f"{source} text\n".encode() for source in SOURCES}
    files["switchboard.train.txt"] = b"yeah so we\n" * 8263 + b"uh huh\n"
    hub.datasets[SMALL] = {"README.md": b"# Data", ".gitattributes": b"*"} | files
    return files


def environment(endpoint: str, tmp_path: Path) -> dict[str, str]:
    """Return this process's environment without variables that point to another hub."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf_home"),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHON": sys.executable,
    }


def download(
    endpoint: str, tmp_path: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "src.data.download", *arguments]
    return subprocess.run(
        [*command, "--directory", str(tmp_path / "data")],
        cwd=ROOT,
        env=environment(endpoint, tmp_path) | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_fresh_download_puts_the_files_into_their_folders_under_their_names(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    hub.datasets[DEV] = {f"{source}.dev": b"a dev line\n" * 200 for source in SOURCES}

    result = download(hub.url, tmp_path, "dev", "10M")

    assert result.returncode == 0, result.stderr
    folder = tmp_path / "data" / "babylm_10M"
    assert names(folder) == [f"{source}.train" for source in SOURCES]
    for name, content in texts.items():
        assert (folder / name.removesuffix(".txt")).read_bytes() == content
    dev = tmp_path / "data" / "babylm_dev"
    assert names(dev) == [f"{source}.dev" for source in SOURCES]
    assert names(tmp_path / "data" / ".download") == []
    assert "/c92ab16b4f08858304b0815706065b3354d8fc0a/" in str(hub.downloads())


def test_a_second_call_downloads_nothing_and_says_what_it_keeps(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    download(hub.url, tmp_path, "10M")
    hub.requests.clear()

    result = download(hub.url, tmp_path, "10M")

    assert result.returncode == 0, result.stderr
    assert hub.downloads() == []
    assert "files complete and kept: 6, to fetch: 0" in result.stdout


def test_a_download_broken_in_the_middle_of_a_file_is_continued_by_the_next_call(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    """Even if the hub sends the whole file again."""
    # The client hands bytes on in pieces of 10 MiB, so that less would not be kept.
    content = random.Random(0).randbytes(6 << 20).hex().encode()
    hub.datasets[SMALL]["childes.train.txt"] = content
    hub.break_after = 11 << 20
    broken = download(hub.url, tmp_path, "10M")  # the client tries five times
    folder = tmp_path / "data" / "babylm_10M"
    assert broken.returncode == 1
    assert "partial downloads are continued" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert not (folder / "childes.train").exists()
    hub.break_after = None
    shutil.copytree(tmp_path / "data", tmp_path / "begun")

    for no_ranges in (False, True):
        shutil.rmtree(tmp_path / "data")
        shutil.copytree(tmp_path / "begun", tmp_path / "data")
        hub.no_ranges = no_ranges
        hub.requests.clear()

        result = download(hub.url, tmp_path, "10M")
        if (
            no_ranges and result.returncode
        ):  # the client's first versions 1 need a third
            result = download(hub.url, tmp_path, "10M")

        assert result.returncode == 0, result.stderr
        ranges = [range_ for path, range_ in hub.downloads() if "childes" in path]
        assert ranges[0] == f"bytes={10 << 20}-"
        assert (folder / "childes.train").read_bytes() == content
        assert names(tmp_path / "data" / ".download") == []


def test_a_full_disk_is_one_line_and_the_next_call_continues(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    """A limit on the size of a file, as a quota or a file system has, stops the writing."""
    small = len(texts["switchboard.train.txt"]) // 2
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (small, hard))
    try:
        result = download(hub.url, tmp_path, "10M")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"download: {tmp_path}/data cannot be written: File too large; the next call"
        " continues"
    )
    assert "Traceback" not in result.stderr

    assert download(hub.url, tmp_path, "10M").returncode == 0
    assert len(names(tmp_path / "data" / "babylm_10M")) == 6


def test_a_link_to_a_disk_that_is_missing_is_named(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to("/no/disk")
    result = download(hub.url, tmp_path, "10M")
    assert result.returncode == 1
    assert f"{tmp_path}/data is a link to /no/disk, which does not" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("source", ["bnc_spoken", "switchboard"])
def test_wrong_bytes_are_refused_and_not_left_under_the_final_name(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path, source: str
) -> None:
    name = f"{source}.train.txt"
    hub.altered[name] = texts[name].swapcase()

    result = download(hub.url, tmp_path, "10M")

    assert result.returncode == 1
    assert f"{name}: should have the hash" in result.stderr
    assert "Traceback" not in result.stderr
    files = {path.stem: path for path in (tmp_path / "data").rglob("*.*")}
    assert source not in files
    assert not list((tmp_path / "data" / ".download").iterdir())


def test_another_file_under_a_final_name_is_kept_and_named(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    mine = tmp_path / "data" / "babylm_10M" / "childes.train"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own text")
    other = mine.with_name("diary.train")  # *.train would take it along
    other.write_text("today")

    result = download(hub.url, tmp_path, "10M")

    assert result.returncode == 1
    assert f"{mine}: should have 13 bytes, has 11" in result.stderr
    assert f"{other} is not official" in result.stderr
    assert mine.read_text() == "my own text"
    assert (mine.parent / "gutenberg.train").exists()


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_the_message_names_what_was_wanted_and_what_to_do(
    tmp_path: Path, offline: dict[str, str]
) -> None:
    result = download("http://127.0.0.1:9", tmp_path, "10M", "eval", **offline)

    assert result.returncode == 1
    for wanted in (
        f"dataset {SMALL}, revision c92ab16b4f08858304b0815706065b3354d8fc0a",
        "childes.train, gutenberg.train",
        f"dataset {EVALS}, revision 8d52da9424a9ff30b9e8266c4f751aba9c504233",
        "hf download DATASET --repo-type dataset",
        str(tmp_path / "data" / "babylm_10M"),
    ):
        assert wanted in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) < 12


def test_a_dataset_that_the_hub_does_not_have_is_named_without_a_traceback(
    hub: Hub, tmp_path: Path
) -> None:
    result = download(hub.url, tmp_path, "dev")

    assert result.returncode == 1
    assert "404" in result.stderr
    assert f"dataset {DEV}, revision" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_source_is_an_error_that_names_what_is_there(
    hub: Hub, texts: dict[str, bytes], tmp_path: Path
) -> None:
    del hub.datasets[SMALL]["childes.train.txt"]

    result = download(hub.url, tmp_path, "10M")

    assert result.returncode == 1
    assert f"{SMALL}: should hold ['bnc_spoken.train'" in result.stderr
    assert hub.downloads() == []


def test_evaluation_data_keep_their_folders_and_archives_are_unpacked(
    hub: Hub, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("evaluation_data/fast_eval/ewok_fast/", "")
        opened.writestr("__MACOSX/fast_eval/ewok_fast/._agent.jsonl", "a Mac was here")
        opened.writestr("evaluation_data/fast_eval/ewok_fast/agent.jsonl", '{"a": 1}\n')
    hub.datasets[EVALS] = {
        "README.md": b"# Evaluation",
        "evaluation_data/full_eval/reading/reading_data.csv": b"item,word\n",
        "evaluation_data/fast_eval/reading/reading_data.csv": b"item,word\n",
        "evaluation_data/fast_eval/blimp_fast/causative.jsonl": b'{"UID": "x"}\n' * 99,
        "evaluation_data/fast_eval/ewok_fast.zip": archive.getvalue(),
        "evaluation_data/notes.txt": b"not an evaluation",
    }

    result = download(hub.url, tmp_path, "eval")

    assert result.returncode == 0, result.stderr
    folder = tmp_path / "data" / "evaluation_data"
    assert names(folder) == ["fast_eval", "full_eval"]
    fast = folder / "fast_eval"
    assert names(fast / "ewok_fast") == ["agent.jsonl"]
    assert (fast / "ewok_fast" / "agent.jsonl").read_text() == '{"a": 1}\n'
    assert (fast / "blimp_fast" / "causative.jsonl").stat().st_size == 99 * 13
    for split in ("full_eval", "fast_eval"):
        reading = folder / split / "reading" / "reading_data.csv"
        assert reading.read_text() == "item,word\n"


def test_an_archive_that_cannot_be_unpacked_is_named_and_the_rest_stays(
    hub: Hub, tmp_path: Path
) -> None:
    hub.datasets[EVALS] = {
        "evaluation_data/fast_eval/ewok_fast.zip": b"no archive",
        "evaluation_data/full_eval/comps/base.jsonl": b"{}\n",
    }

    result = download(hub.url, tmp_path, "eval")

    assert result.returncode == 1
    assert "password BabyLM2025" in result.stderr
    assert "Traceback" not in result.stderr
    folder = tmp_path / "data" / "evaluation_data" / "full_eval"
    assert (folder / "comps" / "base.jsonl").exists()


def test_the_message_for_files_of_2025_says_where_they_are(tmp_path: Path) -> None:
    result = download(
        "http://127.0.0.1:9", tmp_path, "10M", "dev", "eval", "--year", "2025"
    )

    assert result.returncode == 1
    assert "https://osf.io/ad7qg/ has text_data/train_10M.zip" in result.stderr
    assert "dev.zip" in result.stderr
    assert "https://osf.io/ryjfm/ has evaluation_data" in result.stderr
    assert str(tmp_path / "data" / "babylm_10M") in result.stderr


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [(["1M"], ["10M", "100M", "dev", "eval"]), (["--year", "2019"], ["2025", "2026"])],
)
def test_a_wrong_word_is_refused_with_the_choices(
    tmp_path: Path, arguments: list[str], choices: list[str]
) -> None:
    result = subprocess.run(
        [ROOT / "download_data.sh", *arguments],
        cwd=tmp_path,  # the script finds its own folder
        env=environment("http://127.0.0.1:9", tmp_path),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert arguments[-1] in message
    assert all(choice in message for choice in choices)


def test_the_script_says_so_when_the_hub_client_is_not_installed(
    tmp_path: Path,
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)

    result = subprocess.run(
        [ROOT / "download_data.sh", "10M"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert "huggingface_hub" in result.stderr
    assert "Traceback" not in result.stderr
