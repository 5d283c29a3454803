"""The Trainer's own parts, against figures computed by hand from the model's logits."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from src.arguments import (
    FIGURES,
    Arguments,
    DataTrainingArguments,
    ModelArguments,
    TrainingArguments,
)
from src.data.blocks import IGNORE_INDEX, Blocks, file_spans
from src.data.cache import Cache
from src.data.packing.pack import Packer
from src.data.packing.tokenizer import train as train_tokenizer
from src.data.prepare import Data
from src.data.text.corpus import read_corpus
from src.evaluation.suite import Suite
from src.foundation import UserError
from src.training.callbacks import Console
from src.training.final_model import final_scores
from src.training.model import build_model, model_config
from src.training.record.checkpoints import newest_whole
from src.training.record.throughput import Clock
from src.training.setup import decide, plan_run, report
from src.training.step.micro_batching import sequences_per_step
from src.training.task_scores import TaskScores
from src.training.trainer import LanguageModelTrainer

LETTERS = train_tokenizer(["a"], 259)  # every byte is a token; BOS is 1, EOS 2
# Documents of all lengths, so that blocks have between 8 and 5 targets.
TEXT = "\n\n".join("abcdefghijklmnop"[: 1 + 3 * i % 13] for i in range(18))
FILES = {"first": "the dog sees the cat", "second": "a dog\n\nshe sees a cat too"}
BEGIN = 1
GPT2 = dict(
    model_type="gpt2",
    config_overrides=dict(
        n_layer=1, n_embd=16, n_head=2, n_positions=32, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    ),
)  # fmt: skip
OPT = dict(
    model_type="opt",
    config_overrides=dict(
        num_hidden_layers=1, hidden_size=16, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=32, dropout=0.0,
    ),
)  # fmt: skip
LLAMA = dict(
    model_type="llama",
    config_overrides=dict(
        num_hidden_layers=1, hidden_size=16, intermediate_size=32,
        num_attention_heads=2,
    ),
)  # fmt: skip


@pytest.fixture
def stream_of(tmp_path):
    """`stream_of(name=text, …)`: the texts as one packed stream."""

    def call(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.txt").write_text(text)
        paths = [f"{tmp_path}/{name}.txt" for name in texts]
        sources = read_corpus(paths, tmp_path / "cache")
        return Packer(LETTERS, "blank_line", Cache(tmp_path / "cache")).pack(sources)

    return call


@pytest.fixture
def trainer_of(tmp_path, stream_of):
    """`trainer_of(…)`: eight blocks of eight tokens, a model of one layer, plain SGD."""

    def call(
        block_size=8, num_blocks=8, text=TEXT, files=FILES, model=GPT2, data={},
        **training
    ):  # fmt: skip
        stream, dev = stream_of(train=text), stream_of(**files)
        arguments = DataTrainingArguments(block_size=block_size, **data)
        apart = not arguments.attend_across_documents
        spans = [(0, len(stream))]
        blocks = Blocks(stream, spans, block_size, False, num_blocks, apart)
        validation = Blocks(dev, file_spans(dev), 8, True, None, apart)
        packed = Data(stream, blocks, validation)
        Path(training.get("output_dir", tmp_path / "run")).mkdir(exist_ok=True)
        settings = dict(
            output_dir=str(tmp_path / "run"), use_cpu=True, do_train=True, do_eval=True,
            optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_steps=1,
            per_device_train_batch_size=8, per_device_eval_batch_size=3,
            logging_steps=1, save_strategy="no", max_grad_norm=100.0, seed=3,
            report_to="none",
        )  # fmt: skip
        args = Arguments(
            model=ModelArguments(**model),
            data=arguments,
            training=TrainingArguments(**{**settings, **training}),
        )
        return built(args, packed)

    return call


def built(
    args, data, tokenizer=LETTERS, spy=lambda model: None
) -> LanguageModelTrainer:
    """The trainer of a run, put together as `run.train` does; `spy` sees the model first."""
    plan = plan_run(args, data, sequences_per_step(args.training, args.data.block_size))
    model = build_model(args, model_config(args), tokenizer)
    spy(model)
    setup = decide(args, {}, plan, model, args.training.metric_for_best_model)
    report(setup, args, model, data.validation)
    tasks = TaskScores(Suite.load(args.evaluation))
    return LanguageModelTrainer(args, setup, model, tokenizer, data, tasks, (), Clock())


def train(trainer: LanguageModelTrainer) -> bool:
    """Train to the end, or until a signal; from the newest checkpoint, if there is one."""
    trainer.fit()
    return trainer.stop.received is None


def stacked(blocks: Blocks, key: str) -> torch.Tensor:
    return torch.stack([blocks[i][key] for i in range(len(blocks))])


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_batch(trainer_of):
    """However the batch is divided: else a short document would weigh more than a long."""
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = trainer_of(
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
        )
        inputs = stacked(trainer.train_dataset, "input_ids")
        labels = stacked(trainer.train_dataset, "labels")
        assert len(set((labels != IGNORE_INDEX).sum(1).tolist())) > 1  # unequal blocks
        logits = trainer.model(input_ids=inputs).logits
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        expected.backward()
        by_hand = [p - 0.5 * p.grad for p in trainer.model.parameters()]
        trainer.model.zero_grad()
        assert train(trainer)
        assert losses(trainer) == [pytest.approx(expected.item(), abs=1e-6)]
        weights = list(trainer.model.parameters())
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, by_hand))
        found.append((losses(trainer)[0], weights))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert all(
            torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, found[0][1])
        )


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_first_target_of_a_block_counts(trainer_of, model):
    """The Trainer leaves it out of its count for those architectures whose loss it knows."""
    trainer = trainer_of(
        block_size=2, num_blocks=1, per_device_train_batch_size=1, model=model
    )
    block = trainer.train_dataset[0]
    logits = trainer.model(input_ids=block["input_ids"][None]).logits[0]
    log_probabilities = logits.log_softmax(-1)
    first, second = block["labels"].tolist()
    expected = -(log_probabilities[0, first] + log_probabilities[1, second]) / 2
    train(trainer)
    assert losses(trainer) == [pytest.approx(expected.item(), abs=1e-6)]


def test_label_smoothing_is_honoured(trainer_of):
    trainer = trainer_of(
        label_smoothing_factor=0.2, gradient_accumulation_steps=4,
        per_device_train_batch_size=2,
    )  # fmt: skip
    blocks = trainer.train_dataset
    logits = trainer.model(input_ids=stacked(blocks, "input_ids")).logits
    labels = stacked(blocks, "labels")
    log_probabilities = logits.log_softmax(-1)[labels != IGNORE_INDEX]  # [targets, 259]
    right = log_probabilities.gather(1, labels[labels != IGNORE_INDEX][:, None])[:, 0]
    expected = -(0.8 * right + 0.2 * log_probabilities.mean(1)).mean()
    train(trainer)
    assert losses(trainer) == [pytest.approx(expected.item(), abs=1e-6)]


def test_a_run_without_gradient_clipping_is_logged(trainer_of):
    trainer = trainer_of(max_grad_norm=0.0)
    assert train(trainer) and len(losses(trainer)) == 1


@torch.no_grad()
def sums_by_hand(model, tokens: list[int]) -> tuple[float, int, int]:
    """Negative log-likelihood, hits and targets of a file, in blocks of 8, unpadded."""
    nll = hits = targets = 0
    for start in range(0, len(tokens) - 1, 8):
        piece = tokens[start : start + 9]
        logits = model(input_ids=torch.tensor([piece[:-1]])).logits[0]
        for position, target in enumerate(piece[1:]):
            if target != BEGIN:
                nll -= logits[position].log_softmax(-1)[target].item()
                hits += int(logits[position].argmax() == target)
                targets += 1
    return nll, hits, targets


def test_an_evaluation_is_what_one_computes_by_hand(trainer_of):
    trainer = trainer_of()
    scores = trainer.evaluate()
    model, stream = trainer.model.eval(), trainer.eval_dataset.stream
    totals, sizes = [], []
    for row, text in zip(stream.files, FILES.values()):
        tokens = stream.tokens[row["start"] : row["end"]].tolist()
        assert (len(tokens) - 1) % 8  # a remainder
        totals.append(sums_by_hand(model, tokens))
        sizes.append((len(text.encode()), len(text.split())))
    totals.append([sum(column) for column in zip(*totals)])
    sizes.append([sum(column) for column in zip(*sizes)])
    for prefix, (nll, hits, targets), (num_bytes, words) in zip(
        ("eval_files/first/", "eval_files/second/", "eval_"), totals, sizes
    ):
        expected = {
            "loss": nll / targets,
            "perplexity": math.exp(nll / targets),
            "accuracy": hits / targets,
            "bits_per_byte": nll / math.log(2) / num_bytes,
            "word_perplexity": math.exp(nll / words),
        }
        for name, value in expected.items():
            assert scores[prefix + name] == pytest.approx(value, rel=1e-5), name


def test_an_evaluation_keeps_three_numbers_a_block(trainer_of):
    """Logits of a validation set would be hundreds of gigabytes."""
    trainer, seen = trainer_of(), []
    loop = trainer.evaluation_loop

    def spy(*args, **kwargs):
        seen.append(loop(*args, **kwargs))
        return seen[-1]

    trainer.evaluation_loop = spy
    trainer.evaluate()
    (output,) = seen
    assert output.predictions.shape == (len(trainer.eval_dataset), 3)
    assert output.label_ids.shape == (len(trainer.eval_dataset), 3)


class Inputs:
    """The blocks that are trained on, found by their tokens."""

    def __init__(self, trainer):
        self.seen = []
        self.known = {
            tuple(trainer.train_dataset[i]["input_ids"].tolist()): i
            for i in range(len(trainer.train_dataset))
        }
        assert len(self.known) == len(trainer.train_dataset)
        trainer.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        if model.training:
            self.seen += [
                self.known[tuple(row)] for row in kwargs["input_ids"].tolist()
            ]


class StopAfter(TrainerCallback):
    """Saves and stops after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_a_run_resumed_in_its_second_epoch_sees_the_rest_of_it(trainer_of):
    settings = dict(
        max_steps=12, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        learning_rate=0.01, save_strategy="steps", save_steps=100,
    )  # fmt: skip
    stopped = trainer_of(**settings)
    before = Inputs(stopped)
    stopped.add_callback(StopAfter(5))  # of four steps an epoch
    train(stopped)
    resumed = trainer_of(**settings)
    after = Inputs(resumed)
    checkpoint = newest_whole(run_dir(resumed))
    assert checkpoint == run_dir(resumed) / "checkpoint-5"
    train(resumed)
    epochs = [resumed.plan.order.blocks(epoch).tolist() for epoch in range(3)]
    assert before.seen == epochs[0] + epochs[1][:2]
    assert after.seen == epochs[1][2:] + epochs[2]


def run_dir(trainer) -> Path:
    return Path(trainer.args.output_dir)


def test_every_log_says_how_many_words_were_seen(trainer_of):
    """Over epochs of three steps, the last with two of four blocks; resumed in the second."""
    settings = dict(
        num_blocks=10, max_steps=8, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=4,
        save_strategy="steps", save_steps=100,
    )  # fmt: skip
    stopped = trainer_of(**settings)
    stopped.add_callback(StopAfter(5))
    train(stopped)
    trainer = trainer_of(**settings)
    train(trainer)
    words, seen = trainer.train_dataset.words, []
    for epoch in range(3):
        seen += np.split(trainer.plan.order.blocks(epoch), [4, 8])
    after = np.cumsum([0, *(words[blocks].sum() for blocks in seen)]).tolist()
    logs = trainer.state.log_history
    losses = {row["step"]: row["words"] for row in logs if "loss" in row}
    assert losses == {step: after[step] for step in range(1, 9)}
    evaluations = {row["step"]: row["words"] for row in logs if "eval_loss" in row}
    assert evaluations == {step: after[step] for step in (4, 8)}
    assert "words" not in trainer.evaluate()


def test_a_last_batch_that_is_not_full_counts_its_own_tokens_only(trainer_of):
    trainer = trainer_of(num_blocks=3, per_device_train_batch_size=4)
    inputs = stacked(trainer.train_dataset, "input_ids")
    labels = stacked(trainer.train_dataset, "labels")
    logits = trainer.model(input_ids=inputs).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    train(trainer)
    assert losses(trainer) == [pytest.approx(expected.item(), abs=1e-6)]


def test_a_schedule_cuts_blocks_in_shorter_ones_and_resumes_inside_a_stage(trainer_of):
    """Same tokens a step; lengths 2, 4 and 8 for a half, a quarter, a quarter."""
    settings = dict(
        data=dict(block_size_schedule={2: 0.5, 4: 0.25, 8: 0.25}), max_steps=8,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1,
        save_strategy="steps", save_steps=100,
    )  # fmt: skip
    whole = trainer_of(**settings)
    shapes = []
    whole.model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    train(whole)
    assert shapes == [(8, 2)] * 8 + [(4, 4)] * 4 + [(2, 8)] * 4  # two a step
    stopped = trainer_of(**settings)
    stopped.add_callback(StopAfter(5))
    train(stopped)
    resumed = trainer_of(**settings)
    train(resumed)
    assert losses(resumed) == losses(whole)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(one, other)


def test_short_sequences_see_nothing_before_their_beginning(trainer_of):
    data = dict(block_size_schedule={2: 1.0})
    trainer = trainer_of(data=data, num_blocks=1, per_device_train_batch_size=1)
    block = trainer.train_dataset[0]
    logits = trainer.model(input_ids=block["input_ids"].view(4, 2)).logits
    expected = F.cross_entropy(logits.flatten(0, 1), block["labels"])
    train(trainer)
    assert losses(trainer) == [pytest.approx(expected.item(), abs=1e-6)]


@pytest.mark.parametrize("model", [GPT2, OPT, LLAMA], ids=["gpt2", "opt", "llama"])
@pytest.mark.parametrize("schedule", [None, {4: 1.0}], ids=["whole", "short"])
def test_documents_of_a_block_can_be_kept_apart(trainer_of, model, schedule):
    """Training and evaluation give each document the losses it has alone."""
    data = dict(attend_across_documents=False, block_size_schedule=schedule)
    files = {"dev": "ab\n\nc\n\nde"}
    trainer = trainer_of(data=data, model=model, num_blocks=4, files=files)
    trainer.model.eval()

    def total(blocks, size):
        """The loss of all blocks, sequence by sequence and document by document."""
        summed, targets = 0.0, 0
        for block in (blocks[i] for i in range(len(blocks))):
            for start in range(0, 8, size):
                ids = block["input_ids"][start : start + size]
                labels = block["labels"][start : start + size]
                cuts = [i for i in range(1, size) if ids[i] == BEGIN]
                for a, b in zip([0, *cuts], [*cuts, size]):
                    logits = trainer.model(input_ids=ids[None, a:b]).logits[0]
                    one = F.cross_entropy(logits, labels[a:b], reduction="sum")
                    summed += one.item()
                    targets += int((labels[a:b] != IGNORE_INDEX).sum())
        return summed / targets

    expected = total(trainer.train_dataset, 4 if schedule else 8)
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated == pytest.approx(total(trainer.eval_dataset, 8), abs=1e-5)
    train(trainer)
    assert losses(trainer) == [pytest.approx(expected, abs=1e-5)]


def test_blocks_are_not_taken_for_padded(trainer_of, monkeypatch):
    """What finds out how documents are kept apart starts with token 0, which pads."""
    told = []
    logger = "transformers.modeling_utils.logger.warning_once"
    monkeypatch.setattr(logger, told.append)
    trainer_of(data=dict(attend_across_documents=False), do_train=False).evaluate()
    assert not told


OVERFITTING = dict(
    text="\n\n".join(["a dog sees"] * 30), max_steps=6, learning_rate=1.5,
    eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
    save_strategy="steps", save_steps=5, save_total_limit=2,
    metric_for_best_model="loss", greater_is_better=False,
)  # fmt: skip


def evaluations(trainer) -> dict[int, float]:
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    return {row["step"]: row["eval_loss"] for row in rows}


def test_the_best_model_is_kept_between_two_saves_and_loaded_at_the_end(trainer_of):
    trainer = trainer_of(**OVERFITTING)
    kind = trainer.fit()
    found = evaluations(trainer)
    best = min(found, key=found.get)
    assert 0 < best < 5  # neither saved by the cadence nor the last
    kept = sorted(path.name for path in run_dir(trainer).glob("checkpoint-*"))
    assert kept == sorted([f"checkpoint-{best}", "checkpoint-6"])
    assert kind == {"best_step": best, "best_words_seen": trainer.plan.words_seen(best)}
    scores = final_scores(trainer, kind)
    assert scores["eval_loss"] == pytest.approx(found[best], rel=1e-6)
    assert (scores["steps"], scores["best_step"]) == (6, best)
    words = [trainer.plan.words_seen(step) for step in (6, best)]
    assert [scores["words_seen"], scores["best_words_seen"]] == words
    saved = load_file(run_dir(trainer) / f"checkpoint-{best}" / "model.safetensors")
    name = "transformer.wte.weight"
    assert torch.equal(saved[name], trainer.model.state_dict()[name])
    shutil.rmtree(run_dir(trainer) / f"checkpoint-{best}")
    again = trainer_of(**OVERFITTING)
    train(again)
    assert again.state.best_global_step is None  # it ends with the last


def test_a_run_whose_best_checkpoint_was_lost_ends_with_the_best_of_the_rest(
    trainer_of,
):
    stopped = trainer_of(**OVERFITTING)
    stopped.add_callback(StopAfter(4))
    train(stopped)
    run = run_dir(stopped)
    state = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    assert best < 4
    (run / f"checkpoint-{best}" / "model.safetensors").write_bytes(b"damaged")
    resumed = trainer_of(**OVERFITTING)
    train(resumed)
    rest = {s: loss for s, loss in evaluations(resumed).items() if s > 4}
    assert resumed.state.best_global_step == min(rest, key=rest.get)
    assert resumed.evaluate()["eval_loss"] == pytest.approx(min(rest.values()))


def test_a_run_that_was_moved_still_ends_with_its_best_model(trainer_of, tmp_path):
    stopped = trainer_of(**OVERFITTING)
    stopped.add_callback(StopAfter(4))
    train(stopped)
    best = stopped.state.best_global_step
    moved = tmp_path / "moved"
    run_dir(stopped).rename(moved)
    resumed = trainer_of(**OVERFITTING, output_dir=str(moved))
    train(resumed)
    assert resumed.state.best_model_checkpoint == str(moved / f"checkpoint-{best}")


def test_tensorboard_writes_its_events_where_its_variable_says(
    trainer_of, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    train(trainer_of(report_to=["tensorboard"]))
    assert list((tmp_path / "events").rglob("events.out.tfevents.*"))


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(trainer_of):
    """The step and its blocks are named; the checkpoint from before is the newest."""
    settings = dict(max_steps=8, save_strategy="steps", save_steps=1, logging_steps=8)
    trainer = trainer_of(**settings)
    spoilt = []

    def spoil(module, args, kwargs):
        spoilt.append(1)
        if len(spoilt) == 4:
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))

    trainer.model.register_forward_pre_hook(spoil, with_kwargs=True)
    blocks = trainer.plan.order.blocks(3).tolist()
    with pytest.raises(UserError, match="the loss is nan at step 4, on blocks") as told:
        train(trainer)
    assert str(blocks)[1:-1] in str(told.value) and "checkpoint-3" in str(told.value)
    assert newest_whole(run_dir(trainer)) == run_dir(trainer) / "checkpoint-3"
    assert not (run_dir(trainer) / "checkpoint-4").exists()


class Spoil(TrainerCallback):
    """What a gradient that is no number does: the loss before it was one."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            with torch.no_grad():
                next(model.parameters())[0] = float("inf")


def test_weights_that_are_no_numbers_are_not_saved(trainer_of):
    trainer = trainer_of(max_steps=8, save_strategy="steps", save_steps=1)
    trainer.add_callback(Spoil())
    with pytest.raises(UserError, match="weights are not finite after step 3"):
        train(trainer)
    assert newest_whole(run_dir(trainer)) == run_dir(trainer) / "checkpoint-2"


def test_a_loss_that_grows_beyond_reason_stops_the_run(trainer_of):
    trainer = trainer_of(max_steps=50, learning_rate=1e3, max_grad_norm=0.0)
    with pytest.raises(UserError, match="the (mean )?loss .*step.*: training stops"):
        train(trainer)


class Explode(TrainerCallback):
    """Weights so large that the loss is, too."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters()).mul_(1e6)


def test_a_continued_run_refuses_the_loss_that_it_was_stopped_for(trainer_of):
    """The mean of several steps is not blamed on one; the best model is named."""
    settings = dict(
        max_steps=8, logging_steps=2, learning_rate=1e-3, eval_strategy="steps",
        eval_steps=4, save_strategy="steps", save_steps=4, load_best_model_at_end=True,
    )  # fmt: skip
    for _ in range(2):
        trainer = trainer_of(**settings)
        trainer.add_callback(Explode(4))
        with pytest.raises(UserError, match="the mean loss of steps 5–6 is ") as told:
            train(trainer)
        assert "blocks" not in str(told.value)
        left = run_dir(trainer) / "checkpoint-4"
        kept = f"The newest checkpoint: {left}; the best by evaluation: {left}."
        assert kept in str(told.value)


def test_weights_that_are_no_numbers_are_not_evaluated(trainer_of, monkeypatch):
    trainer = trainer_of(
        max_steps=8, logging_steps=8, eval_strategy="steps", eval_steps=3
    )
    trainer.add_callback(Spoil())
    monkeypatch.setattr(trainer, "prediction_step", None)
    with pytest.raises(UserError, match="not finite after step 3: .*: none yet"):
        train(trainer)


class Reads(TorchDispatchMode):
    """Counts how often a value is read off the device."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_between_logs_nothing_waits_for_the_device(trainer_of):
    found = []
    for steps in (10, 40):
        trainer = trainer_of(
            text="\n\n".join([TEXT] * 25), num_blocks=320, max_steps=steps,
            logging_steps=1000, logging_nan_inf_filter=False, learning_rate=1e-3,
            optim="adamw_torch_fused", max_grad_norm=1.0, gradient_accumulation_steps=2,
            per_device_train_batch_size=4,
        )  # fmt: skip
        with Reads() as reads:
            train(trainer)
        found.append(reads.number)
    assert found[0] == found[1]


def test_every_log_says_how_fast_it_was(trainer_of):
    trainer = trainer_of(max_steps=4, logging_steps=2)
    train(trainer)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["tokens_per_second"] > row["words_per_second"] > 0 for row in rows)
    seconds = trainer.clock.seconds()["training"]
    assert trainer.rates["tokens_per_second"] == pytest.approx(4 * 64 / seconds)


CAPPED = dict(
    model_type="gemma2",
    config_overrides=dict(
        num_hidden_layers=1, hidden_size=16, intermediate_size=32, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1,
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "settings, told",
    [
        (
            {},
            "logits of 64 tokens at a time",
        ),  # a micro-batch, not what a chunk may have
        (dict(logit_chunk=7), "logits of 7 tokens at a time"),
        (dict(logit_chunk=0), "(training.logit_chunk=0)"),
        (dict(label_smoothing_factor=0.1), "(the fused loss has no label smoothing)"),
        (dict(model=CAPPED), "(the fused loss does not fit the architecture)"),
        (dict(data=dict(attend_across_documents=False)), "; document masking"),
        (dict(gradient_checkpointing=True), "; gradient checkpointing"),
    ],
)
def test_the_line_says_how_a_step_is_computed(trainer_of, caplog, settings, told):
    caplog.set_level("INFO")
    trainer_of(**settings)
    (line,) = [text for text in caplog.messages if text.startswith("Step: ")]
    assert told in line
    assert ("; document masking" in line) == ("data" in settings)
    assert ("; gradient checkpointing" in line) == (
        "gradient_checkpointing" in settings
    )


@pytest.mark.parametrize(
    "settings, told",
    [
        # A run of 8 steps of 4 blocks costs as much as evaluating 96 blocks.
        (
            dict(eval_strategy="steps", eval_steps=4),
            "2 evaluations of 7 blocks, about 15 %",
        ),
        (dict(eval_strategy="epoch"), "4 evaluations of 7 blocks, about 29 %"),
        (
            dict(eval_strategy="steps", eval_steps=1),
            "max_eval_samples=1 makes it a tenth",
        ),
    ],
)
def test_the_cost_of_evaluations_is_told(trainer_of, caplog, settings, told):
    caplog.set_level("INFO")
    trainer_of(max_steps=8, per_device_train_batch_size=4, **settings)
    (line,) = [text for text in caplog.messages if "the training's computation" in text]
    assert told in line


def test_attention_that_was_asked_for_is_the_one(trainer_of, caplog):
    caplog.set_level("INFO")
    trainer_of(model={**GPT2, "attn_implementation": "sdpa"})
    assert "sdpa attention (model.attn_implementation=sdpa)" in caplog.text
    caplog.clear()
    trainer_of()
    assert "causal attention (no mask is needed)" in caplog.text


def test_the_console_has_rates_in_full_and_of_a_huge_perplexity_the_size(caplog):
    caplog.set_level("INFO")
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, max_steps=2)
    Console().on_log(None, state, None, {"loss": 2.5, "tokens_per_second": 1_234_567.8})
    figures = dict(loss=30.0, perplexity=1.07e13, accuracy=0.1, bits_per_byte=12.0)
    logs = {f"eval_{name}": value for name, value in figures.items()}
    Console().on_log(None, state, None, {**logs, "eval_word_perplexity": 54_321.0})
    step, evaluation = caplog.messages
    assert step.endswith("loss 2.5  tokens/s 1,234,568")
    assert "eval perplexity 1.07e+13  " in evaluation
    assert evaluation.endswith("eval word_perplexity 54,321")


def test_a_narrow_terminal_gets_fewer_figures_and_the_number_of_items(caplog):
    caplog.set_level("INFO")
    state = SimpleNamespace(is_world_process_zero=True, global_step=6, max_steps=60)
    values = dict(zip(FIGURES, (5.888, 360.7, 0.0674, 2.008, 1681.0)), pairs=0.5313)
    logs = {"words": 9761, **{f"eval_{name}": value for name, value in values.items()}}
    Console((100, 490)).on_log(None, state, None, logs)
    (record,) = caplog.records
    assert record.getMessage() == (
        "step 6/60  9,761 words  eval loss 5.888  eval perplexity 360.7  eval accuracy 0.0674"
        "  eval bits_per_byte 2.008  eval word_perplexity 1681  eval pairs 53.13"
        "  (100 of 490 items)"
    )
    short = (
        "step 6/60  eval loss 5.888  accuracy 0.0674  pairs 53.13  (100 of 490 items)"
    )
    assert record.short.replace("\N{NO-BREAK SPACE}", " ") == short
