"""The time that each phase of a run takes, and the rates of its steps."""

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple, Optional

import psutil
import torch

# Dense bfloat16 FLOP/s (T4, V100: float16) from the makers' data sheets. Of names that all
# occur in a device's name, the longest counts.
PEAK_FLOPS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "RTX A6000": 155e12, "A40": 150e12, "A10": 125e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


_jobs_before = itertools.count()


def job_start() -> float:
    """Return when the job that calls this began, in seconds since the epoch.

    The first job began with the process; the other jobs of a sweep begin now.
    """
    return time.time() if next(_jobs_before) else psutil.Process().create_time()


class Clock:
    """The seconds spent in each phase of a run. A nested phase stops the outer one's clock.

    Args:
        began: when the job began, in seconds since the epoch; None: now.
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
        """Count the time inside the block as the phase `name`."""
        self._count()
        self._phases.append(name)
        try:
            yield
        finally:
            self._count()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        """Return phase → seconds until now."""
        self._count()
        return defaultdict(float, self._seconds)

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._phases[-1]] += now - self._since
        self._since = now


class Progress(NamedTuple):
    """Tokens and words that were trained on, and the seconds of the phase `training`."""

    tokens: int
    words: int
    seconds: float

    def rates_since(
        self, before: "Progress", flops_per_token: int, peak: Optional[float]
    ) -> dict[str, float]:
        """Return tokens and words a second, and MFU; nothing where no time has passed.

        MFU (model FLOPs utilization, Chowdhery et al. 2022) is the share of the devices' peak
        that the model's own FLOPs use.

        Args:
            flops_per_token: of a forward and a backward pass.
            peak: FLOP/s of all devices; None: unknown, then there is no MFU.
        """
        tokens, words, seconds = (now - then for now, then in zip(self, before))
        if seconds <= 0:
            return {}
        rates = {
            "tokens_per_second": tokens / seconds,
            "words_per_second": words / seconds,
        }
        if peak:
            rates["mfu"] = flops_per_token * tokens / seconds / peak
        return rates


def peak_flops(device: torch.device, num_devices: int) -> Optional[float]:
    """Return the peak FLOP/s of the devices; None for an unknown device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [part for part in PEAK_FLOPS if part in name]
    return PEAK_FLOPS[max(known, key=len)] * num_devices if known else None


def summary(clock: Clock, rates: dict[str, float]) -> str:
    """Return one line with the seconds of each phase, and the rates."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in clock.seconds().items()]
    line = "Time: " + ", ".join(parts)
    if rates:
        tokens, words = rates["tokens_per_second"], rates["words_per_second"]
        line += f". Training: {tokens:,.0f} tokens/s, {words:,.0f} words/s"
    if "mfu" in rates:
        line += f", MFU {100 * rates['mfu']:.0f} %"
    return line
