"""The challenge's seven (Super)GLUE tasks, on which a copy of the model is fine-tuned.

Texts, hyperparameters and metrics are those of the challenge's pipelines (finetune/ and
eval_finetuning.sh in babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval of July 2026).
As in the pipelines, the validation file both chooses the epoch and gives the score, since there
is no test file.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Literal, Optional

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from src.evaluation.results import Result
from src.evaluation.scoring.network import num_positions
from src.evaluation.scoring.scorer import Scorer
from src.evaluation.tasks.rows import read_rows
from src.evaluation.tasks.task import Answer, Mean, Task
from src.foundation import UserError, checksum_of_files
from src.hardware import fast_bfloat16

LOGGER = logging.getLogger(__name__)
Metric = Literal["accuracy", "f1"]
Example = tuple[str, str, int]  # two texts and a label


@dataclass(frozen=True)
class Recipe:
    """The templates of a row's two texts, and the hyperparameters, equal in 2025 and 2026."""

    first: str
    second: str
    num_labels: int = 2
    metric: Metric = "accuracy"  # chooses the epoch, and is the score
    batch_size: int = 32
    num_epochs: int = 10
    learning_rate: float = 3e-5
    final_learning_rate: float = 0.1  # share of `learning_rate`, at the cosine's end
    warmup: float = 0.06  # share of the steps
    weight_decay: float = 0.01  # of all weights, including norms and biases
    classifier_dropout: float = 0.1
    max_length: int = 512  # tokens; longer texts are cut

    @property
    def fields(self) -> dict[str, type]:
        """The fields that a row must have besides its label."""
        parsed = Formatter().parse(self.first + self.second)
        return dict.fromkeys(sorted({name for _, name, _, _ in parsed if name}), str)

    def read(self, row: dict[str, Any]) -> Example:
        """Return the texts and the label of a row."""
        label, last = row.get("label"), self.num_labels - 1
        if type(label) is not int or not 0 <= label <= last:
            raise UserError(f"label must be one of 0 … {last}, got {label!r}")
        return self.first.format(**row), self.second.format(**row), label


MULTIRC = "Question: {question} Answer: {answer}"
WSC = 'Does "{span2_text}" refer to "{span1_text}" in this passage?'
RECIPES = {
    "boolq": Recipe("{question}", "{passage}", batch_size=16),
    "mnli": Recipe("{premise}", "{hypothesis}", num_labels=3),
    "mrpc": Recipe("{sentence1}", "{sentence2}", metric="f1"),
    "multirc": Recipe(MULTIRC, "{paragraph}", batch_size=16),
    "qqp": Recipe("{question1}", "{question2}", metric="f1"),
    "rte": Recipe("{sentence1}", "{sentence2}"),
    "wsc": Recipe(WSC, "{text}", num_epochs=30),
}


@dataclass(frozen=True)
class Encoded:
    """The token sequences of N examples.

    Attributes:
        texts: token ids of each example [N].
        labels: label of each example [N].
        num_cut: number of sequences that were longer than the limit.
        pad_id: token that fills up the shorter texts of a batch.
        side: side on which they are filled up.
    """

    texts: list[list[int]]
    labels: list[int]
    num_cut: int
    pad_id: int
    side: Literal["left", "right"]

    def batch(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the padded ids and mask [B, T] and the labels [B] of some examples."""
        texts = [torch.tensor(self.texts[row]) for row in rows]
        pad = partial(pad_sequence, batch_first=True, padding_side=self.side)
        return (
            pad(texts, padding_value=self.pad_id),
            pad([torch.ones_like(text) for text in texts]),
            torch.tensor([self.labels[row] for row in rows]),
        )


@dataclass(frozen=True)
class FineTuned:
    """The answer of a model that was fine-tuned.

    Attributes:
        metrics: metrics after each epoch.
        predictions: labels predicted after each epoch [N].
        num_cut: file (`train` or `valid`) -> number of texts that were cut.
    """

    metrics: list[dict[str, float]]
    predictions: list[np.ndarray]
    num_cut: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class FineTuning(Task):
    """A task that trains a copy of the model. An answer is `FineTuned`.

    Attributes:
        exact_positions: whether the tokens of a padded text are numbered from its first one.
    """

    train: list[Example]
    valid: list[Example]
    recipe: Recipe
    exact_positions: bool = False
    takes: ClassVar = "training"
    mean: ClassVar = Mean("glue", tuple(RECIPES))

    @classmethod
    def load(
        cls, directory: Path, name: str, bf16: Optional[bool], **common: Any
    ) -> "FineTuning":
        """Read <name>.train.jsonl and <name>.valid.jsonl.

        Args:
            bf16: whether matrix products are in bfloat16; None: only if there is a GPU that
                is fast at them.
            common: other fields of `Task`.

        Raises:
            UserError: a file is missing, or a line cannot be used.
        """
        recipe = RECIPES[name]
        files = [directory / f"{name}.{split}.jsonl" for split in ("train", "valid")]
        train, valid = (read_rows(file, recipe.fields, recipe.read) for file in files)
        return cls(
            name=name,
            train=train,
            valid=valid,
            recipe=recipe,
            bf16=fast_bfloat16(use_cpu=False) if bf16 is None else bf16,
            data_checksum=checksum_of_files(files),
            **common,
        )

    @property
    def num_items(self) -> int:
        return len(self.valid)

    def prepare(self, scorer: Scorer) -> dict[str, Encoded]:
        """Return the token sequences of the two files, "train" and "valid"."""
        files = {"train": self.train, "valid": self.valid}
        return {name: self._encode(name, file, scorer) for name, file in files.items()}

    def _encode(self, split: str, examples: list[Example], scorer: Scorer) -> Encoded:
        """Return the token sequences of a file, with the tokenizer's own special tokens.

        If a pair of texts is longer than the protocol or the model's context allows, the
        longer text is cut.
        """
        most = self.recipe.max_length
        limit = min(most, num_positions(scorer.model) or most)
        tokenizer = copy.deepcopy(scorer.tokenizer)  # truncation changes its state
        firsts, seconds, labels = map(list, zip(*examples))
        encode = partial(tokenizer, firsts, seconds, verbose=False)
        num_cut = sum(len(ids) > limit for ids in encode()["input_ids"])
        if num_cut:
            LOGGER.warning(
                "%s: %d of %d texts of the %s file are cut at %d tokens",
                *(self.name, num_cut, len(examples), split, limit),
            )
        texts = encode(truncation="longest_first", max_length=limit)["input_ids"]
        # Without a pad token, EOS takes its place, or token 0. The mask hides padding.
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(token for token in known if token is not None)
        reads_last = scorer.backend == "causal" or self.rules.reads_last_token
        side = "left" if reads_last else "right"
        return Encoded(texts, labels, num_cut, pad_id, side)

    def ask(self, scorer: Scorer, prepared: dict[str, Encoded]) -> FineTuned:
        from src.evaluation.glue.finetuning import finetune  # imports this module

        return finetune(scorer, self, prepared["train"], prepared["valid"])

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the result of the best epoch. Of equally good ones, the first counts."""
        tuned = answers[0].content
        percents = [100 * metrics[self.recipe.metric] for metrics in tuned.metrics]
        best = int(np.argmax(percents))
        predictions = [
            {"id": f"{self.name}_{number}", "pred": int(label)}
            for number, label in enumerate(tuned.predictions[best])
        ]
        metrics = tuned.metrics[best]
        return self.build_result(
            answers,
            score=percents[best],
            subscores={
                "metric": {name: 100 * value for name, value in metrics.items()},
                "epoch": {str(n): value for n, value in enumerate(percents, start=1)},
                "cut": tuned.num_cut,
            },
            files={
                "results.txt": "\n".join(f"{k}: {v}" for k, v in metrics.items()),
                "predictions.json": {self.name: {"predictions": predictions}},
            },
        )


def measure(
    predictions: np.ndarray, labels: np.ndarray, num_labels: int = 2
) -> dict[str, float]:
    """Return the metrics of results.txt, in the same order, as shares (not percentages).

    They are the accuracy and, with two labels, the F1 score of label 1 and Matthews'
    correlation. F1 and the correlation are 0 if undefined.

    Args:
        predictions, labels: integers [N].
    """
    metrics = {"accuracy": float((predictions == labels).mean())}
    if num_labels > 2:
        return metrics
    hits = int(((predictions == 1) & (labels == 1)).sum())
    said, true, all_ = int(predictions.sum()), int(labels.sum()), len(labels)
    metrics["f1"] = 2 * hits / (said + true) if said + true else 0.0
    spread = (said * (all_ - said) * true * (all_ - true)) ** 0.5
    metrics["mcc"] = (hits * all_ - said * true) / spread if spread else 0.0
    return metrics
