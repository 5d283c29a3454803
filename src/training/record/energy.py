"""The energy that the devices of a run use, where it can be read."""

import math
from pathlib import Path
from typing import Optional

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """The joules that a GPU, or the CPUs and their memory, have used since construction.

    A GPU's counter is NVML's, which needs the package nvidia-ml-py. Those of CPUs are Linux
    RAPL's, which only root can read on most machines. A counter knows nothing of processes: the
    energy of all that runs on the device counts.
    """

    def __init__(self, device: torch.device):
        self._device, self._joules = device, 0.0
        self._before = _counters(device)

    def read(self) -> Optional[float]:
        """Return the joules until now; None if they cannot be read.

        RAPL's counters wrap around within minutes to hours, and this has to be called before.
        """
        before, self._before = self._before, _counters(self._device)
        for (earlier, size), (now, _) in zip(before, self._before):
            self._joules += (now - earlier) % size
        return self._joules if before else None


def _counters(device: torch.device) -> list[tuple[float, float]]:
    """Return the joules of each counter, and those at which it wraps around."""
    try:
        if device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            used = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # in millijoules
            return [(used / 1e3, math.inf)]
        names = sorted(POWERCAP.glob("intel-rapl:*/name"))  # of AMD's CPUs, too
        # Other zones are parts of a package, such as its cores.
        zones = [
            x.parent for x in names if x.read_text().startswith(("package", "dram"))
        ]
        files = ("energy_uj", "max_energy_range_uj")
        return [tuple(int((z / f).read_text()) / 1e6 for f in files) for z in zones]
    except Exception:  # of the driver's many kinds; a run does not depend on it
        return []
