"""How a step is computed: its micro-batches, and whether it is compiled.

What the optimizer sees is stated in tokens, or in sequences, and never changes. How it is
divided follows from the memory there is; it is found before the first step and kept with the
run, so that a run that continues adds up the same numbers in the same order.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import torch
from transformers import PreTrainedModel

from src.arguments import TrainingArguments
from src.foundation import UserError
from src.training.step.forward import find_fast_forward, install

FILE = "step_layout.json"
# A processor is no faster with more; a GPU is busy with these.
MAX_TOKENS = {"cpu": 4096, "other": 65536}
MEMORY_SHARE = 0.8  # of what is free: kernels need room, and memory gets fragmented
# What a step takes before it is compiled, and what compiling must save. Measured on two
# cores (150 GFLOP/s, 10 to 25 s to compile); for a GPU, a third of an A100.
FLOPS = {"cpu": 1.5e11, "other": 1e14}
LOGIT_BYTES = 20  # of a logit: bfloat16 and float32, its gradient, and what is between
MIN_SECONDS = {"cpu": 180, "other": 120}


@dataclass(frozen=True)
class StepLayout:
    """Sequences of a micro-batch on a device, micro-batches of a step, compiled or not."""

    sequences: int
    micro_batches: int
    compiled: bool = False

    def save(self, run_dir: Path) -> None:
        temporary = run_dir / f".{FILE}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(temporary, run_dir / FILE)

    @classmethod
    def load(cls, run_dir: Path) -> Optional["StepLayout"]:
        """What the run has recorded, None if nothing. Raises `UserError` if damaged."""
        file = run_dir / FILE
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}") from error

    def fits(self, sequences: int, devices: int) -> bool:
        """Whether so many devices so make a step of so many sequences."""
        return self.sequences * self.micro_batches * devices == sequences

    def halved(self) -> Optional["StepLayout"]:
        """The same step in smaller micro-batches; None where they are of one sequence."""
        total = self.sequences * self.micro_batches
        if self.sequences == 1:
            return None
        return divided(total, self.sequences // 2, self.compiled)


def divided(sequences: int, limit: int, compiled: bool = False) -> StepLayout:
    """The sequences of a step on one device in equal micro-batches of at most `limit`."""
    most = max(n for n in range(1, max(1, limit) + 1) if sequences % n == 0)
    return StepLayout(most, sequences // most, compiled)


def logit_chunk(args: TrainingArguments) -> Optional[int]:
    """`logit_chunk` as given; 0 for what the fused loss does not do.

    In float16 its gradients, made before the scaler scales them, would vanish.
    """
    return 0 if args.label_smoothing_factor or args.fp16 else args.logit_chunk


def sequences_per_step(args: TrainingArguments, block_size: int) -> int:
    """Blocks of a step over all devices. Raises `UserError` where they are no whole number."""
    devices = args.world_size
    if args.tokens_per_step is None:
        size, number = (
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
        )
        return size * (number or 1) * devices
    unit = block_size * devices
    if args.tokens_per_step % unit:
        nearest = max(1, round(args.tokens_per_step / unit)) * unit
        smallest = f"data.block_size={block_size}"
        if devices > 1:
            smallest = f"{unit} = {block_size} x {devices} (data.block_size x devices)"
        raise UserError(
            f"training.tokens_per_step={args.tokens_per_step} must be a multiple of"
            f" {smallest}; the nearest is {nearest}"
        )
    return args.tokens_per_step // block_size


def find_layout(
    args: TrainingArguments, model: PreTrainedModel, block_size: int, num_steps: int
) -> StepLayout:
    """The layout of a run that has none yet, the same in every process."""
    sequences = sequences_per_step(args, block_size) // args.world_size
    compiled = args.torch_compile
    if compiled is None:
        tokens = num_steps * sequences * block_size
        compiled = is_long(model, tokens)
    if args.tokens_per_step is None:
        size, number = (
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
        )
        return StepLayout(size, number or 1, compiled)
    limit = MAX_TOKENS.get(model.device.type, MAX_TOKENS["other"]) // block_size
    if model.device.type == "cuda":
        limit = min(limit, sequences_in_memory(args, model, block_size))
    if args.world_size > 1:
        smallest = torch.tensor(limit, device=args.device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        limit = int(smallest)
    return divided(sequences, limit, compiled)


def is_long(model: PreTrainedModel, num_tokens: int) -> bool:
    """Whether training on so many tokens, on this device, is worth compiling for."""
    kind = model.device.type if model.device.type == "cpu" else "other"
    flops = 6 * model.num_parameters() * num_tokens
    return flops / FLOPS[kind] > MIN_SECONDS[kind]


def sequences_in_memory(
    args: TrainingArguments, model: PreTrainedModel, block_size: int
) -> int:
    """Sequences a GPU has room for, beside weights, gradients, AdamW's moments and logits."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    fast = find_fast_forward(model, False, logit_chunk(args))
    install(model, fast, args.label_smoothing_factor)
    try:
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            two, one = (activation_bytes(model, n, block_size) for n in (2, 1))
    except torch.OutOfMemoryError:
        return 1
    finally:
        del model.forward
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device)
    free -= torch.cuda.memory_allocated(model.device)
    # DDP has a second copy of the gradients.
    free -= 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    vocab_size = model.get_input_embeddings().weight.shape[0]
    logits_of = LOGIT_BYTES * vocab_size
    if fast.chunk is None:  # those of a sequence are there at once
        return math.floor(MEMORY_SHARE * free / (two - one + logits_of * block_size))
    return math.floor(MEMORY_SHARE * (free - logits_of * fast.chunk) / (two - one))


def activation_bytes(model: PreTrainedModel, sequences: int, block_size: int) -> int:
    """Bytes that autograd keeps in a forward pass, by trying; the random state stays."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = (sequences, block_size)
    ids = torch.zeros(shape, dtype=torch.long, device=model.device)
    training = model.training
    model.train()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids).loss
    del loss
    model.train(training)
    return sum(kept.values())
