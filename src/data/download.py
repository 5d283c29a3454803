"""Fetches the official BabyLM data from the Hugging Face hub into ./babylm_data.

    ./download_data.sh                      everything of 2026
    ./download_data.sh 10M dev eval         some of it
    ./download_data.sh 10M --year 2025      which files to place by hand

Makes babylm_10M/<source>.train, babylm_100M/<source>.train, babylm_dev/<source>.dev
and evaluation_data/{full_eval,fast_eval}/<task>/*, checked against the hub's hashes.
A broken download is continued by the next call; what is there is never replaced.
"""

import argparse
import hashlib
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, errors, hf_hub_url, utils
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile

# The client speaks through httpx in its versions 1 and httpx2 in 2: the base of the
# errors of whichever it is can be named only by way of the client's own error.
TransportError = errors.HfHubHTTPError.__bases__[0]
ZIP_PASSWORD = b"BabyLM2025"  # published by the organisers: it keeps crawlers out
SOURCES = (  # and their published whitespace words: 10M, 100M, dev
    ("bnc_spoken", 762_073, 7_620_671, 1_252_593),
    ("childes", 2_841_101, 28_410_878, 2_716_591),
    ("gutenberg", 2_557_721, 25_576_896, 2_819_070),
    ("open_subtitles", 2_282_877, 22_828_747, 2_077_019),
    ("simple_wiki", 1_531_437, 15_314_317, 1_405_366),
    ("switchboard", 24_791, 248_491, 148_340),
)


@dataclass(frozen=True)
class Part:
    """One choice of the command: a hub dataset and the folder that it fills."""

    name: str
    folder: str
    dataset: str
    revision: str
    ending: str = ""  # of the files here, to some the hub adds .txt; "": evaluation
    column: int = 0  # in SOURCES

    @property
    def files(self) -> list[str]:
        names = [row[0] + self.ending for row in SOURCES]
        return names if self.ending else ["full_eval/*", "fast_eval/*"]

    def target(self, path: str) -> str:
        """Where a hub file goes below the data directory; nowhere if not wanted."""
        if self.ending:
            name = path.removesuffix(".txt")
            return f"{self.folder}/{name}" if name in self.files else ""
        folder, split, *rest = path.split("/") + [""]
        official = folder == self.folder and split in ("full_eval", "fast_eval")
        return path if official and ".." not in rest else ""


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


def complain(message: str) -> None:
    print(f"download: {message}", file=sys.stderr)


def list_files(part: Part) -> dict[Path, RepoFile]:
    """The dataset's files by their place below the data directory."""
    # Without a network the client would retry the listing for half a minute: knock.
    utils.get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_ETAG_TIMEOUT)
    tree = HfApi().list_repo_tree(
        part.dataset, repo_type="dataset", revision=part.revision, recursive=True
    )
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    placed = {Path(to): file for file in files if (to := part.target(file.path))}
    if len(placed) < (len(SOURCES) if part.ending else 1):
        raise OSError(
            f"{part.dataset}: should hold {part.files}, holds {[f.path for f in files]}"
        )
    return placed


def fault(path: Path, file: RepoFile) -> str:
    """What is wrong with the copy, or nothing. The hub gives the sha256 of files in
    large file storage, of others git's name for them: a hash of a header and them."""
    size = path.stat().st_size
    wanted = (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as copy:
        while block := copy.read(1 << 20):
            digest.update(block)
    found = (size, digest.hexdigest())
    return "" if found == wanted else f"bytes and hash should be {wanted}, are {found}"


def fetch(file: RepoFile, part: Part, target: Path, staging: Path) -> None:
    """Brings one file to its place, or leaves its beginning in the staging folder."""
    staging.mkdir(parents=True, exist_ok=True)
    partial = staging / f"{file.blob_id}.part"
    # Identity: bytes of a compressed answer could not be counted on from `start`.
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity"}
    where = {"repo_type": "dataset", "revision": part.revision}
    url = hf_hub_url(part.dataset, file.path, **where)
    # The client's functions above this one drop what is broken when they end; this one
    # takes up the file that it is given, so that a later call can continue it.
    with partial.open("ab") as copy:
        if (start := copy.tell()) < file.size:
            more = {"resume_size": start, "displayed_filename": file.path}
            http_get(url, copy, headers=headers, **more)
    if wrong := fault(partial, file):
        partial.unlink()
        raise OSError(f"{part.dataset}, {file.path}: {wrong}; nothing kept, call again")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)


def fetch_part(part: Part, directory: Path) -> bool:
    """Completes one folder; False if a file there is another than the hub's."""
    staging = directory / ".download"
    files = {directory / to: file for to, file in list_files(part).items()}
    missing = {path: file for path, file in files.items() if not path.exists()}
    faults = {p: fault(p, file) for p, file in files.items() if p not in missing}
    complete = [path for path, wrong in faults.items() if not wrong]
    print(f"{part.name}: {part.dataset}, revision {part.revision}:")
    print(f"  {len(complete)} files complete and kept, {len(missing)} to fetch")
    for path, file in missing.items():
        fetch(file, part, path, staging)
    for path, wrong in faults.items():
        if wrong:
            complain(f"{path}: {wrong}; kept: move it away to have the hub's")
    for path in [*complete, *missing]:
        if path.suffix == ".zip":
            unpack(path, staging)
    if part.ending:
        word_table(part, directory / part.folder)
    else:
        print("Not in it: full EWoK (ewok-core/ewok-core-1.0, accept its terms there)")
        print("and Global PIQA (mrlbenchmarks/global-piqa-parallel, -nonparallel).")
    return len(complete) + len(missing) == len(files)


def unpack(archive: Path, staging: Path) -> None:
    """x.zip to x/*: inside, the names repeat the path from evaluation_data on."""
    folder = archive.with_suffix("")
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = PurePosixPath(member.filename).name
                wanted = not (member.is_dir() or name.startswith("."))  # ._x: a Mac's
                if wanted and not (folder / name).exists():
                    (staging / name).write_bytes(opened.read(member, ZIP_PASSWORD))
                    os.replace(staging / name, folder / name)
    except (zipfile.BadZipFile, RuntimeError) as error:
        rule = f"should unpack into {folder}/, password {ZIP_PASSWORD.decode()}"
        raise OSError(f"{archive}: {rule}: {error}; do it by hand") from error


def word_table(part: Part, folder: Path) -> None:
    """Prints each file's whitespace words beside the published ones."""
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


def place_2025(part: Part, directory: Path) -> bool:
    """No dataset of 2025 is known on the hub: its files are on OSF."""
    archive = "dev.zip" if part.name == "dev" else f"train_{part.name}.zip"
    source = (
        f"text_data/{archive} of https://osf.io/ad7qg/ and place its *{part.ending}"
    )
    if not part.ending:
        source = (
            "evaluation_data of https://osf.io/ryjfm/ and place full_eval, fast_eval"
        )
    complain(f"{part.name}: the hub has no files of 2025. Take, in a browser,")
    print(f"  {source}\n  in {directory / part.folder}/", file=sys.stderr)
    return False


def by_hand(parts: Sequence[Part], directory: Path) -> str:
    """What was wanted, and how to bring it from a machine with a network."""
    wanted = [
        f"  dataset {part.dataset}, revision {part.revision}:\n"
        f"    {', '.join(part.files)} into {directory / part.folder}/\n"
        for part in parts
    ]
    return f"wanted:\n{''.join(wanted)}" + (
        "Call again where the hub can be reached (begun files are continued), or do\n"
        "  hf download DATASET --repo-type dataset --revision REVISION --local-dir X\n"
        "there and place the files as above, x.train.txt of the hub as x.train."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser("download_data.sh", description="BabyLM data")
    parser.add_argument("parts", nargs="*", choices=names, help="default: all")
    parser.add_argument("--year", type=int, choices=(2025, 2026), default=2026)
    parser.add_argument("--directory", type=Path, default=Path("babylm_data"))
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if part.name in (options.parts or names)]
    bring = fetch_part if options.year == 2026 else place_2025
    done = True
    for index, part in enumerate(parts):
        try:
            done = bring(part, options.directory) and done
        except (TransportError, ConnectionError) as error:
            reason = " ".join(str(error).split())
            complain(f"{part.name}: cannot be had from {constants.ENDPOINT}: {reason}")
            complain(by_hand(parts[index:], options.directory))
            return 1
        except OSError as error:
            complain(f"{part.name}: {error}")
            done = False
        except KeyboardInterrupt:
            complain("interrupted; the next call continues")
            return 130
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
