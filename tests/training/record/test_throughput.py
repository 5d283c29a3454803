"""Where a run's time goes."""

import itertools
import time

import pytest

from src.training.record import throughput
from src.training.record.throughput import (
    Clock,
    rates,
    summary,
)


def test_a_phase_within_another_stops_its_clock():
    clock = Clock()
    with clock.phase("training"):
        time.sleep(0.02)
        with clock.phase("saving"):
            time.sleep(0.05)
    seconds = clock.seconds()
    assert 0.05 <= seconds["saving"] and 0.02 <= seconds["training"] < 0.05
    assert sum(seconds.values()) == pytest.approx(
        seconds["start-up"] + seconds["saving"] + seconds["training"]
    )


def test_the_first_jobs_clock_begins_with_the_process_and_others_with_themselves(
    monkeypatch,
):
    monkeypatch.setattr(throughput, "_jobs_before", itertools.count())
    assert 1 < Clock().seconds()["start-up"] < 36000
    assert Clock().seconds()["start-up"] < 0.1


class Steady(Clock):
    """Ten seconds of training pass between two looks."""

    now = 0.0

    def seconds(self):
        self.now += 10
        return {"start-up": 2.0, "training": self.now}


def test_rates_are_of_the_time_spent_on_steps():
    assert rates(500, 400, seconds=10.0, flops=3000, peak=1200.0) == {
        "tokens_per_second": 50, "words_per_second": 40, "mfu": 0.25,
    }  # fmt: skip
    assert rates(0, 0, 0.0, 0, 1200.0) == {}


def test_an_unknown_device_has_no_peak():
    assert rates(10, 10, 1.0, 60, None) == {
        "tokens_per_second": 10, "words_per_second": 10
    }  # fmt: skip


def test_the_summary_is_one_line():
    measured = {
        "tokens_per_second": 4321.0,
        "words_per_second": 3000.0,
        "mfu": 0.5,
    }
    line = summary(Steady(), measured)
    assert line == (
        "Time: start-up 2.0 s, training 10.0 s. Training: 4,321 tokens/s, 3,000 words/s,"
        " MFU 50 %"
    )
