"""Scoring models: `python -m src.run_eval checkpoint=… tasks=…`."""

import dataclasses
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from src.data.packing.tokenizer import save, train
from src.evaluation import evaluator
from src.evaluation.evaluator import Evaluator
from src.evaluation.glue import data as glue
from src.evaluation.models import Checkpoint, backend_of, find_checkpoints
from src.evaluation.results import Result
from src.evaluation.scoring.scorer import Scorer
from src.evaluation.suite import Suite
from src.evaluation.tasks.aoa import AGES
from src.run_eval import main
from tests.conftest import sentences

GOOD, BAD = "The dog sees a cat.", "The dog a sees cat."
CONTEXTS = {w: [{"context": f"The {w} sees the"}] for w in ("dog", "cat", "king")}


@pytest.fixture(scope="module")
def tokenizer():
    return train([sentences(100, 1)], 300)


def write_model(directory, tokenizer, seed=0, vocab_size=None):
    """A tiny GPT-2 and its tokenizer."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size or len(tokenizer), n_layer=1, n_embd=16, n_head=2,
        n_positions=32,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    save(tokenizer, directory)


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """A model, written once for all tests."""
    folder = tmp_path_factory.mktemp("made") / "model"
    write_model(folder, tokenizer)
    return folder


@pytest.fixture
def work(tmp_path, made, monkeypatch):
    """The working directory: a model, and tasks in the official layout."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "model")
    row = json.dumps({"sentence_good": GOOD, "sentence_bad": BAD}) + "\n"
    for name, number in (("blimp_fast", 3), ("supplement_fast", 1)):
        folder = Path("data/fast_eval") / name
        folder.mkdir(parents=True)
        (folder / "order.jsonl").write_text(row * number)
    aoa = Path("data/full_eval/aoa")
    aoa.mkdir(parents=True)
    (aoa / "cdi_childes.json").write_text(json.dumps(CONTEXTS))
    ages = [str(age) for age in AGES]
    rows = [",".join(["word", *ages])]
    rows += [",".join([word, *["0.5"] * len(ages)]) for word in CONTEXTS]
    (aoa / "cdi_human.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def a_run(work, tokenizer):
    return write_run(Path("exp/run-tiny-sample/seed-7"), tokenizer)


def write_run(run, tokenizer):
    """A run with a final model and three checkpoints, of 100 words each ten steps."""
    write_model(run, tokenizer, seed=3)
    (run / "run.json").write_text(json.dumps({"identity": {"training.seed": 7}}))
    for step in (5, 10, 15):
        checkpoint = run / f"checkpoint-{step}"
        write_model(checkpoint, tokenizer, seed=step)
        logs = [{"step": s, "words": 10 * s} for s in (5, 10) if s <= step]
        state = {"global_step": step, "log_history": [*logs, {"step": step}]}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return run


@pytest.fixture
def run_eval(monkeypatch, caplog):
    """`run_eval(*overrides)` in this process: 0, or the message it exits with."""
    caplog.set_level(logging.INFO)

    def call(*overrides):
        monkeypatch.setattr(sys, "argv", ["run_eval", *overrides, "data=data"])
        caplog.clear()
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return call


def read_scores(model, revision="main", results="results"):
    record = json.loads(Path(results, model, revision, "scores.json").read_text())
    (of_backend,) = record["scores"].values()
    return record, of_backend


def is_right(directory):
    """Whether the good sentence is the more probable, by the model itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    losses = []
    for text in (GOOD, BAD):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        losses.append(model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1))
    return losses[0] < losses[1]


def test_a_model_is_scored_shown_and_written(work, run_eval, caplog):
    assert run_eval("checkpoint=model", "tasks=fast", "by_phenomenon=true") == 0
    record, entries = read_scores("model")
    assert list(entries) == ["blimp_fast", "supplement_fast"]
    assert entries["blimp_fast"]["score"] == 100 * is_right("model")
    assert (entries["blimp_fast"]["items"], entries["blimp_fast"]["protocol"]) == (
        3,
        2026,
    )
    assert record["model"]["name"] == "model"
    folder = Path("results/model/main/zero_shot/causal/blimp/blimp_fast")
    files = ["best_temperature_report.txt", "predictions.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert "data has no data of: ewok_fast" in caplog.text
    assert "GPT-2 10M" in caplog.text and "supplement_fast" in caplog.text
    assert not list(work.glob("outputs")) and not list(work.glob("*.log"))


def test_what_is_scored_is_not_scored_again(work, run_eval, caplog, monkeypatch):
    assert run_eval("checkpoint=model", "tasks=[blimp_fast]") == 0
    loads = []
    load = evaluator.load
    monkeypatch.setattr(evaluator, "load", lambda *a: loads.append(a) or load(*a))
    command = ("checkpoint=model", "tasks=fast")
    assert run_eval(*command) == 0  # what is lacking
    assert "model: supplement_fast" in caplog.text and len(loads) == 1
    assert "model: blimp_fast" not in caplog.text
    assert run_eval(*command) == 0  # nothing
    assert "model: scored already" in caplog.text and len(loads) == 1
    assert "blimp_fast" in caplog.text  # and shown
    for change in ("protocol=2025", "overwrite=true", "bf16=true"):
        assert run_eval(*command, change) == 0
    assert len(loads) == 4
    assert "blimp_fast: 0 of 3 choices differ from those in float32" in caplog.text
    Path("data/fast_eval/blimp_fast/order.jsonl").write_text(
        json.dumps({"sentence_good": BAD, "sentence_bad": GOOD})
    )
    assert run_eval(*command, "bf16=true") == 0
    assert len(loads) == 5 and "model: blimp_fast" in caplog.text
    assert "model: supplement_fast" not in caplog.text
    assert "blimp_fast: 0 of" not in caplog.text  # of other data
    assert "supplement_fast: 0 of 1 choices differ" in caplog.text  # as stored


def test_other_rules_leave_the_challenges_results_as_they_are(work, run_eval, caplog):
    """Going back to any of them scores nothing again."""
    command = ("checkpoint=model", "tasks=[blimp_fast]")
    ways = {
        "results": [],
        "results/2025": ["protocol=2025"],
        "results/bf16": ["bf16=true"],
        "results/2025_bf16": ["protocol=2025", "bf16=true"],
    }
    for place, way in ways.items():
        assert run_eval(*command, *way) == 0
        assert "model: blimp_fast" in caplog.text
    written = {file: file.read_bytes() for file in Path("results").rglob("*.*")}
    assert len(written) == 4 * 3
    for place, way in ways.items():
        assert run_eval(*command, *way) == 0
        assert "model: scored already" in caplog.text
        year = 2025 if "2025" in place else 2026
        dtype = "bfloat16" if "bf16" in place else "float32"
        assert f"Protocol {year}, {dtype}." in caplog.text
        assert f"Results: {place}/model" in caplog.messages
        assert ("0 of 3 choices differ" in caplog.text) == (dtype == "bfloat16")
        entry = read_scores("model", results=place)[1]["blimp_fast"]
        assert (entry["protocol"], entry["dtype"]) == (year, dtype)
    assert all(file.read_bytes() == before for file, before in written.items())


def test_many_checkpoints_score_as_one_by_one(a_run, run_eval, caplog):
    assert run_eval("checkpoint=exp/*/*/checkpoint-*", "tasks=fast") == 0
    together = {}
    for step in (5, 10, 15):
        name = f"checkpoint-{step}"
        record, together[name] = read_scores("run-tiny-sample_seed-7", name)
        assert together[name]["blimp_fast"]["score"] == 100 * is_right(a_run / name)
        assert record["model"]["seed"] == 7
    (shown,) = [m for m in caplog.messages if "blimp_fast  supplement_fast" in m]
    lines = [line.split()[0] for line in shown.split("\n") if "checkpoint-" in line]
    assert [Path(line).name for line in lines] == [*together]
    run_eval(f"checkpoint={a_run / name}", "tasks=fast", "results_dir=one")
    _, alone = read_scores("run-tiny-sample_seed-7", name, "one")
    for task, entry in alone.items():
        assert entry["score"] == together[name][task]["score"]


def test_what_is_scored_stays_when_the_rest_is_interrupted(work, run_eval, monkeypatch):
    ask = Suite.ask

    def interrupted(self, task, *args):
        if task.name == "supplement_fast":
            raise KeyboardInterrupt
        return ask(self, task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Suite, "ask", interrupted)
        assert run_eval("checkpoint=model", "tasks=fast") == 130
    assert list(read_scores("model")[1]) == ["blimp_fast"]
    assert run_eval("checkpoint=model", "tasks=fast") == 0
    assert list(read_scores("model")[1]) == ["blimp_fast", "supplement_fast"]


def test_aoa_is_a_score_of_the_run(a_run, run_eval, caplog):
    assert run_eval(f"checkpoint={a_run}", "tasks=[aoa,blimp_fast]") == 0
    _, entries = read_scores("run-tiny-sample_seed-7")
    assert list(entries) == ["blimp_fast", "aoa"]
    assert entries["aoa"]["items"] == 3 * len(CONTEXTS)
    file = (
        "results/run-tiny-sample_seed-7/main/zero_shot/causal/AoA_word/surprisal.json"
    )
    points = json.loads(Path(file).read_text())["results"]
    words = {point["step"]: point["word_count"] for point in points}
    assert words == {"checkpoint-5": 50, "checkpoint-10": 100, "checkpoint-15": 150}
    assert run_eval(f"checkpoint={a_run}", "tasks=[aoa]") == 0
    assert "scored already" in caplog.text
    shutil.rmtree(a_run / "checkpoint-5")
    assert "has 2" in run_eval(f"checkpoint={a_run}", "tasks=[aoa]")
    assert run_eval(f"checkpoint={a_run}", "tasks=full") == 0  # nothing else is there
    assert "No aoa for" in caplog.text


def test_chance_is_that_of_each_runs_own_tokenizer(work, run_eval, monkeypatch):
    sizes = {"seed-1": 300, "seed-2": 320}
    for name, size in sizes.items():
        own = train([sentences(100, 1)], size)
        write_run(Path("exp/run-tiny-sample") / name, own)
    seen = {}
    ask = Suite.ask

    def remember(*args):
        answer = ask(*args)
        seen[answer.checkpoint.model[-6:]] = answer.content.chance["dog"]
        return answer

    monkeypatch.setattr(Suite, "ask", remember)
    assert run_eval("checkpoint=exp/*/seed-*", "tasks=[aoa]") == 0
    shares = {name: seen[name] / math.log(size) for name, size in sizes.items()}
    assert all(share == pytest.approx(round(share)) for share in shares.values())


def test_a_masked_model_is_asked_as_one(work, run_eval, tokenizer):
    tokenizer = train([sentences(100, 1)], 300)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=1, hidden_size=16,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained("bert")
    save(tokenizer, Path("bert"))
    assert run_eval("checkpoint=bert", "tasks=fast") == 0
    assert list(read_scores("bert")[0]["scores"]) == ["mlm"]
    assert backend_of("GPT2LMHeadModel") == "causal"
    assert backend_of("BertForMaskedLM") == "mlm"
    message = run_eval("checkpoint=bert", "tasks=fast", "backend=causal")
    assert "bert: backend=causal does not suit a BertForMaskedLM" in message
    config = json.loads(Path("bert/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "its_own.Model"}
    Path("bert/config.json").write_text(json.dumps(config))
    assert find_checkpoints("./bert")[0].backend("causal") == "causal"


def test_one_that_fails_does_not_lose_the_others(a_run, run_eval, caplog):
    broken = GPT2LMHeadModel.from_pretrained(a_run / "checkpoint-10")
    torch.nn.init.constant_(broken.transformer.ln_f.weight, float("nan"))
    broken.save_pretrained(a_run / "checkpoint-10")
    message = run_eval("checkpoint=exp/*/*/checkpoint-*", "tasks=[aoa,blimp_fast]")
    assert "checkpoint-10, blimp_fast: the model gives NaN" in message
    assert "checkpoint-10, aoa: the model gives NaN" in message
    assert (
        "checkpoint-15, aoa: left out, since exp" in message
        and "Traceback" not in message
    )
    assert "blimp_fast" in read_scores("run-tiny-sample_seed-7", "checkpoint-15")[1]
    assert not Path("results/run-tiny-sample_seed-7/checkpoint-10").exists()


@pytest.mark.parametrize("error", ["SystemExit", "ZeroDivisionError", "KeyError"])
def test_whatever_a_model_raises_the_others_are_scored(
    work, run_eval, monkeypatch, error
):
    shutil.copytree("model", "other")
    score = Scorer.score

    def fail(self, queries):
        if self.model.name_or_path.endswith("model"):
            exec(f"raise {error}('theirs')")
        return score(self, queries)

    monkeypatch.setattr(Scorer, "score", fail)
    message = run_eval("checkpoint=[model,other]", "tasks=[blimp_fast]")
    assert f"model, blimp_fast: {error}: " in message and "theirs" in message
    assert "blimp_fast" in read_scores("other")[1]


def no_tokenizer():
    Path("model/tokenizer.json").unlink()


def no_weights():
    Path("model/model.safetensors").write_bytes(b"\0" * 100)


def missing_weights():
    weights = load_file("model/model.safetensors")
    del weights["transformer.ln_f.weight"]
    save_file(weights, "model/model.safetensors", {"format": "pt"})


def empty_task():
    Path("data/fast_eval/blimp_fast/order.jsonl").unlink()


def bad_line():
    with Path("data/fast_eval/blimp_fast/order.jsonl").open("a") as file:
        file.write("{\n")


def two_folders():
    shutil.copytree("data/fast_eval/blimp_fast", "data/fast_eval/old/blimp_fast")


def small_vocabulary():
    config = GPT2Config(vocab_size=50, n_layer=1, n_embd=8, n_head=1)
    GPT2LMHeadModel(config).save_pretrained("model")


def foreign_results():
    folder = Path("results/model/main")
    folder.mkdir(parents=True)
    record = {"model": {"name": "model", "checksum": "another"}, "scores": {}}
    (folder / "scores.json").write_text(json.dumps(record))


def other_size():
    weights = load_file("model/model.safetensors")
    table = weights["transformer.wte.weight"]
    weights["transformer.wte.weight"] = torch.cat([table, table[:10]])
    save_file(weights, "model/model.safetensors", {"format": "pt"})


def cut_results():
    foreign_results()
    Path("results/model/main/scores.json").write_text('{"model": {"na')


def few_rows():
    write_rte(4)


def broken(name):
    def spoil():
        Path("model", name).write_text('{"half')

    return spoil


def nothing():
    pass


@pytest.mark.parametrize(
    "spoil, overrides, told",
    [
        (
            nothing,
            ["checkpoint=./modle"],
            ["checkpoint: ./modle does not exist", "exp"],
        ),
        (nothing, ["checkpoint=null"], ["no model", "checkpoint=…"]),
        (nothing, ["tasks=null"], ["nothing to score", "entity_tracking", "glue"]),
        (
            nothing,
            ["tasks=[blump]"],
            ["tasks: no task is named blump; did you mean blimp? Names: full, fast"],
        ),
        (
            nothing,
            ["tasks=[ewok]"],
            [
                "ewok needs the folder ewok_filtered in data/full_eval; `./download_data.sh",
                "Tasks with data: blimp_fast, supplement_fast, aoa",
            ],
        ),
        (nothing, ["tasks=3"], ["tasks must be a text or a list of texts, got 3"]),
        (nothing, ["tasks=glue"], ["glue_filtered"]),
        (few_rows, ["tasks=glue"], ["data: no boolq.train.jsonl in"]),
        (
            nothing,
            ["tasks=[aoa]"],
            [
                "aoa",
                "3 checkpoints of a run, model has 0: a run that is trained with training.save_total",
            ],
        ),
        (nothing, ["protocol=2024"], ["protocol", "2024", "2025, 2026"]),
        (nothing, ["batch_tokens=0"], ["batch_tokens must be at least 1, got 0"]),
        (nothing, ["chekpoint=x"], ["chekpoint", "did you mean `checkpoint`"]),
        (nothing, ["+models=x"], ["unknown key `models`"]),
        (nothing, ["revision=chck_1M"], ["revision=chck_1M", "hub names"]),
        (nothing, ["checkpoint='*.txt'"], ["checkpoint: *.txt does not exist"]),
        (no_tokenizer, [], ["model: has no tokenizer", "tokenizer.json"]),
        (no_weights, [], ["model: cannot be loaded"]),
        (missing_weights, [], ["has no weights for transformer.ln_f.weight"]),
        (
            other_size,
            [],
            ["wte.weight is [310, 16]", "(vocab_size 300) [300, 16]"],
        ),
        (nothing, ["backend=mlm"], ["backend=mlm does not suit a GPT2LMHeadModel"]),
        (broken("config.json"), [], ["model/config.json is not JSON"]),
        (broken("run.json"), [], ["model/run.json is not JSON"]),
        (broken("tokenizer.json"), [], ["model: cannot be loaded"]),
        (empty_task, [], ["data: no *.jsonl file in", "blimp_fast"]),
        (bad_line, [], ["order.jsonl, line 4: not JSON"]),
        (nothing, ["pairs=data"], ["pairs: no *.jsonl file in", "data"]),
        (two_folders, [], ["only one folder may be called blimp_fast"]),
        (small_vocabulary, [], ["vocabulary of 50", "entries"]),
        (
            cut_results,
            [],
            [
                "results/model/main holds scores, but scores.json is missing or damaged",
                "move the folder away",
            ],
        ),
        (foreign_results, [], ["results/model/main holds the scores of another model"]),
    ],
)
def test_bad_input_ends_with_a_short_message(
    work, run_eval, caplog, spoil, overrides, told
):
    spoil()
    message = run_eval("checkpoint=model", "tasks=fast", *overrides)
    assert isinstance(message, str) and message.startswith("error: ")
    assert all(part in message for part in told), message
    assert len(message) < 900 and "evaluation." not in message
    assert told[-1] not in caplog.text, "told twice"
    assert not list(Path("results").rglob("predictions.json"))


def test_no_such_checkpoint_lists_what_is_there(a_run, run_eval):
    for wrong in ("exp/run-tiny-sample/seed-8", "exp/run-tiny-sample", "exp/*/seed-9*"):
        message = run_eval(f"checkpoint={wrong}", "tasks=fast")
        fault = "is not a model" if Path(wrong).is_dir() else "does not exist"
        assert message.startswith(f"error: checkpoint: {wrong} {fault}; models in exp")
        assert ":\n  exp/run-tiny-sample/seed-7\n" in message
        assert message.index("checkpoint-5") < message.index("checkpoint-10")


def test_a_tokenizer_that_will_spoil_scores_is_told_once(a_run, run_eval, caplog):
    for checkpoint in a_run.glob("checkpoint-*"):
        file = checkpoint / "tokenizer.json"
        description = json.loads(file.read_text())
        description["post_processor"] = None
        file.write_text(json.dumps(description))
    assert run_eval("checkpoint=exp/*/*/checkpoint-*", "tasks=fast") == 0
    assert caplog.text.count("puts no BOS before a text") == 1


def test_models_are_found_once_and_by_name(a_run):
    found = find_checkpoints(["exp/*/*", str(a_run), "exp/*/*/checkpoint-5", "model"])
    assert [(c.model, c.revision) for c in found] == [
        ("run-tiny-sample_seed-7", "main"),
        ("run-tiny-sample_seed-7", "checkpoint-5"),
        ("model", "main"),
    ]
    assert [c.words_seen for c in found] == [None, 50, None]
    assert [c.revision for c in found[0].checkpoints()] == [
        "checkpoint-5", "checkpoint-10", "checkpoint-15"
    ]  # fmt: skip
    assert Checkpoint(Path("x"), "x", "chck_20M", "x").words_seen == 20_000_000


@pytest.mark.parametrize("name", ["run [1]", "ünï", "it's", "a=b"])
def test_a_model_may_have_any_name(work, run_eval, name, monkeypatch):
    folder = Path("exp", name, "seed-1")
    shutil.copytree("model", folder)
    monkeypatch.setenv("HOME", str(work))
    (plain,) = find_checkpoints(str(folder))
    for written in (f"{folder}/", f"exp/{name}/*", f"~/exp/{name}/seed-*"):
        (found,) = find_checkpoints(written)
        assert found.directory.samefile(plain.directory)
    quoted = str(folder).replace("'", "\\'")
    assert run_eval(f"checkpoint='{quoted}'", "tasks=fast") == 0
    assert "blimp_fast" in read_scores("seed-1")[1]


def test_the_pattern_of_a_glob_comes_before_plain_brackets(work):
    for name in ("run1", "run2", "run[12]"):
        shutil.copytree("model", Path("exp", name))
    names = [model.model for model in find_checkpoints("exp/run[12]")]
    assert names == ["run[12]"]  # a folder with just this name
    names = [model.model for model in find_checkpoints("exp/run[12]*")]
    assert names == ["run1", "run2"]


def test_two_models_that_would_share_results_are_refused(work, run_eval, tokenizer):
    write_model(Path("other/model"), tokenizer, seed=1)
    message = run_eval("checkpoint=[model,other/model]", "tasks=fast")
    assert "checkpoint: model and other/model would share one folder" in message
    assert not Path("results").exists()


def test_a_name_that_is_not_here_is_asked_of_the_hub(work, run_eval, tokenizer):
    message = run_eval("checkpoint=owner/nothing", "tasks=fast", "revision=chck_1M")
    assert "neither a local path nor on the hub (revision chck_1M)" in message


def test_branches_of_one_commit_are_all_scored(tmp_path, made, monkeypatch):
    """The hub's own cache: a snapshot a commit, and a file a branch that names it."""
    monkeypatch.chdir(tmp_path)
    commits = {"main": "b" * 40, "chck_2M": "b" * 40, "chck_1M": "a" * 40}
    cache = Path(".cache/hub/models--owner--name")
    (cache / "refs").mkdir(parents=True)
    for branch, commit in commits.items():
        (cache / "refs" / branch).write_text(commit)
        shutil.copytree(made, cache / "snapshots" / commit, dirs_exist_ok=True)
    branches = [*commits, "main"]
    found = find_checkpoints("owner/name", branches, Path(".cache"))
    assert [c.revision for c in found] == [*commits]
    assert found[0].directory == found[1].directory != found[2].directory


def test_a_broken_log_of_a_checkpoint_is_named(a_run, run_eval, caplog):
    file = a_run / "checkpoint-10" / "trainer_state.json"
    file.write_text('{"log_history": [')
    message = run_eval(f"checkpoint={a_run}", "tasks=[aoa,blimp_fast]")
    assert message.startswith(f"error: tasks: aoa: {file} is not JSON")
    assert run_eval(f"checkpoint={a_run}", "tasks=full") == 0
    assert f"No aoa for run-tiny-sample_seed-7: {file} is not JSON" in caplog.text


def write_rte(num_rows):
    """A task of fine-tuning in the official layout."""
    folder = Path("data/full_eval/glue_filtered")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        rows = [
            {"sentence1": "A dog.", "sentence2": f"{n} cats.", "label": n % 2}
            for n in range(num_rows)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"rte.{split}.jsonl").write_text(text)


@pytest.fixture
def short_rte(work, monkeypatch):
    """RTE with few rows, and one epoch of the protocol's ten."""
    write_rte(8)
    short = dataclasses.replace(glue.RECIPES["rte"], batch_size=4, num_epochs=1)
    monkeypatch.setitem(glue.RECIPES, "rte", short)


def test_fine_tuning_goes_beside_the_zero_shot_tasks(short_rte, run_eval, caplog):
    command = ("checkpoint=model", "tasks=[rte,blimp_fast]")
    assert run_eval(*command) == 0
    _, entries = read_scores("model")
    assert list(entries) == ["blimp_fast", "rte"]
    assert (entries["rte"]["seed"], entries["blimp_fast"]["seed"]) == (42, None)
    assert entries["rte"]["items"] == 8
    folder = Path("results/model/main/finetune/rte")
    shown = (folder / "results.txt").read_text()
    assert f"accuracy: {entries['rte']['score'] / 100}" in shown
    assert run_eval(*command) == 0
    assert "model: scored already" in caplog.text
    assert run_eval(*command, "seed=2") == 0
    assert "rte, epoch 1 of 1" in caplog.text and "model: blimp_fast" not in caplog.text
    assert "Results: results/model, results/seed-2/model" in caplog.text
    assert read_scores("model", results="results/seed-2")[1]["rte"]["seed"] == 2
    assert read_scores("model")[1] == entries
    assert run_eval(*command) == 0
    assert "model: scored already" in caplog.text


def test_many_models_of_one_tokenizer_tokenize_a_task_once(
    short_rte, a_run, run_eval, monkeypatch
):
    prepare, calls = glue.FineTuning.prepare, []
    monkeypatch.setattr(
        glue.FineTuning, "prepare", lambda *a: calls.append(a) or prepare(*a)
    )
    assert run_eval("checkpoint=exp/*/*/checkpoint-1*", "tasks=[rte]") == 0
    assert len(calls) == 1
    _, entries = read_scores("run-tiny-sample_seed-7", "checkpoint-15")
    assert entries["rte"]["items"] == 8


def test_of_a_model_that_failed_in_one_task_the_others_are_shown(
    work, run_eval, caplog
):
    write_rte(4)
    message = run_eval("checkpoint=model", "tasks=[rte,blimp_fast]")
    assert "model, rte: 4 training rows are fewer than a batch of 32" in message
    assert "model, rte: failed; the reason is given at the end" in caplog.messages
    (shown,) = [text for text in caplog.messages if "task  " in text]
    assert "blimp_fast" in shown and "rte" not in shown
    # What is stored by another protocol is no score by this one.
    Path("data/fast_eval/blimp_fast/order.jsonl").write_text('{"sentence_good": "A"}')
    run_eval("checkpoint=model", "tasks=[blimp_fast]", "protocol=2025")
    assert "GPT-2 10M" not in caplog.text


def test_too_little_memory_is_told_with_the_key_that_helps(
    work, run_eval, monkeypatch, caplog
):
    def score(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scorer, "score", score)
    told = "model, blimp_fast: out of memory: set a smaller batch_tokens"
    assert told in run_eval("checkpoint=model", "tasks=fast")
    assert (
        "model, blimp_fast: failed; the reason is given at the end" in caplog.messages
    )


def test_the_glue_score_is_of_seven_with_one_seed(work):
    (checkpoint,) = find_checkpoints("model")

    def board(seed):
        wsc = glue.FineTuning(
            name="wsc", folder="finetune/wsc", train=[], valid=[], seed=seed,
            recipe=glue.RECIPES["wsc"], data_checksum="d",
        )  # fmt: skip
        return Evaluator(Suite([wsc]), [checkpoint], Path("results"))

    def write(name, score, seed):
        own = board(seed)
        parts = dict(seed=seed, data_checksum="d", seconds=1.0)
        result = Result(name, f"finetune/{name}", 2026, score, 5, **parts)
        own.folder(seed).write(own._key(own.jobs[0]), result)

    def entries():
        return board(1).entries(checkpoint)

    for number, name in enumerate(glue.RECIPES):
        assert "glue" not in entries()
        write(name, 10.0 * number, seed=1)
    found = entries()
    assert list(found) == ["wsc", "glue"]
    mean = found["glue"]
    assert (mean["score"], mean["items"], mean["seconds"]) == (30, 35, 7)
    assert mean["subscores"]["task"]["wsc"] == 60
    write("rte", 90.0, seed=1)  # the mean follows
    assert entries()["glue"]["score"] == pytest.approx(30 + 40 / 7)
    write("rte", 0.0, seed=2)  # lies apart
    assert entries()["glue"]["score"] == pytest.approx(30 + 40 / 7)
    assert "glue" not in board(2).entries(checkpoint)


def test_help_lists_keys_and_tasks(run_eval, capsys):
    run_eval("--help")
    shown = capsys.readouterr().out
    assert "tasks=null" in shown and "entity_tracking_fast" in shown and "wsc" in shown
