"""The energy of a run's devices."""

from pathlib import Path

import pytest
import torch

from src.training.record import energy
from src.training.record.energy import EnergyMeter

CPU = torch.device("cpu")


@pytest.fixture
def zone(tmp_path, monkeypatch):
    """`zone(name, …)` writes the files of a zone of RAPL, whose counter wraps at 1,000 J."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def write(folder: str, name: str, joules: float) -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
        (path / "max_energy_range_uj").write_text("1000000000\n")
        return path

    return write


def test_the_packages_and_their_memory_are_added_up_and_wrap_around(zone):
    zone("intel-rapl:0", "package-0", 900)
    zone("intel-rapl:0:0", "core", 10)  # a part of the package
    zone("intel-rapl:0:1", "dram", 5)
    zone("intel-rapl-mmio:0", "package-0", 900)  # the same counter by another way
    meter = EnergyMeter(CPU)
    assert meter.read() == 0
    zone("intel-rapl:0", "package-0", 950)
    zone("intel-rapl:0:0", "core", 30)
    zone("intel-rapl:0:1", "dram", 8)
    assert meter.read() == pytest.approx(53)
    zone("intel-rapl:0", "package-0", 50)
    assert meter.read() == pytest.approx(153)


def test_what_cannot_be_read_is_absent(zone, tmp_path):
    assert EnergyMeter(CPU).read() is None
    assert EnergyMeter(torch.device("cuda")).read() is None or torch.cuda.is_available()
    (zone("intel-rapl:0", "package-0", 1) / "energy_uj").unlink()
    assert EnergyMeter(CPU).read() is None
    zone("intel-rapl:0", "package-0", 1)
    assert EnergyMeter(CPU).read() == 0
