"""The download of the official BabyLM data from the Hugging Face hub into ./babylm_data.

    ./download_data.sh                      everything of 2026
    ./download_data.sh 10M dev eval         some parts
    ./download_data.sh 10M --year 2025      advice on how to get the files of 2025

It writes babylm_10M/<source>.train, babylm_100M/<source>.train, babylm_dev/<source>.dev and
evaluation_data/{full_eval,fast_eval}/<task>/*, and checks them against the hub's hashes. A
second call continues a broken download. Existing files are never replaced.
"""

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, errors, hf_hub_url, utils
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from src.foundation import sha256, write_fault

# The base class of all errors of the network. The client uses httpx in version 1 and httpx2 in
# version 2; this expression works with both.
TransportError = errors.HfHubHTTPError.__bases__[0]
ZIP_PASSWORD = b"BabyLM2025"  # published by the organisers to keep crawlers out
SOURCES = "bnc_spoken childes gutenberg open_subtitles simple_wiki switchboard".split()


@dataclass(frozen=True)
class Part:
    """A choice on the command line: a hub dataset, and the folder that it fills."""

    name: str
    folder: str
    dataset: str
    revision: str
    ending: str = ""  # of the text files; "" for the evaluation data

    @property
    def files(self) -> list[str]:
        """The names of the files in the folder, or patterns for them."""
        names = [source + self.ending for source in SOURCES]
        return names if self.ending else ["full_eval/*", "fast_eval/*"]

    def target(self, path: str) -> str:
        """Return the path in the data directory for a hub file; "" if it is not needed."""
        # The hub adds .txt to the names of some text files.
        name = re.sub(r"(\.train|\.dev)\.txt$", r"\1", path)
        name = name.removeprefix(f"{self.folder}/")
        wanted = any(fnmatch(name, pattern) for pattern in self.files)
        return f"{self.folder}/{name}" if wanted and ".." not in path else ""


# fmt: off
PARTS = (
    Part("10M", "babylm_10M", "BabyLM-community/BabyLM-2026-Strict-Small",
         "c92ab16b4f08858304b0815706065b3354d8fc0a", ".train"),
    Part("100M", "babylm_100M", "BabyLM-community/BabyLM-2026-Strict",
         "9e57baaaa91ac3c638746be14d1d5fa6c789f4cf", ".train"),
    Part("dev", "babylm_dev", "BabyLM-community/BabyLM-dev",
         "169f42e32d0aaf65ec6b91d55bafad27a3afc729", ".dev"),
    Part("eval", "evaluation_data", "BabyLM-community/BabyLM-2026-Strict-Evals",
         "8d52da9424a9ff30b9e8266c4f751aba9c504233"),  # of 22 April 2026
)
# fmt: on
FILES_OF_2025 = """the hub has no files of 2025. Get them, in a browser, from OSF:
  https://osf.io/ad7qg/ has text_data/train_10M.zip, train_100M.zip and dev.zip.
    Put the *.train and *.dev into {0}/babylm_10M/, babylm_100M/ and babylm_dev/.
  https://osf.io/ryjfm/ has evaluation_data.
    Put full_eval and fast_eval into {0}/evaluation_data/."""


def complain(message: str) -> None:
    """Print a message to the standard error."""
    print(f"download: {message}", file=sys.stderr)


def list_files(part: Part) -> dict[str, RepoFile]:
    """Return the dataset's files by their path below the data directory."""
    # Without a network, the listing is retried for half a minute. This request fails at once.
    utils.get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_ETAG_TIMEOUT)
    tree = HfApi().list_repo_tree(
        part.dataset, repo_type="dataset", revision=part.revision, recursive=True
    )
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    wanted = {to: file for file in files if (to := part.target(file.path))}
    if len(wanted) < len(part.files):
        paths = [file.path for file in files]
        raise OSError(f"{part.dataset}: should hold {part.files}, holds {paths}")
    return wanted


def fault(path: Path, file: RepoFile) -> str:
    """Return the difference between a local copy and the hub's file; "" if they are equal.

    The hub lists the SHA-256 of files in large file storage, and git's SHA-1 of others.
    """
    size = path.stat().st_size
    if size != file.size:
        return f"should have {file.size:,} bytes, has {size:,}"
    expected = file.lfs.sha256 if file.lfs else file.blob_id
    digest = sha256(path) if file.lfs else git_hash(path.read_bytes())
    return (
        "" if digest == expected else f"should have the hash {expected}, has {digest}"
    )


def fetch(file: RepoFile, part: Part, target: Path, staging: Path) -> None:
    """Download one file. If the download breaks, the next call continues it.

    The client's own `hf_hub_download` and `snapshot_download` delete the received bytes when a
    download breaks, and they replace existing files.
    """
    staging.mkdir(parents=True, exist_ok=True)
    partial = staging / f"{file.blob_id}.part"
    revision, shown = part.revision, {"displayed_filename": file.path}
    url = hf_hub_url(part.dataset, file.path, repo_type="dataset", revision=revision)
    # `start` is a position in the file only if the server sends it uncompressed.
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity"}
    with partial.open("ab") as copy:
        if (start := copy.tell()) < file.size:
            http_get(url, copy, resume_size=start, headers=headers, **shown)
    if difference := fault(partial, file):
        partial.unlink()
        raise OSError(f"{part.dataset}, {file.path}: {difference}; deleted, try again")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)


def fetch_part(part: Part, directory: Path) -> bool:
    """Complete one folder. Return False if a file in it differs from the hub's."""
    staging = directory / ".download"
    files = {directory / to: file for to, file in list_files(part).items()}
    faults = {path: fault(path, file) for path, file in files.items() if path.exists()}
    different = {path: reason for path, reason in faults.items() if reason}
    missing = [path for path in files if path not in faults]
    kept = len(faults) - len(different)
    print(f"{part.name}: {part.dataset}, revision {part.revision}:")
    print(f"  files complete and kept: {kept}, to fetch: {len(missing)}")
    for path in missing:
        fetch(files[path], part, path, staging)
    for path, reason in different.items():
        complain(f"{path}: {reason}; kept: move it away to get the hub's file")
    for path in files:
        if path.suffix == ".zip" and path not in different:
            unpack(path, staging)
    if part.ending:
        for path in sorted((directory / part.folder).glob("*" + part.ending)):
            if path not in files:
                complain(f"warning: {path} is not official; *{part.ending} matches it")
    else:
        print(
            "Not included: full EWoK (ewok-core/ewok-core-1.0, accept its terms there) and"
            " Global PIQA (mrlbenchmarks/global-piqa-parallel, -nonparallel)."
        )
    return not different


def unpack(archive: Path, staging: Path) -> None:
    """Unpack x.zip to x/*, without the folders that the archive repeats."""
    folder = archive.with_suffix("")
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = PurePosixPath(member.filename).name
                hidden = name.startswith(".")  # for example ._x from macOS
                if not (member.is_dir() or hidden or (folder / name).exists()):
                    (staging / name).write_bytes(opened.read(member, ZIP_PASSWORD))
                    os.replace(staging / name, folder / name)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise OSError(
            f"{archive}: cannot be unpacked: {error}; unpack it into {folder}/ by hand,"
            f" with the password {ZIP_PASSWORD.decode()}"
        ) from error


def by_hand(parts: Sequence[Part], directory: Path) -> str:
    """Return the missing datasets, and how to copy them from a machine with a network."""
    wanted = [
        f"  dataset {part.dataset}, revision {part.revision}:\n"
        f"    {', '.join(part.files)} into {directory / part.folder}/\n"
        for part in parts
    ]
    return f"missing:\n{''.join(wanted)}" + (
        "Try again with access to the hub (partial downloads are continued), or run\n"
        "  hf download DATASET --repo-type dataset --revision REVISION --local-dir X\n"
        "on a machine that has it, and copy the files as above, x.train.txt as x.train."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser("download_data.sh", description="BabyLM data")
    parser.add_argument("parts", nargs="*", choices=names, help="default: all")
    parser.add_argument("--year", type=int, choices=(2025, 2026), default=2026)
    parser.add_argument("--directory", type=Path, default=Path("babylm_data"))
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if part.name in (options.parts or names)]
    if options.year == 2025:
        complain(FILES_OF_2025.format(options.directory))
        return 1
    complete = True
    for index, part in enumerate(parts):
        try:
            complete = fetch_part(part, options.directory) and complete
        except (TransportError, ConnectionError) as error:
            reason = " ".join(str(error).split())
            complain(f"{part.name}: {constants.ENDPOINT} cannot be reached: {reason}")
            complain(by_hand(parts[index:], options.directory))
            return 1
        except OSError as error:
            if reason := write_fault(error):
                file = error.filename or options.directory
                complain(f"{file} cannot be written: {reason}; the next call continues")
                return 1
            complain(f"{part.name}: {error}")
            complete = False
        except KeyboardInterrupt:
            complain("interrupted; the next call continues")
            return 130
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
