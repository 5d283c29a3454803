"""From a run to an entry: `python -m src.export run=… name=…`."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.export import main
from tests.conftest import sentences

NAME = "me/my-model"


@pytest.fixture
def export(monkeypatch, caplog):
    """`export(…)`: the exit status and what was shown."""

    def call(*arguments: str) -> str:
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with caplog.at_level(logging.INFO):
            try:
                main()
            except SystemExit as end:
                return caplog.text + str(end.code)
        return caplog.text

    return call


@pytest.fixture
def finished(tiny, run_clm, monkeypatch):
    """A finished run with milestones, and evaluation data of two tasks."""
    assert (
        run_clm(*tiny, "training.milestones=[100,200]", "data.word_budget=10000000")
        == 0
    )
    row = json.dumps(
        {"sentence_good": "The dog sees.", "sentence_bad": "Dog the sees."}
    )
    for folder in ("full_eval/blimp_filtered", "fast_eval/blimp_fast"):
        path = Path("evals") / folder
        path.mkdir(parents=True)
        (path / "causative.jsonl").write_text(f"{row}\n" * 3)
    (directory,) = Path("exp/run-custom-custom").glob("seed-*")
    return directory


def arguments(run, *others):
    return [f"run='{run}'", f"name={NAME}", "data=evals", *others]


def test_an_entry_has_models_predictions_form_and_card(finished, export):
    shown = export(*arguments(finished, "hub.license=mit"))
    entry = finished / "entry"
    assert "pass  epochs" in shown and "pass  licence: mit" in shown
    assert "the entry is not ready" in shown  # the sizes are not the challenge's
    assert "ewok counts as 0" in shown and "chck_100, chck_200" in shown
    for name in ("main", "chck_100", "chck_200"):
        model = AutoModelForCausalLM.from_pretrained(entry / name)
        tokenizer = AutoTokenizer.from_pretrained(entry / name)
        assert (
            model(torch.tensor([tokenizer("a b")["input_ids"]])).logits.isfinite().all()
        )
        assert not (entry / name / "training_args.bin").exists()
    card = ModelCard.load(entry / "main" / "README.md")
    assert card.data.license == "mit" and len(card.text) > 200
    form = json.loads((entry / "form.json").read_text())
    assert form["num_parameters"] == model.num_parameters()
    assert "max_grad_norm" not in form["other_hyp"]  # it has the default
    assert "warmup_steps=" in form["other_hyp"]
    assert form["track"] == "strict-small" and form["hf_repo"] == NAME
    assert (
        form["num_words_data"]
        == json.loads((finished / "results.json").read_text())["corpus_words"]
    )
    predictions = entry / "predictions" / "my-model"
    assert (predictions / "main/zero_shot/causal/blimp/blimp_filtered").is_dir()
    (collated,) = predictions.glob("all_full_preds*.json")
    assert entry / form["predictions_file"] == collated
    content = json.loads(collated.read_text())
    assert content["blimp"] is None  # three items instead of 818
    assert len(content["fast_eval_results"]["blimp"]) == 19


def test_the_second_export_scores_nothing_and_keeps_the_teams_answers(finished, export):
    export(*arguments(finished, "hub.license=mit"))
    file = finished / "entry" / "form.json"
    form = json.loads(file.read_text())
    form["data_genre"] = "child-directed speech"
    form["gpu_dev"] = 2.5
    file.write_text(json.dumps(form))
    card = finished / "entry" / "main" / "README.md"
    card.write_text(card.read_text() + "\nWritten by the team.\n")
    (finished / "entry" / "notes.txt").write_text("a note")
    shown = export(*arguments(finished, "hub.license=mit"))
    assert shown.count("scored already") == 3
    assert json.loads(file.read_text())["data_genre"] == "child-directed speech"
    assert "child-directed speech" in (finished / "entry" / "form.md").read_text()
    assert "gpu_dev=2.5 is kept (computed: 0.0)" in shown
    assert card.read_text().endswith("Written by the team.\n")
    assert (finished / "entry" / "notes.txt").read_text() == "a note"
    # A kill while the new entry takes the place of the old one loses no answer.
    (finished / "entry").rename(finished / ".previous_entry")
    export(*arguments(finished, "hub.license=mit"))
    assert json.loads(file.read_text())["data_genre"] == "child-directed speech"
    assert not (finished / ".previous_entry").exists()
    form["num_parameters"] = 130.3
    file.write_text(json.dumps(form))
    shown = export(*arguments(finished, "hub.license=mit"))
    assert "num_parameters must be a raw count such as" in shown and "130.3" in shown


def test_what_cannot_be_entered_is_refused_in_one_line(finished, export, tmp_path):
    def last(*overrides):
        return export(*overrides).splitlines()[-1]

    assert "name a finished run" in last(f"name={NAME}")
    assert "is not a run" in last("run=src", f"name={NAME}")
    assert "name must be <owner>/<model>" in last(f"run='{finished}'", "name=model")
    assert "unknown key `nam`" in last("+nam=x")
    licensed = (f"run='{finished}'", f"name={NAME}", "hub.license=mit")
    assert "no data of any task in nowhere" in last(*licensed, "data=nowhere")
    assert "licence: none; give hub.license=mit" in last(*arguments(finished))
    wrong = last(*arguments(finished, "hub.license=MITT"))
    assert "licence: MITT is none of the hub's names" in wrong
    results = (finished / "results.json").rename(tmp_path / "results.json")
    assert "is not finished; this continues it: python -m src.run_clm" in last(
        f"run='{finished}'", f"name={NAME}"
    )
    scores = json.loads(results.read_text())
    del scores["words_seen"]
    (finished / "results.json").write_text(json.dumps(scores))
    assert "was not trained (training.do_train=false)" in last(
        f"run='{finished}'", f"name={NAME}"
    )


def test_logits_are_compared_with_another_environment(finished, export):
    given = arguments(finished, "hub.license=mit", f"python_4_51={sys.executable}")
    assert "pass  transformers 4.51.3: the largest difference" in export(*given)
    given[-1] = "python_4_51=/nowhere/python"
    assert "python_4_51=/nowhere/python: No such file" in export(*given)
