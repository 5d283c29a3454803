"""Milestones: models that a run keeps after given numbers of words seen.

The challenge asks for a model after 1M, 2M, … words, under names such as `chck_1M`. The plan gives
the words of each step, so the steps of all milestones are known before training. A milestone has
the weights after the first step at which the words seen reach its number.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from src.data.order import Plan
from src.foundation import MANIFEST, UserError, parse_words, sha256, write_atomically
from src.training.record.checkpoints import seal

KEY = "training.milestones"
WORDS_FILE = "words_seen.json"
# A run also reaches a milestone if it ends at most this share of its words before it. The last
# tokens of a text do not fill a block, so ten epochs of 10M words see a little less than 100M.
TOLERANCE = 0.01
logger = logging.getLogger(__name__)


def parse_milestones(values: Any) -> dict[str, int]:
    """Return a dictionary, name of a milestone -> words: {"chck_1M": 1_000_000}.

    Args:
        values: one or several numbers of words in ascending order, such as `1M`, `300k` or
            `250000`; None: no milestones.

    Raises:
        UserError: a value is not a number of words, or the values do not ascend.
    """
    milestones: dict[str, int] = {}
    for value in values if isinstance(values, list) else [values] if values else []:
        words = parse_words(str(value))
        if words is None:
            raise UserError(
                f"{KEY}: {value!r} is not a number of words, such as 1M, 300k or 250000"
            )
        if words <= max(milestones.values(), default=0):
            raise UserError(f"{KEY} must ascend, got {value} after a larger number")
        milestones[milestone_name(words)] = words
    return milestones


def milestone_name(words: int) -> str:
    """Return the challenge's name of a milestone: `chck_1M`, and `chck_1000M` for 1B words."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if words % unit == 0:
            return f"chck_{words // unit}{letter}"
    return f"chck_{words}"


def milestone_steps(plan: Plan, milestones: Mapping[str, int]) -> dict[int, str]:
    """Return a dictionary, step -> name, of the milestones that the run reaches.

    Raises:
        UserError: one step passes two milestones.
    """
    steps: dict[int, str] = {}
    last = int(plan.words[-1])
    for name, words in milestones.items():
        if last < (1 - TOLERANCE) * words:
            break
        step = int(np.searchsorted(plan.words, min(words, last)))
        if step in steps:
            apart, most = words - milestones[steps[step]], np.diff(plan.words).max()
            tokens = int(plan.blocks_per_step * apart / most) * plan.blocks.block_size
            raise UserError(
                f"{KEY}: step {step:,} passes both {steps[step]} and {name}, since a step"
                f" sees up to {most:,} words; a batch of at most"
                f" {tokens:,} tokens (training.tokens_per_step) keeps them apart"
            )
        steps[step] = name
    return steps


class Milestones(TrainerCallback):
    """Callback that saves the model at each milestone, before any checkpoint of that step.

    So if a checkpoint exists, all earlier milestones exist, too. An existing milestone is not
    written again, since a run that continues has the same weights at the same step.

    Args:
        run_dir: the directory of the run, which gets a folder for each milestone. A file in
            this folder has the words seen, and identifies the run by the checksum of
            `run.json`.
        steps: step -> name, from `milestone_steps`.
        words: words seen before each step [num_steps + 1].
        save_model: saves the model and the tokenizer in a directory; all processes call it.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: Mapping[int, str],
        words: np.ndarray,
        save_model: Callable[[str], None],
    ):
        self.run_dir, self.steps, self.words = run_dir, steps, words
        self.save_model = save_model

    def on_train_begin(self, args, state, control, **kwargs):
        passed = [n for s, n in self.steps.items() if s <= state.global_step]
        if lost := [n for n in passed if not (self.run_dir / n / MANIFEST).is_file()]:
            logger.warning(
                "warning: %s cannot be saved any more: the run continues after them",
                ", ".join(lost),
            )

    def on_step_end(self, args, state, control, **kwargs):
        name = self.steps.get(state.global_step)
        if name is None or (self.run_dir / name / MANIFEST).is_file():
            return
        staging = self.run_dir / f".{name}"
        if args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # left by a killed process
        self.save_model(str(staging))
        if not args.should_save:
            return
        (staging / "training_args.bin").unlink(missing_ok=True)
        words = int(self.words[state.global_step])
        run = sha256(self.run_dir / "run.json")
        seen = {"words": words, "step": state.global_step, "run": run}
        write_atomically(staging / WORDS_FILE, seen)
        seal(staging)
        shutil.rmtree(self.run_dir / name, ignore_errors=True)
        os.replace(staging, self.run_dir / name)
        logger.info("Saved %s after %s words", self.run_dir / name, f"{words:,}")
