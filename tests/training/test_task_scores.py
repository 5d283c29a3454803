"""The challenge's scores at every evaluation of a run."""

import functools
import json
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from tokenizers import processors
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.arguments import ScoringArguments
from src.data.packing.tokenizer import load
from src.evaluation.suite import Suite
from src.evaluation.tasks.aoa import AGES
from src.foundation import UserError
from src.training.callbacks import StopOnSignal
from src.training.task_scores import TaskScores, metric_name
from src.training.trainer import LanguageModelTrainer
from tests.test_run_clm import history, only_run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twenty pairs in two sets: what is good is in the training text, what is bad is not."""
    folder = tmp_path / "agreement"
    folder.mkdir()
    for name, noun in (("dogs", "dog"), ("cats", "cat")):
        rows = [
            {
                "sentence_good": f"The {noun} {verb} a bird.",
                "sentence_bad": f"{noun} The {verb} bird a.",
            }
            for verb in "sees likes finds calls helps hears follows knows a b".split()
        ]
        text = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def suite(pairs: Path) -> Suite:
    return Suite.load(ScoringArguments(pairs=str(pairs)))


def with_dropout(tiny: list[str]) -> list[str]:
    return [*tiny, "training.eval_steps=4", "training.save_steps=4"]


def test_scoring_changes_neither_the_losses_nor_the_weights(
    tiny, run_clm, pairs, caplog
):
    """Bit for bit, with dropout (GPT-2's own) and scores before, between and after steps."""
    command = with_dropout(tiny)
    assert run_clm(*command, "wandb.tag=without") == 0
    scored = [f"evaluation.pairs={pairs}", "evaluation.items_while_training=6"]
    assert run_clm(*command, *scored, "wandb.tag=with") == 0
    assert (
        "During training, samples of the tasks are scored; at the end, all items"
        in caplog.text
    )
    without, with_scores = only_run("without"), only_run("with")
    weights = [load_file(run / "model.safetensors") for run in (without, with_scores)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [
        [
            {k: v for k, v in row.items() if "pairs" not in k and "scoring" not in k}
            for row in history(run)
        ]
        for run in (without, with_scores)
    ]
    assert rows[0] == rows[1]
    found = [row for row in history(with_scores) if "eval_pairs" in row]
    assert [row["step"] for row in found] == [4, 8, 12]
    # Six of twenty while training, three a set; all of them at the end.
    for share in (row["eval_pairs/dogs"] for row in found):
        assert share == pytest.approx(round(share * 3) / 3)
    results = json.loads((with_scores / "results.json").read_text())
    assert results["eval_pairs"] == pytest.approx(
        round(results["eval_pairs"] * 20) / 20
    )
    assert results["eval_scoring_runtime"] > 0


def test_a_score_can_pick_the_best_model(tiny, run_clm, pairs, caplog):
    overrides = ["training.metric_for_best_model=eval_pairs", "training.max_steps=40"]
    command = [o for o in with_dropout(tiny) if "max_steps" not in o]
    command += [f"evaluation.pairs={pairs}", "training.learning_rate=0.02"]
    assert run_clm(*command, *overrides) == 0
    rows = [row for row in history(only_run()) if "eval_pairs" in row]
    best = max(row["eval_pairs"] for row in rows)
    assert min(row["eval_pairs"] for row in rows) < best
    results = json.loads((only_run() / "results.json").read_text())
    assert results["eval_pairs"] == best
    first = next(row["step"] for row in rows if row["eval_pairs"] == best)
    told = f"Evaluating on the dev text and all 20 items; the model is that of step {first},"
    assert (told in caplog.text) == (
        first != 40
    ) and "samples of the tasks" not in caplog.text
    state = json.loads(
        max(
            only_run().glob("checkpoint-*/trainer_state.json"),
            key=lambda p: int(p.parent.name.split("-")[1]),
        ).read_text()
    )
    assert state["best_global_step"] == first and state["best_metric"] == best


def test_a_sample_is_spread_over_all_parts_and_the_same_each_time(suite):
    sample = suite.sample(4)
    (task,) = sample.tasks
    good = [choice.items[0].text for choice in task.choices]
    assert [text.split()[1] for text in good] == ["cat", "cat", "dog", "dog"]
    assert suite.sample(4).tasks[0].choices == task.choices
    assert len(suite.sample(99).tasks[0].choices) == 20
    assert not suite.sample(0).tasks and suite.immediate


def test_without_tasks_there_is_nothing_to_score():
    scores = TaskScores(Suite.load(ScoringArguments()))
    assert scores.score(None, None, all_items=True) == {}


def resolve_metric(name, suite, num_items, files=("a",)):
    """What `training.metric_for_best_model=name` is called in the logs."""
    args = SimpleNamespace(training=SimpleNamespace(metric_for_best_model=name))
    return metric_name(args, TaskScores(suite, num_items), files)


def test_the_metric_is_named_as_it_is_logged(suite, pairs):
    assert resolve_metric("eval_pairs", suite, None) == "pairs"
    assert resolve_metric("pairs/dogs", suite, None) == "pairs/dogs"
    fast = Suite([replace(suite.tasks[0], name="blimp_fast")])
    assert resolve_metric("blimp", fast, 5) == "blimp_fast"
    with pytest.raises(UserError, match="=ewok is not measured .*, pairs/cats, pairs"):
        resolve_metric("ewok", suite, None)
    with pytest.raises(
        UserError, match="pairs is not measured .* word_perplexity, or add the task"
    ):
        resolve_metric("eval_pairs", suite, 0)
    with pytest.raises(UserError, match="pairs/dogs is not measured"):
        resolve_metric("pairs/dogs", suite, 1)  # of the first set alone
    other = pairs.with_name("other")
    shutil.copytree(pairs, other)
    both = Suite.load(ScoringArguments(pairs=[str(pairs), str(other)]))
    assert resolve_metric("pairs/other", both, None) == "pairs/other"
    assert resolve_metric("eval_pairs/other/cats", both, 6) == "pairs/other/cats"
    with pytest.raises(UserError, match="eval_pairs is not measured"):
        resolve_metric("eval_pairs", both, None)


def test_the_metric_may_be_that_of_one_dev_file(suite):
    files = ["childes", "word", "pairs"]
    for name in ("loss", "files/childes/loss", "files/pairs/loss"):
        assert resolve_metric(f"eval_{name}", suite, None, files) == name
    with pytest.raises(UserError, match="childes/loss is not measured"):
        resolve_metric("files/childes/loss", suite, None, ["childes"])  # as eval_loss
    with pytest.raises(UserError, match="tales/loss is not measured"):
        resolve_metric("files/tales/loss", suite, None, files)


def test_a_metrics_name_of_an_earlier_version_is_accepted(suite):
    files = ["childes", "word"]
    assert resolve_metric("eval_pairs_dogs", suite, None) == "pairs/dogs"
    assert resolve_metric("childes_loss", suite, None, files) == "files/childes/loss"
    # The overall figure has this name, not the perplexity of the file `word`.
    assert resolve_metric("word_perplexity", suite, None, files) == "word_perplexity"


def test_a_best_score_that_is_not_defined_is_told(tiny, run_clm, tmp_path):
    """A model that is as sure of all forms of a word has no correlation with people."""
    folder = tmp_path / "data" / "fast_eval" / "wug_past_tense"
    folder.mkdir(parents=True)
    rows = [{"sentences": "A dog.\tA dog.", "ratio": ratio} for ratio in (0.1, 0.9)]
    (folder / "wug.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = run_clm(
        *tiny,
        "evaluation.tasks=[wug_past]",
        f"evaluation.data={tmp_path / 'data'}",
        "training.metric_for_best_model=wug_past",
    )
    assert "training.metric_for_best_model=wug_past has no defined value" in message


def test_the_texts_speed_is_without_the_time_of_scoring(
    tiny, run_clm, pairs, monkeypatch
):
    score = Suite.score

    def slow(*args):
        time.sleep(2)
        return score(*args)

    monkeypatch.setattr(Suite, "score", slow)
    assert run_clm(*tiny, f"evaluation.pairs={pairs}", "training.eval_strategy=no") == 0
    results = json.loads((only_run() / "results.json").read_text())
    assert results["eval_runtime"] < 2 < results["eval_scoring_runtime"]


def test_several_folders_are_shown_each(tiny, run_clm, pairs, caplog):
    shutil.copytree(pairs, pairs.with_name("other"))
    folders = f"evaluation.pairs=[{pairs},{pairs.with_name('other')}]"
    assert run_clm(*tiny, folders) == 0
    lines = [row for row in caplog.text.split("\n") if "eval loss" in row]
    assert all("eval pairs/agreement " in line for line in lines) and lines
    assert not any("pairs/other/" in line for line in lines)
    card = (only_run() / "README.md").read_text()
    assert "| pairs/other | " in card and "pairs/other/cats" not in card


def test_a_tokenizer_that_spoils_scores_is_told_before(tiny, run_clm, pairs, caplog):
    assert run_clm(*tiny, "wandb.tag=good", f"evaluation.pairs={pairs}") == 0
    assert "warning: the tokenizer" not in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(only_run("good"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save_pretrained("bare")
    bare = [o for o in tiny if not o.startswith("tokenizer.")]
    bare += ["tokenizer.name_or_path=./bare", "wandb.tag=bare"]
    assert run_clm(*bare, f"evaluation.pairs={pairs}") == 0
    assert caplog.text.count("warning: the tokenizer puts no BOS") == 1


def test_a_finished_run_says_which_scores_it_has_not(tiny, run_clm, pairs, caplog):
    assert run_clm(*tiny) == 0
    caplog.clear()
    assert run_clm(*tiny, f"evaluation.pairs={pairs}") == 0
    assert "This run is finished" in caplog.text
    assert "Scores of pairs are missing. To add them:" in caplog.text
    command = f"src.run_eval checkpoint={only_run()} pairs={pairs}"
    assert command in caplog.text
    assert f"This run is finished: {only_run()} (training.overwrite" in caplog.text
    caplog.clear()
    rules = ["evaluation.backend=causal", "evaluation.protocol=2025"]
    pairs.rename(pairs.with_name("my pairs"))
    pairs = f'evaluation.pairs="{pairs.with_name("my pairs")}"'
    assert run_clm(*tiny, pairs, "evaluation.bf16=true", *rules) == 0
    (line,) = [line for line in caplog.text.split("\n") if "src.run_eval" in line]
    _, *overrides = shlex.split(line.partition("src.run_eval ")[2])
    assert overrides == [
        pairs.removeprefix("evaluation."), "protocol=2025", "backend=causal", "bf16=True"
    ]  # fmt: skip
    caplog.clear()
    assert run_clm(*tiny) == 0 and "are missing" not in caplog.text


def test_age_of_acquisition_needs_checkpoints_that_are_kept(
    tiny, run_clm, aoa_data, caplog
):
    asked = [*tiny, f"evaluation.data={aoa_data}"]
    message = run_clm(*asked, "evaluation.tasks=[aoa]")
    assert (
        "evaluation.tasks: aoa needs 3 checkpoints of the run, which keeps 2" in message
    )
    assert "training.save_total_limit=null" in message and not list(
        Path("exp").glob("*/*")
    )
    assert run_clm(*asked, "evaluation.tasks=full") == 0
    assert "warning: aoa needs 3 checkpoints" in caplog.text
    caplog.clear()
    everything = ["training.save_total_limit=null", "wandb.tag=all"]
    assert run_clm(*asked, "evaluation.tasks=[aoa]", *everything) == 0
    assert "warning: aoa" not in caplog.text


@pytest.fixture
def aoa_data(tmp_path):
    """A folder of evaluation data with age of acquisition alone."""
    folder = tmp_path / "data" / "full_eval" / "aoa"
    folder.mkdir(parents=True)
    contexts = {"dog": [{"context": "A dog"}]}
    (folder / "cdi_childes.json").write_text(json.dumps(contexts))
    ages = [str(age) for age in AGES]
    lines = [["word", *ages], ["dog", *["0.5"] * len(ages)]]
    (folder / "cdi_human.csv").write_text("\n".join(map(",".join, lines)))
    return folder.parent.parent


@pytest.fixture
def in_two_processes(processes, tmp_path):
    """`in_two_processes(function, *arguments)`, started as torchrun starts them.

    Where one fails, the other is ended and ChildFailedError raised; logs/ has what they show.
    """

    def call(function, *arguments):
        config = LaunchConfig(
            1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
            start_method=processes.get_start_method(),
            logs_specs=DefaultLogsSpecs(str(tmp_path / "logs"), redirects=Std.ALL),
        )  # fmt: skip
        elastic_launch(config, function)(*arguments)

    return call


def score_in_two(run: Path, pairs: Path, out: Path) -> None:
    """One of two processes: scores a model; the second meets a signal, NaN and full memory."""
    rank = PartialState(cpu=True).process_index
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), load(str(run))
    scores = TaskScores(many_batches(pairs))
    found = scores.score(model, tokenizer, all_items=True)
    del found["scoring_runtime"]
    found["values"] = values_of(scores.suite, model, tokenizer)
    stop = StopOnSignal()
    stop.on_train_begin(SimpleNamespace(world_size=2), None, None)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    trainer = SimpleNamespace(stop=stop, tasks=scores, tokenizer=tokenizer)
    stopped = LanguageModelTrainer._score_tasks(trainer, model, all_items=True)
    found["signal"] = stopped, stop.received
    stop.restore()
    if rank == 1:
        torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    for fault in ("NaN", "memory"):
        try:
            scores.score(model, tokenizer, all_items=True)
        except UserError as error:
            found[fault] = str(error)
        if rank == 1:
            model.transformer.forward = out_of_memory
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def many_batches(pairs: Path) -> Suite:
    return Suite.load(ScoringArguments(pairs=str(pairs), batch_tokens=64))


def values_of(suite: Suite, model, tokenizer) -> list[float]:
    """The log-probability of each text, to the last digit."""
    answer = suite.ask(suite.tasks[0], suite.scorer(model, tokenizer))
    return answer.content.log_probability.tolist()


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("on this process only")


def test_two_processes_share_the_items_and_have_the_scores_and_errors_of_one(
    tiny, run_clm, pairs, tmp_path, in_two_processes
):
    assert run_clm(*tiny) == 0
    in_two_processes(score_in_two, only_run().absolute(), pairs, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    model = AutoModelForCausalLM.from_pretrained(only_run())
    suite, tokenizer = many_batches(pairs), load(str(only_run()))
    assert found[0].pop("values") == values_of(suite, model, tokenizer)
    # What only the second process meets.
    assert found[0].pop("signal") == [{}, signal.SIGTERM]
    assert "the model gives NaN" in found[0]["NaN"]
    assert "(pairs/agreement)" in found[0].pop("NaN")
    assert "out of memory: set a smaller evaluation.batch_tokens" in found[0].pop(
        "memory"
    )
    alone = TaskScores(suite).score(model, tokenizer, all_items=True)
    del alone["scoring_runtime"]
    assert found[0] == alone and set(alone) == {"pairs", "pairs/dogs", "pairs/cats"}


def test_a_signal_ends_the_scoring_of_all_tasks(
    tiny, run_clm, pairs, tmp_path, monkeypatch
):
    """The second task is not even prepared."""
    assert run_clm(*tiny) == 0
    prepared, prepare = [], Suite._prepare
    monkeypatch.setattr(
        Suite, "_prepare", lambda *args: prepared.append(args[1].name) or prepare(*args)
    )
    more = shutil.copytree(pairs, tmp_path / "more")
    suite = Suite.load(ScoringArguments(pairs=[str(pairs), str(more)]))
    stop = StopOnSignal()
    trainer = SimpleNamespace(
        stop=stop, tasks=TaskScores(suite), tokenizer=load(str(only_run()))
    )
    model = AutoModelForCausalLM.from_pretrained(only_run())
    score = functools.partial(LanguageModelTrainer._score_tasks, trainer, model, True)
    assert "pairs/more" in score() and len(prepared) == 2
    prepared.clear()
    stop._receive(signal.SIGTERM, None)
    assert score() == {} and stop.received == signal.SIGTERM
    assert len(prepared) == 1


def python_m(module: str, arguments: list[str], folder: Path, node: str = "") -> None:
    """This process as `python -m module …`, in `folder` or on a node without a shared disk.

    Args:
        node: the beginning of the name of a node's folder, which ends with the rank.
    """
    folder = folder / f"{node}{os.environ['RANK']}" if node else folder
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:  # as Python shows it
        print(stop.code, file=sys.stderr)
        sys.exit(1)


def test_a_run_that_cannot_be_scored_ends_in_all_processes(
    tiny, pairs, tmp_path, in_two_processes
):
    """The message comes; nobody is killed for waiting."""
    rates = ["training.learning_rate=1e30", "training.max_grad_norm=1e30"]
    command = [*tiny, f"evaluation.pairs={pairs}", *rates]
    with pytest.raises(ChildFailedError):
        in_two_processes(python_m, "src.run_clm", command, tmp_path)
    shown = [file.read_text() for file in (tmp_path / "logs").rglob("stderr.log")]
    assert len(shown) == 2
    assert all(text.count("error: the model gives NaN for") == 1 for text in shown)


def test_nodes_without_a_shared_disk_are_refused_before_any_work(
    tiny, tmp_path, in_two_processes
):
    """They would wait for each other when the run continues."""
    with pytest.raises(ChildFailedError):
        in_two_processes(python_m, "src.run_clm", tiny, tmp_path, "node")
    # Where one has ended, the other may be killed before it says so, too.
    shown = [file.read_text() for file in (tmp_path / "logs").rglob("stderr.log")]
    told = [text for text in shown if "error: process 1 does not see the same" in text]
    assert told and "all nodes must have the same data and share" in told[0]
    assert "exp/run-custom-custom/" in told[0]
