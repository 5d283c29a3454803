"""Where a run's time goes."""

import itertools
import time

import pytest
import torch

from src.training.record import throughput
from src.training.record.throughput import (
    Clock,
    Progress,
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
    began = Progress(tokens=100, words=50, seconds=10.0)
    now = Progress(tokens=600, words=450, seconds=20.0)
    assert now.rates_since(began, flops_per_token=6, peak=1200.0) == {
        "tokens_per_second": 50, "words_per_second": 40, "mfu": 0.25,
    }  # fmt: skip
    assert now.rates_since(now, 6, 1200.0) == {}


def test_an_unknown_device_has_no_peak():
    assert peak_flops(torch.device("cpu"), 1) is None
    rates = Progress(10, 10, 1.0).rates_since(Progress(0, 0, 0.0), 6, None)
    assert "mfu" not in rates and rates["tokens_per_second"] == 10


def test_the_summary_is_one_line():
    rates = {
        "tokens_per_second": 4321.0,
        "words_per_second": 3000.0,
        "mfu": 0.5,
    }
    line = summary(Steady(), rates)
    assert line == (
        "Time: start-up 2.0 s, training 10.0 s. Training: 4,321 tokens/s, 3,000 words/s,"
        " MFU 50 %"
    )
