"""The ledger of a run: `words.jsonl`, with one row for each log of the loss.

    {"step": 20, "words": 41213, "tokens": 65536, "epoch": 0.2,
     "files": {"childes": 30101, "switchboard": 11112}, "loss": 5.31, "device_seconds": 9.1}

All numbers except the loss count from the beginning of the run. Words are those of the targets, as
everywhere. Seconds are summed over all devices. `joules` is the energy that was used, if it can be
read; each GPU is assumed to use as much as that of the main process. A run that continues removes
the rows after its checkpoint and adds new ones.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from src.data.blocks import NO_BLOCK
from src.data.order import Plan
from src.foundation import write_atomically
from src.hardware import energy_counters

FILE = "words.jsonl"


class Ledger(TrainerCallback):
    """Callback that writes the ledger, only in the main process.

    Args:
        run_dir: the directory of the run.
        plan: the blocks of every step.
    """

    def __init__(self, run_dir: Path, plan: Plan):
        self.file, self.plan = run_dir / FILE, plan
        self.names = plan.blocks.stream.names
        self._step = 0
        self._of_files = np.zeros(len(self.names), np.int64)

    def on_train_begin(self, args, state, control, **kwargs):
        kept = [
            row for row in read_ledger(self.file) if row["step"] <= state.global_step
        ]
        self._seconds = kept[-1]["device_seconds"] if kept else 0.0
        self._joules = kept[-1].get("joules", 0.0) if kept else 0.0
        self._since, self._counters = time.perf_counter(), energy_counters()
        write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        self._count(state.global_step)
        seconds = time.perf_counter() - self._since
        row = {
            "step": state.global_step,
            "words": int(self._of_files.sum()),
            "tokens": self.plan.blocks_seen(self._step) * self.plan.blocks.block_size,
            "epoch": round(state.epoch, 6),
            "files": dict(zip(self.names, self._of_files.tolist())),
            "loss": logs["loss"],
            "device_seconds": round(self._seconds + args.world_size * seconds, 1),
        }
        if self._counters:
            row["joules"] = round(self._count_energy(args.world_size), 1)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _count_energy(self, num_gpus: int) -> float:
        """Return the joules of the run until now."""
        now = energy_counters()
        for name, (joules, largest) in now.items():
            if name in self._counters:
                used = (joules - self._counters[name][0]) % largest
                self._joules += used * (num_gpus if name == "gpu" else 1)
        self._counters = now or self._counters
        return self._joules

    def _count(self, step: int) -> None:
        """Count the words of each file in the steps until `step`."""
        for blocks in self.plan.drawn(self._step, step):
            blocks = blocks[blocks != NO_BLOCK]
            every = self.plan.blocks
            owners, words = every.owners_of(blocks), every.words_of(blocks)
            self._of_files += np.bincount(owners, words, len(self.names)).astype(int)
        self._step = step


def read_ledger(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a ledger up to the first incomplete one, which a killed process left."""
    rows = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
