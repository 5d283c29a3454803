"""Muon's step and the reading of a batch, each compared with the plain way.

    python -m tests.benchmarks.step_parts [--rounds=N]

* Muon: the matrices of GPT2-Small, at a quarter of their width, in one call per shape, compared
  with `torch.optim.Muon`, which takes one matrix after the other. On a GPU, the number of
  operations counts as well, since each one has to be started.
* Reading: a batch of 32 blocks in one call, compared with block by block.

The two ways are measured in turn, and the medians of the rounds' ratios are printed.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate

from src.data.blocks import Blocks
from src.hardware import best_device
from src.training.optimization.optimizer import Muon

WIDTH, LAYERS = 192, 12
BATCH, BLOCK_SIZE, NUM_TOKENS = 32, 512, 2_000_000


def matrices() -> list[torch.nn.Parameter]:
    """Return the matrices inside GPT2-Small's layers at a quarter of their width."""
    shapes = [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH, WIDTH),
    ]
    torch.manual_seed(0)
    device = best_device()
    values = [torch.randn(shape, device=device) for shape in shapes * LAYERS]
    parameters = [torch.nn.Parameter(value) for value in values]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


class Stream:
    """A stream of random tokens on disk, with a document of 100 tokens after the other."""

    def __init__(self, directory: str):
        file = Path(directory) / "tokens.bin"
        np.random.default_rng(0).integers(3, 16_000, NUM_TOKENS).astype(
            np.uint16
        ).tofile(file)
        self.tokens = np.memmap(file, np.uint16)
        self.documents = np.arange(0, NUM_TOKENS, 100, dtype=np.uint32)


def synchronized(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, on a GPU until it has finished."""
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def ratio(
    plain: Callable[[], object], ours: Callable[[], object], rounds: int
) -> float:
    """Return the median over the rounds of plain time / our time."""
    synchronized(plain), synchronized(ours)
    return statistics.median(
        synchronized(plain) / synchronized(ours) for _ in range(rounds)
    )


def operations(call: Callable[[], object]) -> int:
    """Return how many operations a call starts, without those inside other operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    starts = [event for event in profiler.events() if event.cpu_parent is None]
    return sum(max(1, len(event.cpu_children)) for event in starts)


def main() -> None:
    """Print one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    plain = torch.optim.Muon(matrices(), lr=1e-3, adjust_lr_fn="match_rms_adamw")
    ours = Muon([{"params": matrices(), "weight_decay": 0.1}], lr=1e-3)
    speed = ratio(plain.step, ours.step, rounds)
    counts = [operations(optimizer.step) for optimizer in (plain, ours)]
    print(f"Muon: {speed:.2f} x as fast, {counts[0]:,} -> {counts[1]:,} operations")
    with TemporaryDirectory() as directory:
        blocks = Blocks(Stream(directory), [(0, NUM_TOKENS)], BLOCK_SIZE, False)
        rng = np.random.default_rng(0)

        def one_by_one() -> None:
            default_collate([blocks[i] for i in rng.integers(len(blocks), size=BATCH)])

        def at_once() -> None:
            blocks.__getitems__(rng.integers(len(blocks), size=BATCH).tolist())

        print(f"Reading: {ratio(one_by_one, at_once, rounds):.1f} x as fast")


if __name__ == "__main__":
    main()
