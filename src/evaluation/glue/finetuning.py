"""Fine-tuning on GLUE: the training loop of the challenge's pipelines.

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

import gc
import logging
from typing import Iterator

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import get_scheduler

from src.evaluation.glue.classifier import Classifier
from src.evaluation.glue.data import Encoded, FineTuned, FineTuning, measure
from src.evaluation.scoring.scorer import Scorer
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 64  # of the pipelines


def finetune(
    scorer: Scorer, task: FineTuning, train: Encoded, valid: Encoded
) -> FineTuned:
    """Train a copy of the scorer's model on a task, and return its predictions.

    The model and the random state are not changed. The validation texts choose the epoch, and
    are also the texts whose labels are predicted.

    Args:
        train, valid: the token sequences of the task, from the scorer's tokenizer.

    Raises:
        UserError: there are fewer texts than a batch has, or the model gives NaN.
    """
    recipe, device = task.recipe, scorer.model.device
    num_steps = len(train.texts) // recipe.batch_size * recipe.num_epochs
    if not num_steps:
        few = f"{len(train.texts)} training rows"
        raise UserError(f"{few} are fewer than a batch of {recipe.batch_size}")
    tuned = FineTuned([], [], {"train": train.num_cut, "valid": valid.num_cut})
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(task.seed)
        exact = task.exact_positions or not task.rules.shifts_positions
        last = train.side == "left"
        model = Classifier(scorer.model, recipe, last, exact).to(device)
        # Again, so that dropout's noise does not depend on the number of the head's weights.
        torch.manual_seed(task.seed)
        options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        optimizer = torch.optim.AdamW(model.parameters(), fused=True, **options)
        steps = (int(recipe.warmup * num_steps), num_steps)
        end = {"min_lr_rate": recipe.final_learning_rate}
        scheduler = get_scheduler("cosine_with_min_lr", optimizer, *steps, end)
        order = torch.Generator().manual_seed(task.seed)
        precision = torch.autocast(device.type, torch.bfloat16, enabled=task.bf16)
        for epoch in range(1, recipe.num_epochs + 1):
            model.train()
            rows = torch.randperm(len(train.texts), generator=order)
            rows = rows[: len(rows) - len(rows) % recipe.batch_size].tolist()
            for parts in _batches(train, rows, recipe.batch_size, scorer):
                for ids, mask, labels in parts:
                    with precision:
                        logits = model(ids, mask)
                    loss = F.cross_entropy(logits, labels, reduction="sum")
                    (loss / recipe.batch_size).backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            with precision:
                logits = _logits(model, valid, scorer)
            if not np.isfinite(logits).all():
                raise UserError(f"NaN after epoch {epoch} of fine-tuning")
            predictions = logits.argmax(-1)
            metrics = measure(predictions, np.array(valid.labels), recipe.num_labels)
            tuned.predictions.append(predictions)
            tuned.metrics.append(metrics)
            score = 100 * metrics[recipe.metric]
            LOGGER.info(
                "%s, epoch %d of %d: %s %.2f",
                *(task.name, epoch, recipe.num_epochs, recipe.metric, score),
            )
    del model, optimizer, scheduler
    gc.collect()  # the scheduler makes the optimizer, which holds the weights, refer to itself
    return tuned


def _batches(
    encoded: Encoded, rows: list[int], batch_size: int, scorer: Scorer
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Yield batches of ids, mask and labels, in parts of at most `batch_tokens` tokens."""
    for batch in DataLoader(rows, batch_size, collate_fn=encoded.batch):
        size = max(1, scorer.batch_tokens // batch[0].shape[1])
        yield list(zip(*(x.to(scorer.model.device).split(size) for x in batch)))


@torch.no_grad()
def _logits(model: Classifier, valid: Encoded, scorer: Scorer) -> np.ndarray:
    """Return the logits of all examples [N, num_labels]."""
    model.eval()
    rows = list(range(len(valid.texts)))
    # Batches of texts of similar length need little padding. If padding changes the logits, the
    # batches are those of the pipelines.
    if not model.depends_on_padding:
        rows.sort(key=lambda row: -len(valid.texts[row]))
    batches = _batches(valid, rows, EVAL_BATCH_SIZE, scorer)
    found = [model(ids, mask) for parts in batches for ids, mask, _ in parts]
    found = torch.cat(found).cpu().numpy()
    logits = np.empty_like(found)
    logits[rows] = found
    return logits
