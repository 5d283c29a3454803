"""The challenge's scores at every evaluation of a run."""

import logging
import time
from typing import Optional

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import FIGURES, Arguments
from src.evaluation.results import Result
from src.evaluation.suite import Suite, scores
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError

logger = logging.getLogger(__name__)


class TaskScores:
    """The scorer of a model that is being trained; the model and the random state stay.

    Of several processes the first scores and sends the scores to the others.

    Args:
        suite: all tasks, on which the final model is scored.
        num_items: items of each task that are scored while training, spread over its parts,
            the same each time; None: all, 0: none.

    Attributes:
        seconds: spent on scoring until now.
    """

    def __init__(self, suite: Suite, num_items: Optional[int] = None):
        self.suite = suite
        self.sample = suite if num_items is None else suite.sample(num_items)
        self.seconds = 0.0

    @classmethod
    def load(cls, args: Arguments) -> "TaskScores":
        """Load the tasks that the run is scored on, and log those that it is not."""
        suite = Suite.load(args.evaluation)
        if suite.missing:
            missing = ", ".join(suite.missing)
            logger.info("%s has no data of: %s", args.evaluation.data, missing)
        if suite.deferred:
            names = ", ".join(suite.deferred)
            logger.info("To be scored after the run, by src.run_eval: %s", names)
        return cls(suite, args.evaluation.items_while_training)

    def report(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Log which items are scored when, and what in the tokenizer will spoil scores."""
        if not self.suite.checksums:
            return
        cut = [
            part.num_items
            for part, whole in zip(self.sample.tasks, self.suite.tasks)
            if part.num_items < whole.num_items
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
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        all_items: bool,
    ) -> dict[str, float]:
        """Return shares and correlations by name, and `scoring_runtime` in seconds.

        Without tasks the result is empty.

        Raises:
            UserError: in all processes, if it was raised in the first.
        """
        suite = self.suite if all_items else self.sample
        if not suite.checksums:
            return {}
        start = time.perf_counter()
        found, fault = {}, None
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            try:
                results = list(suite.score(model, tokenizer))
                found = scores(results)
                if all_items:
                    _warn_of_long_items(results)
            except UserError as error:
                fault = str(error)
        if torch.distributed.is_initialized():
            shared = [found, fault]
            torch.distributed.broadcast_object_list(shared)
            found, fault = shared
        if fault is not None:
            raise UserError(fault)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return {**found, "scoring_runtime": seconds}


def _warn_of_long_items(results: list[Result]) -> None:
    for result in results:
        if result.too_long:
            number = len(result.too_long)
            logger.warning("%s: %d items are too long", result.task, number)


def metric_name(args: Arguments, tasks: TaskScores) -> Optional[str]:
    """Return `training.metric_for_best_model` as it is logged: `blimp` may be `blimp_fast`.

    Raises:
        UserError: no evaluation during training has the score.
    """
    metric = args.training.metric_for_best_model
    if not metric or metric.endswith(FIGURES):
        return metric
    name = metric.removeprefix("eval_")
    known = tasks.sample.score_names
    for candidate in (name, f"{name}_fast"):
        if candidate in known:
            return candidate
    raise UserError(
        f"training.metric_for_best_model={metric} is neither of the text"
        f" ({', '.join(FIGURES)}) nor among what is scored while training:"
        f" {', '.join(sorted(known)) or 'nothing'}"
    )


def check_metric(metric: Optional[str], metrics: dict[str, float]) -> None:
    """Raise `UserError` where an evaluation lacks the score that picks the best model.

    A correlation is not defined where a model gives all items the same score.
    """
    if metric and f"eval_{metric.removeprefix('eval_')}" not in metrics:
        raise UserError(
            f"training.metric_for_best_model={metric} has no defined value in this"
            f" evaluation, which has {', '.join(metrics)}"
        )
