"""The order of blocks: which blocks each step of a run trains on.

An epoch draws each file's blocks as often as `data.mix` says, in an order that depends only
on (seed, epoch). A step takes the next `blocks_per_step` of them. So the blocks of a step do not
depend on the number of devices, micro-batches, loader processes or restarts, and the number of
words seen after each step is known before the run begins.
"""

import functools
import math
from dataclasses import dataclass
from typing import Iterator, Optional

import numpy as np
from torch.utils.data import Sampler

from src.arguments import DataTrainingArguments
from src.data.blocks import NO_BLOCK, PART, Blocks
from src.foundation import UserError
from src.processes import by_main_process


@dataclass(frozen=True)
class Order:
    """A map from epochs to the order of their blocks.

    Each file has an endless sequence of passes over its blocks, each pass in another order.
    An epoch takes the next `times` passes, which need not be a whole number. So after each
    epoch, any two blocks of a file have been seen equally often, or one of them once more.

    Args:
        kind: `shuffled`; `sequential`, as in the text; or `by_file`, one file after another,
            each shuffled.
        seed: The seed of the run.
        edges: The blocks of file i are those from `edges[i]` to before `edges[i + 1]`
            [num_files + 1].
        times: The number of passes over each file in an epoch [num_files].
        files: The order of the files for `by_file`.
        stride: Added to the indices with each pass; 0 if all passes have the same blocks.
    """

    kind: str
    seed: int
    edges: np.ndarray
    times: list[float]
    files: list[int]
    stride: int = 0

    def __len__(self) -> int:
        """Return the number of blocks in an epoch."""
        return sum(self._count(file) for file in self.files)

    def _count(self, file: int) -> int:
        return round(self.times[file] * int(self.edges[file + 1] - self.edges[file]))

    def blocks(self, epoch: int) -> np.ndarray:
        """Return the indices of an epoch's blocks in order."""
        files = self.files if self.kind == "by_file" else sorted(self.files)
        drawn = np.concatenate([part for f in files for part in self._draw(f, epoch)])
        if self.kind == "shuffled":
            drawn = np.random.default_rng([self.seed, epoch]).permutation(drawn)
        return drawn

    def _draw(self, file: int, epoch: int) -> Iterator[np.ndarray]:
        """Yield the parts of the passes over a file that belong to an epoch."""
        # 32 bits are enough for MAX_SEQUENCES, and do not change the permutations.
        blocks = np.arange(*self.edges[file : file + 2], dtype=np.int32)
        count = self._count(file)
        start, end = epoch * count, (epoch + 1) * count
        length = max(1, len(blocks))
        for number in range(start // length, -(-end // length)):
            rng = np.random.default_rng([self.seed, number, file + 1])
            first = number * length
            part = rng.permutation(blocks)[max(0, start - first) : end - first]
            part = np.sort(part) if self.kind == "sequential" else part
            yield part.astype(np.int64) + number * self.stride if self.stride else part


class Plan(Sampler):
    """The steps of a run, and a sampler of the blocks of one epoch.

    If the last step of an epoch has fewer blocks than the others, it is padded with
    `NO_BLOCK`, a block without targets. So every process has the same number of batches, and
    no block is seen twice.

    Args:
        blocks: The training blocks.
        order: The order of each epoch's blocks.
        blocks_per_step: Blocks per optimizer step, over all devices and micro-batches.
        epochs: The length of the run in epochs, unless `max_steps` is given.
        max_steps: The length of the run in steps.
        max_words: The run ends before the step that would exceed this number of words.
        schedule: {block size: share of the steps}, in order. Each stage cuts the blocks into
            sequences of its size, so the number of tokens per step stays the same.
    """

    def __init__(
        self,
        blocks: Blocks,
        order: Order,
        blocks_per_step: int,
        epochs: float,
        max_steps: Optional[int] = None,
        max_words: Optional[int] = None,
        schedule: Optional[dict[int, float]] = None,
    ):
        if not len(order):
            raise UserError(
                "data.mix: an epoch would have no block: the share of every file rounds to 0"
            )
        self.blocks, self.order, self.blocks_per_step = blocks, order, blocks_per_step
        # The ledger asks for parts of the current epoch, again and again.
        self._filled = functools.lru_cache(maxsize=1)(self._filled)
        self.steps_per_epoch = -(-len(order) // blocks_per_step)
        if max_steps is None:
            max_steps = math.ceil(epochs * self.steps_per_epoch)
        of_steps = by_main_process(lambda: self._words_of_steps(max_steps))
        self.words = np.concatenate([[0], np.cumsum(of_steps)])  # seen before each step
        if max_words is not None:
            if self.words[1] > max_words:
                raise UserError(
                    f"training.max_words={max_words:,} must be at least"
                    f" {self.words[1]:,}, the words of the first step"
                )
            last = np.searchsorted(self.words, max_words, side="right")
            self.words = self.words[:last]
        schedule = schedule or {}
        ends = [round(s * self.num_steps) for s in np.cumsum(list(schedule.values()))]
        # Pairs (length of a sequence, step at which the stage ends).
        self.stages: list[tuple[int, int]] = list(zip(schedule, ends))
        self.epoch = 0

    def _words_of_steps(self, max_steps: int) -> np.ndarray:
        """Return the words of each of the first steps [max_steps]."""
        words_of = self.blocks.words_of
        if not self.order.stride:  # the same blocks in each epoch
            # NO_BLOCK, the index -1, has no words.
            words_of = np.append(self.blocks.words, np.uint32(0)).__getitem__
        of_epochs = map(words_of, self.drawn(0, max_steps))
        steps = [words.reshape(-1, self.blocks_per_step).sum(1) for words in of_epochs]
        return np.concatenate(steps).astype(np.int64)

    def _filled(self, epoch: int) -> np.ndarray:
        """Return an epoch's blocks, filled up with `NO_BLOCK` to whole steps."""
        blocks = self.order.blocks(epoch)
        missing = self.steps_per_epoch * self.blocks_per_step - len(blocks)
        return np.append(blocks, np.full(missing, NO_BLOCK, blocks.dtype))

    @property
    def num_steps(self) -> int:
        """The number of steps of the run."""
        return len(self.words) - 1

    def words_seen(self, num_steps: int) -> int:
        """Return the words in the targets of the first `num_steps` steps."""
        return int(self.words[num_steps])

    def blocks_seen(self, num_steps: int) -> int:
        """Return the number of blocks in the first `num_steps` steps, without `NO_BLOCK`."""
        epochs, steps = divmod(num_steps, self.steps_per_epoch)
        per_epoch = len(self.order)
        return epochs * per_epoch + min(steps * self.blocks_per_step, per_epoch)

    def block_size(self, step: int) -> int:
        """Return the length of a sequence at a step, counted from 0."""
        sizes = (size for size, end in self.stages if step < end)
        return next(sizes, self.blocks.block_size)

    def blocks_of(self, step: int) -> list[int]:
        """Return the indices of the blocks that a step, counted from 0, trains on."""
        (blocks,) = self.drawn(step, step + 1)
        return blocks[blocks != NO_BLOCK].tolist()

    def drawn(self, start: int, end: int) -> Iterator[np.ndarray]:
        """Yield the blocks of the steps from `start` to before `end`, epoch by epoch.

        They may contain `NO_BLOCK`.
        """
        while start < end:
            epoch, number = divmod(start, self.steps_per_epoch)
            length = min(end - start, self.steps_per_epoch - number)
            blocks = self._filled(epoch).reshape(-1, self.blocks_per_step)
            yield blocks[number : number + length].ravel()
            start += length

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose blocks the sampler yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        filled = self._filled(self.epoch)
        for start in range(0, len(filled), PART):  # in parts, to bound the memory
            yield from filled[start : start + PART].tolist()

    def __len__(self) -> int:
        return self.steps_per_epoch * self.blocks_per_step


def check_names(data: DataTrainingArguments, names: list[str]) -> None:
    """Raise `UserError` if the data section refers to training files not in `names`."""
    for key in ("mix", "file_order"):
        if unknown := [name for name in getattr(data, key) or () if name not in names]:
            raise UserError(
                f"data.{key}: no file is named {unknown[0]!r}; the files are"
                f" {', '.join(names)}"
            )
    if missing := sorted({*names} - {*(data.file_order or names)}):
        raise UserError(
            f"data.file_order must name every file; missing: {', '.join(missing)}"
        )


def order_of(data: DataTrainingArguments, blocks: Blocks, seed: int) -> Order:
    """Return the order that the data section describes; `check_names` has checked it."""
    names = blocks.stream.names
    times = [float((data.mix or {}).get(name, 1)) for name in names]
    numbers = {name: number for number, name in enumerate(names)}
    files = [numbers[name] for name in data.file_order or names]
    stride = len(blocks) if data.reshuffle_documents else 0
    return Order(data.order, seed, blocks.edges, times, files, stride)


def check_budget(data: DataTrainingArguments, plan: Plan) -> None:
    """Raise `UserError` if the run exceeds the challenge's limits on words.

    The training text may have `data.word_budget` unique words, and the run may see ten times
    as many.
    """
    if data.word_budget is None or not data.strict_rules:
        return
    files, budget = plan.blocks.stream.files, data.word_budget
    unique = sum(file["words"] for file, times in zip(files, plan.order.times) if times)
    seen = plan.words_seen(plan.num_steps)
    for words, limit, subject in (
        (unique, budget, "the training text has"),
        (seen, 10 * budget, "the run would see"),
    ):
        if words > limit:
            raise UserError(
                f"data.word_budget={budget:,}: {subject} {words:,} words, more than"
                f" {limit:,}; to allow it: data.strict_rules=false"
            )
