"""The challenge's scores at every evaluation of a run."""

import logging
import time
from typing import Optional

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import FIGURES
from src.evaluation.results import Result
from src.evaluation.suite import Suite, scores
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError

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

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say what is scored when; warn of what in the tokenizer will spoil scores."""
        cut = [
            len(part.choices)
            for part, whole in zip(self.sample.choices, self.suite.choices)
            if len(part.choices) < len(whole.choices)
        ]
        if cut:
            logger.info(
                "While training, the tasks' scores are of a sample of %d choices each; at"
                " the end, of all",
                cut[0],
            )
        for warning in check_tokenizer(tokenizer, self.suite.backend_for(model)):
            logger.warning("warning: %s", warning)

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, final: bool
    ) -> dict[str, float]:
        """Shares and correlations by name, and `scoring_runtime` in seconds.

        What the first process raises is raised in all: none waits for scores in vain.
        """
        suite = self.suite if final else self.sample
        if not suite.checksums:
            return {}
        start = time.perf_counter()
        found, fault = {}, None
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            try:
                results = list(suite.score(model, tokenizer))
                found = scores(results)
                _tell_too_long(results if final else [])
            except UserError as error:
                fault = str(error)
        if torch.distributed.is_initialized():
            told = [found, fault]
            torch.distributed.broadcast_object_list(told)
            found, fault = told
        if fault is not None:
            raise UserError(fault)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return {**found, "scoring_runtime": seconds}


def _tell_too_long(results: list[Result]) -> None:
    for result in results:
        if result.too_long:
            number = len(result.too_long)
            logger.warning("%s: %d items are too long", result.task, number)


def resolve_metric(metric: str, suite: Suite, num_items: Optional[int]) -> str:
    """`training.metric_for_best_model` as it is logged: `blimp` may mean `blimp_fast`.

    Raises `UserError` for a score that no evaluation during training has.
    """
    name = metric.removeprefix("eval_")
    known = TaskScores(suite, num_items).sample.score_names
    for candidate in (name, f"{name}_fast"):
        if candidate in known:
            return candidate
    raise UserError(
        f"training.metric_for_best_model={metric} is neither of the text"
        f" ({', '.join(FIGURES)}) nor among what is scored while training:"
        f" {', '.join(sorted(known)) or 'nothing'}"
    )


def check_metric(metric: Optional[str], found: dict[str, float]) -> None:
    """Raise `UserError` where an evaluation lacks what is to pick the best model.

    A correlation is not defined where a model gives all items the same score.
    """
    if metric and f"eval_{metric.removeprefix('eval_')}" not in found:
        raise UserError(
            f"training.metric_for_best_model={metric} has no defined value in this"
            f" evaluation, which found {', '.join(found)}"
        )
