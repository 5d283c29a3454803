"""Checkpoints that are known to be complete.

The Trainer writes a checkpoint file by file. After the last file, a manifest with the
checksums of all files is written in one step. A checkpoint without a manifest was never
finished, and one that does not match its manifest is damaged. Older checkpoints are deleted
only after the manifest is written. So a kill at any moment costs at most the steps since the
last checkpoint.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Optional

from transformers.trainer_utils import sort_checkpoints

from src.foundation import MANIFEST, apply_umask, fault_by_manifest, write_manifest

logger = logging.getLogger(__name__)


def checkpoints(run_dir: Path) -> list[Path]:
    """Return all checkpoints of a run, complete or not, newest first."""
    return [Path(folder) for folder in reversed(sort_checkpoints(str(run_dir)))]


def seal(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint, which marks it as complete."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            apply_umask(file)
    write_manifest(checkpoint)


def newest_whole(run_dir: Path) -> Optional[Path]:
    """Return the newest complete checkpoint of a run; None if there is none.

    If newer checkpoints or the best one are damaged, they are renamed to
    `damaged-checkpoint-<steps>`.
    """
    for checkpoint in checkpoints(run_dir):
        if _accept(checkpoint):
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            best = run_dir / Path(state["best_model_checkpoint"] or checkpoint).name
            if best != checkpoint and best.is_dir():
                _accept(best)
            return checkpoint
    return None


def _accept(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete. If not, log its fault; rename a damaged one."""
    if not (checkpoint / MANIFEST).is_file():
        fault = "was not finished"
    elif fault := fault_by_manifest(checkpoint):
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        fault += f" and was renamed to {aside.name}"
    else:
        return True
    logger.warning("%s %s: skipped", checkpoint, fault)
    return False


def prune(
    run_dir: Path, limit: Optional[int] = None, best: Optional[str] = None
) -> None:
    """Delete unfinished checkpoints, and the oldest ones until `limit` are left; None: all.

    The newest checkpoint and the `best` one stay. Call this only after the newest one has been
    sealed, since a checkpoint that is being written counts as unfinished.
    """
    for leftover in run_dir.glob(".deleted-*"):  # of a kill during a deletion
        shutil.rmtree(leftover)
    best_dir = run_dir / Path(best).name if best else None
    complete = []
    for checkpoint in checkpoints(run_dir):
        if (checkpoint / MANIFEST).is_file():
            complete.append(checkpoint)
        else:
            _delete(checkpoint)
    kept = {*complete[:1], best_dir} & {*complete}
    others = [checkpoint for checkpoint in complete if checkpoint not in kept]
    for checkpoint in others[max(0, limit - len(kept)) :] if limit else []:
        _delete(checkpoint)


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint. A kill in between leaves no half of one under its name."""
    deleted = checkpoint.with_name(f".deleted-{checkpoint.name}")
    checkpoint.rename(deleted)
    shutil.rmtree(deleted)
