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
from src.reporting.page import SETTINGS, final_scores, grouped, write_page
from src.reporting.runs import RunData
from src.reporting.tables import run_rows

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


SANITY = [
    {"name": name, "kl": 0.25, "unseen": 0.015, "trigram": 95.5}
    for name in ("wiki", "all")
]


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
        "results": results | {"total_flos": 1.5e12, "sanity": SANITY},
        "logs": logs,
        "ledger": [last | {"loss": 3.1, "device_seconds": 754.2, "joules": 9e6}],
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
        "65.2",
    ]
    assert parsed.tables["Words seen by file"][1] == ["childes", "30,000", "75"]
    assert parsed.tables["Dev text beside the training text"][2] == [
        "all",
        "0.25",
        "1.5",
        "95.5",
    ]
    for text in (
        "754.2 s",
        "2.5 kWh",
        "1.5e+12",
        "python -m src.run_clm training.seed=1",
        "3.11.7",
    ):
        assert text in parsed.text
    assert not parsed.unbalanced and not parsed.open


def test_runs_that_differ_in_the_seed_only_are_a_group(page):
    runs = six_runs()
    found = grouped(runs, run_rows(runs))
    assert {
        label: [run.config["training"]["seed"] for run in group]
        for label, group in found.items()
    } == {"learning_rate=0.001": [1, 2, 3], "learning_rate=0.003": [1, 2, 3]}
    tables = page(runs).tables
    first, second = tables[SETTINGS][1:]
    # Dev losses of 3.49, 3.48 and 3.47; BLiMP of 65.62, 65.72 and 65.82.
    assert first == [
        "run-gpt2",
        "3",
        "0.001",
        "3.4800 ± 0.0100",
        "65.72 ± 0.10",
        "4.00 ± 0.00",
    ]
    assert second[1:4] == ["3", "0.003", "3.2800 ± 0.0100"]
    assert len(tables["Runs"]) == 7


def test_scores_by_other_rules_are_marked(page):
    runs = six_runs()
    runs[4].scores["main"]["blimp"]["protocol"] = 2025
    parsed = page(runs)
    cells = [row[-2] for row in parsed.tables["Runs"][1:]]
    assert [cell.endswith("†") for cell in cells] == [False] * 4 + [True, False]
    assert parsed.tables[SETTINGS][2][-2] == "†"  # never averaged
    assert "lr-0.003: blimp is not comparable: other protocol" in parsed.text


def test_runs_that_were_killed_have_a_page_and_their_dev_loss_is_marked(page):
    nothing = {"results": {}, "scores": {}, "words": {}}
    parsed = page([fake_run("a/1"), fake_run("b/2", 2, **nothing), fake_run("c/3", 3)])
    assert parsed.tables["Runs"][2][-3:] == ["3.4800†", "–", "–"]
    empty = nothing | {"logs": [], "ledger": [], "record": {}, "config": {}}
    parsed = page([fake_run("a/1", **empty)])
    assert "not finished" in parsed.text and not parsed.all("svg")
    assert (
        page([fake_run("a/1", **empty), fake_run("b/2")]).tables["Runs"][1][0] == "a/1"
    )


def test_a_figure_never_mixes_the_full_and_the_fast_blimp(page, tmp_path):
    run = fake_run()
    for revision in ("chck_10k", "chck_20k", "checkpoint-30"):
        run.scores[revision]["blimp_fast"] = run.scores[revision].pop("blimp")
    parsed = page([run])
    assert "blimp_fast: white is chance" in parsed.text
    heat_map = (tmp_path / "report_figures/heat_map.svg").read_text("utf-8")
    assert "chck_20k" in heat_map and "main" not in heat_map


def test_faults_of_a_run_are_shown(page):
    assert "Faults" not in page([fake_run()]).text
    faults = ["exp/run-gpt2/seed-1/words.jsonl: line 7 is cut off"]
    for runs in (
        [fake_run(faults=faults)],
        [fake_run(faults=faults), fake_run("a/2", 2)],
    ):
        parsed = page(runs)
        assert faults[0] in parsed.text and "Faults of run-gpt2/seed-1" in parsed.text


def evil_runs() -> list[RunData]:
    """Runs whose names, settings, files, tasks, faults and commands are markup."""
    runs = []
    for i, evil in enumerate(
        (EVIL, f'"><img src=x onerror=alert(1)>{EVIL}$x_{{\udcff\0')
    ):
        run = fake_run(f"_{evil}/{evil}", 1, faults=[evil], lr=0.001 * (i + 1))
        run.record.update(command=evil, code=evil)
        run.record["identity"][f"training.{evil}"] = evil + str(i)
        run.config[evil] = {"key": evil}
        run.ledger[-1]["files"][evil] = 5
        for row in run.logs:
            row[f"eval_files/{evil}/loss"] = 3.0
        for scores in run.scores.values():
            scores[evil] = entry(50.0)
            scores["blimp"]["subscores"]["linguistics_term"][evil] = 50.0
        run.words[f"chck_{evil}"] = 50_000
        run.scores[f"chck_{evil}"] = run.scores["main"]
        runs.append(run)
    return runs


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_in_a_name_can_break_out_of_the_page(page, tmp_path, number):
    tables = [{"caption": EVIL, "columns": [EVIL], "rows": [[EVIL]], "notes": [EVIL]}]
    for runs in (evil_runs()[:number], evil_runs()[2 - number :]):
        parsed = page(runs, tables)
        assert len(parsed.all("script")) == 1 and not parsed.all("img")
        assert not parsed.unbalanced and not parsed.open
        assert not any(key.startswith("on") for _, a in parsed.elements for key in a)
        assert EVIL in parsed.text
        for file in (tmp_path / "report_figures").glob("*.svg"):
            assert "script" not in {e.tag for e in ElementTree.parse(file).iter()}


def test_the_page_needs_no_network(page):
    parsed = page([fake_run()])
    links = [
        a.get(key) for _, a in parsed.elements for key in ("href", "src", "xlink:href")
    ]
    own = [link for link in links if link and not link.startswith(("#", "data:,"))]
    assert own and all(link.startswith("report_figures/") for link in own)
    (policy,) = [a for a in parsed.all("meta") if "http-equiv" in a]
    assert policy["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_tables_can_be_used_with_a_keyboard(page):
    parsed = page(six_runs())
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert len(parsed.all("th")) == len(parsed.all("button"))
    assert all(a["scope"] == "col" for a in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 2


def test_comparisons_are_tables_of_the_page(page):
    rows = [["blimp", 1.25, "0.4 to 2.1", None]]
    columns = ["task", "difference", "interval", "p"]
    notes = ["1.25 is below 1.8, which repetitions differ by"]
    table = {"caption": "a or b", "columns": columns, "rows": rows, "notes": notes}
    parsed = page(six_runs(), [table])
    assert parsed.tables["a or b"] == [columns, ["blimp", "1.25", "0.4 to 2.1", "–"]]
    assert notes[0] in parsed.text


def test_figures_of_a_former_page_are_removed_and_other_files_stay(page, tmp_path):
    page([fake_run()])
    folder = tmp_path / "report_figures"
    for name in ("mine.png", "loss.txt"):
        (folder / name).write_text("not of the report")
    page(six_runs())
    kept = {path.name for path in folder.iterdir()}
    assert {"mine.png", "loss.txt", "loss.svg", "scores_blimp.png"} <= kept
    assert not kept & {"scores.svg", "scores.png", "heat_map.svg", "heat_map.png"}


def test_tasks_whose_names_differ_in_punctuation_have_a_figure_each(page, tmp_path):
    runs = six_runs()
    for entries in (entries for run in runs for entries in run.scores.values()):
        entries |= {"pairs/a-b": entry(60.0), "pairs/a_b": entry(70.0)}
    page(runs)
    files = {path.name for path in tmp_path.glob("report_figures/scores_pairs*.svg")}
    assert files == {"scores_pairs_a_b.svg", "scores_pairs_a_b_2.svg"}


def test_the_same_runs_give_the_same_bytes(page, tmp_path):
    page(six_runs())
    files = [tmp_path / "report.html", *(tmp_path / "report_figures").iterdir()]
    before = {file: file.read_bytes() for file in files}
    page(six_runs())
    assert {file: file.read_bytes() for file in files} == before


def test_long_curves_are_means_of_bins_and_their_band_keeps_outliers():
    x = np.arange(10_000.0, 0, -1)
    y = np.log(x)
    y[100] = 99
    curve = figures.downsampled("loss", x, y)
    assert 100 < len(curve.x) <= figures.MAX_POINTS
    assert (np.diff(curve.x) > 0).all()
    assert curve.high.max() == 99 and curve.low.min() == 0
    assert np.abs(curve.y - np.log(curve.x))[:-10].max() < 0.05


def test_the_band_over_seeds_is_one_standard_deviation():
    x = np.array([1.0, 10, 100])
    curves = [figures.Curve("", x, np.array([c, c, c])) for c in (1.0, 2.0, 6.0)]
    shorter = figures.Curve("", x[:2], np.array([3.0, 3.0]))
    mean = figures.mean_curve("a", [*curves, shorter])
    assert mean.x.tolist() == [1, 10] and mean.y.tolist() == [3, 3]
    assert mean.high - mean.y == pytest.approx([math.sqrt(14 / 3)] * 2)


@pytest.mark.parametrize(
    ("values", "index"),
    [((50, 60, 69.6, 70), 2), ((50, 60, 70), None), ((50, 45), None), ((50,), None)],
)
def test_a_score_hardly_rises_after_95_percent_of_its_rise(values, index):
    assert figures.plateau(np.array(values, float)) == index


def test_the_final_scores_are_those_of_main_or_of_the_last_revision():
    run = fake_run()
    assert final_scores(run)[0] == "main"
    del run.scores["main"]
    assert final_scores(run)[0] == "checkpoint-30"
    run.scores.clear()
    assert final_scores(run) == ("", {})


def test_two_hundred_runs_take_seconds_and_give_a_small_page(tmp_path):
    logs = [
        {"step": i, "words": 1000 * i, "loss": 3 + 9 / i, "eval_loss": 3 + 9 / i}
        | {"learning_rate": 1 / i, "tokens_per_second": 9000.0}
        for i in range(1, 601)
    ]
    runs = [fake_run(f"a/{i}", i % 2, lr=i // 2 / 1000, logs=logs) for i in range(200)]
    since = time.process_time()
    write_page(runs, tmp_path / "report.html")
    assert time.process_time() - since < 30
    assert (tmp_path / "report.html").stat().st_size < 20e6


CLICKS = """
<script>
const table = document.querySelectorAll("table")[1], input = document.querySelector("input");
const head = [...table.querySelectorAll("th")].find(th => th.innerText.includes("dev loss"));
const names = () => [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[0].innerText);
head.firstElementChild.click();
const up = [head.getAttribute("aria-sort"), ...names()];
head.firstElementChild.click();
const down = [head.getAttribute("aria-sort"), ...names()];
input.value = "SEED-2  0.003"; input.dispatchEvent(new Event("input"));
const found = names(), said = document.querySelector("output").textContent;
const last = [...document.querySelectorAll("table")].at(-1);
last.querySelectorAll("button")[1].click();
const numbers = [...last.tBodies[0].rows].map(r => r.cells[1].innerText);
const loaded = performance.getEntriesByType("resource").length;
const wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
document.title = JSON.stringify({up, down, found, said, wide, numbers, loaded});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_sorts_and_filters_without_an_error(page, tmp_path):
    rows = [["a", "1,000.50"], ["b", ""], ["c", "-2.00†"], ["d", "3.10 ± 0.20"]]
    table = {"caption": "t", "columns": ["task", "x"], "rows": rows, "notes": []}
    page(six_runs(), [table])
    file = tmp_path / "report.html"
    file.write_text(file.read_text("utf-8") + CLICKS, "utf-8")
    flags = (
        "--headless=new --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/profile"]
    result = subprocess.run(
        [*command, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert "CONSOLE" not in result.stderr
    title = re.search("<title>(.*?)</title>", result.stdout)[1]
    seen = json.loads(title)
    best = [f"run-gpt2/seed-{s}_lr-{lr}" for lr in (0.003, 0.001) for s in (3, 2, 1)]
    assert seen["up"] == ["ascending", *best]
    assert seen["down"] == ["descending", *best[::-1]]
    assert seen["found"] == ["run-gpt2/seed-2_lr-0.003"]
    assert seen["said"] == "1 of 6 rows" and seen["wide"] and not seen["loaded"]
    assert seen["numbers"] == ["-2.00†", "3.10 ± 0.20", "1,000.50", "–"]
