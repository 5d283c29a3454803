"""The README.md beside a model."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from src.training.record.card import write

FACTS = {
    "args": SimpleNamespace(
        wandb=SimpleNamespace(group="run-gpt2-tiny-sample", name="seed-42"),
        data=SimpleNamespace(block_size=512),
    ),
    "origin": "from scratch",
    "command": "python -m src.run_clm 'model.config_overrides={n_layer:1}'",
    "model_type": "gpt2",
    "parameters": 1234567,
    "files": "childes, gutenberg",
    "text": {"words": 10_000_000, "tokens": 13_000_000},
    "words_seen": 99_999_999,
    "epochs": 9.98765,
    "steps": 4321,
    "final_step": "; the model is that of step 4,000, after 92,000,000 words",
    "vocab_size": 16384,
    "total_flos": 1.25e15,
    "energy": ", 0.5 kWh",
    "tokenizer": "trained on the same text",
    "eval_files": "childes",
}
SCORES = {"loss": 3.14159, "perplexity": 23.1406, "pairs": 0.75}


@pytest.fixture
def card(tmp_path):
    def call(**changed):
        write(tmp_path, {**FACTS, **changed}, SCORES)
        return ModelCard.load(tmp_path / "README.md")

    return call


def test_the_card_has_metadata_that_the_hub_reads(card):
    data = card().data
    assert data.language == "en" and data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["babylm", "gpt2"]


def test_the_card_says_what_the_model_is_and_how_good(card):
    text = card().text
    assert "# run-gpt2-tiny-sample/seed-42" in text
    assert (
        "```\npython -m src.run_clm 'model.config_overrides={n_layer:1}'\n```" in text
    )
    assert "gpt2, 1,234,567 parameters, sequences of 512 tokens" in text
    assert "* Cost: 1.25e+15 FLOPs, 0.5 kWh.\n" in text
    assert "childes, gutenberg (10,000,000 whitespace words, 13,000,000 tokens)" in text
    assert (
        "99,999,999 words were seen in 9.988 epochs (4,321 steps); the model is that of step"
        " 4,000, after 92,000,000 words.\n" in text
    )
    assert "| loss | 3.142 |\n| perplexity | 23.14 |\n| pairs | 0.75 |\n" in text


@pytest.mark.parametrize("origin", ["from scratch", "further from exp/other/seed-1"])
def test_the_card_says_what_was_trained(card, origin):
    text = card(origin=origin).text
    assert f"\nTrained {origin} with the command\n" in text
    assert "fine-tuned" not in text
