"""The evaluator knows tasks by their interface alone: these are of no kind that it has seen."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from src.data.packing.tokenizer import save, train
from src.evaluation import evaluator as module
from src.evaluation.evaluator import Evaluator
from src.evaluation.models import find_checkpoints
from src.evaluation.suite import Suite
from src.evaluation.tasks.task import Mean, Task
from src.foundation import UserError


@dataclass(frozen=True, kw_only=True)
class Size(Task):
    """The sum of the widths of the models that are asked; width 4 is refused."""

    error = UserError("too narrow")

    num_items = 1

    def prepare(self, scorer):
        return None

    def ask(self, scorer, prepared):
        if scorer.model.config.n_embd == 4:
            raise self.error
        return scorer.model.config.n_embd

    def result(self, answers):
        return self.build_result(answers, score=sum(a.content for a in answers))


class Sizes(Size):
    """All models together make one score, that of the first."""

    takes = "series"

    def series(self, models):
        if len(models) < 2:
            raise UserError("it takes two models")
        return {models[0]: models}


class Half(Size):
    """A part of a mean."""

    takes = "training"
    mean = Mean("whole", ("left", "right"))


def task(kind, name, **fields):
    return kind(name=name, folder=name, data_checksum="d", **fields)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Models of the widths 8, 4 and 16."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train(["a"], 259)
    for width in (8, 4, 16):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=259, n_layer=1, n_embd=width, n_head=1)
        GPT2LMHeadModel(config).save_pretrained(f"m{width}")
        save(tokenizer, Path(f"m{width}"))
    return [model for w in (8, 4, 16) for model in find_checkpoints(f"m{w}")]


def scores(evaluator):
    """Model -> task -> score, of what is on disk."""
    return {
        model.origin: {name: e["score"] for name, e in evaluator.entries(model).items()}
        for model in evaluator.models
    }


def test_any_kind_of_task_is_asked_and_each_model_loaded_once(models, monkeypatch):
    loads, load = [], module.load
    monkeypatch.setattr(module, "load", lambda *a: loads.append(a[0]) or load(*a))
    suite = Suite([task(Size, "size"), task(Sizes, "sizes")])
    wide = [models[0], models[2]]
    for _ in range(2):  # the second time there is nothing to do
        evaluator = Evaluator(suite, wide, Path("results"))
        evaluator.run()
        assert loads == wide and not evaluator.failures
        assert scores(evaluator) == {
            "m8": {"size": 8, "sizes": 24},
            "m16": {"size": 16},
        }
    assert suite.deferred == ["sizes"] and [t.name for t in suite.immediate] == ["size"]


def test_what_fails_stops_nothing(models, caplog):
    caplog.set_level(logging.INFO)
    suite = Suite([task(Size, "size"), task(Sizes, "sizes")])
    evaluator = Evaluator(suite, models, Path("results"))
    evaluator.run()
    assert scores(evaluator) == {"m8": {"size": 8}, "m4": {}, "m16": {"size": 16}}
    assert evaluator.failures == {
        "m4, size": "too narrow",
        "m4, sizes": "too narrow",
        "m8, sizes": "left out, since m4 could not be scored",
    }
    assert caplog.text.count("failed; the reason is given at the end") == 3


class Bug(Size):
    """A task on which models of width 4 raise an error that nobody foresaw."""

    error = ZeroDivisionError("division by zero\nadvice")


def test_an_unforeseen_error_of_one_model_does_not_end_the_others(models):
    evaluator = Evaluator(Suite([task(Bug, "bug")]), models, Path("results"))
    evaluator.run()
    assert scores(evaluator) == {"m8": {"bug": 8}, "m4": {}, "m16": {"bug": 16}}
    assert evaluator.failures == {"m4, bug": "ZeroDivisionError: division by zero"}


def test_results_that_cannot_be_written_are_refused_before_scoring(models, monkeypatch):
    Path("results").write_text("")
    monkeypatch.setattr(module, "load", None)  # no model is loaded
    evaluator = Evaluator(Suite([task(Size, "size")]), models[:1], Path("results"))
    evaluator.run()
    fault = "results_dir: results is a file, not a folder"
    assert evaluator.failures == {"m8": fault}


def test_a_damaged_result_is_scored_again(models):
    suite = Suite([task(Size, "size")])
    Evaluator(suite, models[:1], Path("results")).run()
    (file,) = Path("results").rglob("scores.json")
    file.write_text(file.read_text().replace('"score": 8', '"score": 9'))
    evaluator = Evaluator(suite, models[:1], Path("results"))
    assert scores(evaluator) == {"m8": {}}
    evaluator.run()
    assert scores(evaluator) == {"m8": {"size": 8}}


def test_a_result_is_written_when_all_its_answers_are_there(models, monkeypatch):
    ask = Suite.ask

    def interrupted(self, task, scorer, checkpoint):
        if checkpoint.origin == "m16" and task.name == "size":
            raise KeyboardInterrupt
        return ask(self, task, scorer, checkpoint)

    monkeypatch.setattr(Suite, "ask", interrupted)
    wide = [models[0], models[2]]
    suite = Suite([task(Sizes, "sizes"), task(Size, "size")])
    evaluator = Evaluator(suite, wide, Path("results"))
    with pytest.raises(KeyboardInterrupt):
        evaluator.run()
    assert scores(evaluator) == {"m8": {"sizes": 24, "size": 8}, "m16": {}}


def test_a_series_that_is_too_short_is_refused_at_once(models):
    with pytest.raises(UserError, match="sizes: it takes two models"):
        Evaluator(Suite([task(Sizes, "sizes")]), models[:1], Path("results"))


def test_a_mean_is_there_when_all_its_tasks_are(models):
    """Its tasks may have been scored before, by the same rules."""
    for name, expected in (("left", {"left": 8}), ("right", {"right": 8, "whole": 8})):
        suite = Suite([task(Half, name, seed=3)])
        evaluator = Evaluator(suite, models[:1], Path("results"))
        evaluator.run()
        assert scores(evaluator) == {"m8": expected}
    assert evaluator.folder(3).path == Path("results/seed-3")
