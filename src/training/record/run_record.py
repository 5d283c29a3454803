"""The record of a run in its directory: settings, command, versions, data and results.

    config.yaml    the resolved configuration
    run.json       command, code revision, versions, checksums, result-changing settings, W&B id
    results.json   the final scores; it exists if and only if the run is finished
    train.log      the messages of the run

`config.yaml` and `run.json` are written once, when the run begins. When it continues, the new
settings are compared with those in `run.json`.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml
from filelock import Timeout

from src.arguments import RunConfiguration, defaults
from src.foundation import (
    MANIFEST,
    UserError,
    acquired,
    fault_by_manifest,
    write_atomically,
)

LIBRARIES = (
    "torch transformers tokenizers datasets accelerate hydra-core omegaconf wandb evaluate"
    " numpy safetensors huggingface_hub"
).split()
# Files that do not make a directory another person's: what a start writes before it trains, and
# what desktops and network file systems leave in directories.
LITTER = (
    *("config.yaml", "wandb*", "step_layout.json", "*.log", ".*.tmp"),
    *(".DS_Store", "._*", ".nfs*", ".fuse_hidden*", "Thumbs.db", "desktop.ini"),
)
logger = logging.getLogger(__name__)


class TrainingStopped(UserError):
    """An error that ends the training of a run, whose directory is kept."""


class RunRecord:
    """The record in a run's directory. The main process writes; the others only read.

    Args:
        configuration: the configuration of this start.
        identity: the settings that change the result, with the checksums of the text under
            `data`.
    """

    def __init__(self, configuration: RunConfiguration, identity: Mapping[str, Any]):
        training = configuration.args.training
        self.configuration = configuration
        self.identity = json.loads(json.dumps(identity))  # as `run.json` gives it
        self.directory = Path(training.output_dir)
        self.main_process = training.process_index == 0

    @property
    def results(self) -> Optional[dict[str, Any]]:
        """The final scores; None for a run that is not finished.

        Raises:
            UserError: they are not as they were written, by the checksum in `manifest.json`.
        """
        if not (self.directory / "results.json").exists():
            return None
        if fault := fault_by_manifest(self.directory, ["results.json"]):
            raise UserError(
                f"{self.directory} {fault}: delete that file, and the same command writes it"
                " again"
            )
        return self._read("results.json")

    @property
    def command(self) -> str:
        """The command that began the run."""
        return self._read("run.json")["command"]

    @property
    def wandb_id(self) -> Optional[str]:
        """The id of the run at W&B; None for a run that an earlier version began."""
        return self._read("run.json").get("wandb_id")

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Begin or continue the run, and log to its directory within the block.

        Only the main process calls it.

        With `training.overwrite_output_dir`, an existing run is moved to `../.old/`. If the
        first start of a run is refused, its files are removed, and the run that it moved is
        moved back.

        Raises:
            UserError: another process works on the run, or the directory holds files but no
                run, or a run with other settings that has saved a checkpoint or results.
        """
        with locked(self.directory):
            self.directory.mkdir(exist_ok=True)
            has_run, moved_to = (self.directory / "run.json").exists(), None
            if not has_run:
                self._refuse_other_files()
            elif self.configuration.args.training.overwrite_output_dir:
                has_run, moved_to = False, self._move_aside()
            is_new = not has_run or self._is_replaced()
            before = set(self.directory.iterdir())
            try:
                if is_new:
                    self._write()
                with TrainLog(self.directory / "train.log", encoding="utf-8"):
                    yield
            except UserError as error:
                stopped = isinstance(error, TrainingStopped) or self._has_progress
                if is_new and not stopped:
                    for path in set(self.directory.iterdir()) - before:
                        remove(path)
                    if moved_to is not None:
                        moved_to.rename(self.directory)  # which is empty
                        logger.info("The earlier run was moved back from %s", moved_to)
                raise

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the final scores, which mark the run as finished."""
        if self.main_process:
            text = json.dumps(results, indent=1, ensure_ascii=False)
            checksum = hashlib.sha256(text.encode()).hexdigest()
            sums = {**self._read(MANIFEST), "results.json": checksum}
            write_atomically(self.directory / MANIFEST, sums)
            write_atomically(self.directory / "results.json", text)

    @property
    def _has_progress(self) -> bool:
        """True if the run has saved a checkpoint or results, which are never overwritten."""
        has_results = (self.directory / "results.json").exists()
        return has_results or any(self.directory.glob("checkpoint-*"))

    def _is_replaced(self) -> bool:
        """Return whether the recorded run has other settings, and nothing that could be lost.

        Raises:
            UserError: it has other settings, and a checkpoint or results.
        """
        recorded = self._read("run.json")
        if not {"command", "identity"} <= {*recorded}:
            file = self.directory / "run.json"
            raise UserError(f"{file} is damaged: it lacks its command or its identity")
        # If a record was written before an option existed, the option had its default.
        known = {k: v for k, v in defaults().items() if k in self.identity}
        changes = differences({**known, **recorded["identity"]}, self.identity)
        if changes and self._has_progress:
            raise UserError(
                f"{self.directory} holds another run, by its run.json; the differences:\n  "
                + "\n  ".join(changes)
                + "\nEither choose another wandb.tag=… (or training.output_dir=…, if you set"
                " it), or start anew with training.overwrite_output_dir=true (the old run is"
                " moved aside)."
            )
        return bool(changes)

    def _write(self) -> None:
        """Write `config.yaml` and `run.json`."""
        options, overrides = self.configuration.recorded, self.configuration.overrides
        settings = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        write_atomically(self.directory / "config.yaml", settings)
        processes = os.environ.get("WORLD_SIZE", "1")
        several = f"torchrun --nproc_per_node={processes}"
        launcher = "python" if processes == "1" else several
        python, system = platform.python_version(), platform.platform()
        record = {
            "command": f"{launcher} -m src.run_clm {shlex.join(overrides)}",
            "overrides": overrides,
            "code": code_revision(),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "machine": {"python": python, "system": system},
            "wandb_id": sweep_run_id() or uuid.uuid4().hex[:8],
            "identity": self.identity,
        }
        write_atomically(self.directory / "run.json", record)

    def _refuse_other_files(self) -> None:
        """Raise `UserError` for a directory that holds files but no run.

        Such a directory may not be written to. The files of a start that was killed before it
        wrote `run.json`, those of Hydra and litter do not count.
        """
        others = [
            path.name
            for path in sorted(self.directory.iterdir())
            if not any(map(path.match, LITTER))
            and not (path / "overrides.yaml").is_file()  # hydra.output_subdir
        ]
        if others:
            raise UserError(
                f"training.output_dir={self.directory} is not a run (it has no run.json),"
                f" but holds {', '.join(others[:5])}: choose another directory"
            )

    def _move_aside(self) -> Path:
        """Move the run to the first free name in `../.old/`, and return its new path."""
        old = self.directory.parent / ".old"
        old.mkdir(exist_ok=True)
        names = (old / f"{self.directory.name}-{n}" for n in itertools.count(1))
        target = next(path for path in names if not path.exists())
        self.directory.rename(target)
        self.directory.mkdir()
        logger.info("The existing run was moved to %s", target)
        return target

    def _read(self, name: str) -> dict[str, Any]:
        """Return the values in a file of the directory; none if it does not exist."""
        file = self.directory / name
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except (ValueError, OSError) as error:
            raise UserError(f"{file} is damaged: {error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's directory within the block.

    Only the holder of the lock, a file beside the directory, creates or removes it. So a start
    that is refused because another one works on the run does not remove the other's directory.
    If the directory is empty after the block, it is removed.

    Raises:
        UserError: another process holds the lock.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.parent / f".{directory.name}.lock"
    try:
        held = acquired(file, timeout=1)
    except Timeout as error:
        fault = f"{directory}: another process is working on this run"
        raise UserError(fault) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: it holds a run
            directory.rmdir()
        if not directory.exists():
            file.unlink(missing_ok=True)
        held.lock.release()
        with contextlib.suppress(OSError):  # not empty: it holds other runs
            directory.parent.rmdir()


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class TrainLog(logging.FileHandler):
    """A file that gets all messages of a `with` block, too.

    If it cannot be written, it gives up with one warning.
    """

    def __enter__(self) -> None:
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)
        self.close()

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logger.warning("%s cannot be written: %s", self.baseFilename, sys.exc_info()[1])


def sweep_run_id() -> Optional[str]:
    """Return the id that the agent of a W&B sweep gave to this trial; None outside of one."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that differs: `training.seed: 1 -> 2`."""
    lines = []
    for key in sorted({*recorded, *present}):
        before, now = recorded.get(key), present.get(key)
        if key == "data":  # checksums of the text: show only the names of the files
            changed = sorted(dict((before or {}).items() ^ (now or {}).items()))
            lines += [f"text: {name} differs" for name in changed]
        elif before != now:
            lines.append(f"{key}: {json.dumps(before)} -> {json.dumps(now)}")
    return lines


def code_revision() -> Optional[str]:
    """Return the commit of this code, with `+` if files have changed; None without git."""
    folder = shlex.quote(str(Path(__file__).parent))
    describe = "describe --always --dirty=+ --abbrev=40 --exclude='*'"
    return subprocess.getoutput(f"git -C {folder} {describe} 2>/dev/null") or None
