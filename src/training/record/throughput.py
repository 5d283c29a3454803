"""Where a run's time goes, and how much of the hardware its steps use."""

import contextlib
import itertools
import time
from collections import defaultdict
from typing import Iterator, Optional

import psutil
import torch

# Dense bfloat16 (T4, V100: float16) products a second, from the makers' data sheets; of
# names that both occur in a device's, the longer.
PEAK_FLOPS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "RTX A6000": 155e12, "A40": 150e12, "A10": 125e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


_jobs_before = itertools.count()


def job_start() -> float:
    """When the job that begins here did, in seconds since the epoch.

    A process's first began with the process; of a sweep, the others begin now.
    """
    return time.time() if next(_jobs_before) else psutil.Process().create_time()


class Clock:
    """Seconds in each phase of a run; a phase within another stops that one's clock.

    Args:
        began: when the job did, in seconds since the epoch; None: now.
    """

    BASE = "start-up"

    def __init__(self, began: Optional[float] = None):
        self._seconds: dict[str, float] = defaultdict(float)
        self._phases = [self.BASE]
        self._since = time.perf_counter()
        if began is not None:
            self._seconds[self.BASE] = max(0.0, time.time() - began)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time until the end of the block is `name`'s."""
        self._count()
        self._phases.append(name)
        try:
            yield
        finally:
            self._count()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        """Phase → seconds until now."""
        self._count()
        return dict(self._seconds)

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._phases[-1]] += now - self._since
        self._since = now


class Throughput:
    """Tokens, words and products a second, over the time that is spent on steps.

    Args:
        clock: whose phase `training` counts.
        flops_per_token: of a forward and a backward pass.
        peak: products a second of all devices; None where it is not known.
    """

    def __init__(self, clock: Clock, flops_per_token: int, peak: Optional[float]):
        self.clock, self.flops_per_token, self.peak = clock, flops_per_token, peak
        self._at = (0.0, 0, 0)
        self._began = self._at

    def begin(self, tokens: int, words: int) -> None:
        """From here on: so many were seen before."""
        self._began = self._at = self._now(tokens, words)

    def since_last(self, tokens: int, words: int) -> dict[str, float]:
        """Rates since this was last asked, or begun."""
        before, self._at = self._at, self._now(tokens, words)
        return self._rates(before, self._at)

    def overall(self, tokens: int, words: int) -> dict[str, float]:
        """Rates since the beginning."""
        return self._rates(self._began, self._now(tokens, words))

    def _now(self, tokens: int, words: int) -> tuple[float, int, int]:
        return self.clock.seconds().get("training", 0.0), tokens, words

    def _rates(self, before: tuple, now: tuple) -> dict[str, float]:
        seconds, tokens, words = (b - a for a, b in zip(before, now))
        if seconds <= 0:
            return {}
        rates = {
            "tokens_per_second": tokens / seconds,
            "words_per_second": words / seconds,
        }
        if self.peak:
            flops = self.flops_per_token * tokens / seconds
            rates["utilisation"] = flops / self.peak
        return rates


def peak_flops(device: torch.device, num_devices: int) -> Optional[float]:
    """Products a second that the devices can do at most; None for an unknown one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [part for part in PEAK_FLOPS if part in name]
    return PEAK_FLOPS[max(known, key=len)] * num_devices if known else None


def summary(clock: Clock, rates: dict[str, float]) -> str:
    """One line: where the time went, and the rates."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in clock.seconds().items()]
    line = "Time: " + ", ".join(parts)
    if rates:
        line += (
            f". Training: {rates['tokens_per_second']:,.0f} tokens/s,"
            f" {rates['words_per_second']:,.0f} words/s"
        )
    if "utilisation" in rates:
        line += f", {100 * rates['utilisation']:.0f} % of the peak"
    return line
