"""Checkpoints that are known to be whole.

The Trainer writes a checkpoint file by file. When all are there, a manifest with their
checksums is put beside them in one step: a checkpoint without it was never finished, one
that no longer agrees with it is damaged. Older checkpoints go only after that, so that a
kill at any moment costs at most the steps since the one before.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Optional

from src.foundation import sha256

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def step(checkpoint: Path) -> int:
    """The optimizer steps behind `checkpoint-<steps>`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, whole or not, newest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if re.search(r"-\d+$", p.name)]
    return sorted(found, key=step, reverse=True)


def seal(checkpoint: Path) -> None:
    """Write the manifest: from here on the checkpoint counts."""
    files = sorted(
        p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST
    )
    sums = {str(p.relative_to(checkpoint)): sha256(p) for p in files}
    temporary = checkpoint / f".{MANIFEST}"
    temporary.write_text(json.dumps(sums, indent=1), encoding="utf-8")
    os.replace(temporary, checkpoint / MANIFEST)


def fault(checkpoint: Path) -> Optional[str]:
    """What is wrong with a checkpoint; None where it is whole."""
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
    """The checkpoint to continue from; None where no whole one is left."""
    for checkpoint in checkpoints(run_dir):
        if _check(checkpoint):
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            best = run_dir / Path(state["best_model_checkpoint"] or checkpoint).name
            if best != checkpoint and best.is_dir():
                _check(best)
            return checkpoint
    return None


def _check(checkpoint: Path) -> bool:
    """Whether it is whole. Says so where it is not, and sets a damaged one aside."""
    wrong = fault(checkpoint)
    if wrong is None:
        return True
    if "damaged" in wrong:
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        wrong += f" and is set aside as {aside.name}"
    logger.warning("%s %s: passing it over", checkpoint, wrong)
    return False


def prune(run_dir: Path, limit: Optional[int], best: Optional[str]) -> None:
    """Delete checkpoints until `limit` are left: the newest, and the `best` one.

    What a kill left half-written goes as soon as a newer one is sealed.
    """
    sealed = [p for p in checkpoints(run_dir) if (p / MANIFEST).is_file()]
    for checkpoint in checkpoints(run_dir):
        if checkpoint not in sealed and sealed and step(checkpoint) < step(sealed[0]):
            shutil.rmtree(checkpoint)
    if limit is None:
        return
    kept = sealed[:limit]
    best_dir = run_dir / Path(best).name if best else None
    if best_dir in sealed and best_dir not in kept:
        kept = [*sealed[: limit - 1], best_dir]
    for checkpoint in sealed:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)
