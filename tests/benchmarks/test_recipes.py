"""The table of recipes keeps rows that are not trained again, and calls noise by its name."""

import json

import pytest

from tests.benchmarks import recipes


def test_reading_the_table_writes_nothing(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{"name": "gpt2", "blimp": 1}]))
    before = file.read_text()
    monkeypatch.chdir(tmp_path)  # no run is there
    assert recipes.with_rows(file, []) == [{"name": "gpt2", "blimp": 1}]
    assert file.read_text() == before


def test_a_trained_row_replaces_its_own_row_only(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    old = [{"name": "floor", "blimp": 1}, {"name": "gpt2", "blimp": 1}]
    file.write_text(json.dumps(old))
    monkeypatch.setattr(recipes, "summary", lambda name: {"name": name, "blimp": 2})
    rows = recipes.with_rows(file, ["gpt2", "babylm"])
    assert json.loads(file.read_text()) == rows
    assert rows == [
        {"name": "floor", "blimp": 1},
        {"name": "gpt2", "blimp": 2},
        {"name": "babylm", "blimp": 2},
    ]


@pytest.mark.parametrize(
    "base, row, word",
    [
        (
            [1.50, 1.52, 1.54],
            [1.51, 1.49, 1.53],
            "noise",
        ),  # their own deviation is 0.02
        ([1.50, 1.52, 1.54], [1.41, 1.42, 1.43], "better"),
        ([1.50, 1.52], [1.60, 1.61], "worse"),
        # One seed each, or seeds that agree by chance: the field's deviation counts.
        ([1.5], [1.499], "noise"),
        ([1.5, 1.5], [1.4995, 1.4995], "noise"),
        ([1.5], [1.49], "better"),
    ],
)
def test_a_gain_below_the_noise_is_called_noise(base, row, word):
    base = {"name": "babylm", "bits_per_byte_by_seed": base}
    assert f"than babylm: {word}" in recipes.verdict(
        {"bits_per_byte_by_seed": row}, base
    )


def test_the_table_has_deviations_and_rows_from_before_bits_per_byte():
    old = {"name": "floor", "recipe": "+recipe=x", "seeds": [1], "blimp_by_seed": [53.6],
           "supplement": 47.6, "perplexity_per_word": 34977, "seconds": 60}  # fmt: skip
    new = {**old, "name": "babylm", "seeds": [1, 2], "blimp_by_seed": [57.0, 58.0],
           "supplement_by_seed": [49.0, 51.0], "bits_per_byte_by_seed": [1.5, 1.6]}  # fmt: skip
    _, _, *lines = recipes.table([old, new]).splitlines()
    assert lines[0] == "| floor | `+recipe=x` | 1 | – | – | 53.6 | 47.6 | 34,977 | 1 |"
    assert "| 1.5500 ± 0.0707 | – | 57.5 ± 0.7 | 50.0 ± 1.4 |" in lines[1]
