"""Where a run's time goes."""

import itertools
import time

import pytest
import torch

from src.training.record import throughput
from src.training.record.throughput import (
    Clock,
    Throughput,
    job_start,
    peak_flops,
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
    began = job_start()
    assert 1 < time.time() - began < 36000
    assert Clock(began).seconds()["start-up"] >= time.time() - began - 0.1
    assert Clock(job_start()).seconds()["start-up"] < 0.1


class Steady(Clock):
    """Ten seconds of training pass between two looks."""

    now = 0.0

    def seconds(self):
        self.now += 10
        return {"start-up": 2.0, "training": self.now}


def test_rates_are_of_the_time_spent_on_steps():
    rates = Throughput(Steady(), flops_per_token=6, peak=1200.0)
    rates.begin(tokens=100, words=50)
    first = rates.since_last(600, 450)
    assert first == {
        "tokens_per_second": 50, "words_per_second": 40, "utilisation": 0.25,
    }  # fmt: skip
    assert rates.since_last(1600, 450)["tokens_per_second"] == 100
    assert rates.overall(1300, 50)["tokens_per_second"] == 40


def test_an_unknown_device_has_no_peak():
    assert peak_flops(torch.device("cpu"), 1) is None
    rates = Throughput(Steady(), 6, None)
    rates.begin(0, 0)
    assert "utilisation" not in rates.since_last(10, 10)


def test_the_summary_is_one_line():
    rates = {
        "tokens_per_second": 4321.0,
        "words_per_second": 3000.0,
        "utilisation": 0.5,
    }
    line = summary(Steady(), rates)
    assert line == (
        "Time: start-up 2.0 s, training 10.0 s. Training: 4,321 tokens/s, 3,000 words/s,"
        " 50 % of the peak"
    )
