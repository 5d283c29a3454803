"""The challenge's scores at every evaluation of a run."""

import logging
import time
from typing import Optional

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import FIGURES, UserError
from src.evaluation.suite import Suite, scores

logger = logging.getLogger(__name__)


class TaskScores:
    """Scores a model that is being trained, and leaves it and the random state as they are.

    Of several processes the first scores and tells the others.

    Args:
        suite: all tasks; what the final model is scored on.
        num_items: choices of each task that are scored while training, spread over its
            parts, the same each time; None: all, 0: none.
    """

    def __init__(self, suite: Suite, num_items: Optional[int]):
        self.suite = suite
        self.sample = suite if num_items is None else suite.sample(num_items)
        self.seconds = 0.0

    def of(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, final: bool
    ) -> dict[str, float]:
        """Shares and correlations by name, and `scoring_runtime` in seconds."""
        suite = self.suite if final else self.sample
        if not suite.checksums:
            return {}
        start = time.perf_counter()
        found: list = [None]
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            results = suite.score(model, tokenizer)
            for result in results if final else ():
                if result.too_long:
                    number = len(result.too_long)
                    logger.warning("%s: %d items are too long", result.task, number)
            found = [scores(results)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return {**found[0], "scoring_runtime": seconds}


def resolve_metric(metric: str, suite: Suite, num_items: Optional[int]) -> str:
    """`training.metric_for_best_model` as it is logged: `blimp` may mean `blimp_fast`.

    Raises `UserError` for a score that no evaluation during training has.
    """
    name = metric.removeprefix("eval_")
    known = {"pairs", *suite.checksums} if num_items != 0 else set()
    for candidate in (name, f"{name}_fast"):
        if candidate in known:
            return candidate
    raise UserError(
        f"training.metric_for_best_model={metric} is neither of the text"
        f" ({', '.join(FIGURES)}) nor among what is scored while training:"
        f" {', '.join(sorted(known)) or 'nothing'}"
    )
