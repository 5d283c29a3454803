"""The record of a run in its directory: settings, command, versions, data and results.

    config.yaml    the resolved configuration
    run.json       command, code revision, versions, checksums, result-changing settings
    results.json   the final scores; it exists if and only if the run is finished
    train.log      the messages of the run

`config.yaml` and `run.json` are written once, when the run begins. When it continues, the new
settings are compared with those in `run.json`.
"""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml
from filelock import FileLock, Timeout

from src.arguments import RunConfiguration
from src.foundation import UserError, write_atomically

LIBRARIES = (
    "torch transformers tokenizers datasets accelerate hydra-core omegaconf wandb evaluate"
    " numpy safetensors huggingface_hub"
).split()

logger = logging.getLogger(__name__)


class RunRecord:
    """The record in a run's directory.

    Args:
        main_process: whether this process writes; the other processes only read.
    """

    def __init__(self, directory: Path, main_process: bool = True):
        self.directory, self.main_process = directory, main_process

    @property
    def results(self) -> Optional[dict[str, Any]]:
        """The final scores; None for a run that is not finished."""
        return self._read("results.json")

    @property
    def command(self) -> str:
        """The command that began the run."""
        return self._read("run.json")["command"]

    @contextlib.contextmanager
    def open(
        self, configuration: RunConfiguration, identity: Mapping[str, Any]
    ) -> Iterator[None]:
        """Begin or continue the run, and log to its directory within the block.

        With `training.overwrite_output_dir`, an existing run is moved to `../.old/`. Nothing
        is deleted.

        Args:
            identity: the settings that change the result, with the checksums of the text
                under `data`.

        Raises:
            UserError: another process works on the run, or the directory holds files but no
                run, or a run with other settings that has saved a checkpoint or results.
        """
        if not self.main_process:
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory.parent / f".{self.directory.name}.lock")
        try:
            acquired = lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.directory}: another process is working on this run"
            ) from error
        with acquired:  # released once: a lock counts how often it is acquired
            identity = json.loads(json.dumps(identity))  # as it is read from `run.json`
            if self._make_room(configuration, identity):
                self._write(configuration, identity)
            log = logging.FileHandler(self.directory / "train.log", encoding="utf-8")
            log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger().addHandler(log)
            try:
                yield
            finally:
                logging.getLogger().removeHandler(log)
                log.close()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the final scores, which mark the run as finished."""
        if self.main_process:
            write_atomically(self.directory / "results.json", results)

    def _make_room(
        self, configuration: RunConfiguration, identity: Mapping[str, Any]
    ) -> bool:
        """Refuse or move aside another run. Return False if the same run continues."""
        self._refuse_other_files()
        is_empty = not any(self.directory.iterdir())
        if configuration.args.training.overwrite_output_dir and not is_empty:
            self._move_aside()
            return True
        recorded = self._read("run.json")
        if recorded is None:
            return True
        # If a record was written before an option existed, the option had its default.
        known = {k: v for k, v in configuration.defaults.items() if k in identity}
        changes = differences({**known, **recorded["identity"]}, identity)
        if not changes:
            return False
        if any(self.directory.glob("checkpoint-*")) or self.results is not None:
            raise UserError(
                f"{self.directory} holds another run; the differences:\n  "
                + "\n  ".join(changes)
                + "\nEither choose another wandb.tag=… (or training.output_dir=…, if you set"
                " it), or start anew with training.overwrite_output_dir=true (the old run is"
                " moved aside)."
            )
        (self.directory / "wandb_run_id.txt").unlink(missing_ok=True)
        return True

    def _write(
        self, configuration: RunConfiguration, identity: Mapping[str, Any]
    ) -> None:
        settings = yaml.safe_dump(
            configuration.recorded, sort_keys=False, allow_unicode=True
        )
        write_atomically(self.directory / "config.yaml", settings)
        processes = os.environ.get("WORLD_SIZE", "1")
        several = f"torchrun --nproc_per_node={processes}"
        launcher = "python" if processes == "1" else several
        overrides, python = configuration.overrides, platform.python_version()
        record = {
            "command": f"{launcher} -m src.run_clm {shlex.join(overrides)}",
            "overrides": overrides,
            "code": code_revision(),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "machine": {"python": python, "system": platform.platform()},
            "identity": identity,
        }
        write_atomically(self.directory / "run.json", record)

    def _refuse_other_files(self) -> None:
        """Raise `UserError` for a directory that holds files but no run.

        Such a directory may not be written to or moved aside.
        """
        if (self.directory / "run.json").exists():
            return
        names = [path.name for path in self.directory.iterdir()]
        others = [n for n in names if n != "config.yaml" and not n.endswith(".tmp")]
        if others:
            raise UserError(
                f"training.output_dir={self.directory} is not a run, but holds"
                f" {', '.join(sorted(others)[:5])}: choose another directory"
            )

    def _move_aside(self) -> None:
        """Move the run to the first free name in `../.old/`."""
        old = self.directory.parent / ".old"
        old.mkdir(exist_ok=True)
        names = (old / f"{self.directory.name}-{n}" for n in itertools.count(1))
        target = next(path for path in names if not path.exists())
        self.directory.rename(target)
        self.directory.mkdir()
        logger.info("The existing run was moved to %s", target)

    def _read(self, name: str) -> Any:
        file = self.directory / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error


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
    """Return the commit of this code, with `+` if files have changed; None outside git."""
    command = "git describe --always --dirty=+ --abbrev=40 --exclude=*".split()
    folder = Path(__file__).parent
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return run.stdout.strip() or None
