"""The challenge's seven (Super)GLUE tasks: rows in, token ids out; predictions in, scores out.

Texts, hyperparameters and metrics are those of the challenge's pipelines (finetune/ and
eval_finetuning.sh in babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval of July 2026).
The pipelines' validation file chooses the epoch and gives the score; there is no other.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Optional

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.evaluation.tasks.rows import checksum
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)
Metric = Literal["accuracy", "f1"]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the protocol, equal in 2025 and 2026."""

    metric: Metric = "accuracy"  # chooses the epoch, and is the score
    batch_size: int = 32
    num_epochs: int = 10
    learning_rate: float = 3e-5
    final_learning_rate: float = 0.1  # share of the highest, at the cosine's end
    warmup: float = 0.06  # share of the steps
    weight_decay: float = 0.01  # of all weights, those of norms and biases too
    classifier_dropout: float = 0.1
    max_length: int = 512  # tokens; behind them a text is cut


@dataclass(frozen=True)
class Format:
    """How the two texts of a row are put together, and how a task is trained."""

    first: str
    second: str
    recipe: Recipe = Recipe()
    num_labels: int = 2

    @property
    def fields(self) -> set[str]:
        found = [*Formatter().parse(self.first), *Formatter().parse(self.second)]
        return {name for _, name, _, _ in found if name}


FORMATS = {
    "boolq": Format("{question}", "{passage}", Recipe(batch_size=16)),
    "mnli": Format("{premise}", "{hypothesis}", num_labels=3),
    "mrpc": Format("{sentence1}", "{sentence2}", Recipe("f1")),
    "multirc": Format(
        "Question: {question} Answer: {answer}", "{paragraph}", Recipe(batch_size=16)
    ),
    "qqp": Format("{question1}", "{question2}", Recipe("f1")),
    "rte": Format("{sentence1}", "{sentence2}"),
    "wsc": Format(
        'Does "{span2_text}" refer to "{span1_text}" in this passage?',
        "{text}",
        Recipe(num_epochs=30),
    ),
}


@dataclass(frozen=True)
class Examples:
    """N pairs of texts and their labels, in the order of the file."""

    firsts: list[str]
    seconds: list[str]
    labels: np.ndarray  # int64 [N]


@dataclass(frozen=True)
class GlueTask:
    name: str
    train: Examples
    valid: Examples
    data_checksum: str

    @property
    def recipe(self) -> Recipe:
        return FORMATS[self.name].recipe

    @property
    def num_labels(self) -> int:
        return FORMATS[self.name].num_labels


def load(folder: Path, names: Sequence[str]) -> list[GlueTask]:
    """Reads <task>.train.jsonl and <task>.valid.jsonl, in the order of `FORMATS`.

    Raises:
        UserError: a task without its data, a line that is no row of its task.
    """
    files = {
        name: [folder / f"{name}.{split}.jsonl" for split in ("train", "valid")]
        for name in FORMATS
    }
    there = [name for name in FORMATS if all(file.exists() for file in files[name])]
    if lacking := [f.name for n in names for f in files[n] if not f.exists()]:
        others = f"; tasks=[{','.join(there)}] is all there" if there else ""
        raise UserError(
            f"evaluation.tasks: no {', '.join(lacking)} in {folder}{others}"
        )
    tasks = []
    for name in (name for name in FORMATS if name in names):
        train, valid = (_read(file, FORMATS[name]) for file in files[name])
        tasks.append(GlueTask(name, train, valid, checksum(files[name])))
    return tasks


def _read(file: Path, form: Format) -> Examples:
    content = file.read_bytes().removesuffix(b"\n")
    if not content.strip():
        raise UserError(f"evaluation.data: {file} is empty")
    rows = [
        _row(line, form, f"evaluation.data: {file}, line {number}")
        for number, line in enumerate(content.split(b"\n"), start=1)
    ]
    return Examples(
        [form.first.format(**row) for row in rows],
        [form.second.format(**row) for row in rows],
        np.array([row["label"] for row in rows], np.int64),
    )


def _row(line: bytes, form: Format, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # of JSON, or of its UTF-8
        raise UserError(f"{place}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: must be a JSON object, got {type(row).__name__}")
    for field in sorted(form.fields):
        if not isinstance(row.get(field), str):
            fault = f"must be a text, got {row[field]!r}" if field in row else "lacks"
            raise UserError(f"{place}: the field {field} {fault}")
    label = row.get("label")
    if type(label) is not int or not 0 <= label < form.num_labels:
        raise UserError(
            f"{place}: label must be one of 0 … {form.num_labels - 1}, got {label!r}"
        )
    return row


@dataclass(frozen=True)
class Encoded:
    """The N token sequences of `Examples`."""

    ids: list[list[int]]
    labels: np.ndarray  # int64 [N]
    num_cut: int  # sequences that were longer than the limit

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": int(self.labels[index])}


@dataclass(frozen=True)
class EncodedTask:
    """A task as one tokenizer sees it: made once, for all checkpoints with that tokenizer."""

    task: GlueTask
    train: Encoded
    valid: Encoded
    max_length: int


def encode(
    task: GlueTask, tokenizer: PreTrainedTokenizerBase, max_length: int = 512
) -> EncodedTask:
    """Pairs with the tokenizer's own special tokens; of a pair too long, the longer text is cut."""
    tokenizer = copy.deepcopy(tokenizer)  # it would remember the length to cut at
    train, valid = (
        _encode(examples, tokenizer, max_length)
        for examples in (task.train, task.valid)
    )
    for split, found in (("train", train), ("valid", valid)):
        if found.num_cut:
            LOGGER.warning(
                "%s: %d of %d texts of the %s file are cut at %d tokens",
                *(task.name, found.num_cut, len(found), split, max_length),
            )
    return EncodedTask(task, train, valid, max_length)


def _encode(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    def ids(rows: Sequence[int], **options: Any) -> list[list[int]]:
        return tokenizer(
            [examples.firsts[row] for row in rows],
            [examples.seconds[row] for row in rows],
            verbose=False,
            **options,
        )["input_ids"]

    found = ids(range(len(examples.labels)))
    long = [row for row, tokens in enumerate(found) if len(tokens) > max_length]
    if long:
        cut = ids(long, truncation="longest_first", max_length=max_length)
        for row, tokens in zip(long, cut):
            found[row] = tokens
    return Encoded(found, examples.labels, len(long))


def measure(
    predictions: np.ndarray, labels: np.ndarray, num_labels: int = 2
) -> dict[str, float]:
    """The metrics of results.txt, in its order, as shares: accuracy; with two labels also F1 of
    label 1 and Matthews' correlation, both 0 where they are not defined. Integers [N], [N].
    """
    found = {"accuracy": float((predictions == labels).mean())}
    if num_labels > 2:
        return found
    hits = int(((predictions == 1) & (labels == 1)).sum())
    said, true, all_ = int(predictions.sum()), int(labels.sum()), len(labels)
    found["f1"] = 2 * hits / (said + true) if said + true else 0.0
    spread = (said * (all_ - said) * true * (all_ - true)) ** 0.5
    found["mcc"] = (hits * all_ - said * true) / spread if spread else 0.0
    return found


def official_files(
    name: str, predictions: np.ndarray, metrics: dict[str, float]
) -> dict[str, Any]:
    """results.txt and predictions.json of results/<model>/<revision>/finetune/<task>."""
    answers = [
        {"id": f"{name}_{number}", "pred": int(label)}
        for number, label in enumerate(predictions)
    ]
    return {
        "results.txt": "\n".join(f"{key}: {value}" for key, value in metrics.items()),
        "predictions.json": {name: {"predictions": answers}},
    }


def average(
    entries: Mapping[str, Optional[Mapping[str, Any]]],
) -> Optional[dict[str, Any]]:
    """The challenge's GLUE score, the mean of the seven; None where one is missing.

    Args:
        entries: task → its entry of `scores.json`; those of one model, protocol and seed.
    """
    parts = {name: entries.get(name) for name in FORMATS}
    if not all(parts.values()):
        return None
    seconds = [part["seconds"] for part in parts.values()]
    return {
        **parts["rte"],
        "score": float(np.mean([part["score"] for part in parts.values()])),
        "items": sum(part["items"] for part in parts.values()),
        "seconds": None if None in seconds else sum(seconds),
        "data_checksum": None,
        "subscores": {"task": {name: part["score"] for name, part in parts.items()}},
    }
