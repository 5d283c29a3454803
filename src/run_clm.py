"""Train a causal language model on BabyLM text.

    python -m src.run_clm +model=gpt2-tiny +dataset=sample
    python -m src.run_clm +model=gpt2-small +dataset=babylm_10M training.seed=1
    python -m src.run_clm -m +model=gpt2-tiny +dataset=sample training.seed=1,2

`--help` lists the groups and every key; `--cfg job` prints the composed configuration.
"""

import contextlib
import functools
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from safetensors import SafetensorError

from src.arguments import FIGURES, Arguments
from src.configuration.command_line import command_line, from_machine, set_up_logging
from src.configuration.identity import defaults, identity, refuse_missing_choice
from src.configuration.schema import (
    CONF_DIR,
    build_arguments,
    decide,
    recorded_overrides,
    refuse_unknown_keys,
    resolved,
)
from src.foundation import UserError
from src.hardware import keep_freed_memory

# The other rooms are imported where they are used: --help and --cfg start without them.
if TYPE_CHECKING:
    from src.data.prepare import Corpora
    from src.evaluation.suite import Suite
    from src.training.record.run_record import RunRecord
    from src.training.record.throughput import Clock

logger = logging.getLogger("src.run_clm")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run(config: DictConfig) -> Optional[float]:
    """One run, from composed configuration to final scores. Returns the evaluation loss."""
    from src.training.record.throughput import Clock, job_start

    set_up_logging()
    clock = Clock(job_start())
    with job(Path(config.training.output_dir)):
        args = checked_arguments(config)
        if args.training.only_preprocess_dataset:
            return preprocess(args)
        return fit(config, args, evaluation_suite(args), clock)


def checked_arguments(config: DictConfig) -> Arguments:
    """The typed arguments; raises `UserError` for whatever is wrong with them."""
    from src.training.model import architecture, check_block_size
    from src.training.optimization.optimizer import check_optimizer

    refuse_unknown_keys(config)
    refuse_missing_choice(config)
    decide(config)
    args = build_arguments(config)
    check_block_size(args.data.block_size, architecture(args.model))
    check_optimizer(args.training, architecture(args.model))
    return args


def evaluation_suite(args: Arguments) -> "Suite":
    """The tasks that the run is scored on: what is wrong with them is found out before it."""
    from src.evaluation.suite import Suite

    suite = Suite.load(args.evaluation)
    if suite.missing:
        missing = ", ".join(suite.missing)
        logger.info("%s has no data of: %s", args.evaluation.data, missing)
    metric = args.training.metric_for_best_model
    if metric and not metric.endswith(FIGURES):
        from src.training.task_scores import resolve_metric

        args.training.metric_for_best_model = resolve_metric(
            metric, suite, args.evaluation.items_while_training
        )
    if suite.word_contexts is not None:
        logger.info("aoa is a score of all checkpoints: afterwards, by src.run_eval")
    return suite


def preprocess(args: Arguments) -> None:
    """Train the tokenizer, pack the text and print what was found."""
    from src.data.prepare import find_corpora, load_data
    from src.data.summary import describe

    corpora = find_corpora(args.data, args.model)
    _, data = load_data(corpora, args.tokenizer, args.data, args.model)
    parts = [blocks for blocks in (data.train, data.validation) if blocks]
    for stream in dict.fromkeys(blocks.stream for blocks in parts):
        own = [blocks for blocks in parts if blocks.stream is stream]
        budget = args.data.word_budget if stream is data.train_stream else None
        logger.info("%s\n", describe(stream, own, budget))


def fit(
    config: DictConfig, args: Arguments, suite: "Suite", clock: "Clock"
) -> Optional[float]:
    """A run from its beginning, or from where it stopped; or the results it already has."""
    from src.data.prepare import find_corpora
    from src.training.final_model import table
    from src.training.record.run_record import RunRecord
    from src.training.record.wandb_logging import logging_run
    from src.training.step.micro_batching import sequences_per_step

    if args.training.do_train:
        sequences_per_step(
            args.training, args.data.block_size
        )  # refused before any work
    main_process = args.training.process_index == 0
    devices = {}
    if args.training.tokens_per_step is None:
        # Batches are given per device: their number decides what the optimizer sees.
        devices["devices"] = args.training.world_size
    corpora = find_corpora(args.data, args.model)
    record = RunRecord(args.training.output_dir)
    with record.held(main_process):
        with args.training.main_process_first():
            if main_process:
                record.begin(
                    {**identity(config), **devices},
                    resolved(config),
                    recorded_overrides(HydraConfig.get().overrides.task),
                    corpora.checksums,
                    args.training.overwrite_output_dir,
                    defaults(),
                )
        with log_file(record.directory, main_process):
            if record.results is not None:
                shown = table(record.results)
                logger.info("This run is finished; its results:\n\n%s", shown)
                tell_what_is_lacking(args, suite, record)
                return record.results.get("eval_loss")
            wandb_args = args.wandb if main_process else None
            with logging_run(
                wandb_args, resolved(config), record.directory
            ) as wandb_run:
                return train_and_score(args, suite, corpora, record, wandb_run, clock)


def tell_what_is_lacking(args: Arguments, suite: "Suite", record: "RunRecord") -> None:
    """A finished run is not scored again: say which scores it has not, and who has them."""
    from src.evaluation.suite import of_whole_tasks

    names = [name for name in suite.score_names if f"eval_{name}" not in record.results]
    if names:
        keys = {"tasks": args.evaluation.tasks, "pairs": args.evaluation.pairs}
        asked = [
            f"{key}={value if isinstance(value, str) else '[' + ','.join(value) + ']'}"
            for key, value in keys.items()
            if value
        ]
        logger.info(
            "They do not have %s; these are scored by\n  %s",
            ", ".join(of_whole_tasks(names)),
            f"python -m src.run_eval checkpoint={record.directory} {shlex.join(asked)}",
        )


def train_and_score(
    args: Arguments,
    suite: "Suite",
    corpora: "Corpora",
    record: "RunRecord",
    wandb_run: Optional[Any],
    clock: "Clock",
) -> Optional[float]:
    """Data, model, training, final scores. A run that was told to stop ends the process."""
    from src.data.prepare import load_data
    from src.training.final_model import finish
    from src.training.record.throughput import summary
    from src.training.setup import build_trainer, train_within_memory

    main_process = args.training.process_index == 0
    if args.training.use_cpu:
        keep_freed_memory()
    with clock.phase("data"):
        tokenizer, data = load_data(
            corpora, args.tokenizer, args.data, args.model, main_process
        )
    build = functools.partial(
        build_trainer, args, tokenizer, data, suite, wandb_run, clock=clock
    )
    done = True
    if args.training.do_train:
        trainer, done = train_within_memory(build, record.directory)
    else:
        trainer = build()
    if not done:
        logger.info(
            "Stopped. The same command continues this run%s.",
            ", without training.overwrite_output_dir"
            * args.training.overwrite_output_dir,
        )
        raise SystemExit(128 + trainer.stop.received)
    loss = finish(trainer, args, data, record).get("eval_loss")
    logger.info(summary(clock, trainer.rates))
    return loss


@contextlib.contextmanager
def job(run_dir: Path) -> Iterator[None]:
    """What is the same for every job: a refused one ends with its message and leaves nothing."""
    try:
        yield
    except (UserError, OSError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, UserError) and not from_machine(error):
            raise
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(f"error: {error}")
        logger.error("error: %s", error)  # the other jobs of a sweep go on
        raise UserError(str(error)) from error
    finally:
        for directory in (
            run_dir,
            run_dir.parent,
        ):  # made by Hydra before we can refuse
            with contextlib.suppress(OSError):  # not empty: it holds a run
                directory.rmdir()


@contextlib.contextmanager
def log_file(run_dir: Path, main_process: bool) -> Iterator[None]:
    """Messages also go to the run's train.log, while the block lasts."""
    if not main_process:
        yield
        return
    handler = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def main() -> None:
    """The command line."""
    command_line(run, "Interrupted. The same command continues this run.")


if __name__ == "__main__":
    # By its name, so that launchers can pickle what is defined here.
    from src.run_clm import main

    main()
