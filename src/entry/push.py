"""The upload of an entry to the hub: the model to `main`, each checkpoint to its branch."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from src.entry.checks import check_name
from src.foundation import UserError, counted, first_line, shows_bars

# This file on `main` names the run that a repository belongs to. Every version of this module must
# write the same bytes, because they are compared by their checksum.
MARKER = "babylm_entry.json"
ATTRIBUTES = ".gitattributes"  # of the hub, in every branch
FAULTS = {  # HTTP status -> its meaning and the remedy
    401: "the hub refuses the access token; give a valid one in HF_TOKEN or hub.token",
    403: "the access token may not do this; give one with write permission in HF_TOKEN or"
    " hub.token, or choose another name",
    404: "the hub does not find it; check the owner and the name",
}
OTHER_FAULT = "the hub did not complete the push; the same command continues it"

Files = dict[str, Path | bytes]  # path in the repository -> local file or content
Tree = dict[str, RepoFile]  # path in the repository -> file on the hub
Changes = list[CommitOperationAdd | CommitOperationDelete]

logger = logging.getLogger(__name__)


def push(
    entry: Path, name: str, run: str, private: bool = True, token: str | None = None
) -> str:
    """Create or update the repository `name` on the hub from an entry, and return its URL.

    Each branch with differences gets one commit, and checkpoints come before `main`. So a
    push that failed never leaves a `main` without its checkpoints, and the next push
    continues where the failed one stopped.

    Args:
        entry: Folder with the model's files in `main` and the checkpoints' in `chck_*`.
        name: `<owner>/<model>`.
        run: Checksum that identifies the run.
        private: Create a private repository. An existing one keeps its visibility.
        token: Access token; None uses the variable HF_TOKEN, or the token of `hf auth login`.

    Raises:
        UserError: The repository holds something else, the token has no rights, or the hub
            did not complete the push.
    """
    check_name(name)
    branches = read_branches(entry, run)
    if not shows_bars():
        disable_progress_bars()
    api = HfApi(token=token)
    url = f"{api.endpoint}/{name}"
    with hub_errors(name):
        api.whoami()  # fails for an invalid token, which would hide a private repository
        was_private, trees = read_repository(api, name, branches)
        if others := find_others(branches["main"], trees):
            raise UserError(
                f"name={name}: this repository holds {', '.join(others[:3])}; choose"
                f" another name, or delete the repository at {url}/settings"
            )
        changes = {x: find_changes(branches[x], trees[x] or {}) for x in branches}
        log_summary(url, changes, private, was_private)
        if was_private is None:
            api.create_repo(name, private=private)
        upload(api, name, branches, trees, changes)
    return url


def check_access(name: str, token: str | None) -> None:
    """Raise `UserError` if the hub does not accept the access token."""
    with hub_errors(name):
        HfApi(token=token).whoami()


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn each error of the hub's client into a `UserError` that names the key to change."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        remedy = "set the variable HF_TOKEN, run `hf auth login`, or give hub.token"
        raise UserError(f"there is no access token for the hub; {remedy}") from error
    # These are the errors of httpx or httpx2 (whichever this version of the client uses), of
    # the operating system, of Xet, and of answers that are not JSON.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        # If a file was not uploaded, the RuntimeError's cause gives the reason.
        reason = (type(error) is RuntimeError and error.__cause__) or error
        status = getattr(getattr(error, "response", None), "status_code", None)
        fault = FAULTS.get(status, OTHER_FAULT)
        raise UserError(f"name={name}: {fault} ({first_line(reason)})") from error


def read_branches(entry: Path, run: str) -> dict[str, Files]:
    """Return the files of every branch. `main` comes last and includes its marker.

    Hidden files, such as those that a Mac's Finder writes, are left out.
    """
    folders = sorted(entry.glob("chck_*"), key=lambda path: (len(path.name), path.name))
    branches: dict[str, Files] = {}
    for folder in [*folders, entry / "main"]:
        paths = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
        if not paths:
            raise UserError(f"{folder} has no files; export the run again")
        branches[folder.name] = {x.relative_to(folder).as_posix(): x for x in paths}
    branches["main"] |= {MARKER: json.dumps({"run": run}).encode()}
    return branches


def read_repository(
    api: HfApi, name: str, branches: Iterable[str]
) -> tuple[bool | None, dict[str, Tree | None]]:
    """Return whether a repository is private, and the tree of each branch.

    The value of a repository or branch that does not exist is None.
    """
    try:
        private = bool(api.repo_info(name).private)
    except errors.RepositoryNotFoundError:
        return None, dict.fromkeys(branches)
    return private, {branch: read_tree(api, name, branch) for branch in branches}


def read_tree(api: HfApi, name: str, branch: str) -> Tree | None:
    """Return the files of a branch on the hub; None if there is no such branch."""
    try:
        items = list(api.list_repo_tree(name, recursive=True, revision=branch))
    except errors.RevisionNotFoundError:
        return None
    return {item.path: item for item in items if isinstance(item, RepoFile)}


def find_others(main: Files, trees: Mapping[str, Tree | None]) -> list[str]:
    """Return what a repository holds that does not belong to this run.

    Without a marker, `main` may have only the files that the hub creates, and no other branch
    may exist, since a push writes the marker before it creates branches.
    """
    tree = trees["main"] or {}
    if MARKER in tree:
        is_same = is_on_hub(CommitOperationAdd(MARKER, main[MARKER]), tree[MARKER])
        return [] if is_same else ["the entry of another run"]
    branches = [x for x in trees if x != "main" and trees[x] is not None]
    return sorted(tree.keys() - {ATTRIBUTES, "README.md"}) + branches


def log_summary(
    url: str, changes: Mapping[str, Changes], private: bool, was_private: bool | None
) -> None:
    """Log what will be pushed. Warn if the repository's visibility is not the requested one.

    Args:
        was_private: Whether the existing repository is private; None for a new repository.
    """
    is_private = private if was_private is None else was_private
    shown = "private" if is_private else "public"
    every = [change for of_branch in changes.values() for change in of_branch]
    new = [change for change in every if isinstance(change, CommitOperationAdd)]
    logger.info(
        "Push to %s (%s%s): upload %s (%.1f MB), delete %s\n  branches: %s",
        url,
        shown,
        ", new" if was_private is None else "",
        counted(len(new), "file"),
        sum(change.upload_info.size for change in new) / 1e6,
        counted(len(every) - len(new), "file"),
        ", ".join(changes),
    )
    if is_private != private:
        warning = "warning: hub.private is for new repositories; this one stays %s"
        logger.warning(warning + " (change it at %s/settings)", shown, url)


def upload(
    api: HfApi,
    name: str,
    branches: Mapping[str, Files],
    trees: Mapping[str, Tree | None],
    changes: Mapping[str, Changes],
) -> None:
    """Write the marker, then make one commit in each branch that has changes."""
    if MARKER not in (trees["main"] or {}):
        marker = CommitOperationAdd(MARKER, branches["main"][MARKER])
        api.create_commit(name, [marker], commit_message="Reserve for an entry")
    # New branches start from the first commit, which has no model. If a branch started from
    # `main`, its checkpoint would be the final model until its own commit.
    is_complete = None not in trees.values()
    first = None if is_complete else api.list_repo_commits(name)[-1].commit_id
    for branch, files in branches.items():
        if not changes[branch]:
            continue
        if trees[branch] is None and branch != "main":
            api.create_branch(name, branch=branch, revision=first)
        current = find_changes(files, read_tree(api, name, branch) or {})
        if current:
            message = f"Upload {branch}"
            api.create_commit(name, current, commit_message=message, revision=branch)


def find_changes(files: Files, tree: Tree) -> Changes:
    """Return the operations that give a branch exactly these files."""
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    new = [add for add in additions if not is_on_hub(add, tree.get(add.path_in_repo))]
    gone = sorted(tree.keys() - files.keys() - {ATTRIBUTES})
    return [*new, *map(CommitOperationDelete, gone)]


def is_on_hub(addition: CommitOperationAdd, remote: RepoFile | None) -> bool:
    """Return whether a file on the hub has the bytes of a local one.

    The hub identifies large files by their SHA-256, and the others by git's SHA-1 of a blob.
    """
    size = addition.upload_info.size
    if remote is None or remote.size != size:
        return False
    if remote.lfs:
        return addition.upload_info.sha256.hex() == remote.lfs.sha256
    with addition.as_file() as file:
        blob = b"blob %d\0" % size + file.read()
    return hashlib.sha1(blob).hexdigest() == remote.blob_id
