"""Fine-tuning on GLUE as in the challenge's pipelines, with Hugging Face's `Trainer`.

Source: finetune/{trainer,run}.py and eval_finetuning.sh of babylm/evaluation-pipeline-2025 and
babylm-org/babylm-eval (script of May to July 2026). The head reads:

* protocol 2026: the last token, with texts padded on the left;
* protocol 2025: the first token, with texts padded on the right. For a causal model, we read the
  last token in 2025, too, since the first token sees only itself.

Two things differ from the pipelines. Here padding changes no hidden state (`classifier.py`). On a
GPU that is fast at bfloat16, matrix products are in bfloat16 unless `bf16=false`; in the pipelines
everything is float32.
"""

import contextlib
import gc
import logging
import random
import tempfile
from typing import Any, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler, Subset
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
EVAL_BATCH_SIZE = 64


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
        dropout = recipe.classifier_dropout
        trainer = FineTuner(
            task,
            train,
            valid,
            model=Classifier(scorer.model, task.num_labels, dropout, last),
            args=_arguments(task, train, valid, scorer.batch_tokens, scratch),
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
        lengths = [-len(row["input_ids"]) for row in valid.rows]
        self.by_length = np.argsort(lengths, kind="stable")  # little padding
        super().__init__(
            train_dataset=train.rows,
            eval_dataset=Subset(valid.rows, self.by_length.tolist()),
            compute_metrics=self._record_epoch,
            **options,
        )
        self.remove_callback(PrinterCallback)
        self.task, self.labels = task, np.array([row["labels"] for row in valid.rows])
        self.metrics: list[dict[str, float]] = []
        self.predictions: list[np.ndarray] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return WholeBatches(
            len(self.train_dataset), self.task.recipe.batch_size, self.args.seed
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def _record_epoch(self, prediction: EvalPrediction) -> dict[str, float]:
        recipe, epoch = self.task.recipe, len(self.metrics) + 1
        logits = np.empty_like(prediction.predictions)
        logits[self.by_length] = prediction.predictions
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


class WholeBatches(Sampler):
    """A sampler that shuffles N rows in each epoch and leaves out the incomplete batch."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.size = num_rows, num_rows - num_rows % batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_rows, generator=self.generator)
        yield from order[: self.size].tolist()


def _arguments(
    task: FineTuning, train: Encoded, valid: Encoded, batch_tokens: int, scratch: str
) -> TrainingArguments:
    """Return the recipe as arguments of the Trainer, with as few micro-batches as possible."""
    recipe = task.recipe
    longest = max(len(row["input_ids"]) for row in train.rows + valid.rows)
    allowed = max(1, batch_tokens // longest)
    sizes = range(1, min(allowed, recipe.batch_size) + 1)
    rows = max(size for size in sizes if recipe.batch_size % size == 0)
    num_steps = len(train.rows) // recipe.batch_size * recipe.num_epochs
    has_gpu = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=scratch,
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
        bf16=task.bf16,
        use_cpu=task.bf16 and not has_gpu,  # required for bfloat16 on a processor
        seed=task.seed,
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
    args._n_gpu = min(1, args.n_gpu)  # several GPUs would make larger batches
    return args


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
