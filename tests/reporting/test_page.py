"""The page of a report: what it shows of one run and of several, and that nothing breaks it."""

import json
import math
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from src.reporting import figures
from src.reporting.page import final_scores, grouped, write_page
from src.reporting.runs import RunData

EVIL = "<script>alert(1)</script>"
PHENOMENA = ("binding", "ellipsis", "island_effects")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def entry(score: float | None, **changes) -> dict:
    """An entry of `scores.json`: BLiMP has phenomena of 10 points more and less."""
    terms = {name: (score or 0) + 10 * i - 10 for i, name in enumerate(PHENOMENA)}
    subscores = {"UID": {"a": score}, "linguistics_term": terms}
    values = {"score": score, "protocol": 2026, "dtype": "float32", "items": 2000}
    values |= {"ties": 1, "data_checksum": "0123456789", "subscores": subscores}
    return values | changes


def fake_run(name: str = "run-gpt2/seed-1", seed: int = 1, **changes) -> RunData:
    """A run of 40 logged steps and 4 scored models."""
    lr = changes.pop("lr", 0.001)
    better = 1000 * lr + seed / 10
    logs = []
    for step in range(1, 41):
        row = {"step": step, "words": 1000 * step, "learning_rate": lr / step}
        row |= {"loss": 3 + 4 / step - better / 10, "tokens_per_second": 9000.0 + step}
        logs.append(row)
        if step % 10 == 0:
            loss = 3.5 + 4 / step - better / 10
            files = {
                "eval_files/childes/loss": loss,
                "eval_files/wiki/loss": loss + 0.1,
            }
            row = {"step": step, "words": 1000 * step, "eval_loss": loss}
            logs.append(row | files)
    words = {"chck_10k": 10_000, "chck_20k": 20_000, "checkpoint-30": 30_000}
    words["main"] = 40_000
    scores = {
        revision: {
            "blimp": entry(50 + better + 15 * i / (i + 0.1)),
            "reading": entry(1.0 + i, subscores={}),
        }
        for i, revision in enumerate(words)
    }
    files = {"childes": 30_000, "wiki": 10_000}
    last = {"step": 40, "words": 40_000, "tokens": 60_000, "files": files}
    identity = {"training.seed": seed, "training.learning_rate": lr}
    identity |= {"model.config_overrides": {"n_layer": 2}, "data": {"train/wiki": "ab"}}
    results = {"eval_loss": 3.6 - better / 10, "words_seen": 40_000}
    values = {
        "directory": Path("exp") / name,
        "name": name,
        "config": {"training": {"seed": seed, "learning_rate": lr}},
        "record": {
            "command": f"python -m src.run_clm training.seed={seed}",
            "code": "86dadd4",
            "machine": {"python": "3.11.7"},
            "identity": identity,
        },
        "results": results | {"total_flos": 1.5e12},
        "logs": logs,
        "ledger": [last | {"loss": 3.1, "device_seconds": 754.2}],
        "scores": scores,
        "words": words,
        "folders": {},
        "faults": [],
    }
    return RunData(**values | changes)


def six_runs() -> list[RunData]:
    """Two learning rates of three seeds."""
    return [
        fake_run(f"run-gpt2/seed-{seed}_lr-{lr}", seed, lr=lr)
        for lr in (0.001, 0.003)
        for seed in (1, 2, 3)
    ]


class Page(HTMLParser):
    """The elements of a page, its visible text, and the cells of its tables."""

    VOID = {"meta", "link", "input", "br"}

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.unbalanced: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "caption":
            self.rows = []

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "caption":
            self.tables[data] = self.rows
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """`page(runs)` is the page of these runs, parsed. It is `report.html` in `tmp_path`."""

    def call(runs: list[RunData], comparisons: list = ()) -> Page:
        write_page(runs, tmp_path / "report.html", comparisons)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return call


def test_one_run_has_its_figures_scores_words_and_cost(page, tmp_path):
    parsed = page([fake_run()])
    names = "loss dev_loss learning_rate tokens_per_second scores phenomena heat_map"
    files = {f"{name}.{kind}" for name in names.split() for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "report_figures").iterdir()} == files
    assert len(parsed.all("svg")) == 7
    labels = [a["aria-label"] for a in parsed.all("div") if a.get("role") == "img"]
    assert len(labels) == 7 and all(labels)
    assert parsed.tables["Scores of main"][1][:5] == [
        "dev loss",
        "3.4900",
        "–",
        "–",
        "–",
    ]
    assert parsed.tables["Scores of main"][2][:5] == [
        "blimp",
        "65.62",
        "2,000",
        "1",
        "65.20",
    ]
    assert parsed.tables["Words seen by file"][1] == ["childes", "30,000", "75.00"]
    for text in (
        "754.2 s",
        "1.5e+12",
        "python -m src.run_clm training.seed=1",
        "3.11.7",
    ):
        assert text in parsed.text
    assert not parsed.unbalanced and not parsed.open
