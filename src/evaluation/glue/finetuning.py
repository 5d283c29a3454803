"""Fine-tuning on GLUE, as the challenge's pipelines do it, by Hugging Face's `Trainer`.

Source: finetune/{trainer,run}.py and eval_finetuning.sh of babylm/evaluation-pipeline-2025 and
babylm-org/babylm-eval (script of May to July 2026). The token that the head reads:

* protocol 2026: the last one, texts padded on the left, for every model;
* protocol 2025: the first one, padded on the right; for a causal model the last all the same,
  since its first token sees nothing but itself.

Two differences: padding changes no state here (`classifier.py`), and on a GPU matrix products
are bfloat16 unless that is refused; in the pipelines everything is float32.
"""

import contextlib
import gc
import logging
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import torch
from torch.utils.data import Sampler, Subset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from src.evaluation.glue.classifier import Classifier, Collate
from src.evaluation.glue.data import EncodedTask, Recipe, measure, official_files
from src.evaluation.results import Result
from src.evaluation.scoring.network import num_positions
from src.evaluation.scoring.texts import Backend, check_vocabulary
from src.evaluation.tasks.choice import Protocol
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 64


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedTask,
    backend: Backend = "causal",
    protocol: Protocol = 2026,
    seed: int = 42,
    recipe: Optional[Recipe] = None,
    bf16: Optional[bool] = None,
    batch_tokens: int = 16384,
) -> Result:
    """Trains a copy of the model on the task; its score at its best epoch, in percent.

    The model, the random state and the disk are left as they were. The Trainer chooses the
    device. `Result.folder` is to be taken from the folder of the model's revision.

    Args:
        data: the task as the tokenizer sees it, encoded with the model's `max_length`.
        recipe: other hyperparameters than the protocol's.
        bf16: matrix products in bfloat16; None: on a GPU that has them.
        batch_tokens: bound of a forward pass; a batch beyond it is summed up of smaller ones.

    Raises:
        UserError: fewer rows than a batch, a vocabulary that is too small, NaN.
    """
    start = time.perf_counter()
    recipe = recipe or data.task.recipe
    _check(data, model, tokenizer, recipe)
    with _random_state_kept(), tempfile.TemporaryDirectory() as scratch:
        last = backend == "causal" or protocol == 2026
        set_seed(seed)
        trainer = FineTuner(
            Classifier(model, data.task.num_labels, recipe.classifier_dropout, last),
            _arguments(data, recipe, seed, bf16, batch_tokens, Path(scratch)),
            data,
            recipe,
            Collate(_pad_id(tokenizer), left=last),
        )
        trainer.train()
    result = trainer.result(protocol, seed, time.perf_counter() - start)
    del trainer
    gc.collect()  # it and its methods hold each other, and the weights
    return result


def _check(
    data: EncodedTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> None:
    """Whether the model can read the tokens, and there is a batch of them."""
    check_vocabulary(model, tokenizer)
    assert data.max_length <= (num_positions(model) or math.inf)
    if (num_rows := len(data.train)) < recipe.batch_size:
        raise UserError(
            f"evaluation.data: {data.task.name} has {num_rows} training rows, fewer than a"
            f" batch of {recipe.batch_size}"
        )


def max_length(model: PreTrainedModel, recipe: Recipe = Recipe()) -> int:
    """Tokens of the longest text: the protocol's 512, or what the model can read."""
    return min(recipe.max_length, num_positions(model) or recipe.max_length)


class FineTuner(Trainer):
    """Judges after each epoch, and remembers the first of the best (finetune/trainer.py).

    The validation's texts are both what chooses the epoch and what is to be predicted: the
    predictions are kept and the weights need not be.
    """

    def __init__(
        self,
        classifier: Classifier,
        args: TrainingArguments,
        data: EncodedTask,
        recipe: Recipe,
        collate: Collate,
    ) -> None:
        lengths = [-len(ids) for ids in data.valid.ids]
        self.by_length = np.argsort(lengths, kind="stable")  # little padding
        super().__init__(
            model=classifier,
            args=args,
            data_collator=collate,
            train_dataset=data.train,
            eval_dataset=Subset(data.valid, self.by_length.tolist()),
            compute_metrics=self._judge,
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.data, self.recipe = data, recipe
        self.history: list[dict[str, float]] = []  # metrics of each epoch
        self.best_epoch = 0  # from 1 on
        self.predictions = np.zeros(0, np.int64)  # [N], of the best epoch

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return WholeBatches(
            len(self.train_dataset), self.recipe.batch_size, self.args.seed
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def _judge(self, prediction: EvalPrediction) -> dict[str, float]:
        name, epoch = self.data.task.name, len(self.history) + 1
        logits = np.empty_like(prediction.predictions)
        logits[self.by_length] = prediction.predictions
        if not np.isfinite(logits).all():
            raise UserError(f"fine-tuning on {name}: NaN after epoch {epoch}")
        predictions = logits.argmax(-1)
        metrics = measure(predictions, self.data.valid.labels, logits.shape[-1])
        self.history.append(metrics)
        score = metrics[self.recipe.metric]
        best = self.history[self.best_epoch - 1][self.recipe.metric]
        if not self.best_epoch or score > best:
            self.best_epoch, self.predictions = epoch, predictions
        LOGGER.info(
            "%s, epoch %d of %d: %s %.2f",
            *(name, epoch, self.recipe.num_epochs, self.recipe.metric, 100 * score),
        )
        return metrics

    def result(self, protocol: Protocol, seed: int, seconds: float) -> Result:
        task, metrics = self.data.task, self.history[self.best_epoch - 1]
        metric = self.recipe.metric
        epochs = enumerate(self.history, start=1)
        return Result(
            task=task.name,
            folder=f"finetune/{task.name}",
            protocol=protocol,
            score=100 * metrics[metric],
            num_items=len(self.predictions),
            subscores={
                "metric": {key: 100 * value for key, value in metrics.items()},
                "epoch": {str(epoch): 100 * found[metric] for epoch, found in epochs},
                "cut": {
                    "train": self.data.train.num_cut,
                    "valid": self.data.valid.num_cut,
                },
            },
            files=official_files(task.name, self.predictions, metrics),
            data_checksum=task.data_checksum,
            seed=seed,
            seconds=seconds,
        )


class WholeBatches(Sampler):
    """A new order of N rows in each epoch, without the rows that fill no batch."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.size = num_rows, num_rows - num_rows % batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_rows, generator=self.generator)
        yield from order[: self.size].tolist()


def _arguments(
    data: EncodedTask,
    recipe: Recipe,
    seed: int,
    bf16: Optional[bool],
    batch_tokens: int,
    scratch: Path,
) -> TrainingArguments:
    """The recipe in the Trainer's words; a batch in as few forward passes as are allowed."""
    longest = max(map(len, data.train.ids + data.valid.ids))
    allowed = max(1, batch_tokens // longest)
    rows = max(
        size
        for size in range(1, recipe.batch_size + 1)
        if recipe.batch_size % size == 0 and size <= allowed
    )
    num_steps = len(data.train) // recipe.batch_size * recipe.num_epochs
    has_gpu = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=min(EVAL_BATCH_SIZE, allowed),
        gradient_accumulation_steps=recipe.batch_size // rows,
        num_train_epochs=recipe.num_epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=0.0,  # no clipping
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_learning_rate},
        warmup_steps=int(recipe.warmup * num_steps),
        bf16=has_gpu and torch.cuda.is_bf16_supported() if bf16 is None else bf16,
        seed=seed,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
    )
    if args.world_size > 1:
        raise UserError("fine-tuning runs in one process, not under torchrun")
    args._n_gpu = min(1, args.n_gpu)  # on more, batches would be larger
    return args


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token does behind the mask: the padding, else the end, else the first."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Python's, numpy's and torch's generators go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
