"""The stages of a run, from its arguments to its final scores."""

import contextlib
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Optional

from src.arguments import Arguments, RunConfiguration
from src.data.prepare import Corpora, find_corpora, load_data
from src.data.summary import describe
from src.evaluation.suite import of_whole_tasks
from src.hardware import keep_freed_memory
from src.training.final_model import final_scores, save, show_texts, table
from src.training.model import build_model, model_config
from src.training.record.run_record import RunRecord
from src.training.record.throughput import Clock, summary
from src.training.record.wandb_logging import wandb_callbacks
from src.training.setup import decide, plan_run, report
from src.training.step.micro_batching import sequences_per_step
from src.training.task_scores import TaskScores, metric_name
from src.training.trainer import LanguageModelTrainer, Outcome

logger = logging.getLogger(__name__)


def train(configuration: RunConfiguration) -> Optional[float]:
    """Train and score one model. A stopped run continues; a finished one shows its results.

    Returns:
        The evaluation loss in nats per token; None for a run without an evaluation.

    Raises:
        UserError: an input cannot be used. Most inputs are checked before any work is done.
        SystemExit: a signal stopped the run; the exit code is 128 + signal.
    """
    args, clock = configuration.args, Clock()
    config = model_config(args)
    tasks = TaskScores.load(args)
    metric = metric_name(args, tasks)
    sequences = sequences_per_step(args.training, args.data.block_size)
    corpora = find_corpora(args.data, args.model)
    with open_record(configuration, corpora) as record:
        if record.results is not None:
            return show_finished(record, args, tasks)
        with wandb_callbacks(configuration, record) as callbacks:
            with clock.phase("data"):
                tokenizer, data = load_data(
                    corpora, args.tokenizer, args.data, args.model, record.main_process
                )
            plan = plan_run(args, data, sequences)
            model = build_model(args, config, tokenizer)
            with clock.phase("first batch"):
                setup = decide(args, configuration.reasons, plan, model, metric)
            report(setup, args, model)
            tasks.report(model, tokenizer)
            trainer = LanguageModelTrainer(
                args, setup, model, tokenizer, data, tasks, callbacks, clock
            )
            outcome = trainer.fit() if args.training.do_train else Outcome()
            if outcome.signal is not None:
                exit_stopped(outcome.signal, args)
            scores = final_scores(trainer, outcome, data)
            save(trainer, args, data, scores, record.command)
            show_texts(trainer, args)
            record.finish(scores)
            logger.info("\n%s\n\nResults: %s", table(scores), record.directory)
            logger.info(summary(clock, trainer.rates))
            return scores.get("eval_loss")


def prepare_data(args: Arguments) -> None:
    """Train the tokenizer, pack the text and log a table of it."""
    corpora = find_corpora(args.data, args.model)
    _, data = load_data(corpora, args.tokenizer, args.data, args.model)
    parts = [blocks for blocks in (data.train, data.validation) if blocks]
    for stream in dict.fromkeys(blocks.stream for blocks in parts):
        of_stream = [blocks for blocks in parts if blocks.stream is stream]
        budget = args.data.word_budget if stream is data.train_stream else None
        logger.info("%s\n", describe(stream, of_stream, budget))


@contextlib.contextmanager
def open_record(
    configuration: RunConfiguration, corpora: Corpora
) -> Iterator[RunRecord]:
    """Begin or continue the run, and yield its record. The main process goes first."""
    training = configuration.args.training
    if training.use_cpu:
        keep_freed_memory()
    record = RunRecord(Path(training.output_dir), training.process_index == 0)
    identity = {**configuration.identity, "data": corpora.checksums}
    if training.tokens_per_step is None:
        # The batch is given per device, so the number of devices changes the result.
        identity["devices"] = training.world_size
    with contextlib.ExitStack() as stack:
        with training.main_process_first():
            stack.enter_context(record.open(configuration, identity))
        yield record


def show_finished(
    record: RunRecord, args: Arguments, tasks: TaskScores
) -> Optional[float]:
    """Log the results of a finished run, and the command that adds missing scores.

    Returns:
        The evaluation loss in nats per token, if there is one.
    """
    results = record.results
    logger.info("This run is finished; its results:\n\n%s", table(results))
    names = [name for name in tasks.suite.score_names if f"eval_{name}" not in results]
    if names:
        chosen = {"tasks": args.evaluation.tasks, "pairs": args.evaluation.pairs}
        overrides = [
            f"{key}={value if isinstance(value, str) else '[' + ','.join(value) + ']'}"
            for key, value in chosen.items()
            if value
        ]
        logger.info(
            "Scores of %s are missing. To add them:\n  %s",
            ", ".join(of_whole_tasks(names)),
            f"python -m src.run_eval checkpoint={record.directory} {shlex.join(overrides)}",
        )
    return results.get("eval_loss")


def exit_stopped(number: int, args: Arguments) -> NoReturn:
    """Log how to continue the run, and raise `SystemExit` for a signal."""
    logger.info(
        "Stopped. The same command continues this run%s.",
        ", without training.overwrite_output_dir" * args.training.overwrite_output_dir,
    )
    raise SystemExit(128 + number)
