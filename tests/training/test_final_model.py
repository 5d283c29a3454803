"""The table at the end of a run."""

import math

from src.training.final_model import table


def figures(prefix: str, *values: float) -> dict[str, float]:
    names = ("loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity")
    return {prefix + name: value for name, value in zip(names, values)}


def test_the_table_has_a_row_a_file_and_the_rest_below():
    scores = {
        **figures("eval_", 2.5, 12.18249, 0.45, 1.25, 80.0),
        **figures("eval_files/childes/", 2.0, 7.38906, 0.5, 1.0, 60.0),
        **figures("eval_files/gutenberg_2/", 3.0, 20.08554, 0.4, 1.5, 1234.56),
        "eval_runtime": 1.0,
        "eval_unigram_perplexity": 345.678,
        "eval_pairs/word_order": 0.5,
        "eval_pairs": 0.75,
        "eval_reading": 0.006867,
        "eval_wug_adj": -0.123,
        "eval_blimp_fast": 0.6521,
        "steps": 1200,
        "epochs": 9.98765,
        "words_seen": 1234567,
    }
    # fmt: off
    assert table(scores).split("\n") == [
        "                         loss  perplexity  accuracy  bits/byte  perplexity/word",
        "childes                 2.000        7.39     50.0%      1.000             60.0",
        "gutenberg_2             3.000       20.09     40.0%      1.500           1234.6",
        "all                     2.500       12.18     45.0%      1.250             80.0",
        "(unigram)                          345.68",
        "pairs: word_order                                 50.0%",
        "pairs                                             75.0%",
        "reading                                            0.69",
        "wug_adj                                          -12.30",
        "blimp_fast                                        65.2%",
        "1,234,567 words seen in 9.988 epochs, 1,200 steps",
    ]
    # fmt: on


def test_results_of_an_earlier_version_are_shown():
    scores = {
        **figures("eval_", 2.5, 12.18249, 0.45, 1.25, 80.0),
        **figures("eval_childes_", 2.0, 7.38906, 0.5, 1.0, 60.0),
        "eval_pairs_word_order": 0.5,
    }
    _, childes, all_files, pairs = table(scores).split("\n")
    assert childes.split() == ["childes", "2.000", "7.39", "50.0%", "1.000", "60.0"]
    assert all_files.split()[:2] == ["all", "2.500"]
    assert pairs.split() == ["pairs:", "word_order", "50.0%"]


def test_a_single_file_is_one_row():
    lines = table(figures("eval_", 2.5, 12.18249, 0.45, 1.25, 80.0)).split("\n")
    assert [line.split()[0] for line in lines] == ["loss", "all"]


def test_a_huge_perplexity_keeps_the_columns():
    head, row = table(figures("eval_", 80.0, 5.54e34, 0.0, 40.0, math.inf)).split("\n")
    assert len(row) == len(head) and "  5.54e+34  " in row and row.endswith("  inf")


def test_a_run_that_was_not_evaluated_has_no_scores_to_show():
    assert table({"steps": 3, "epochs": 1.0, "words_seen": 7}) == (
        "7 words seen in 1 epoch, 3 steps"
    )
    assert table({}) == ""


def test_the_table_says_which_model_it_is():
    counts = {"steps": 1300, "epochs": 1.0, "words_seen": 70_000}
    line = table({**counts, "best_step": 1200, "best_words_seen": 64_000})
    assert line == (
        "70,000 words seen in 1 epoch, 1,300 steps; the model is that of step 1,200, after"
        " 64,000 words"
    )


def test_a_table_of_long_names_fits_80_columns():
    name = "simple_wiki_of_the_year_2026"
    figures_of_file = figures(f"eval_files/{name}/", 2.0, 7.38906, 0.5, 1.0, 60.0)
    scores = {**figures("eval_", 2.5, 12.18249, 0.45, 1.25, 80.0), **figures_of_file}
    lines = table(scores).split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[1] == name and lines[2].split()[0] == "2.000"


def test_one_step_is_one_step():
    scores = {"steps": 1, "epochs": 1.0, "words_seen": 1}
    assert table(scores) == "1 word seen in 1 epoch, 1 step"
