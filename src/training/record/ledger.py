"""The ledger of a run: `words.jsonl`, with a row for each log of the loss and for the last step.

    {"step": 20, "words": 41213, "tokens": 65536, "epoch": 0.2,
     "files": {"childes": 30101, "switchboard": 11112}, "loss": 5.31,
     "device_seconds": 9.1, "gpu_seconds": 9.1, "joules": 2730.0}

All numbers except the loss count from the beginning of the run. Words are those of the targets, as
everywhere. Seconds are summed over all devices. Joules are those of `EnergyMeter`, where they can
be read; those of several GPUs are estimated by the main process's. The loss of the last step is
null if it was not logged. A run that continues removes the rows after its checkpoint, and one
without a loss, and adds new ones.
"""

import json
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
from transformers import TrainerCallback

from src.data.blocks import NO_BLOCK
from src.data.order import Plan
from src.foundation import write_atomically
from src.training.record.energy import EnergyMeter

FILE = "words.jsonl"


class Ledger(TrainerCallback):
    """Callback that writes the ledger, only in the main process.

    Args:
        run_dir: the directory of the run.
        plan: the blocks of every step.
    """

    def __init__(self, run_dir: Path, plan: Plan):
        self.file, self.plan = run_dir / FILE, plan
        self.names = [file["name"] for file in plan.blocks.stream.files]
        self._owners, self._words = plan.blocks.owners, plan.blocks.words
        self._step = 0
        self._of_files = np.zeros(len(self.names), np.int64)

    def on_train_begin(self, args, state, control, **kwargs):
        kept = [
            row for row in read_ledger(self.file) if row["step"] <= state.global_step
        ]
        self._before = kept[-1] if kept else {"device_seconds": 0.0, "joules": 0.0}
        self._since, self._energy = time.perf_counter(), EnergyMeter(args.device)
        logged = [json.dumps(row) + "\n" for row in kept if row["loss"] is not None]
        write_atomically(self.file, "".join(logged))

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cpu":  # whose counters wrap around
            self._energy.read()

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self._add_row(args, state, logs["loss"])

    def on_train_end(self, args, state, control, **kwargs):
        if self._step < state.global_step:
            self._add_row(args, state, None)

    def _add_row(self, args: Any, state: Any, loss: Optional[float]) -> None:
        self._count(state.global_step)
        before, is_gpu = self._before, args.device.type != "cpu"
        seconds = args.world_size * (time.perf_counter() - self._since)
        row = {
            "step": state.global_step,
            "words": int(self._of_files.sum()),
            "tokens": self.plan.blocks_seen(self._step) * self.plan.blocks.block_size,
            "epoch": round(state.epoch, 6),
            "files": dict(zip(self.names, self._of_files.tolist())),
            "loss": loss,
            "device_seconds": round(before["device_seconds"] + seconds, 1),
            "gpu_seconds": round(before.get("gpu_seconds", 0) + is_gpu * seconds, 1),
        }
        joules = self._energy.read()
        if joules is not None and "joules" in before:
            # RAPL's counters are of the whole machine.
            joules *= args.world_size if is_gpu else 1
            row["joules"] = round(before["joules"] + joules, 1)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _count(self, step: int) -> None:
        """Count the words of each file in the steps until `step`."""
        for blocks in self.plan.drawn(self._step, step):
            blocks = blocks[blocks != NO_BLOCK]
            self._of_files += np.bincount(
                self._owners[blocks], self._words[blocks], len(self.names)
            ).astype(np.int64)
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
