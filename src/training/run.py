"""The stages of a run, from its arguments to its final scores."""

import contextlib
import dataclasses
import json
import logging
import re
import shlex
import signal
from collections.abc import Iterator
from typing import Any, NoReturn, Optional

from transformers.utils import logging as transformers_logging

from src.arguments import Arguments, RunConfiguration, ScoringArguments
from src.data.prepare import Corpora, find_corpora, load_data
from src.data.sanity import sanity
from src.data.summary import describe
from src.evaluation.suite import of_whole_tasks
from src.foundation import UserError, shows_bars
from src.hardware import set_up_device
from src.processes import by_main_process, check_same, check_shared
from src.training.callbacks import PREEMPTION
from src.training.final_model import final_scores, save, show_texts, table
from src.training.model import build_model, model_config
from src.training.record.run_record import RunRecord, sweep_run_id
from src.training.record.throughput import Clock, summary
from src.training.record.wandb_logging import send_results, wandb_callbacks
from src.training.setup import decide, plan_run, refusing, report
from src.training.step.micro_batching import sequences_per_step
from src.training.task_scores import TaskScores, metric_name, returned_name
from src.training.trainer import LanguageModelTrainer

logger = logging.getLogger(__name__)


def train(configuration: RunConfiguration) -> Optional[float]:
    """Train and score one model. A stopped run continues; a finished one shows its results.

    Returns:
        The value of `sweep.metric`, by default the evaluation loss in nats per token; None
        for a run without an evaluation.

    Raises:
        UserError: an input cannot be used. Most inputs are checked before any work is done.
        SystemExit: a signal stopped the run; the exit code is 128 + signal.
    """
    args, clock = configuration.args, Clock()
    if not shows_bars():
        transformers_logging.disable_progress_bar()  # for loading weights
    set_up_device(args.training)
    config = model_config(args)
    tasks = TaskScores.load(args)
    sequences = sequences_per_step(args.training, args.data.block_size)
    corpora = find_corpora(args.data, args.model)
    metric = metric_name(args, tasks, corpora.validation_names)
    returned = returned_name(args, tasks, corpora.validation_names)
    with open_record(configuration, corpora) as record:
        if record.results is not None:
            if sweep_run_id() is not None:
                send_results(record)
            return show_finished(record, args, tasks, returned)
        with wandb_callbacks(record) as callbacks:
            with clock.phase("data"):
                texts = corpora, args.tokenizer, args.data, args.model
                tokenizer, data = load_data(*texts)
            plan = plan_run(args, data, sequences)
            model = build_model(args, config, tokenizer)
            with clock.phase("first batch"), refusing(model):
                setup = decide(args, configuration.reasons, plan, model, metric)
            report(setup, args, model, data.validation)
            tasks.report(model, tokenizer)
            trainer = LanguageModelTrainer(
                args, setup, model, tokenizer, data, tasks, callbacks, clock
            )
            kind = trainer.fit() if args.training.do_train else {}
            if trainer.stop.received is not None:
                exit_stopped(trainer.stop.received, args)
            scores = final_scores(trainer, kind)
            save(trainer, scores, record.command)
            show_texts(trainer)
            record.finish(scores)
            logger.info("\n%s\n\nResults: %s", table(scores), record.directory)
            logger.info(summary(clock, trainer.rates))
            return scores.get(f"eval_{returned}")


def prepare_data(args: Arguments) -> None:
    """Train the tokenizer, pack the text and log a table of it.

    The table also compares the dev text with the training text.
    """
    corpora = find_corpora(args.data, args.model)
    tokenizer, data = load_data(corpora, args.tokenizer, args.data, args.model)
    parts = [blocks for blocks in (data.train, data.validation) if blocks]
    for stream in dict.fromkeys(blocks.stream for blocks in parts):
        of_stream = [blocks for blocks in parts if blocks.stream is stream]
        budget = args.data.word_budget if stream is data.train_stream else None
        compared = []
        if data.train_stream and stream is data.validation.stream:
            logger.info("Comparing the dev text with the training text …")
            compared = sanity(data.train_stream, data.validation, tokenizer)
        logger.info("%s\n", describe(stream, of_stream, budget, compared))


@contextlib.contextmanager
def open_record(
    configuration: RunConfiguration, corpora: Corpora
) -> Iterator[RunRecord]:
    """Begin or continue the run in the main process, and yield its record in all of them."""
    training = configuration.args.training
    identity = {**configuration.identity, "data": corpora.checksums}
    if training.tokens_per_step is None:
        # The batch is given per device, so the number of devices changes the result.
        identity["devices"] = training.world_size
    record = RunRecord(configuration, identity)
    with contextlib.ExitStack() as stack:
        by_main_process(lambda: stack.enter_context(record.open()))
        check_same("text", corpora.checksums)
        check_shared(record.directory / "run.json")
        yield record


def show_finished(
    record: RunRecord, args: Arguments, tasks: TaskScores, returned: str
) -> Optional[float]:
    """Log the results of a finished run, and the command that adds missing scores.

    Returns:
        The value of `sweep.metric`, whose name in the results is `returned`.

    Raises:
        UserError: the run was not scored on that task.
    """
    results, evaluation = record.results, args.evaluation
    logger.info(
        "This run is finished: %s (training.overwrite_output_dir=true starts it anew)."
        " Its results:\n\n%s",
        *(record.directory, table(results)),
    )
    # Earlier versions joined the parts of a name by `_`.
    known = {key.removeprefix("eval_").replace("/", "_") for key in results}
    names = [n for n in tasks.suite.score_names if n.replace("/", "_") not in known]
    if names:
        values: dict[str, Any] = {"checkpoint": str(record.directory)}
        if args.model.trust_remote_code:
            values["trust_remote_code"] = True
        for field in dataclasses.fields(ScoringArguments):
            if (value := getattr(evaluation, field.name)) != field.default:
                values[field.name] = value
        overrides = [f"{name}={quoted(value)}" for name, value in values.items()]
        logger.info(
            "Scores of %s are missing. To add them:\n  python -m src.run_eval %s",
            *(", ".join(of_whole_tasks(names)), shlex.join(overrides)),
        )
    if returned != "loss" and f"eval_{returned}" not in results:
        raise UserError(
            f"sweep.metric={returned}: {record.directory} has no such result"
        )
    return results.get(f"eval_{returned}")


def quoted(value: Any) -> str:
    """Return a value of the command line: a list, or text in quotes if Hydra needs them."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_./-]+", str(value))
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def exit_stopped(number: int, args: Arguments) -> NoReturn:
    """Log how to continue the run, and raise `SystemExit` for a signal.

    In a job of submitit, call its handler, which puts the job back into the queue, after any
    signal but Ctrl-C.
    """
    logger.info(
        "Stopped. The same command continues this run%s.",
        ", without training.overwrite_output_dir" * args.training.overwrite_output_dir,
    )
    if number != signal.SIGINT and callable(signal.getsignal(PREEMPTION)):
        signal.raise_signal(PREEMPTION)
    raise SystemExit(128 + number)
