"""Texts that the models of a run write in a report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from src.reporting.runs import find_runs
from src.reporting.texts import texts_table
from tests.data.test_blocks import LETTERS
from tests.reporting.conftest import write_run


def write_model(directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(LETTERS), n_positions=32, n_embd=8, n_layer=1, n_head=1,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    LETTERS.save_pretrained(directory)


@pytest.fixture
def run(place):
    """A run of 1,000 words with a final model and seven milestones."""
    directory = write_run("run-a", "seed-1")
    write_model(directory, 0)
    for number in (1, 2, 4, 8, 16, 32, 64):
        write_model(directory / f"chck_{number}", number)
    (run,) = find_runs("exp/run-a/seed-1", Path("results"))
    return run


def test_models_spread_over_words_continue_the_same_beginnings(run):
    table = texts_table(run, ["", "one"], Path("results"))
    beginnings, models, words, texts = zip(*table["rows"])
    assert beginnings == ("",) * 5 + ("one",) * 5
    assert words == (1, 4, 32, 64, 1000) * 2 or words == (1, 8, 32, 64, 1000) * 2
    assert models[-2:] == ("chck_64", "main")
    assert all(text.startswith("one") for text in texts[5:])
    assert len(set(texts)) == 10 and not run.faults


def test_a_second_report_reads_the_texts_and_a_changed_model_writes_new_ones(run):
    one = replace(run, words={"main": 1000})
    first = texts_table(one, ["a"], Path("results"))
    (file,) = Path("results").rglob("texts.json")
    kept = json.loads(file.read_text())
    assert kept["texts"] == [first["rows"][0][-1]]
    file.write_text(json.dumps({**kept, "texts": ["as it was kept"]}))
    assert texts_table(one, ["a"], Path("results"))["rows"][0][-1] == "as it was kept"
    assert texts_table(one, ["b"], Path("results"))["rows"][0][-1][0] == "b"
    write_model(run.directory, 5)
    assert texts_table(one, ["a"], Path("results")) != first


def test_a_model_that_cannot_be_used_is_a_fault(run):
    (run.directory / "chck_64/model.safetensors").write_bytes(b"cut off")
    table = texts_table(run, ["a"], Path("results"))
    assert [row[1] for row in table["rows"]].count("chck_64") == 0
    assert len(table["rows"]) == 4 and "chck_64 cannot be loaded" in run.faults[0]
