"""Detection of a loss that is not finite, or far above its first values.

The losses of single steps stay on the device until a log, an evaluation or a checkpoint waits
for the device anyway. To read each loss immediately would cost more time than a run loses by
stopping a few steps late.
"""

import math
from typing import Optional

import torch
from accelerate.utils import reduce


class DivergenceCheck:
    """The losses since the last check, and the first mean loss that was logged.

    Args:
        uniform_loss: loss of a uniform prediction, in nats per token.

    Attributes:
        first_mean: the first mean loss. Every checkpoint keeps it. Otherwise, if a run was
            stopped for a high loss and continues, that loss would become its first one.
    """

    def __init__(self, uniform_loss: float):
        self._limit = 10 * uniform_loss
        self._losses: list[tuple[int, torch.Tensor]] = []
        self.first_mean: Optional[float] = None

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Add a micro-batch's share of the loss of a step. Steps count from 0."""
        self._losses.append((step, loss))

    def first_not_finite(self) -> Optional[tuple[int, float]]:
        """Return the first (step, loss) since the last check whose loss is not finite.

        The loss is that of one micro-batch.
        """
        if not self._losses:
            return None
        steps, losses = zip(*self._losses)
        self._losses = []
        # Summed over processes, since all of them must stop at the same step.
        pairs = zip(steps, reduce(torch.stack(losses), "sum").tolist())
        return next((pair for pair in pairs if not math.isfinite(pair[1])), None)

    def diverges(self, loss: float) -> bool:
        """Return whether a mean loss is not finite, or far above the first mean loss."""
        self.first_mean = loss if self.first_mean is None else self.first_mean
        return not loss <= max(self._limit, self.first_mean)
