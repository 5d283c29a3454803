"""Fine-tuning on GLUE as in the challenge's pipelines, with Hugging Face's `Trainer`.

Source: finetune/{trainer,run}.py and eval_finetuning.sh of babylm/evaluation-pipeline-2025 and
babylm-org/babylm-eval (script of May to July 2026). The head reads:

* protocol 2026: the last token, with texts padded on the left;
* protocol 2025: the first token, with texts padded on the right. For a causal model, we read the
  last token in 2025, too, since the first token sees only itself.

As in the pipeline of 2026, no `position_ids` are given. So in models with absolute positions,
such as GPT-2, the tokens of a text are numbered from the padding of its batch, and the batches
are padded as there: each of the training, and each 64 texts of the validation file. With
`exact_positions`, and in 2025, when the pipeline padded on the right, padding changes nothing.

One thing differs from the pipelines. On a GPU that is fast at bfloat16, matrix products are in
bfloat16 unless `bf16=false`; in the pipelines everything is float32.
"""

import contextlib
import gc
import logging
import random
import tempfile
from typing import Any, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from src.evaluation.glue.classifier import Classifier, Collate
from src.evaluation.glue.data import Encoded, FineTuned, FineTuning, measure
from src.evaluation.scoring.scorer import Scorer
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 64  # of the pipelines


def finetune(
    scorer: Scorer, task: FineTuning, train: Encoded, valid: Encoded
) -> FineTuned:
    """Train a copy of the scorer's model on a task, and return its predictions.

    The model, the random state and the disk are not changed. The Trainer chooses the device.
    If a batch has more tokens than the scorer's `batch_tokens`, gradients are accumulated over
    smaller batches.

    Args:
        train, valid: the token sequences of the task, from the scorer's tokenizer.

    Raises:
        UserError: there are fewer rows than a batch has, or the model gives NaN.
    """
    recipe = task.recipe
    if len(train.rows) < recipe.batch_size:
        few = f"{len(train.rows)} training rows"
        raise UserError(f"{few} are fewer than a batch of {recipe.batch_size}")
    last = scorer.backend == "causal" or task.protocol == 2026
    with _random_state_kept(), tempfile.TemporaryDirectory() as scratch:
        set_seed(task.seed)
        exact = task.exact_positions or task.protocol == 2025
        model = Classifier(
            scorer.model, task.num_labels, recipe.classifier_dropout, last, exact
        )
        trainer = FineTuner(
            task,
            train,
            valid,
            model=model,
            args=_arguments(task, train, valid, scorer, scratch),
            data_collator=Collate(
                _pad_id(scorer.tokenizer), "left" if last else "right"
            ),
        )
        trainer.train()
    num_cut = {"train": train.num_cut, "valid": valid.num_cut}
    tuned = FineTuned(trainer.metrics, trainer.predictions, num_cut)
    del trainer
    gc.collect()  # the trainer and its methods refer to each other, and hold the weights
    return tuned


class FineTuner(Trainer):
    """A Trainer that keeps the metrics and predictions of each epoch, and no weights.

    The validation texts choose the epoch, and are also the texts whose labels are predicted.

    Args:
        options: other arguments of the Trainer.

    Attributes:
        metrics: metrics after each epoch.
        predictions: labels predicted after each epoch [N].
    """

    def __init__(
        self, task: FineTuning, train: Encoded, valid: Encoded, **options: Any
    ) -> None:
        train_rows, valid_rows = Rows(train.rows), Rows(valid.rows)
        lengths = valid_rows.lengths
        if options["model"].depends_on_padding:
            self.valid_order = np.arange(len(lengths))  # the batches of the pipelines
        else:
            self.valid_order = np.argsort(-lengths, kind="stable")  # little padding
        super().__init__(
            train_dataset=train_rows,
            eval_dataset=valid_rows,
            compute_metrics=self._record_epoch,
            **options,
        )
        self.remove_callback(PrinterCallback)
        self.task, self.labels = task, np.array([row["labels"] for row in valid.rows])
        self.metrics: list[dict[str, float]] = []
        self.predictions: list[np.ndarray] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        size, seed = self.task.recipe.batch_size, self.args.seed
        return WholeBatches(self.train_dataset.lengths, size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> list[tuple[int, int]]:
        return with_widths(self.valid_order, eval_dataset.lengths, EVAL_BATCH_SIZE)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def _record_epoch(self, prediction: EvalPrediction) -> dict[str, float]:
        recipe, epoch = self.task.recipe, len(self.metrics) + 1
        logits = np.empty_like(prediction.predictions)
        logits[self.valid_order] = prediction.predictions
        if not np.isfinite(logits).all():
            raise UserError(f"NaN after epoch {epoch} of fine-tuning")
        self.predictions.append(logits.argmax(-1))
        metrics = measure(self.predictions[-1], self.labels, logits.shape[-1])
        self.metrics.append(metrics)
        score = 100 * metrics[recipe.metric]
        LOGGER.info(
            "%s, epoch %d of %d: %s %.2f",
            *(self.task.name, epoch, recipe.num_epochs, recipe.metric, score),
        )
        return metrics


class Rows(Dataset):
    """A dataset whose keys are an index, and the width to which the row's batch is padded."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.lengths = rows, np.array(
            [len(row["input_ids"]) for row in rows]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {**self.rows[key[0]], "width": key[1]}


def with_widths(
    order: np.ndarray, lengths: np.ndarray, size: int
) -> list[tuple[int, int]]:
    """Return (index, width of its batch) for the rows of `order`, in batches of `size`.

    Args:
        order: indices of rows [N].
        lengths: tokens of each row.
    """
    batches = (order[start : start + size] for start in range(0, len(order), size))
    return [(int(i), int(lengths[rows].max())) for rows in batches for i in rows]


class WholeBatches(Sampler):
    """A sampler that shuffles N rows in each epoch and leaves out the incomplete batch.

    Args:
        lengths: tokens of each row [N].
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.size = len(lengths) - len(lengths) % batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator).numpy()
        yield from with_widths(order[: self.size], self.lengths, self.batch_size)


def _arguments(
    task: FineTuning, train: Encoded, valid: Encoded, scorer: Scorer, scratch: str
) -> TrainingArguments:
    """Return the recipe as arguments of the Trainer, with as few micro-batches as possible."""
    recipe = task.recipe
    longest = max(len(row["input_ids"]) for row in train.rows + valid.rows)
    allowed = max(1, scorer.batch_tokens // longest)
    rows = _micro_batch(recipe.batch_size, allowed)
    num_steps = len(train.rows) // recipe.batch_size * recipe.num_epochs
    device = scorer.model.device.type
    args = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=_micro_batch(EVAL_BATCH_SIZE, allowed),
        gradient_accumulation_steps=recipe.batch_size // rows,
        num_train_epochs=recipe.num_epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=0.0,  # no clipping
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_learning_rate},
        warmup_steps=int(recipe.warmup * num_steps),
        bf16=task.bf16,
        use_cpu=device == "cpu",
        seed=task.seed,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
    )
    if args.world_size > 1:
        raise UserError("fine-tuning runs in one process, not under torchrun")
    args._n_gpu = min(1, args.n_gpu)  # several GPUs would make larger batches
    return args


def _micro_batch(batch_size: int, allowed: int) -> int:
    """Return the largest divisor of the batch size that is at most `allowed`."""
    sizes = range(1, min(allowed, batch_size) + 1)
    return max(size for size in sizes if batch_size % size == 0)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the pad token, else that of EOS, else 0. The mask hides padding."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the states of Python's, numpy's and torch's random generators at the end."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
