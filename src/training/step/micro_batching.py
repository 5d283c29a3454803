"""The division of an optimizer step into micro-batches that fit in memory.

The optimizer's batch is given in tokens or in sequences and never changes. The micro-batch
size is found by training on one batch before the first step, halving until it fits, and is
kept with the run: a run that continues adds up the same numbers in the same order.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from accelerate.utils import find_executable_batch_size
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import Blocks
from src.foundation import UserError, write_atomically
from src.training.step.document_masking import add_mask

FILE = "step_layout.json"
# A larger micro-batch is no faster on a CPU, and keeps a GPU busy.
MAX_TOKENS = {"cpu": 4096, "other": 65536}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatching:
    """The division of a device's part of a step.

    Args:
        sequences: micro-batch size.
        micro_batches: gradient accumulation steps.
    """

    sequences: int
    micro_batches: int

    @classmethod
    def divide(cls, sequences: int, limit: int) -> "MicroBatching":
        """Divide the sequences of a step into equal parts of at most `limit`, or one."""
        sizes = [n for n in range(1, max(1, limit) + 1) if sequences % n == 0]
        return cls(sizes[-1], sequences // sizes[-1])

    def __str__(self) -> str:
        return f"{self.micro_batches} x {self.sequences} sequences"

    @property
    def sequences_per_step(self) -> int:
        """Sequences of a step on one device."""
        return self.sequences * self.micro_batches

    def halved(self) -> Optional["MicroBatching"]:
        """Return the same step in smaller micro-batches; None for single sequences."""
        if self.sequences == 1:
            return None
        return self.divide(self.sequences_per_step, self.sequences // 2)

    def save(self, run_dir: Path, compiled: bool) -> None:
        """Record with the run how its steps are computed."""
        write_atomically(run_dir / FILE, {**asdict(self), "compiled": compiled})


def recorded(run_dir: Path, sequences: int) -> Optional[tuple[MicroBatching, bool]]:
    """Return the recorded micro-batching, and whether the step was compiled.

    None where nothing is recorded, or where it was for another number of devices.

    Args:
        sequences: of a step, on one device.

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
        rule = f"data.block_size={block_size}"
        if devices > 1:
            rule = f"{unit} = {block_size} x {devices} (data.block_size x devices)"
        raise UserError(
            f"training.tokens_per_step={tokens} must be a multiple of {rule}; the nearest"
            f" is {max(1, round(tokens / unit)) * unit}"
        )
    return tokens // block_size


def largest(
    training: TrainingArguments, block_size: int, sequences: int
) -> MicroBatching:
    """Return the micro-batching to try first: the user's own, or one for the device.

    Args:
        sequences: of a step, on one device.
    """
    if training.per_device_train_batch_size is not None:
        return MicroBatching.divide(sequences, training.per_device_train_batch_size)
    tokens = MAX_TOKENS.get(training.device.type, MAX_TOKENS["other"])
    return MicroBatching.divide(sequences, tokens // block_size)


def fit(
    first: MicroBatching, args: Arguments, try_batch: Callable[[int], int]
) -> MicroBatching:
    """Halve the micro-batch until training on one does not run out of memory.

    Args:
        first: the micro-batching to begin with.
        try_batch: trains on a batch of so many sequences, and returns their number.

    Raises:
        UserError: one sequence alone does not fit.
    """
    smaller = first

    def halve() -> int:
        nonlocal smaller
        smaller = smaller.halved()
        if smaller is None:
            raise UserError(
                f"data.block_size={args.data.block_size}: there is not enough memory to"
                " train on one sequence: choose shorter ones, a smaller model, or"
                " training.gradient_checkpointing=true"
            )
        return smaller.sequences

    fitting = find_executable_batch_size(try_batch, first.sequences, halve)()
    if args.training.world_size > 1:  # all processes take the smallest
        smallest = torch.tensor(fitting, device=args.training.device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        fitting = int(smallest)
    if fitting < first.sequences:
        logger.warning(
            "Out of memory with micro-batches of %d sequences: going on with %d; a step"
            " sees the same",
            first.sequences,
            fitting,
        )
    return MicroBatching.divide(first.sequences_per_step, fitting)


def train_on_one_batch(
    sequences: int,
    model: PreTrainedModel,
    forward: Callable[..., Any],
    args: Arguments,
    blocks: Blocks,
    masks_documents: bool,
    dtype: torch.dtype,
) -> int:
    """Run one forward and backward pass as training does, and drop its gradients.

    What training keeps in memory beside it is allocated, too: AdamW's moments, DDP's copy of
    the gradients, the average of the weights. The random state is not restored: the Trainer's
    constructor sets it anew.
    """
    training, device = args.training, model.device
    copies = 2 + (training.world_size > 1) + (training.averaging is not None)
    weights = list(model.parameters())
    reserved = [torch.empty_like(p) for p in weights for _ in range(copies)]
    batch = default_collate([blocks[i % len(blocks)] for i in range(sequences)])
    batch = {name: values.to(device) for name, values in batch.items()}
    if masks_documents:
        batch = add_mask(batch, model)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    was_training = model.training
    try:
        model.train()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(**batch).loss
        loss.backward()
    finally:
        model.zero_grad()
        model.train(was_training)
        del reserved
    return sequences
