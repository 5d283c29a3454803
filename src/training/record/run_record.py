"""What a run's directory says of it: settings, command, versions, data, results.

    config.yaml    the resolved configuration
    run.json       command, code revision, versions, checksums, result-changing settings
    results.json   the final scores; it is there if and only if the run is finished

The first two are written once, when the run begins, and compared when it continues.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any, Iterator, Optional

import yaml
from filelock import FileLock, Timeout

from src.foundation import UserError

LIBRARIES = (
    "torch transformers tokenizers datasets accelerate hydra-core omegaconf wandb evaluate"
    " numpy safetensors huggingface_hub"
).split()

logger = logging.getLogger(__name__)


class RunRecord:
    """The record in a run's directory."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)

    @property
    def results(self) -> Optional[dict[str, Any]]:
        """The final scores; None where the run is not finished."""
        return self._read("results.json")

    def begin(
        self,
        identity: dict[str, Any],
        configuration: dict[str, Any],
        overrides: list[str],
        checksums: dict[str, str],
        overwrite: bool,
        defaults: Optional[dict[str, Any]] = None,
    ) -> None:
        """Write the record, or check that the one that is there is of the same run.

        Raises `UserError` with the differences where it is not, unless nothing was saved
        yet: then it is written anew. With `overwrite`, what is there is moved to `../.old/`
        first; nothing is deleted. A directory with other files in it is refused. A key that
        the record does not have, because it is younger, counts with its value in `defaults`.
        """
        identity = json.loads(json.dumps({**identity, "data": checksums}))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_files()
        if overwrite and any(self.directory.iterdir()):
            self._move_aside()
            self.directory.mkdir()
        elif (recorded := self._read("run.json")) is not None:
            known = {k: v for k, v in (defaults or {}).items() if k in identity}
            found = differences({**known, **recorded["identity"]}, identity)
            if not found:
                return
            if any(self.directory.glob("checkpoint-*")) or self.results is not None:
                raise UserError(
                    f"{self.directory} holds another run; what differs:\n  "
                    + "\n  ".join(found)
                    + "\nEither choose another wandb.tag=…, or start anew with"
                    " training.overwrite_output_dir=true (the old run is moved aside)."
                )
            (self.directory / "wandb_run_id.txt").unlink(missing_ok=True)
        record = {
            "command": _command(overrides),
            "overrides": overrides,
            "code": code_revision(),
            "versions": versions(),
            "machine": {
                "python": platform.python_version(),
                "system": platform.platform(),
            },
            "identity": identity,
        }
        text = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        self._write("config.yaml", text)
        self._write("run.json", json.dumps(record, indent=1, ensure_ascii=False))

    @contextlib.contextmanager
    def held(self, main_process: bool = True) -> Iterator[None]:
        """Keeps other processes off this run; `UserError` where one is at work on it."""
        if not main_process:
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = self.directory.parent / f".{self.directory.name}.lock"
        try:
            with FileLock(lock, timeout=0):
                yield
        except Timeout as error:
            raise UserError(
                f"{self.directory}: another process is at work on this run"
            ) from error

    def finish(self, results: dict[str, Any]) -> None:
        """Write the final scores: from here on the run is finished."""
        self._write("results.json", json.dumps(results, indent=1))

    @property
    def command(self) -> str:
        """The command that began the run."""
        return self._read("run.json")["command"]

    def _refuse_foreign_files(self) -> None:
        """Only a run's own directory is written to, or moved aside."""
        if not (self.directory / "run.json").exists():
            own = ("config.yaml", ".config.yaml.tmp", ".run.json.tmp")
            foreign = [p.name for p in self.directory.iterdir() if p.name not in own]
            if foreign:
                raise UserError(
                    f"training.output_dir={self.directory} is no run but holds"
                    f" {', '.join(sorted(foreign)[:5])}: choose another directory"
                )

    def _move_aside(self) -> None:
        old = self.directory.parent / ".old"
        old.mkdir(exist_ok=True)
        number = 1
        while (old / f"{self.directory.name}-{number}").exists():
            number += 1
        target = old / f"{self.directory.name}-{number}"
        self.directory.rename(target)
        logger.info("The run that was here is now %s", target)

    def _read(self, name: str) -> Any:
        file = self.directory / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error

    def _write(self, name: str, text: str) -> None:
        temporary = self.directory / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.directory / name)


def _command(overrides: list[str]) -> str:
    """What to type to have this run again."""
    processes = os.environ.get("WORLD_SIZE", "1")
    launcher = (
        "python" if processes == "1" else f"torchrun --nproc_per_node={processes}"
    )
    return f"{launcher} -m src.run_clm {shlex.join(overrides)}"


def differences(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """One line for each setting that differs: `training.learning_rate: 0.001 -> 0.003`."""
    lines = []
    for key in sorted({*recorded, *present}):
        before, now = recorded.get(key), present.get(key)
        if key == "data":  # checksums: the names say more
            changed = sorted(dict((before or {}).items() ^ (now or {}).items()))
            lines += [f"text: {name} is not the same" for name in changed]
        elif before != now:
            lines.append(f"{key}: {json.dumps(before)} -> {json.dumps(now)}")
    return lines


def code_revision() -> Optional[str]:
    """The commit of this code, with `+` where files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "") or None


def versions() -> dict[str, Optional[str]]:
    """Library → installed version, None where it is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
