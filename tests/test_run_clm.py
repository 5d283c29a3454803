"""The front door, as a user calls it: commands in, files and messages out."""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from src.foundation import fault_by_manifest
from src.run_clm import main, run
from src.training import trainer as trainer_module
from src.training.record import throughput
from src.training.record.checkpoints import seal
from src.training.record.ledger import read_ledger
from src.training.task_scores import TaskScores
from tests import terminal
from tests.conftest import REPOSITORY, is_wanted, sentences, tiny_run, write_corpus


def only_run(tag: str = "run") -> Path:
    """The directory of the only run with that tag."""
    (directory,) = Path(f"exp/{tag}-custom-custom").glob("seed-*")
    return directory


def history(run: Path) -> list[dict]:
    """What was logged, without what differs between any two runs: the clock."""
    last = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    rows = json.loads((last / "trainer_state.json").read_text())["log_history"]
    clock = ("runtime", "per_second", "preparation_time")
    return [{k: v for k, v in row.items() if not k.endswith(clock)} for row in rows]


def same_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / "model.safetensors"), load_file(
        second / "model.safetensors"
    )
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


WITHOUT_DROPOUT = ["training.max_words=5500", "training.milestones=[2k]"] + [
    f"++model.config_overrides.{name}=0.0"
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")
]


@pytest.fixture(scope="module", autouse=True)
def torchrun(request, tmp_path_factory):
    """A run of two processes, begun before the tests here: they import while those run."""
    if not is_wanted("run_of_two", request):
        yield
        return
    folder = tmp_path_factory.mktemp("two")
    tiny = [o for o in tiny_run(write_corpus(folder / "text")) if "max_steps" not in o]
    tiny = [o.replace("train_batch_size=8", "train_batch_size=4") for o in tiny]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["-m", "src.run_clm", *tiny, *WITHOUT_DROPOUT, "wandb.tag=two"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (folder / "shown").open("w") as shown:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=shown, stderr=shown
        )
    yield folder, process
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def run_of_two(torchrun):
    """Its directory, when it has ended."""
    folder, process = torchrun
    assert process.wait(120) == 0, (folder / "shown").read_text()
    (directory,) = (folder / "exp/two-custom-custom").glob("seed-*")
    return directory


def test_a_run_leaves_a_model_that_loads_its_scores_and_its_record(
    tiny, run_clm, caplog
):
    assert run_clm(*tiny, "evaluation.num_generated_texts=2") == 0
    run, shown = only_run(), caplog.text
    model = AutoModelForCausalLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert model.config.n_layer == 1 and model.config.use_cache
    ids = tokenizer("The dog")["input_ids"]
    assert ids[0] == model.config.bos_token_id and ids[-1] != model.config.eos_token_id
    results = json.loads((run / "results.json").read_text())
    compared = [row["name"] for row in results["sanity"]]
    assert compared == ["childes", "gutenberg", "all"]
    for file in ("", "files/childes/", "files/gutenberg/"):
        for figure in (
            "loss",
            "perplexity",
            "accuracy",
            "bits_per_byte",
            "word_perplexity",
        ):
            assert results[f"eval_{file}{figure}"] > 0
    assert results["steps"] == 12
    assert "Written by the model" in shown and "perplexity/word" in shown
    record = json.loads((run / "run.json").read_text())
    assert record["command"].startswith("python -m src.run_clm model.model_type=gpt2")
    assert set(record["identity"]["data"]) == {
        "train/childes", "train/gutenberg", "validation/childes", "validation/gutenberg"
    }  # fmt: skip
    assert record["versions"]["transformers"]
    assert "learning_rate: 0.0007" in (run / "config.yaml").read_text()
    card = (run / "README.md").read_text()
    assert "Trained from scratch" in card and "fine-tune" not in card
    assert f"{results['words_seen']:,} words were seen" in card


def test_a_finished_run_knows_its_final_model(tiny, run_clm):
    assert run_clm(*tiny, "training.output_dir=run") == 0
    names = json.loads(Path("run/manifest.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names.keys()
    assert fault_by_manifest(Path("run")) is None
    weights = Path("run/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    assert fault_by_manifest(Path("run")) == "is damaged (model.safetensors)"
    again = [x for x in tiny if not x.startswith(("model.", "tokenizer."))]
    message = run_clm(*again, "model.model_name_or_path=run", "wandb.tag=more")
    assert "model_name_or_path=run: is damaged (model.safetensors)" in message


def test_evaluating_the_saved_model_gives_the_logged_score(tiny, run_clm):
    run_clm(*tiny)
    trained = json.loads((only_run() / "results.json").read_text())
    weights = f"model.model_name_or_path={only_run()}"
    kept = [o for o in tiny if not o.startswith(("model.", "tokenizer."))]
    assert run_clm(*kept, weights, "training.do_train=false", "wandb.tag=again") == 0
    again = json.loads((only_run("again") / "results.json").read_text())
    for key in ("eval_loss", "eval_files/childes/accuracy", "eval_bits_per_byte"):
        assert again[key] == pytest.approx(trained[key], rel=1e-5)


def test_the_same_command_again_shows_the_results_and_does_nothing(
    tiny, run_clm, caplog
):
    run_clm(*tiny)
    before = {
        p: p.stat().st_mtime_ns for p in only_run().rglob("*") if p.name != "train.log"
    }
    caplog.clear()
    assert run_clm(*tiny, "training.logging_steps=3") == 0
    assert "This run is finished" in caplog.text
    after = {
        p: p.stat().st_mtime_ns for p in only_run().rglob("*") if p.name != "train.log"
    }
    assert after == before


def run_in_this_process(*overrides: str) -> None:
    sys.argv = ["run_clm", *overrides]
    main()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_whole_lines_and_no_remains_of_bars(tiny, processes, width):
    command = [*tiny, "training.output_dir=exp/mine"]
    lines = terminal.shown(processes, width, run_in_this_process, *command)
    assert not [line for line in lines if "it/s" in line or "B/s" in line]
    assert not [line for line in lines if line.startswith("↵")]  # cut by the terminal
    assert lines[0] == "Run: exp/mine"
    assert [line for line in lines if line.startswith("step 12/12  ")]
    log = Path("exp/mine/train.log").read_text().split("\n")
    (row,) = [line for line in log if "step 12/12" in line and "eval loss" in line]
    assert "  eval word_perplexity " in row and len(row) > 120  # one line, all figures


def test_an_error_is_not_shown_behind_a_bar(tiny, processes):
    command = [*tiny, "training.learning_rate=1e30", "training.max_grad_norm=0"]
    lines = terminal.shown(processes, 100, run_in_this_process, *command)
    assert [line for line in lines if line.startswith("error: ")]
    assert not [line for line in lines if "it/s" in line]


def test_a_sweep_announces_its_jobs_and_ends_with_a_table(tiny, run_clm, caplog):
    sizes = "data.block_size=1000,16"  # the first is longer than the model's context
    assert run_clm("-m", *(o for o in tiny if "block_size" not in o), sizes) != 0
    jobs = [line.strip() for line in caplog.messages if "Job " in line]
    assert jobs == ["Job 1 of 2", "Job 2 of 2"]
    (file,) = Path("exp/.sweeps").glob("*/jobs.txt")
    heading, failed, done = file.read_text().splitlines()
    assert heading.split() == ["job", "differs", "state", "loss", "directory"]
    assert failed.split()[:3] == ["1", "data.block_size=1000", "failed"]
    number, differs, state, loss, directory = done.split()
    assert (number, differs, state) == ("2", "data.block_size=16", "done")
    results = json.loads(Path(directory, "results.json").read_text())
    assert float(loss) == pytest.approx(results["eval_loss"], rel=1e-4)
    assert "\n" + done in caplog.text


def test_a_group_sweeps_over_seeds_without_being_part_of_a_runs_name(
    tiny, run_clm, caplog
):
    assert run_clm(*tiny, "+sweep=seeds") == 0
    assert "Job 3 of 3" in caplog.text and "mean of 3 seeds" in caplog.text
    names = sorted(run.name[:7] for run in Path("exp/run-custom-custom").glob("seed-*"))
    assert names == ["seed-1_", "seed-2_", "seed-3_"]
    assert not list(Path("exp/run-custom-custom").glob("*sweep*"))


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)`: runs from now on do `action` when n steps are done."""

    def install(step, action):
        build = trainer_module.LanguageModelTrainer.__init__

        def init(self, *args, **kwargs):
            build(self, *args, **kwargs)
            self.add_callback(At(step, action))

        patch = pytest.MonkeyPatch()
        patch.setattr(trainer_module.LanguageModelTrainer, "__init__", init)
        return patch

    return install


LONGER = ("training.eval_steps=5", "training.save_steps=5", "training.logging_steps=4",
          "training.max_steps=40", "training.gradient_accumulation_steps=2",
          "model.config_overrides.resid_pdrop=0.1")  # fmt: skip


def longer_run(tiny):
    return [o for o in tiny if "_steps=" not in o] + [
        o.replace("model.config", "++model.config") for o in LONGER
    ]


@pytest.fixture
def longer(tiny):
    """A run over several epochs, with dropout, accumulation, evaluations and saves."""
    return longer_run(tiny)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of that run, which nothing interrupted; the same text elsewhere."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = longer_run(tiny_run(write_corpus(folder / "text")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run_clm", *overrides])
        main()
        return only_run().absolute()


def test_a_stopped_run_continues_bit_for_bit(longer, whole, run_clm, at_step):
    for number, step in ((signal.SIGTERM, 7), (signal.SIGINT, 23)):
        patch = at_step(step, lambda: os.kill(os.getpid(), number))
        assert run_clm(*longer, "wandb.tag=stopped") == 128 + number
        patch.undo()
        assert not (only_run("stopped") / "results.json").exists()
        assert (
            only_run("stopped") / f"checkpoint-{step + 1}" / "manifest.json"
        ).exists()
    assert run_clm(*longer, "wandb.tag=stopped") == 0
    assert same_weights(whole, only_run("stopped"))
    assert history(whole) == history(only_run("stopped"))


def test_a_signal_ends_an_evaluation_and_the_continued_run_makes_up_for_it(
    longer, whole, run_clm, monkeypatch, at_step
):
    score = TaskScores.score

    def stopped(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TaskScores, "score", stopped)
        for _ in range(2):  # the second start is stopped while it makes up for it
            assert run_clm(*longer, "wandb.tag=evaluated") == 128 + signal.SIGTERM
            run = only_run("evaluated")
            assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-5"]
            assert not any("eval_loss" in row for row in history(run))
    for step in (
        9,
        39,
    ):  # the evaluations after these steps, of which the last ends the run
        patch = at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_clm(*longer, "wandb.tag=evaluated") == 128 + signal.SIGTERM
        patch.undo()
        last = json.loads(
            (run / f"checkpoint-{step + 1}/trainer_state.json").read_text()
        )
        assert (
            max(r["step"] for r in last["log_history"] if "eval_loss" in r) == step - 4
        )
    assert run_clm(*longer, "wandb.tag=evaluated") == 0
    assert same_weights(whole, run)
    assert history(whole) == history(run)


def test_a_run_moved_while_it_trains_stops_and_continues_when_it_is_back(
    longer, whole, run_clm, at_step
):
    patch = at_step(12, lambda: Path("exp").rename("moved"))
    message = run_clm(*longer, "wandb.tag=moved")
    patch.undo()
    assert "was moved or deleted while the run was training" in message
    assert not Path("exp").exists()
    Path("moved").rename("exp")
    assert run_clm(*longer, "wandb.tag=moved") == 0
    assert same_weights(whole, only_run("moved"))


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing after it is done."""


def killed(*args):
    raise Killed


def test_a_kill_during_a_save_costs_the_steps_since_the_one_before(
    longer, whole, run_clm, at_step, monkeypatch, caplog
):
    patch = at_step(19, lambda: monkeypatch.setattr(trainer_module, "seal", killed))
    with pytest.raises(Killed):
        run_clm(*longer, "wandb.tag=killed")
    patch.undo()
    monkeypatch.setattr(trainer_module, "seal", seal)
    assert (only_run("killed") / "checkpoint-20" / "trainer_state.json").exists()
    assert run_clm(*longer, "wandb.tag=killed") == 0
    assert "checkpoint-20 was not finished" in caplog.text
    assert "checkpoint-15" in caplog.text
    assert same_weights(whole, only_run("killed"))
    assert history(whole) == history(only_run("killed"))


def test_a_damaged_checkpoint_is_passed_over(longer, whole, run_clm, at_step, caplog):
    patch = at_step(22, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run_clm(*longer, "wandb.tag=damaged")
    patch.undo()
    run = only_run("damaged")
    weights = run / "checkpoint-23" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    caplog.clear()
    assert run_clm(*longer, "wandb.tag=damaged") == 0
    shown = caplog.text
    assert "checkpoint-23 is damaged (model.safetensors)" in shown
    assert "Continuing from" in shown and "checkpoint-20" in shown
    assert (run / "damaged-checkpoint-23").is_dir()
    assert same_weights(whole, run)


def test_a_run_whose_yaml_was_edited_is_refused_with_the_differences(tiny, run_clm):
    group = Path("conf/model/mine.yaml")
    group.parent.mkdir(parents=True)
    text = "# @package _global_\nmodel:\n  config_overrides: {n_layer: %d, n_embd: 16, n_head: 2}\n"
    command = [o for o in tiny if "config_overrides" not in o]
    command = ["--config-dir", "conf", "+model=mine", *command]
    group.write_text(text % 1)
    assert run_clm(*command) == 0
    group.write_text(text % 2)
    message = run_clm(*command)
    assert '"n_layer": 1' in message and '"n_layer": 2' in message
    assert "wandb.tag" in message and "training.overwrite_output_dir=true" in message
    assert run_clm(*command, "training.overwrite_output_dir=true") == 0
    (old,) = Path("exp/run-mine-custom/.old").glob("seed-*-1")
    assert json.loads((old / "config.json").read_text())["n_layer"] == 1
    (new,) = Path("exp/run-mine-custom").glob("seed-*")
    assert json.loads((new / "config.json").read_text())["n_layer"] == 2


def test_a_run_whose_text_changed_is_refused(tiny, run_clm, corpus):
    run_clm(*tiny)
    with (corpus / "childes.train").open("a", encoding="utf-8") as file:
        file.write("One more line.\n")
    assert "text: train/childes differs" in run_clm(*tiny)


def test_the_jobs_of_a_sweep_are_runs_of_their_own(tiny, run_clm, caplog, monkeypatch):
    sweep = (
        "training.seed=1,2",
        "training.learning_rate=1e-3,3e-3",
        "training.max_steps=2",
    )
    tiny = [o for o in tiny if "max_steps" not in o]
    monkeypatch.setattr(throughput, "_jobs_before", itertools.count())  # a new process
    assert run_clm("-m", *tiny, *sweep) == 0
    first, *others = map(float, re.findall(r"Time: start-up ([\d.]+) s", caplog.text))
    assert len(others) == 3 and max(others) < first
    runs = sorted(Path("exp/run-custom-custom").glob("seed-*/results.json"))
    assert len(runs) == 4
    losses = {json.loads(file.read_text())["eval_loss"] for file in runs}
    assert len(losses) == 4


def test_a_sweep_and_the_same_values_typed_are_the_same_run(tiny, run_clm, caplog):
    assert run_clm("-m", *tiny, "training.seed=1,2") == 0
    caplog.clear()
    assert run_clm(*tiny, "training.seed=2") == 0
    assert "This run is finished" in caplog.text


def test_only_preprocessing_prints_the_table_and_makes_no_run(tiny, run_clm, caplog):
    assert run_clm(*tiny, "training.only_preprocess_dataset=true") == 0
    shown = caplog.text
    assert "gutenberg" in shown and "blank_line" in shown and "trigram" in shown
    assert not Path("exp").exists() or not list(Path("exp").rglob("*.json"))


def test_a_budget_of_words_ends_a_run(tiny, run_clm):
    """Of 2,000 words an epoch, with a learning rate that falls until the run's own end."""
    tiny = [o for o in tiny if "max_steps" not in o]
    assert run_clm(*tiny, "training.max_words=3000", "data.word_budget=2000") == 0
    results = json.loads((only_run() / "results.json").read_text())
    assert 2900 < results["words_seen"] <= 3000
    rows = [row for row in history(only_run()) if "loss" in row]
    assert rows[-1]["words"] == results["words_seen"]
    assert [row["words"] for row in rows] == sorted(row["words"] for row in rows)
    rates = [row["learning_rate"] for row in rows]
    assert rates[-1] < max(rates) / 10


def test_curricula_and_mixtures_train(tiny, run_clm):
    overrides = (
        "data.order=by_file",
        "data.file_order=[gutenberg,childes]",
        "data.mix={childes: 0.5}",
        "data.block_size_schedule={4: 0.5, 16: 0.5}",
        "data.attend_across_documents=false",
    )
    assert run_clm(*tiny, *overrides) == 0


def test_two_processes_see_the_words_and_reach_the_losses_of_one(
    tiny, run_clm, run_of_two
):
    """Two devices with four blocks each: also where the last batch of an epoch is short."""
    tiny = [o for o in tiny if "max_steps" not in o]
    assert run_clm(*tiny, *WITHOUT_DROPOUT) == 0
    one, two = history(only_run()), history(run_of_two)
    assert len(one) == len(two) > 40
    for a, b in zip(one, two):
        assert a["words"] == b["words"] and a["epoch"] == b["epoch"]
        for name in a.keys() & {"loss", "eval_loss"}:
            assert a[name] == pytest.approx(b[name], abs=1e-4)
    ledgers = [read_ledger(run / "words.jsonl") for run in (only_run(), run_of_two)]
    counts = [[(r["step"], r["words"], r["files"]) for r in rows] for rows in ledgers]
    assert counts[0] == counts[1] and len(counts[0]) > 20
    milestones = [
        json.loads((run / "chck_2k" / "words_seen.json").read_text())
        for run in (only_run(), run_of_two)
    ]
    assert milestones[0]["words"] == milestones[1]["words"] >= 2000


def test_any_causal_architecture_of_the_library_trains(tiny, run_clm):
    overrides = (
        "model.model_type=llama",
        "model.config_overrides={hidden_size:16,intermediate_size:32,num_hidden_layers:1,"
        "num_attention_heads:2,num_key_value_heads:1}",
    )
    tiny = [o for o in tiny if not o.startswith("model.")]
    assert run_clm(*tiny, *overrides, "training.max_steps=2") == 0


def test_text_without_a_validation_file_is_split(tiny, run_clm):
    tiny = [o for o in tiny if "validation_file" not in o]
    assert run_clm(*tiny, "data.validation_split_percentage=20") == 0
    results = json.loads((only_run() / "results.json").read_text())
    assert results["eval_files/gutenberg/loss"] > 0


def test_tables_of_every_kind_train(tiny, run_clm, corpus):
    rows = [{"text": text} for text in sentences(200, 5)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tiny = [o for o in tiny if not o.startswith("data.train_file")]
    assert run_clm(*tiny, "data.train_file=t.jsonl", "training.max_steps=2") == 0


def test_a_hub_dataset_trains(tiny, run_clm):
    """A local folder goes the way of a hub name, through `load_dataset_builder`."""
    folder = Path("hub_dataset")
    folder.mkdir()
    for split, seed in (("train", 1), ("validation", 2)):
        rows = "\n".join(json.dumps({"text": text}) for text in sentences(200, seed))
        (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    tiny = [o for o in tiny if "_file=" not in o]
    assert (
        run_clm(*tiny, "data.dataset_name=./hub_dataset", "training.max_steps=2") == 0
    )


def test_cache_and_exp_may_be_links_to_another_disk(tiny, run_clm, tmp_path):
    for name in (".cache", "exp"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        Path(name).symlink_to(tmp_path / "disk" / name)
    assert run_clm(*tiny, "training.max_steps=2") == 0
    assert list((tmp_path / "disk" / "exp").rglob("results.json"))


@pytest.mark.parametrize(
    "name, key", [(".cache", "model.cache_dir"), ("exp", "training.output_dir")]
)
def test_a_link_to_a_disk_that_is_missing_is_named_with_its_key(
    name, key, tiny, run_clm
):
    Path(name).symlink_to("/no/disk")
    message = run_clm(*tiny)
    assert message.startswith(f"error: {key}: ")
    assert message.endswith(f"{name} is a link to /no/disk, which does not exist")


@pytest.mark.parametrize("limit", [500, 5_000, 20_000, 40_000])
def test_a_run_on_a_full_disk_ends_with_one_line_and_continues(limit, tiny, run_clm):
    """A limit on the size of a file stops the writing of checkpoints and of the model."""
    assert run_clm(*tiny, "training.only_preprocess_dataset=true") == 0
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        message = run_clm(*tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert re.fullmatch(
        "error: training.output_dir: exp/.* cannot be written: (File too large|the disk may"
        " be full)",
        message,
    )
    assert run_clm(*tiny) == 0


@pytest.mark.parametrize(
    "override, told",
    [
        (
            "data.train_file=gone/*.train",
            ("data.train_file", "gone/*.train", "looked in"),
        ),
        ("data.train_file=babylm_data/babylm_10M/*.train", ("./download_data.sh",)),
        ("data.train_file=empty.train", ("empty.train is empty",)),
        ("data.train_file=latin.train", ("latin.train", "UTF-8", "byte 3", "0xe9")),
        ("data.block_size=33", ("data.block_size=33", "32 positions")),
        ("data.train_file=short.train", ("data.block_size=16", "fewer than one block")),
        ("tokenizer.vocab_size=10", ("tokenizer.vocab_size", "259", "10")),
        ("model.model_type=gtp2", ("model.model_type=gtp2", "gpt2")),
        ("model.model_type=t5", ("t5", "causal")),
        ("model.config_overrides={n_layers:1}", ("n_layers", "n_layer")),
        ("model.config_overrides={n_layer:two}", ("n_layer", "int", "two")),
        ("model.model_name_or_path=./gone", ("model.model_name_or_path", "gone")),
        ("tokenizer.name_or_path=./gone", ("tokenizer.name_or_path", "gone")),
        ("evaluation.pairs=gone", ("evaluation.pairs", "gone")),
        ("data.mix={childs: 2}", ("data.mix", "'childs'", "childes, gutenberg")),
        ("data.mix={childes: -1}", ("data.mix", "childes", "-1")),
        ("data.file_order=[childes]", ("data.file_order", "data.order=by_file")),
        ("data.word_budget=1999", ("data.word_budget=1,999", "2,000 words")),
        ("training.max_words=7", ("training.max_words=7", "first step")),
        ("data.block_size_schedule={5: 1.0}", ("block_size_schedule", "5", "divides")),
        (
            "data.block_size_schedule={4: 0.5, 16: 0.25}",
            ("data.block_size_schedule", "must be above 0 and add up to 1", "0.25"),
        ),
        ("data.block_size_schedule={8: 1.0}", ("lengths must grow and end with", "16")),
        ("data.block_size_schedule={a: 1.0}", ("'a'", "must be a whole number")),
        ("data.block_size_schedule={16: 0.5, 8: 0.5}", ("lengths must grow",)),
        ("data.block_size_schedule=8", ("data.block_size_schedule", "length: share")),
        ("data.attend_across_documents=maybe", ("attend_across_documents", "maybe")),
        ("data.mix={childes: 1e9}", ("in an epoch, is too large", "data.mix")),
        ("training.max_steps=1000000000", ("a run of 1,000,000,000 steps",)),
        ("training.gradient_accumulation_steps=900000", ("steps of 100 epochs",)),
    ],
)
def test_bad_input_ends_with_a_short_message_and_leaves_no_run(
    tiny, run_clm, override, told
):
    Path("empty.train").touch()
    Path("latin.train").write_bytes(b"caf\xe9 noir\n")
    Path("short.train").write_text("Hi.\n")
    key = override.split("=")[0]
    if key == "model.model_type":
        key = "model."
    tiny = [o for o in tiny if not o.startswith(key)]
    message = run_clm(*tiny, override)
    assert isinstance(message, str) and message.startswith("error: ")
    assert all(part in message for part in told), message
    assert len(message) < 600
    assert not list(Path().rglob("results.json"))


def test_a_model_that_fails_on_its_first_batch_is_refused(tiny, run_clm):
    """Without memory for the weights, transformers cannot compute a mixture of experts."""
    mixtral = (
        "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,"
        " num_attention_heads: 2, num_key_value_heads: 2, num_local_experts: 2,"
        " num_experts_per_tok: 4}"
    )
    tiny = [o for o in tiny if not o.startswith("model.")]
    options = ["model.model_type=mixtral", f"model.config_overrides={mixtral}"]
    message = run_clm(*tiny, *options)
    assert message.startswith("error: model: mixtral cannot compute a batch"), message


def test_a_run_without_model_or_data_lists_what_there_is(
    run_clm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    message = run_clm("wandb.log=false")
    assert all(
        x in message for x in ("+model=", "gpt2-tiny", "+dataset=", "babylm_10M")
    )
    assert not Path("exp").exists() or not list(Path("exp").rglob("*.json"))


@pytest.mark.parametrize(
    "override, told",
    [
        ("training.learning_rate=abc", "training.learning_rate: Value 'abc'"),
        ("training.lerning_rate=1", "did you mean `training.learning_rate`?"),
        ("+models=gpt2-small", "did you mean +model=…"),
    ],
)
def test_a_wrong_word_ends_with_one_message(tiny, run_clm, override, told, capfd):
    message = run_clm(*tiny, override)
    assert message.startswith("error: ") and told in message
    assert capfd.readouterr().err == ""


def test_a_sweeper_is_given_the_evaluation_loss(tiny, composed):
    loss = run.__wrapped__(composed(*tiny, "training.max_steps=2"))
    assert loss == json.loads((only_run() / "results.json").read_text())["eval_loss"]


def test_a_run_killed_after_its_last_step_takes_no_other_step(
    longer, whole, run_clm, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("src.training.run.final_scores", killed)
        with pytest.raises(Killed):
            run_clm(*longer, "wandb.tag=killed")
    assert run_clm(*longer, "wandb.tag=killed") == 0
    assert not (only_run("killed") / "checkpoint-41").exists()
    assert same_weights(whole, only_run("killed"))
    first, second = (
        json.loads((run / "results.json").read_text())
        for run in (whole, only_run("killed"))
    )
    assert first["steps"] == second["steps"] == 40
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], rel=1e-6)


def test_a_folder_with_other_files_is_neither_written_to_nor_moved(tiny, run_clm):
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    for overwrite in ("false", "true"):
        message = run_clm(
            *tiny,
            "training.output_dir=mine",
            f"training.overwrite_output_dir={overwrite}",
        )
        assert "mine is not a run (it has no run.json), but holds README.md" in message
    assert [p.name for p in Path("mine").iterdir()] == ["README.md"]


def test_a_typed_token_is_written_nowhere(tiny, run_clm):
    assert run_clm(*tiny, "model.token=hf_secret", "training.max_steps=2") == 0
    for file in only_run().rglob("*"):
        assert not file.is_file() or b"hf_secret" not in file.read_bytes()


def test_a_run_that_saved_nothing_yet_may_be_begun_with_other_settings(tiny, run_clm):
    group = Path("conf/model/mine.yaml")
    group.parent.mkdir(parents=True)
    text = (
        "# @package _global_\nmodel:\n"
        "  config_overrides: {vocab_size: %d, n_layer: 1, n_embd: 16, n_head: 2}\n"
    )
    command = ["--config-dir", "conf", "+model=mine"]
    command += [o for o in tiny if "config_overrides" not in o]
    group.write_text(text % 10)
    assert "is too small for the tokenizer's" in run_clm(*command)
    group.write_text(text % 500)
    assert run_clm(*command) == 0


def test_what_a_refused_start_made_it_takes_away(tiny, run_clm):
    """Also what Hydra wrote, and the files of W&B."""
    tiny = [override for override in tiny if override != "wandb.log=false"]
    hydra = ["hydra/job_logging=default", "hydra.output_subdir=.hydra"]
    early, late = "data.block_size=1", "training.max_words=7"
    for refused in (early, late):
        assert refused.replace("=1", "") in run_clm(*tiny, *hydra, refused)
        assert not list(Path("exp").rglob("*"))
    assert run_clm(*tiny, *hydra) == 0
    assert list(Path().rglob(".hydra/config.yaml"))


def test_a_step_that_blocks_do_not_fill_is_refused_before_any_work(tiny, run_clm):
    batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    command = [o for o in tiny if not any(name in o for name in batch)]
    message = run_clm(*command, "training.tokens_per_step=100")
    assert "tokens_per_step=100 must be a multiple of data.block_size=16" in message
    assert "the nearest is 96" in message
    assert not list(Path("exp").rglob("*")) and not Path(".cache").exists()


def test_the_division_of_a_step_is_kept_with_the_run(tiny, run_clm):
    batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    command = [o for o in tiny if not any(name in o for name in batch)]
    assert run_clm(*command, "training.tokens_per_step=128") == 0
    layout = json.loads((only_run() / "step_layout.json").read_text())
    assert layout == {"sequences": 8, "micro_batches": 1, "compiled": False}


def test_colleagues_can_read_a_run(tiny, run_clm):
    """safetensors makes files that their owner alone can read; the umask decides here."""
    before = os.umask(0o027)
    try:
        assert run_clm(*tiny, "training.averaging=ema") == 0
    finally:
        os.umask(before)
    files = [path for path in only_run().rglob("*") if path.is_file()]
    assert {"model.safetensors", "average.safetensors"} <= {path.name for path in files}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
