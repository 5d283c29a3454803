"""The front door: tables in every format, and what it says about bad input."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.report import main
from tests.reporting.conftest import write_run, write_scores

A = {"island": "1111", "agreement": "111000"}
B = {"island": "1100", "agreement": "001010"}


@pytest.fixture
def report(place, monkeypatch, capsys):
    """`report(…)`: what is printed, and the message with which it ends."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", "data=evals", *arguments])
        try:
            main()
        except SystemExit as end:
            return str(end.code)
        return capsys.readouterr().out

    return call


@pytest.fixture
def four(place):
    """Two settings with two seeds each."""
    for lr, right in ((0.1, A), (0.2, B)):
        for seed in (1, 2):
            name = f"seed-{seed}_lr-{lr}"
            write_scores(
                write_run("run-a", name, seed, lr, loss=3 + lr + seed / 100), right
            )


def test_a_table_has_settings_that_differ_and_groups_of_seeds(report, four):
    lines = report("runs=exp/run-a").splitlines()
    assert lines[0].split() == "run n seed learning_rate dev loss blimp".split()
    assert lines[3].split() == (
        "run-a/seed-*_lr-0.1 (2 runs) 2 0.1 3.1150 ± 0.0071 75.00 ± 0.00".split()
    )
    assert len(lines) == 7


def test_csv_and_json_hold_the_numbers(report, four):
    rows = list(csv.DictReader(io.StringIO(report("runs=exp/run-a", "format=csv"))))
    assert [row["n"] for row in rows] == ["1", "1", "2"] * 2
    assert float(rows[2]["dev loss sd"]) == pytest.approx(0.01 / 2**0.5)
    content = json.loads(report("runs=exp/run-a", "format=json"))
    assert [row["blimp"] for row in content["runs"]][:3] == [75, 75, 75]
    assert content["runs"][0]["training.seed"] == 1


def test_latex_has_one_row_per_group_and_nothing_unescaped(report, four):
    report("runs=exp/run-a", "format=latex", "output=table.tex")
    lines = Path("table.tex").read_text().splitlines()
    assert r"\toprule" in lines and r"\bottomrule" in lines
    assert "% in all rows, run is run-a" in lines and "% in all rows, n is 2" in lines
    (row,) = [line for line in lines if line.startswith("0.1 &")]
    assert row.endswith(r"3.1150 $\pm$ 0.0071 & 75.00 $\pm$ 0.00 \\")


def test_a_comparison_shows_differences_phenomena_and_warnings(report, four):
    arguments = "compare=['exp/run-a/*lr-0.1','exp/run-a/*lr-0.2']"
    text = report(arguments)
    (blimp,) = [line for line in text.splitlines() if "McNemar" in line]
    assert "41.67" in blimp and "33.33" in blimp and "0.38 (McNemar)" in blimp
    assert "first: run-a/seed-*_lr-0.1 (2 runs)" in text and "agreements" in text
    (found,) = json.loads(report(arguments, "format=json"))["comparisons"]
    blimp = found["differences"][1]
    assert blimp["phenomena"]["islands"]["first"] == ["island_2", "island_3"]
    rows = list(csv.DictReader(io.StringIO(report(arguments, "format=csv"))))
    assert [row["task"] for row in rows] == ["dev loss", "blimp"]
    assert r"\toprule" in report(arguments, "format=latex")


def test_the_items_are_one_row_per_model_and_item(report, four):
    directory = Path("exp/run-a/seed-1_lr-0.1")
    write_scores(directory, B, "chck_200")
    assert report("runs=exp/run-a", "items=items.csv")
    rows = list(csv.DictReader(open("items.csv")))
    assert len(rows) == 5 * 10
    first = dict(run="run-a/seed-1_lr-0.1", seed="1", words="200", revision="chck_200")
    first |= dict(task="blimp", phenomenon="agreements", item="agreement_0", right="0")
    assert rows[0] == {**first, "log_probability": ""}
    assert report("runs=exp/run-a", "items=items.csv", "data=nowhere")
    assert {row["right"] for row in csv.DictReader(open("items.csv"))} == {""}


def test_values_that_are_not_comparable_are_marked_and_not_averaged(report, four):
    for path in Path("results/run-a_seed-2_lr-0_1").rglob("*"):
        path.is_file() and path.unlink()
    Path("results/run-a_seed-2_lr-0_1").rename("old")
    write_scores(Path("exp/run-a/seed-2_lr-0.1"), A, protocol=2025)
    latex = report("runs=exp/run-a", "format=latex")
    assert latex.endswith("Not comparable, or only with care.\\par}\n")
    text = report("runs=exp/run-a")
    assert "75.00†" in text and "blimp is not comparable: other protocol" in text
    group = json.loads(report("runs=exp/run-a", "format=json"))["runs"][2]
    assert group["blimp"] is None and group["not comparable"] == {"blimp": "protocol"}


def test_bad_input_is_named_in_one_line(report):
    assert "no run: name some with runs=" in report()
    assert "text=a.txt needs runs=" in report("compare=[a,b]", "text=a.txt")
    assert "watch=true needs format=html" in report("runs=exp", "watch=true")
    assert "texts needs format=html" in report("runs=exp", "texts=The")
    assert "compare must be two names or globs" in report("compare=[a]")
    assert "runs: exp/x is no run" in report("runs=exp/x")
    write_run("run-a", "seed-1", finished=False)
    text = report("runs=exp/*")
    assert "has no scores of src.run_eval" in text and "is not finished" in text
    Path("exp/run-a/seed-1/config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in report("runs=exp/*")
    assert "did you mean" in report("run=exp/*")


def test_a_name_with_odd_characters_breaks_no_table(report, place):
    write_run("run-<script>", 'a&b_{c}, "d"\\e')
    assert "<script>" in report("runs=exp/*")
    (row,) = csv.DictReader(io.StringIO(report("runs=exp/*", "format=csv")))
    assert row["run"] == 'run-<script>/a&b_{c}, "d"\\e'


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_and_fits_the_page(report, place):
    for seed in (1, 2):
        write_run("50%_&#${}\\~^üß—中†«Þ<>|\r\1", f"seed-{seed}", seed)
    write_run("a-name-that-fills-more-than-half-of-a-line", "seed-1", 1, lr=0.2)
    report("runs=exp/*", "format=latex", "output=table.tex")
    Path("paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\noindent"
        r"\input{table.tex}\end{document}"
    )
    command = ["pdflatex", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout
