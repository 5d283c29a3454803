"""Score models as the BabyLM challenge does.

    python -m src.run_eval checkpoint=exp/run-gpt2-small-babylm_10M/seed-42 tasks=fast
    python -m src.run_eval checkpoint='exp/run-*/*/checkpoint-*' tasks=[blimp,ewok]
    python -m src.run_eval checkpoint=owner/name revision=chck_10M tasks=full

`--help` lists the tasks and every key. Existing scores by the same rules on the same data are
shown, not computed again. Scores by other rules (`protocol`, `bf16`, the `seed` of fine-tuning)
have folders of their own in `results_dir`. With `bf16` the number of choices that differ from
those in float32 is reported, if there are scores in float32.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from src.arguments import RunEvalArguments
from src.configuration.command_line import command_line, set_up_logging
from src.configuration.run_configuration import build_run_eval
from src.configuration.schema import CONF_DIR
from src.foundation import UserError, naming
from src.hardware import keep_freed_memory

# Importing the other rooms takes seconds. They are imported where they are used, so that a
# mistyped key is reported at once.
if TYPE_CHECKING:
    from src.evaluation.evaluator import Evaluator

logger = logging.getLogger("src.run_eval")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run_eval")
def run(config: DictConfig) -> None:
    """Score the models that `checkpoint` names, and end with an error if some failed."""
    set_up_logging()
    try:
        evaluate(build_run_eval(config))
    except UserError as error:  # Hydra would add advice of its own
        sys.exit(f"error: {error}")


def evaluate(args: RunEvalArguments) -> None:
    """Find models and tasks, score, and show the results.

    Raises:
        UserError: values that cannot be used; or, at the end, the list of what failed.
    """
    from src.evaluation.evaluator import Evaluator
    from src.evaluation.models import find_checkpoints
    from src.evaluation.suite import Suite

    check(args)
    keep_freed_memory()
    quiet_libraries()
    options = (Path(args.cache_dir), args.token, args.trust_remote_code)
    with naming("checkpoint"):
        models = find_checkpoints(args.checkpoint, args.revision, *options)
    suite = Suite.load(args, args.seed)
    if suite.missing:
        logger.info("%s has no data of: %s", args.data, ", ".join(suite.missing))
    with naming(args.key("tasks")):
        evaluator = Evaluator(
            suite, models, Path(args.results_dir), args.overwrite, sys.stderr.isatty()
        )
    evaluator.run()
    show(evaluator, args.by_phenomenon)
    if evaluator.failures:
        lines = [f"{name}: {reason}" for name, reason in evaluator.failures.items()]
        raise UserError("not everything could be scored:\n  " + "\n  ".join(lines))


def check(args: RunEvalArguments) -> None:
    """Raise `UserError` for values that cannot be used, before anything is read."""
    if not args.checkpoint:
        raise UserError(
            "no model: name one with checkpoint=… (a run, a glob, a hub name)"
        )
    if not (args.tasks or args.pairs):
        raise UserError(f"nothing to score: choose tasks=… of {describe_tasks()}")


def show(evaluator: "Evaluator", by_phenomenon: bool) -> None:
    """Log a table of one model, or a line for each of several; of a failed model, its rest."""
    from src.evaluation.table import overview, table

    results = {model.origin: evaluator.entries(model) for model in evaluator.models}
    results = {origin: entries for origin, entries in results.items() if entries}
    if len(results) > 1:
        logger.info("\n%s", overview(results))
    if len(results) == 1 or by_phenomenon:
        for origin, entries in results.items():
            logger.info("\n%s\n%s", origin, table(entries, by_phenomenon))
    folders = {
        str(evaluator.folder(entry["seed"]).path)
        for entries in results.values()
        for entry in entries.values()
    }
    if folders:
        logger.info("Results: %s", ", ".join(sorted(folders)))


def quiet_libraries() -> None:
    """Turn off the progress bars of loading, and reports of weights a class does not use."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def describe_tasks() -> str:
    """Return the values of `tasks`, for --help."""
    from src.evaluation.tasks.catalogue import GROUPS, TASKS

    lists = [", ".join(names) for names in (TASKS, GROUPS)]
    return "\n        ".join(["fast; full; or a list of", *lists])


OmegaConf.register_new_resolver("describe_tasks", describe_tasks, replace=True)


def main() -> None:
    """Run the command line."""
    command_line(
        run,
        "Interrupted. The same command goes on with what is not scored yet.",
        RunEvalArguments,
    )


if __name__ == "__main__":
    main()
