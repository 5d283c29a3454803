"""Checkpoints that are known to be complete.

The Trainer writes a checkpoint file by file. When all files are there, a manifest with their
checksums is put beside them in one step. A checkpoint without a manifest was never finished,
and one that does not agree with its manifest is damaged. Older checkpoints are deleted only
after that, so that a kill at any moment costs at most the steps since the last checkpoint.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Optional

from transformers.trainer_utils import rotate_checkpoints

from src.foundation import sha256, write_atomically

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps behind `checkpoint-<steps>`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(run_dir: Path) -> list[Path]:
    """Return all checkpoints of a run, complete or not, newest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if re.search(r"-\d+$", p.name)]
    return sorted(found, key=step_of, reverse=True)


def seal(checkpoint: Path) -> None:
    """Write the manifest: from here on the checkpoint counts."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    sums = {
        str(p.relative_to(checkpoint)): sha256(p) for p in files if p.name != MANIFEST
    }
    write_atomically(checkpoint / MANIFEST, sums)


def fault(checkpoint: Path) -> Optional[str]:
    """Return what is wrong with a checkpoint; None for a complete one."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "was not finished"
    except ValueError:
        return f"is damaged ({MANIFEST})"
    for name, checksum in sums.items():
        file = checkpoint / name
        if not file.is_file() or sha256(file) != checksum:
            return f"is damaged ({name})"
    return None


def newest_whole(run_dir: Path) -> Optional[Path]:
    """Return the checkpoint to continue from; None where no complete one is left.

    Damaged ones on the way, and a damaged best one, are set aside.
    """
    for checkpoint in checkpoints(run_dir):
        if _is_whole(checkpoint):
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            best = run_dir / Path(state["best_model_checkpoint"] or checkpoint).name
            if best != checkpoint and best.is_dir():
                _is_whole(best)
            return checkpoint
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Check a checkpoint; report an incomplete one, and set a damaged one aside."""
    problem = fault(checkpoint)
    if problem is None:
        return True
    if "damaged" in problem:
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        problem += f" and is set aside as {aside.name}"
    logger.warning("%s %s: passing it over", checkpoint, problem)
    return False


def prune(run_dir: Path, limit: Optional[int], best: Optional[str]) -> None:
    """Delete what was never finished, and the oldest until `limit` are left.

    The newest and the `best` one stay. Called when a checkpoint has been sealed: at that
    moment none is being written.
    """
    for checkpoint in checkpoints(run_dir):
        if not (checkpoint / MANIFEST).is_file():
            shutil.rmtree(checkpoint)
    best_dir = str(run_dir / Path(best).name) if best else None
    rotate_checkpoints(str(run_dir), limit, best_dir)
