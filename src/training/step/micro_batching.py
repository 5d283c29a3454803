"""The division of an optimizer step into micro-batches that fit in memory.

The optimizer's batch is given in tokens or in sequences and never changes. Before the first step,
the model is trained on one micro-batch, whose size is halved until it fits in memory. The size is
recorded with the run, so that a continued run adds up the same numbers in the same order.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import torch
from accelerate.utils import find_executable_batch_size

from src.arguments import TrainingArguments
from src.foundation import UserError, write_atomically
from src.processes import gathered

FILE = "step_layout.json"
# Tokens of a micro-batch. Larger ones are no faster on a CPU; these keep a GPU busy. Other devices,
# such as a Mac's, share the memory of the machine, which would swap before it is exhausted.
MAX_TOKENS = {"cpu": 4096, "cuda": 65536, "other": 8192}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatching:
    """The division of one device's share of a step.

    Args:
        sequences: micro-batch size.
        micro_batches: gradient accumulation steps.
    """

    sequences: int
    micro_batches: int

    @classmethod
    def divide(cls, sequences: int, limit: int) -> "MicroBatching":
        """Divide the sequences of a step into equal micro-batches of at most max(1, limit)."""
        sizes = [n for n in range(1, max(1, limit) + 1) if sequences % n == 0]
        return cls(sizes[-1], sequences // sizes[-1])

    def __str__(self) -> str:
        return f"{self.micro_batches} x {self.sequences} sequences"

    @property
    def sequences_per_step(self) -> int:
        """The sequences of a step on one device."""
        return self.sequences * self.micro_batches

    def halved(self) -> Optional["MicroBatching"]:
        """Return the same step in smaller micro-batches; None for single sequences."""
        if self.sequences == 1:
            return None
        return self.divide(self.sequences_per_step, self.sequences // 2)

    def save(self, run_dir: Path, compiled: bool) -> None:
        """Write the micro-batching, and whether the step is compiled, to `step_layout.json`."""
        write_atomically(run_dir / FILE, {**asdict(self), "compiled": compiled})


def recorded(run_dir: Path, sequences: int) -> Optional[tuple[MicroBatching, bool]]:
    """Return the recorded micro-batching, and whether the step was compiled.

    Return None if nothing is recorded, or if the number of devices was another one.

    Args:
        sequences: sequences of a step on one device.

    Raises:
        UserError: the file is damaged.
    """
    file = run_dir / FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        compiled = record.pop("compiled")
        size = MicroBatching(**record)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    return (size, compiled) if size.sequences_per_step == sequences else None


def sequences_per_step(training: TrainingArguments, block_size: int) -> int:
    """Return the sequences of a step over all devices.

    Raises:
        UserError: `tokens_per_step` cannot be divided into whole sequences on every device.
    """
    devices, tokens = training.world_size, training.tokens_per_step
    if tokens is None:
        micro_batches = training.gradient_accumulation_steps or 1
        return training.per_device_train_batch_size * micro_batches * devices
    unit = block_size * devices
    if tokens % unit:
        times_devices = f" x {devices} devices" * (devices > 1)
        raise UserError(
            f"training.tokens_per_step={tokens} must be a multiple of"
            f" data.block_size={block_size}{times_devices}; the nearest is"
            f" {max(1, round(tokens / unit)) * unit}"
        )
    return tokens // block_size


def largest(
    training: TrainingArguments, block_size: int, sequences: int
) -> MicroBatching:
    """Return the micro-batching to try first: the user's, or one that suits the device.

    Args:
        sequences: sequences of a step on one device.
    """
    tokens = MAX_TOKENS.get(training.device.type, MAX_TOKENS["other"])
    limit = training.per_device_train_batch_size or tokens // block_size
    return MicroBatching.divide(sequences, limit)


def fit(
    first: MicroBatching, block_size: int, try_batch: Callable[[int], int]
) -> MicroBatching:
    """Halve the micro-batch until training on one batch does not run out of memory.

    Args:
        first: the micro-batching that is tried first.
        try_batch: trains on a batch of the given number of sequences, and returns it.

    Raises:
        UserError: a single sequence does not fit.
    """
    smaller = first

    def halve() -> int:
        nonlocal smaller
        smaller = smaller.halved()
        if smaller is None:
            raise UserError(
                f"data.block_size={block_size}: there is not enough memory to train on one"
                " sequence: choose shorter ones, a smaller model, or"
                " training.gradient_checkpointing=true"
            )
        return smaller.sequences

    fitting = find_executable_batch_size(try_batch, first.sequences, halve)()
    fitting = min(gathered(fitting))  # the same on all devices
    if fitting < first.sequences:
        logger.warning(
            "Out of memory with micro-batches of %d sequences: continuing with %d; the batch"
            " of a step stays the same",
            first.sequences,
            fitting,
        )
    return MicroBatching.divide(first.sequences_per_step, fitting)


def shortened(inputs: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """Cut blocks [B, T] into sequences [B·T/size, size]. Positions restart in each sequence."""
    inputs = {name: values.reshape(-1, size) for name, values in inputs.items()}
    if "position_ids" in inputs:
        positions = torch.arange(size, device=inputs["position_ids"].device)
        inputs["position_ids"] = inputs["position_ids"].minimum(positions)
    return inputs
