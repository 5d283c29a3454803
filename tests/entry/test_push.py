"""The push with the real hub client, to a server on this machine that keeps what it gets."""

import base64
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

from src.entry.push import MARKER, push
from src.foundation import UserError

NAME = "team/model"
TOKEN, READ_TOKEN = "hf_write", "hf_read"
LARGE = 100  # bytes from which this hub keeps a file in large file storage
ATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs"}


@dataclass
class Repository:
    """Branches, and every commit as its branch and all its files."""

    private: bool
    branches: dict[str, dict[str, bytes]]
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes]) -> None:
        self.branches[branch] = files
        self.commits.append((branch, files))


@dataclass
class Fault:
    """What happens from the n-th request on: a reply 500, or a dropped connection.

    With "lost", the n-th request is carried out, but its reply does not arrive.
    """

    kind: str
    request: int


class Hub(ThreadingHTTPServer):
    """The parts of the hub that a push uses. What is sent is kept in `repositories`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}  # large files by their SHA-256
        self.requests: list[str] = []
        self.sent: list[str] = []  # what commits do to which file
        self.fault: Fault | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, files: dict[str, bytes], private: bool = True) -> Repository:
        """A repository that exists already."""
        repository = self.repositories[NAME] = Repository(private, {})
        repository.commit("main", ATTRIBUTES | files)
        return repository

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet a reply, or each waits 40 ms for its acknowledgement

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: object = (), **headers: str) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub, body = self.server, self.body()
        if path == "/api/agent-harnesses":  # the client asks for it once a day
            return self.reply(404)
        hub.requests.append(f"{self.command} {path}")
        fault = hub.fault
        number = len(hub.requests)
        if fault is None or number < fault.request:
            self.answer(path, body)
        elif fault.kind == "500":
            self.reply(500)
        else:
            self.close_connection = True
            if fault.kind == "lost" and number == fault.request:
                sent, self.wfile = self.wfile, open("/dev/null", "wb")
                self.answer(path, body)
                self.wfile.close()
                self.wfile = sent

    do_GET = do_POST = do_PUT = serve

    def answer(self, path: str, body: bytes) -> None:
        """Carry out one request."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        storage = self.server.storage
        if path.startswith("/storage/"):  # its addresses need no token
            storage[hashlib.sha256(body).hexdigest()] = body
            return self.reply(200)
        if token not in (TOKEN, READ_TOKEN):
            message = "Invalid credentials in Authorization header"
            return self.reply(401, X_Error_Message=message)
        if path == "/api/whoami-v2":
            return self.reply(200, {"name": "team"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if self.command != "GET" and token == READ_TOKEN:
            return self.reply(403, X_Error_Message="Missing write permission")
        if path == "/api/repos/create":
            return self.create(**json.loads(body))
        if match := re.fullmatch(r"/(\w+/\w+)\.git/info/lfs/objects/batch", path):
            return self.reply(
                200, {"objects": [*map(self.batch, json.loads(body)["objects"])]}
            )
        if path == "/verify":
            return self.reply(200 if json.loads(body)["oid"] in storage else 404)
        match = re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/(\w+)/(\w+))?", path)
        assert match, path
        repository = self.server.repositories.get(match[1])
        if repository is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if match[2] is None:
            shown = {"id": match[1], "private": repository.private}
            return self.reply(200, shown)
        if match[2] != "branch" and match[3] not in repository.branches:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        getattr(self, match[2])(repository, match[3], body)

    def create(self, organization: str, name: str, visibility: str) -> None:
        if organization != "team":
            message = (
                f"You don't have the rights to create a model under {organization}"
            )
            return self.reply(403, X_Error_Message=message)
        repository = Repository(visibility == "private", {})
        repository.commit("main", ATTRIBUTES)
        self.server.repositories[f"{organization}/{name}"] = repository
        self.reply(200, {"url": f"{self.server.url}/{organization}/{name}"})

    def batch(self, file: dict) -> dict:
        if file["oid"] in self.server.storage:
            return file
        upload = {"href": f"{self.server.url}/storage/{file['oid']}"}
        verify = {"href": f"{self.server.url}/verify"}
        return file | {"actions": {"upload": upload, "verify": verify}}

    def tree(self, repository: Repository, branch: str, _: bytes) -> None:
        items = []
        for path, data in repository.branches[branch].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            item = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if len(data) >= LARGE:
                digest = hashlib.sha256(data).hexdigest()
                large = {"oid": digest, "size": len(data), "pointerSize": 130}
                item |= {"lfs": large, "oid": "of the pointer"}
            items.append(item)
        self.reply(200, items)

    def commits(self, repository: Repository, branch: str, _: bytes) -> None:
        history = [
            i for i, commit in enumerate(repository.commits) if commit[0] == branch
        ]
        date = "2026-11-25T00:00:00.000Z"
        rest = {"authors": [], "date": date, "title": "", "message": ""}
        self.reply(200, [{"id": str(i), **rest} for i in reversed(history)])

    def branch(self, repository: Repository, branch: str, body: bytes) -> None:
        if branch in repository.branches:
            return self.reply(409)
        start = json.loads(body)["startingPoint"]
        repository.branches[branch] = repository.commits[int(start)][1]
        self.reply(200)

    def preupload(self, repository: Repository, branch: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.reply(200, {"files": files})

    def commit(self, repository: Repository, branch: str, body: bytes) -> None:
        files = dict(repository.branches[branch])
        for line in body.splitlines():
            change = json.loads(line)
            key, value = change["key"], change["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.storage[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                assert key == "header", key
                continue
            self.server.sent.append(f"{key} {branch}/{value['path']}")
        repository.commit(branch, files)
        number = len(repository.commits) - 1
        url = f"{self.server.url}/{NAME}/commit/{number}"
        self.reply(200, {"commitUrl": url, "commitOid": str(number)})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, which the client takes for the real one; it does not wait to retry."""
    constants = huggingface_hub.constants
    with Hub() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        for variable in ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        close_session()
        server.shutdown()
        serving.join()


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A model and two checkpoints, which share the configuration."""
    entry = tmp_path / "entry"
    for folder in ("main", "chck_10M", "chck_2M"):
        (entry / folder).mkdir(parents=True)
        (entry / folder / "config.json").write_text("{}")
        weights = f"weights of {folder} ".encode() * 20
        (entry / folder / "model.safetensors").write_bytes(weights)
    (entry / "main/README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (entry / "main/.DS_Store").write_text("of a Mac")
    return entry


def expected(entry: Path, run: str = "a") -> dict[str, dict[str, bytes]]:
    """The branches of a complete push."""
    branches = {
        folder.name: ATTRIBUTES | {x.name: x.read_bytes() for x in folder.glob("[!.]*")}
        for folder in entry.iterdir()
    }
    branches["main"][MARKER] = b'{"run": "%s"}' % run.encode()
    return branches


def test_a_push_creates_a_private_repository_with_a_branch_a_checkpoint(
    hub: Hub, entry: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    assert push(entry, NAME, "a") == f"{hub.url}/team/model"
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.branches == expected(entry)
    changed = [branch for branch, _ in repository.commits[1:]]
    assert changed == ["main", "chck_2M", "chck_10M", "main"]
    assert repository.commits[1][1] == {**ATTRIBUTES, MARKER: b'{"run": "a"}'}
    summary = f"Push to {hub.url}/team/model (private, new): upload 8 files (0.0 MB)"
    assert summary in caplog.text and "chck_2M, chck_10M, main" in caplog.text


def test_a_second_push_uploads_nothing(hub: Hub, entry: Path):
    push(entry, NAME, "a")
    commits = list(hub.repositories[NAME].commits)
    hub.requests.clear()
    push(entry, NAME, "a")
    assert not hub.writes()
    assert hub.repositories[NAME].commits == commits


def test_one_changed_file_uploads_only_that_file(hub: Hub, entry: Path):
    push(entry, NAME, "a")
    hub.requests.clear()
    hub.sent.clear()
    weights = entry / "chck_2M/model.safetensors"
    weights.write_bytes(weights.read_bytes().swapcase())
    push(entry, NAME, "a")
    assert hub.repositories[NAME].branches == expected(entry)
    assert hub.sent == ["lfsFile chck_2M/model.safetensors"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert [x for x in hub.writes() if x.startswith("PUT")] == [
        f"PUT /storage/{digest}"
    ]


def test_a_changed_and_a_removed_file_are_one_commit(hub: Hub, entry: Path):
    push(entry, NAME, "a")
    number = len(hub.repositories[NAME].commits)
    hub.sent.clear()
    (entry / "main/README.md").write_text("---\nlicense: gpl\n---\n# A model\n")
    (entry / "main/config.json").unlink()
    push(entry, NAME, "a")
    assert hub.repositories[NAME].branches == expected(entry)
    assert hub.sent == ["file main/README.md", "deletedFile main/config.json"]
    assert len(hub.repositories[NAME].commits) == number + 1


@pytest.mark.parametrize("kinds", [("500", "dropped"), ("lost",)], ids=" or ".join)
def test_a_push_continues_after_a_failure_at_any_request(
    hub: Hub, entry: Path, kinds: tuple[str, ...]
):
    push(entry, NAME, "a")
    complete, number = expected(entry), len(hub.requests)
    assert number > 25
    for request in range(1, number + 1):
        hub.repositories.clear()
        hub.storage.clear()
        hub.requests.clear()
        hub.fault = Fault(kinds[request % len(kinds)], request)
        with pytest.raises(
            UserError, match="^name=team/model: the hub did not complete"
        ):
            push(entry, NAME, "a")
        if NAME in hub.repositories:
            branches = hub.repositories[NAME].branches
            if "model.safetensors" in branches["main"]:
                assert branches == complete  # only the reply was lost
            for branch, files in branches.items():
                assert files.keys() <= ATTRIBUTES.keys() | {MARKER} or (
                    files == complete[branch]
                )
        hub.fault = None
        push(entry, NAME, "a")
        repository = hub.repositories[NAME]
        assert repository.branches == complete
        assert [branch for branch, _ in repository.commits].count("chck_2M") == 1
        assert len(repository.commits) == 5


def test_a_checkpoint_that_is_missing_never_starts_as_the_final_model(
    hub: Hub, entry: Path
):
    push(entry, NAME, "a")
    del hub.repositories[NAME].branches["chck_2M"]
    hub.requests.clear()
    push(entry, NAME, "a")
    creation = hub.requests.index("POST /api/models/team/model/branch/chck_2M")
    for request in range(1, len(hub.requests) - creation):
        del hub.repositories[NAME].branches["chck_2M"]
        hub.requests.clear()
        hub.fault = Fault("500", creation + 1 + request)
        with pytest.raises(UserError):
            push(entry, NAME, "a")
        assert hub.repositories[NAME].branches["chck_2M"] == ATTRIBUTES
        hub.fault = None
    push(entry, NAME, "a")
    assert hub.repositories[NAME].branches == expected(entry)


@pytest.mark.parametrize(
    "files, shown",
    [
        ({"model.safetensors": b"other weights"}, "holds model.safetensors; choose"),
        ({MARKER: b'{"run": "b"}'}, "holds the entry of another run; choose another"),
    ],
    ids=["other files", "another run"],
)
def test_a_repository_that_holds_something_else_is_refused(
    hub: Hub, entry: Path, files: dict[str, bytes], shown: str
):
    repository = hub.create(files)
    with pytest.raises(UserError, match=f"^name=team/model: this repository {shown}"):
        push(entry, NAME, "a")
    assert not hub.writes()
    assert repository.branches == {"main": ATTRIBUTES | files}


def test_a_checkpoint_of_someone_else_is_not_overwritten(hub: Hub, entry: Path):
    repository = hub.create({})
    repository.commit("chck_2M", {"model.safetensors": b"other weights"})
    with pytest.raises(UserError, match="this repository holds chck_2M; choose"):
        push(entry, NAME, "a")
    assert not hub.writes()


def test_an_empty_repository_is_used_and_keeps_its_visibility(
    hub: Hub, entry: Path, caplog: pytest.LogCaptureFixture
):
    repository = hub.create({"README.md": b"# To do"}, private=False)
    push(entry, NAME, "a")
    assert not repository.private
    assert repository.branches == expected(entry)
    assert "hub.private is for new repositories; this one stays public" in caplog.text
    hub.requests.clear()
    push(entry, NAME, "a")
    assert not hub.writes()


@pytest.mark.parametrize(
    "name, token, message",
    [
        (NAME, None, "there is no access token for the hub; set the variable HF_TOKEN"),
        (NAME, "hf_old", "name=team/model: the hub refuses the access token; give"),
        (
            NAME,
            READ_TOKEN,
            "name=team/model: the access token may not do this; .*HF_TOKEN",
        ),
        ("other/model", TOKEN, "name=other/model: .* choose another name .*the rights"),
        ("model", TOKEN, "name must be <owner>/<model>, got 'model'"),
        ("team/a--b", TOKEN, "name=team/a--b is not allowed on the hub"),
    ],
    ids=[
        "no token",
        "invalid token",
        "read token",
        "other owner",
        "no owner",
        "illegal",
    ],
)
def test_what_is_wrong_with_the_name_or_the_token_is_one_line(
    hub: Hub,
    entry: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    token: str | None,
    message: str,
):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=message) as caught:
        push(entry, name, "a", token=token)
    assert "\n" not in str(caught.value)
    assert not hub.repositories


def test_a_token_that_may_only_read_does_not_change_a_repository(hub: Hub, entry: Path):
    repository = hub.create({})
    with pytest.raises(UserError, match="the access token may not do this"):
        push(entry, NAME, "a", token=READ_TOKEN)
    assert repository.branches == {"main": ATTRIBUTES}


def test_without_a_network_the_push_says_how_to_continue(
    entry: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the same command continues it .*refused"):
        push(entry, NAME, "a")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode is enabled"):
        push(entry, NAME, "a")


def test_an_entry_without_a_model_is_refused(hub: Hub, tmp_path: Path):
    with pytest.raises(UserError, match="main has no files; export the run again"):
        push(tmp_path, NAME, "a")
    assert not hub.requests
