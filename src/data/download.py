"""The download of the official BabyLM data from the Hugging Face hub into ./babylm_data.

    ./download_data.sh                      everything of 2026
    ./download_data.sh 10M dev eval         some of it
    ./download_data.sh 10M --year 2025      where to find the files of 2025

It makes babylm_10M/<source>.train, babylm_100M/<source>.train, babylm_dev/<source>.dev and
evaluation_data/{full_eval,fast_eval}/<task>/*, checked against the hub's hashes. The next
call continues a broken download. Existing files are never replaced.
"""

import argparse
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, errors, hf_hub_url, utils
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from src.foundation import sha256

# The client uses httpx in version 1 and httpx2 in version 2. Only its own error leads to the
# base class of the errors of both.
TransportError = errors.HfHubHTTPError.__bases__[0]
ZIP_PASSWORD = b"BabyLM2025"  # published by the organisers to keep crawlers out
SOURCES = (  # with their published whitespace words: 10M, 100M, dev
    ("bnc_spoken", 762_073, 7_620_671, 1_252_593),
    ("childes", 2_841_101, 28_410_878, 2_716_591),
    ("gutenberg", 2_557_721, 25_576_896, 2_819_070),
    ("open_subtitles", 2_282_877, 22_828_747, 2_077_019),
    ("simple_wiki", 1_531_437, 15_314_317, 1_405_366),
    ("switchboard", 24_791, 248_491, 148_340),
)


@dataclass(frozen=True)
class Part:
    """One choice of the command: a hub dataset, and the folder that it fills."""

    name: str
    folder: str
    dataset: str
    revision: str
    ending: str = ""  # of the text files; "" for the evaluation data
    column: int = 0  # of the published words in SOURCES

    @property
    def files(self) -> list[str]:
        """The names of the files in the folder."""
        names = [source + self.ending for source, *_ in SOURCES]
        return names if self.ending else ["full_eval/*", "fast_eval/*"]

    def target(self, path: str) -> str:
        """Return the path of a hub file below the data directory; "" if not wanted."""
        if self.ending:
            name = path.removesuffix(".txt")  # which the hub adds to some names
            return f"{self.folder}/{name}" if name in self.files else ""
        parts = PurePosixPath(path).parts
        official = [(self.folder, "full_eval"), (self.folder, "fast_eval")]
        return path if parts[:2] in official and ".." not in parts else ""


# fmt: off
PARTS = (
    Part("10M", "babylm_10M", "BabyLM-community/BabyLM-2026-Strict-Small",
         "c92ab16b4f08858304b0815706065b3354d8fc0a", ".train", 1),
    Part("100M", "babylm_100M", "BabyLM-community/BabyLM-2026-Strict",
         "9e57baaaa91ac3c638746be14d1d5fa6c789f4cf", ".train", 2),
    Part("dev", "babylm_dev", "BabyLM-community/BabyLM-dev",
         "169f42e32d0aaf65ec6b91d55bafad27a3afc729", ".dev", 3),
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
    print(f"download: {message}", file=sys.stderr)


def list_files(part: Part) -> dict[str, RepoFile]:
    """Return the dataset's files by their path below the data directory."""
    # Without a network the client would retry the listing for half a minute. This fails fast.
    utils.get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_ETAG_TIMEOUT)
    tree = HfApi().list_repo_tree(
        part.dataset, repo_type="dataset", revision=part.revision, recursive=True
    )
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    wanted = {to: file for file in files if (to := part.target(file.path))}
    if len(wanted) < (len(SOURCES) if part.ending else 1):
        paths = [file.path for file in files]
        raise OSError(f"{part.dataset}: should hold {part.files}, holds {paths}")
    return wanted


def fault(path: Path, file: RepoFile) -> str:
    """Return how a local copy differs from the hub's file; "" if it does not.

    The hub gives the SHA-256 of files in large file storage, and git's SHA-1 of others.
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
    """Download one file, or leave what has arrived of it for the next call.

    The client's functions above `http_get` (`hf_hub_download`, `snapshot_download`) delete
    what has arrived when a download breaks, and replace existing files.
    """
    staging.mkdir(parents=True, exist_ok=True)
    partial = staging / f"{file.blob_id}.part"
    repository = {"repo_type": "dataset", "revision": part.revision}
    url = hf_hub_url(part.dataset, file.path, **repository)
    # Not compressed, or `start` would not be a position in the bytes that are sent.
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity"}
    with partial.open("ab") as copy:
        if (start := copy.tell()) < file.size:
            shown = {"displayed_filename": file.path}
            http_get(url, copy, resume_size=start, headers=headers, **shown)
    if difference := fault(partial, file):
        partial.unlink()
        raise OSError(f"{part.dataset}, {file.path}: {difference}; deleted, call again")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)


def fetch_part(part: Part, directory: Path) -> bool:
    """Complete one folder; return False if a file in it differs from the hub's."""
    staging = directory / ".download"
    files = {directory / to: file for to, file in list_files(part).items()}
    missing = [path for path in files if not path.exists()]
    faults = {p: fault(p, file) for p, file in files.items() if p not in missing}
    different = [path for path, difference in faults.items() if difference]
    kept = len(faults) - len(different)
    print(f"{part.name}: {part.dataset}, revision {part.revision}:")
    print(f"  {kept} files complete and kept, {len(missing)} to fetch")
    for path in missing:
        fetch(files[path], part, path, staging)
    for path in different:
        complain(f"{path}: {faults[path]}; kept: move it away to get the hub's file")
    for path in files:
        if path.suffix == ".zip" and path not in different:
            unpack(path, staging)
    if part.ending:
        word_table(part, directory / part.folder)
    else:
        print(
            "Not included: full EWoK (ewok-core/ewok-core-1.0, accept its terms there)"
        )
        print("and Global PIQA (mrlbenchmarks/global-piqa-parallel, -nonparallel).")
    return not different


def unpack(archive: Path, staging: Path) -> None:
    """Unpack x.zip to x/*, without the folders that the archive repeats."""
    folder = archive.with_suffix("")
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = PurePosixPath(member.filename).name
                hidden = name.startswith(".")  # such as the ._x of macOS
                if not (member.is_dir() or hidden or (folder / name).exists()):
                    (staging / name).write_bytes(opened.read(member, ZIP_PASSWORD))
                    os.replace(staging / name, folder / name)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise OSError(
            f"{archive}: cannot be unpacked: {error}; unpack it into {folder}/ by hand,"
            f" with the password {ZIP_PASSWORD.decode()}"
        ) from error


def word_table(part: Part, folder: Path) -> None:
    """Print the whitespace words of each file beside the published number."""
    published = {row[0]: row[part.column] for row in SOURCES}
    print(f"{part.folder:16}{'words':>14}{'published':>14}")
    total = 0
    for path in sorted(folder.glob("*" + part.ending)):
        with path.open(encoding="utf-8", errors="replace") as lines:
            words = sum(len(line.split()) for line in lines)
        total, official = total + words, published.get(path.stem, 0)
        print(f"{path.stem:16}{words:14,}{official:14,}")
        if words != official:
            rule = f"published are {official:,}" if official else "no official file"
            complain(f"warning: {path}: {words:,} words, {rule}")
    print(f"{'total':16}{total:14,}{sum(published.values()):14,}")


def by_hand(parts: Sequence[Part], directory: Path) -> str:
    """Return what is wanted, and how to bring it from a machine with a network."""
    wanted = [
        f"  dataset {part.dataset}, revision {part.revision}:\n"
        f"    {', '.join(part.files)} into {directory / part.folder}/\n"
        for part in parts
    ]
    return f"wanted:\n{''.join(wanted)}" + (
        "Call again where the hub can be reached (begun files are continued), or run\n"
        "  hf download DATASET --repo-type dataset --revision REVISION --local-dir X\n"
        "there and copy the files as above, x.train.txt of the hub as x.train."
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
            complain(f"{part.name}: {error}")
            complete = False
        except KeyboardInterrupt:
            complain("interrupted; the next call continues")
            return 130
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
