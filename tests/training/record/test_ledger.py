"""The ledger of a run: words, tokens, seconds and energy at each log."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from src import hardware
from src.training.record.ledger import Ledger, read_ledger
from tests.test_run_clm import only_run


def test_the_last_row_is_that_of_the_last_step(run_clm, tiny):
    assert run_clm(*tiny, "training.logging_steps=5") == 0
    rows = read_ledger(only_run() / "words.jsonl")
    assert [row["step"] for row in rows] == [1, 5, 10, 12]


@pytest.fixture
def processor(tmp_path: Path, monkeypatch) -> Path:
    """The energy counter of a processor, which begins again after 1,000 J."""
    zone = tmp_path / "powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    monkeypatch.setattr(hardware, "RAPL", zone.parent)
    return zone / "energy_uj"


def logged(run_dir: Path, step: int, counter: Path, values: list[int]) -> list[float]:
    """Return the joules in the ledger of a run that continues after `step`.

    Args:
        values: joules of the counter at the beginning and at each log.
    """
    blocks = SimpleNamespace(stream=SimpleNamespace(names=["a"]), block_size=4)
    plan = SimpleNamespace(
        blocks=blocks, drawn=lambda a, b: [], blocks_seen=lambda s: s
    )
    ledger, args = Ledger(run_dir, plan), SimpleNamespace(world_size=2)
    for number, joules in enumerate(values):
        counter.write_text(f"{joules * 1_000_000}\n")
        state = SimpleNamespace(global_step=step + number, epoch=0.1)
        if number == 0:
            ledger.on_train_begin(args, state, None)
        else:
            ledger.on_log(args, state, None, logs={"loss": 1.0})
    return [row["joules"] for row in read_ledger(run_dir / "words.jsonl")]


def test_energy_is_summed_over_stops_and_beginnings_of_the_counter(tmp_path, processor):
    assert logged(tmp_path, 0, processor, [900, 950, 20]) == [50, 120]
    # What was used between a stop and a continuation is not the run's.
    assert logged(tmp_path, 2, processor, [500, 503]) == [50, 120, 123]


def test_a_counter_that_cannot_be_read_is_left_out(tmp_path, processor):
    processor.mkdir()  # reading it is an error
    assert hardware.energy_counters() == {}
