"""The table of recipes keeps the rows that are not trained again."""

import json

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
