"""Detection of a loss that is not finite any more, or that only gets worse.

The losses of steps stay on the device until a log, an evaluation or a checkpoint waits for it
anyway: reading each would cost more than a run ever loses by being stopped late.
"""

import math
from typing import Optional

import torch


class DivergenceCheck:
    """The losses since the last look, and the first mean that was logged.

    Every checkpoint keeps that mean: a continued run must not take for its beginning what it
    was stopped for.

    Args:
        uniform_loss: nats per token of a model that has not learnt anything.
    """

    def __init__(self, uniform_loss: float):
        self._limit = 10 * uniform_loss
        self._losses: list[tuple[int, torch.Tensor]] = []
        self.first_mean: Optional[float] = None

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Add a micro-batch's part of the loss of a step, which counts from 0."""
        self._losses.append((step, loss))

    def first_not_finite(self) -> Optional[tuple[int, float]]:
        """Return (step, loss) of the first loss since the last look that is not finite.

        Where a step has several micro-batches, the loss is one micro-batch's part.
        """
        if not self._losses:
            return None
        steps = [step for step, _ in self._losses]
        losses = torch.stack([loss for _, loss in self._losses])
        self._losses = []
        if torch.distributed.is_initialized():  # all processes must stop, at one step
            torch.distributed.all_reduce(losses)
        pairs = zip(steps, losses.tolist())
        return next((pair for pair in pairs if not math.isfinite(pair[1])), None)

    def diverges(self, loss: float) -> bool:
        """Return whether a mean loss is not finite, or far beyond the first mean."""
        self.first_mean = loss if self.first_mean is None else self.first_mean
        return not loss <= max(self._limit, self.first_mean)
