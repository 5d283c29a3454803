"""Which blocks every step of a run trains on: a function of the seed and nothing else.

An epoch draws each file's blocks as often as the mix says, in an order that depends on
(seed, epoch) alone; a step takes the next `blocks_per_step` of them. So whatever the number
of devices, of micro-batches, of loader processes, or of restarts, step n trains on the same
blocks, and the words seen after it are a number that is known before the run begins.
"""

import math
from dataclasses import dataclass
from typing import Iterator, Optional

import numpy as np
from torch.utils.data import Sampler

from src.arguments import DataTrainingArguments
from src.data.blocks import NO_BLOCK, Blocks
from src.foundation import UserError


@dataclass(frozen=True)
class Order:
    """The blocks of an epoch, in order.

    A file's text is drawn from an endless sequence of passes over its blocks, each in
    another order; an epoch takes the next `times` passes of it. So after any number of epochs
    no block of a file was seen more than once more than another.

    Args:
        kind: `shuffled`; `sequential`, as in the text; or `by_file`, one file after the
            other, each shuffled.
        owners: the file that each block begins in [num_blocks], ascending.
        times: how often each file's text is drawn in an epoch [num_files].
        files: the files in the order of `by_file`.
    """

    kind: str
    seed: int
    owners: np.ndarray
    times: list[float]
    files: list[int]

    def __len__(self) -> int:
        """Blocks of an epoch."""
        return sum(self._count(file) for file in self.files)

    def _count(self, file: int) -> int:
        return round(self.times[file] * int(np.count_nonzero(self.owners == file)))

    def blocks(self, epoch: int) -> np.ndarray:
        """Indices of the epoch's blocks."""
        files = self.files if self.kind == "by_file" else sorted(self.files)
        drawn = np.concatenate([part for f in files for part in self._draw(f, epoch)])
        if self.kind == "shuffled":
            drawn = np.random.default_rng([self.seed, epoch]).permutation(drawn)
        return drawn

    def _draw(self, file: int, epoch: int) -> Iterator[np.ndarray]:
        """The file's part of the epoch: the ends of passes over its blocks, and whole ones."""
        blocks, count = np.flatnonzero(self.owners == file), self._count(file)
        start, end = epoch * count, (epoch + 1) * count
        for number in range(
            start // max(1, len(blocks)), -(-end // max(1, len(blocks)))
        ):
            rng = np.random.default_rng([self.seed, number, file + 1])
            first = number * len(blocks)
            part = rng.permutation(blocks)[max(0, start - first) : end - first]
            yield np.sort(part) if self.kind == "sequential" else part


class Plan(Sampler):
    """The steps of a run over blocks; as a sampler, the blocks of the epoch that is set.

    The last step of an epoch may have fewer blocks; it is filled up with `NO_BLOCK`, which
    has no targets, so that every process has the same number of batches and none is seen
    twice.

    Args:
        blocks_per_step: of the optimizer's batch, over all devices and micro-batches.
        epochs, max_steps, max_words: the run ends where the first of them does.
        schedule: {block size: share of the steps}, in this order: blocks are cut in shorter
            ones of the stage's size, so that the tokens of a step stay the same.
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
                "data.mix: an epoch would have no block: every file's part is rounded to 0"
            )
        self.blocks, self.order, self.blocks_per_step = blocks, order, blocks_per_step
        self.steps_per_epoch = -(-len(order) // blocks_per_step)
        if max_steps is None:
            max_steps = math.ceil(epochs * self.steps_per_epoch)
        words = self._words_of_steps(max_steps, max_words)
        self.words = np.concatenate([[0], np.cumsum(words)[:max_steps]])
        if max_words is not None:
            if self.words[1] > max_words:
                raise UserError(
                    f"training.max_words={max_words:,} must be at least what the first step"
                    f" sees, {self.words[1]:,} words"
                )
            last = np.searchsorted(self.words, max_words, side="right")
            self.words = self.words[:last]
        shares = np.cumsum([share for share in (schedule or {}).values()])
        self._stage_ends = [round(share * self.num_steps) for share in shares]
        self._stage_sizes = list(schedule or {})
        self.epoch = 0

    def _words_of_steps(self, max_steps: int, max_words: Optional[int]) -> np.ndarray:
        """Words of each step, until one of the limits is reached [num_steps]."""
        words = np.append(self.blocks.words, 0)  # NO_BLOCK is the last
        steps, epochs = [], -(-max_steps // self.steps_per_epoch)
        seen = 0
        for epoch in range(epochs):
            of_steps = words[self._filled(epoch)].reshape(-1, self.blocks_per_step)
            steps.append(of_steps.sum(axis=1))
            seen += steps[-1].sum()
            if max_words is not None and seen > max_words:
                break
        return np.concatenate(steps)

    def _filled(self, epoch: int) -> np.ndarray:
        blocks = self.order.blocks(epoch)
        missing = self.steps_per_epoch * self.blocks_per_step - len(blocks)
        return np.append(blocks, np.full(missing, NO_BLOCK, blocks.dtype))

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return len(self.words) - 1

    def words_seen(self, num_steps: int) -> int:
        """Words in the targets of the first `num_steps` steps."""
        return int(self.words[num_steps])

    def block_size(self, step: int) -> int:
        """Length of a sequence at a step, which counts from 0."""
        for size, end in self.stages:
            if step < end:
                return size
        return self.blocks.block_size

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(length of a sequence, step at which it ends) of the schedule's stages."""
        return list(zip(self._stage_sizes, self._stage_ends))

    def blocks_of(self, step: int) -> list[int]:
        """Indices of the blocks that a step, which counts from 0, trains on."""
        epoch, number = divmod(step, self.steps_per_epoch)
        first = number * self.blocks_per_step
        blocks = self._filled(epoch)[first : first + self.blocks_per_step].tolist()
        return [block for block in blocks if block != NO_BLOCK]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the sampler gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._filled(self.epoch).tolist())

    def __len__(self) -> int:
        return self.steps_per_epoch * self.blocks_per_step


def check_names(data: DataTrainingArguments, names: list[str]) -> None:
    """Raise `UserError` where the data section names other training files than `names`."""
    for key in ("mix", "file_order"):
        for name in getattr(data, key) or ():
            if name not in names:
                known = ", ".join(names)
                raise UserError(f"data.{key}: no file is called {name!r}; {known} are")
    if data.file_order and set(data.file_order) != set(names):
        missing = ", ".join(name for name in names if name not in data.file_order)
        raise UserError(f"data.file_order must name every file; missing: {missing}")


def order_of(data: DataTrainingArguments, blocks: Blocks, seed: int) -> Order:
    """The order that the data section describes (see `check_names`)."""
    names = [file["name"] for file in blocks.stream.files]
    times = [float((data.mix or {}).get(name, 1)) for name in names]
    files = [names.index(name) for name in data.file_order or names]
    return Order(data.order, seed, blocks.owners, times, files)


def check_budget(data: DataTrainingArguments, plan: Plan) -> None:
    """Raise `UserError` where the text is beyond the challenge's limits on words.

    No more unique words than `data.word_budget`, no more than ten times as many seen.
    """
    if data.word_budget is None or not data.strict_rules:
        return
    files = enumerate(plan.blocks.stream.files)
    unique = sum(file["words"] for i, file in files if plan.order.times[i])
    seen = plan.words_seen(plan.num_steps)
    for words, limit, what in (
        (unique, data.word_budget, "the training text has"),
        (seen, 10 * data.word_budget, "the run would see"),
    ):
        if words > limit:
            raise UserError(
                f"data.word_budget={data.word_budget:,}: {what} {words:,} words, more than"
                f" {limit:,}; where that is meant: data.strict_rules=false"
            )
