"""Timing of a run: the seconds of each phase, and tokens, words and FLOPs per second."""

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Optional

import psutil

_jobs_before = itertools.count()


class Clock:
    """The seconds spent in each phase of a job. A nested phase pauses the outer one.

    The clock of a process's first job counts from the start of the process. In a sweep, the
    clocks of later jobs count from their construction.
    """

    def __init__(self):
        self._seconds: dict[str, float] = defaultdict(float)
        self._phases = ["start-up"]
        self._since = time.perf_counter()
        if not next(_jobs_before):
            began = psutil.Process().create_time()
            self._seconds["start-up"] = max(0.0, time.time() - began)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within the block as the phase `name`."""
        self._count()
        self._phases.append(name)
        try:
            yield
        finally:
            self._count()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        """Return the seconds until now by phase; 0 for a phase that never began."""
        self._count()
        return defaultdict(float, self._seconds)

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._phases[-1]] += now - self._since
        self._since = now


def rates(
    tokens: int, words: int, seconds: float, flops: int, peak: Optional[float]
) -> dict[str, float]:
    """Return tokens and words per second, and MFU; nothing if no time has passed.

    MFU (model FLOPs utilization, Chowdhery et al. 2022) is the share of the devices' peak
    FLOP/s that the model's own operations use.

    Args:
        tokens, words: tokens and words trained on in `seconds`.
        flops: FLOPs of the forward and backward passes of `tokens`.
        peak: FLOP/s of all devices; None: unknown, no MFU is returned.
    """
    if seconds <= 0:
        return {}
    speed = {"tokens_per_second": tokens / seconds, "words_per_second": words / seconds}
    if peak:
        speed["mfu"] = flops / seconds / peak
    return speed


def summary(clock: Clock, rates: dict[str, float]) -> str:
    """Return one line with the seconds of each phase and the rates."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in clock.seconds().items()]
    line = "Time: " + ", ".join(parts)
    if rates:
        tokens, words = rates["tokens_per_second"], rates["words_per_second"]
        line += f". Training: {tokens:,.0f} tokens/s, {words:,.0f} words/s"
    if "mfu" in rates:
        line += f", MFU {100 * rates['mfu']:.0f} %"
    return line
