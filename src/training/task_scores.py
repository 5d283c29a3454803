"""The challenge's scores at the evaluations of a run."""

import logging
import time
from collections.abc import Sequence
from typing import Optional

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import FIGURES, Arguments, TrainingArguments, is_text_figure
from src.evaluation.suite import Suite, scores
from src.evaluation.tasks.aoa import MIN_POINTS
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError, counted
from src.processes import by_main_process, check_same

logger = logging.getLogger(__name__)


class TaskScores:
    """The scorer of a model in training. It does not change the model or the random state.

    Args:
        suite: all tasks, on which the final model is scored.
        num_items: items of each task that are scored during training, spread over its parts
            and the same each time; None: all, 0: none.
    """

    def __init__(self, suite: Suite, num_items: Optional[int] = None):
        self.suite = suite
        self.sample = suite if num_items is None else suite.sample(num_items)

    @classmethod
    def load(cls, args: Arguments) -> "TaskScores":
        """Load the tasks on which the run is scored, and log the tasks that are left out.

        Raises:
            UserError: data are missing or cannot be used, or the user named a task that needs
                more checkpoints than the run keeps.
        """
        suite = Suite.load(args.evaluation)
        checksums = {task.name: task.data_checksum for task in suite.tasks}
        check_same("evaluation data", checksums)
        if suite.missing:
            missing = ", ".join(suite.missing)
            logger.info("%s has no data of: %s", args.evaluation.data, missing)
        if suite.deferred:
            names = ", ".join(suite.deferred)
            logger.info("To be scored after the run, by src.run_eval: %s", names)
        if not args.training.do_train:
            return cls(suite)
        _check_checkpoints(suite, args.training)
        return cls(suite, args.evaluation.items_while_training)

    def report(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Log whether samples are scored, and properties of the tokenizer that lower scores."""
        if not self.suite.immediate:
            return
        if 0 < self.sample.num_items < self.suite.num_items:
            logger.info(
                "During training, samples of the tasks are scored; at the end, all items"
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

        Without tasks the result is empty. All processes call it, and each scores a share of
        the items (see `Scorer.log_probabilities`).

        Raises:
            UserError: in all processes, for example if the model gives NaN.
        """
        suite = self.suite if all_items else self.sample
        if not suite.immediate:
            return {}
        start = time.perf_counter()
        results = list(suite.score(model, tokenizer))
        for result in results if all_items else ():
            if result.too_long:
                number = counted(len(result.too_long), "item")
                logger.warning("%s: %s too long", result.task, number)
        # Processors may round a correlation differently, but must agree on the best model.
        by_name = by_main_process(lambda: scores(results))
        return {**by_name, "scoring_runtime": time.perf_counter() - start}


def _check_checkpoints(suite: Suite, training: TrainingArguments) -> None:
    """Refuse or warn of a task that needs more checkpoints than the run keeps."""
    limit = 0 if training.save_strategy == "no" else training.save_total_limit
    if len(training.milestones or ()) >= MIN_POINTS:
        return
    for task in suite.tasks:
        if task.takes == "series" and limit is not None and limit < MIN_POINTS:
            fault = (
                f"{task.name} needs {MIN_POINTS} checkpoints of the run, which keeps {limit}:"
                " training.save_total_limit=null keeps all that training.save_steps makes"
            )
            if task.is_named:
                raise UserError(f"evaluation.tasks: {fault}")
            logger.warning("warning: %s", fault)


def metric_name(
    args: Arguments, tasks: TaskScores, files: Sequence[str]
) -> Optional[str]:
    """Return the name under which `training.metric_for_best_model` is logged.

    For example, `blimp` is logged as `blimp_fast` if only that task is scored. Names of
    earlier versions, in which all parts were joined by `_`, are accepted.

    Args:
        files: names of the dev files.

    Raises:
        UserError: no evaluation during training has the score.
    """
    metric = args.training.metric_for_best_model
    if not metric:
        return metric
    names = tasks.sample.score_names
    return _measured(f"training.metric_for_best_model={metric}", names, files)


def returned_name(args: Arguments, tasks: TaskScores, files: Sequence[str]) -> str:
    """Return the name in the final results of `sweep.metric`, which a job returns.

    Args:
        files: names of the dev files.

    Raises:
        UserError: the final results will not have it.
    """
    if args.sweep.metric == "loss":
        return "loss"  # without an evaluation, a job returns None
    names = tasks.suite.score_names
    figures = FIGURES if args.training.do_eval else ()
    return _measured(f"sweep.metric={args.sweep.metric}", names, files, figures)


def _measured(
    given: str, scores: Sequence[str], files: Sequence[str], figures=FIGURES
) -> str:
    """Return the name under which the metric in `given` ("key=metric") is logged.

    Raises:
        UserError: it is neither a score nor a figure of the dev text.
    """
    metric = given.partition("=")[2]
    of_files = [f"files/{f}/{figure}" for f in files for figure in figures]
    known = [*figures, *of_files * (len(files) > 1), *scores]
    names = {n.removeprefix("files/").replace("/", "_"): n for n in reversed(known)}
    names |= {name: name for name in known}
    asked = metric.removeprefix("eval_")
    name = names.get(asked) or names.get(f"{asked}_fast")
    # Otherwise, `greater_is_better` would be that of another kind of metric.
    if name and is_text_figure(name) == is_text_figure(metric):
        return name
    when = "at the end" if given.startswith("sweep") else "during training"
    choices = [*figures, *["files/<file>/<figure>"] * (len(files) > 1), *scores]
    raise UserError(
        f"{given} is not measured {when}; choose one of {', '.join(choices)}, or add the task to"
        " evaluation.tasks"
    )
