"""Tasks read once and asked of many models."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from src.arguments import EvaluationArguments
from src.data.packing.tokenizer import train
from src.evaluation.results import Result
from src.evaluation.scoring.scorer import Scorer
from src.evaluation.suite import Suite, is_score, of_whole_tasks, scores
from src.foundation import UserError
from tests.conftest import sentences

PAIRS = {
    "agreement": [("The dog sees a cat.", "The dog see a cat."), ("A cat.", "A the.")],
    "order": [("The king likes the boy.", "The the king boy likes.")],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train([sentences(100, 1)], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=2, n_embd=16, n_head=2, n_positions=48
    )
    return GPT2LMHeadModel(config)


def write_rows(folder, files):
    """Folders of JSON lines, in the official layout."""
    folder.mkdir(parents=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


def pair_rows(pairs):
    return [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]


@pytest.fixture
def data(tmp_path):
    """BLiMP's fast subset, EWoK's and a folder of pairs."""
    files = {name: pair_rows(pairs) for name, pairs in PAIRS.items()}
    write_rows(tmp_path / "data" / "fast_eval" / "blimp_fast", files)
    row = dict(
        Context1="The dog sees the cat.", Context2="The cat sees the dog.",
        Target1="The dog sees.", Target2="The boy hears the teacher.",
        Domain="social", ContextType="direct", ContextDiff="swap", TargetDiff="word",
    )  # fmt: skip
    write_rows(tmp_path / "data" / "fast_eval" / "ewok_fast", {"social": [row]})
    write_rows(tmp_path / "mine", {"mine": pair_rows(PAIRS["order"])})
    return tmp_path


def arguments(data, **changes):
    return EvaluationArguments(**{"data": str(data / "data"), **changes})


def log_probability(model, tokenizer, text, start=0):
    """Of the tokens that end behind `start`, one sentence at a time."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids[None, :-1]).logits[0]
    each = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()
    ends = [end for _, end in encoded["offset_mapping"]][1:]
    return sum(value for value, end in zip(each, ends) if end > start)


def test_scores_are_those_of_the_sentences_one_by_one(data, model, tokenizer):
    args = arguments(data, tasks="fast", pairs=str(data / "mine"))
    suite = Suite.load(args)
    assert "supplement_fast" in suite.missing and "aoa" not in suite.missing
    right = {
        name: [
            log_probability(model, tokenizer, good)
            > log_probability(model, tokenizer, bad)
            for good, bad in pairs
        ]
        for name, pairs in PAIRS.items()
    }
    found = {result.task: result for result in suite.score(model, tokenizer)}
    expected = {name: 100 * np.mean(rights) for name, rights in right.items()}
    assert found["blimp_fast"].subscores["UID"] == pytest.approx(expected)
    assert found["blimp_fast"].score == pytest.approx(np.mean(list(expected.values())))
    assert found["pairs/mine"].score == expected["order"]
    assert all(result.seconds > 0 for result in found.values())


@pytest.mark.parametrize(
    "protocol, other",
    [
        (2025, ("The dog sees the cat.", "The boy hears the teacher.")),
        (2026, ("The cat sees the dog.", "The dog sees.")),
    ],
)
def test_the_protocol_says_what_is_compared(data, model, tokenizer, protocol, other):
    first = ("The dog sees the cat.", "The dog sees.")
    values = [
        log_probability(model, tokenizer, f"{context} {target}", len(context))
        for context, target in (first, other)
    ]
    suite = Suite.load(arguments(data, tasks=["ewok_fast"], protocol=protocol))
    (result,) = suite.score(model, tokenizer)
    assert (result.score, result.protocol) == (
        100.0 * (values[0] > values[1]),
        protocol,
    )


def test_a_task_alone_and_among_others_is_the_same(data, model, tokenizer):
    suite = Suite.load(arguments(data, tasks="fast", pairs=str(data / "mine")))
    assert [task.name for task in suite.immediate] == [
        "blimp_fast",
        "ewok_fast",
        "pairs/mine",
    ]
    together = list(suite.score(model, tokenizer))
    alone = [
        next(Suite([task], suite.args).score(model, tokenizer)) for task in suite.tasks
    ]
    assert [replace(r, seconds=0) for r in together] == [
        replace(r, seconds=0) for r in alone
    ]


def test_nothing_is_tokenized_again_for_the_same_tokenizer(
    data, model, tokenizer, monkeypatch
):
    calls = []
    queries = Scorer.queries
    monkeypatch.setattr(
        Scorer, "queries", lambda *a: calls.append(len(a[1])) or queries(*a)
    )
    suite = Suite.load(arguments(data, tasks=["blimp_fast"]))
    (first,) = suite.score(model, tokenizer)
    same = train([sentences(100, 1)], 300)  # an equal one, as a next checkpoint has it
    assert next(suite.score(model, same)).score == first.score
    assert calls == [6]
    list(suite.score(model, train([sentences(100, 2)], 290)))
    assert calls == [6, 6]


def test_the_model_and_the_random_state_are_left_as_they_were(data, model, tokenizer):
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    list(Suite.load(arguments(data, tasks="fast")).score(model, tokenizer))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_is_asked_for_and_batches_change_nothing(data, model, tokenizer):
    args = arguments(data, tasks="fast", batch_tokens=1)
    for bf16, dtype in ((None, None), (True, torch.bfloat16)):
        suite = Suite.load(replace(args, bf16=bf16))
        assert suite.scorer(model, tokenizer).dtype == dtype
    small, large = (
        [r.score for r in Suite.load(a).score(model, tokenizer)]
        for a in (args, replace(args, batch_tokens=10_000))
    )
    assert small == large


def test_nan_is_named_and_no_score(data, model, tokenizer):
    broken = GPT2LMHeadModel(model.config)
    nn.init.constant_(broken.transformer.ln_f.weight, math.nan)
    suite = Suite.load(arguments(data, tasks=["blimp_fast"]))
    with pytest.raises(UserError, match="NaN"):
        list(suite.score(broken, tokenizer))


def test_a_vocabulary_that_does_not_cover_the_tokenizer_is_refused(data, tokenizer):
    small = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_layer=1, n_embd=8, n_head=1))
    suite = Suite.load(arguments(data, tasks=["blimp_fast"]))
    with pytest.raises(UserError, match="50 is too small for the tokenizer's"):
        next(suite.score(small, tokenizer))


def test_bad_folders_are_refused(data):
    (data / "other" / "mine").mkdir(parents=True)
    for folders, told in (
        (["gone"], "evaluation.pairs: there is no folder gone"),
        (str(data / "other" / "mine"), "no .*jsonl file in"),
        ([str(data / "mine"), str(data / "other" / "mine")], "the same name"),
    ):
        with pytest.raises(UserError, match=told):
            Suite.load(arguments(data, pairs=folders))
    write_rows(data / "bad", {"bad": [{"sentence_good": "A."}]})
    with pytest.raises(UserError, match="bad.jsonl, line 1: lacks .*sentence_bad"):
        Suite.load(arguments(data, pairs=str(data / "bad")))


def test_a_suite_may_be_empty(data, model, tokenizer):
    suite = Suite.load(arguments(data))
    assert suite.immediate == [] and list(suite.score(model, tokenizer)) == []


def result(task, score, folder="x", **parts):
    return Result(task, folder, 2026, score, 2, subscores={"UID": parts})


def test_scores_are_flat_shares_and_own_pairs_are_called_pairs():
    blimp, wug = result("blimp", 71.0, a=71.0), result("wug_adj", math.nan)
    own = result("pairs/mine", 75.0, "pairs/mine", a=100.0, b=50.0)
    assert scores([blimp, wug, own]) == {
        "blimp": 0.71, "pairs/a": 1.0, "pairs/b": 0.5, "pairs": 0.75
    }  # fmt: skip
    other = result("pairs/other", 50.0, "pairs/other", a=50.0)
    assert scores([own, other]) == {
        "pairs/mine/a": 1.0, "pairs/mine/b": 0.5, "pairs/mine": 0.75,
        "pairs/other/a": 0.5, "pairs/other": 0.5,
    }  # fmt: skip
    names = ["blimp", "blimp_fast", "pairs", "pairs/a", "pairs_a"]
    assert all(is_score(name) for name in names)
    others = ["loss", "files/childes/accuracy", "files/pairs/loss", "files/blimp/loss"]
    assert not any(is_score(name) for name in others)


def test_parts_and_folders_of_any_name_keep_their_own_scores():
    a = result("pairs/a", 75.0, "pairs/a", b_c=100.0, pairs=50.0)
    b = result("pairs/a_b", 50.0, "pairs/a_b", c=50.0, blimp=50.0)
    assert scores([a]) == {"pairs/b_c": 1.0, "pairs/pairs": 0.5, "pairs": 0.75}
    assert scores([a, b]) == {
        "pairs/a/b_c": 1.0, "pairs/a/pairs": 0.5, "pairs/a_b/c": 0.5,
        "pairs/a_b/blimp": 0.5, "pairs/a": 0.75, "pairs/a_b": 0.5,
    }  # fmt: skip


def test_scores_of_whole_tasks_are_told_from_those_of_their_parts():
    assert of_whole_tasks(["loss", "pairs/a", "pairs", "blimp"]) == ["pairs", "blimp"]
    several = ["pairs/mine/a", "pairs/mine", "pairs/other", "pairs/other/a"]
    assert of_whole_tasks(several) == ["pairs/mine", "pairs/other"]


def test_the_suite_knows_what_its_scores_will_be_called(data, model, tokenizer):
    write_rows(data / "yours", {"theirs": pair_rows(PAIRS["order"])})
    for pairs in ([], [data / "mine"], [data / "mine", data / "yours"]):
        suite = Suite.load(
            arguments(data, tasks="fast", pairs=[str(p) for p in pairs] or None)
        )
        for asked in (suite, suite.sample(1), suite.sample(0)):
            found = scores(asked.score(model, tokenizer))
            assert list(found) == asked.score_names
    assert {"blimp_fast", "pairs/mine/mine", "pairs/yours"} < set(suite.score_names)


def test_own_pairs_may_be_called_as_a_task_is(data, model, tokenizer):
    """They are their own task: neither takes the other's texts."""
    for name in ("blimp_fast", "pairs"):
        write_rows(data / name, {name: pair_rows(PAIRS["order"])})
    folders = [str(data / "blimp_fast"), str(data / "pairs")]
    args = arguments(data, tasks=["blimp_fast"], pairs=folders)
    results = list(Suite.load(args).score(model, tokenizer))
    found = {result.task: result.num_items for result in results}
    assert found == {"blimp_fast": 3, "pairs/blimp_fast": 1, "pairs/pairs": 1}
    names = [*found, "pairs/blimp_fast/blimp_fast", "pairs/pairs/pairs"]
    assert sorted(scores(results)) == sorted(names)


def test_a_result_is_there_when_its_task_is_done(data, model, tokenizer, monkeypatch):
    asked = []
    score = Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda *a: asked.append(len(a[1])) or score(*a)
    )
    results = Suite.load(arguments(data, tasks="fast")).score(model, tokenizer)
    assert next(results).task == "blimp_fast" and asked == [6]
    assert next(results).task == "ewok_fast" and asked == [6, 2]


def test_what_one_task_fails_at_is_told_behind_the_others(data, model, tokenizer):
    """Of one byte the embedding is NaN, and only one task has it."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    broken = GPT2LMHeadModel(config)
    bad = tokenizer("é", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        broken.transformer.wte.weight[bad] = math.nan
    rows = pair_rows([("A é.", "é A.")])
    write_rows(data / "accents", {"accents": rows})
    args = arguments(
        data, tasks="fast", pairs=[str(data / "accents"), str(data / "mine")]
    )
    results = Suite.load(args).score(broken, tokenizer)
    found = []
    with pytest.raises(UserError, match=r"NaN for '(A é|é A).' \(pairs/accents\)$"):
        found += (result.task for result in results)
    assert found == ["blimp_fast", "ewok_fast", "pairs/mine"]
