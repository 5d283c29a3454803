"""Score models as the BabyLM challenge does.

    python -m src.run_eval checkpoint=exp/run-gpt2-small-babylm_10M/seed-42 tasks=fast
    python -m src.run_eval checkpoint='exp/run-*/*/checkpoint-*' tasks=[blimp,ewok]
    python -m src.run_eval checkpoint=owner/name revision=chck_10M tasks=full

`--help` lists the tasks and every key. Existing scores by the same rules on the same data are
shown, not computed again. Scores by other rules (`protocol`, `bf16`, the `seed` of fine-tuning)
get separate folders in `results_dir`. With `bf16`, the command reports how many choices differ
from those in float32, if there are scores in float32.
"""

import logging
import sys
from pathlib import Path

if __name__ == "__main__":
    print("Loading the libraries …", file=sys.stderr, flush=True)

import hydra
from omegaconf import DictConfig, OmegaConf

from src.arguments import RunEvalArguments
from src.configuration.command_line import command_line, job
from src.configuration.run_configuration import command_arguments
from src.configuration.schema import CONF_DIR
from src.foundation import UserError, naming, shows_bars
from src.hardware import keep_freed_memory

logger = logging.getLogger("src.run_eval")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run_eval")
def run(config: DictConfig) -> None:
    """Score the models that `checkpoint` names, and end with an error if some failed."""
    with job(config, "results_dir"):
        evaluate(command_arguments(RunEvalArguments, config))


def evaluate(args: RunEvalArguments) -> None:
    """Find the models and tasks, score, and show the results.

    Raises:
        UserError: a value cannot be used; or, at the end, the list of failures.
    """
    if not args.checkpoint:
        raise UserError(
            "no model: name one with checkpoint=… (a run, a glob, a hub name)"
        )
    if not (args.tasks or args.pairs):
        raise UserError(f"nothing to score: choose tasks=… of {describe_tasks()}")
    # These imports take seconds. Errors such as a mistyped key are reported before them.
    from src.evaluation.evaluator import Evaluator
    from src.evaluation.models import find_checkpoints, model_folder
    from src.evaluation.suite import Suite
    from src.evaluation.table import report

    keep_freed_memory()
    hub = (Path(args.cache_dir), args.token)
    with naming("checkpoint"):
        models = find_checkpoints(args.checkpoint, args.revision, *hub)
    suite = Suite.load(args, args.seed)
    if suite.missing:
        logger.info("%s has no data of: %s", args.data, ", ".join(suite.missing))
    with naming(args.key("tasks")):
        evaluator = Evaluator(
            suite,
            models,
            Path(args.results_dir),
            overwrite=args.overwrite,
            progress=shows_bars(),
            trust_remote_code=args.trust_remote_code,
            use_cpu=args.use_cpu,
        )
    evaluator.run()
    results = {model.origin: evaluator.entries(model) for model in models}
    if results := {origin: entries for origin, entries in results.items() if entries}:
        logger.info("\n%s", report(results, args.by_phenomenon))
        seeds = {e["seed"] for entries in results.values() for e in entries.values()}
        folders = {evaluator.folder(seed).path for seed in seeds}
        if len(models) == 1:
            folders = {f / model_folder(models[0].model) for f in folders}
        logger.info("Results: %s", ", ".join(sorted(map(str, folders))))
    if evaluator.failures:
        lines = [f"{name}: {reason}" for name, reason in evaluator.failures.items()]
        raise UserError("not everything could be scored:\n  " + "\n  ".join(lines))


def describe_tasks() -> str:
    """Return the values of `tasks`, for --help."""
    from src.evaluation.tasks.catalogue import GROUPS, TASKS

    lists = [", ".join(names) for names in (TASKS, GROUPS)]
    return "\n        ".join(["fast; full; or a list of", *lists])


OmegaConf.register_new_resolver("describe_tasks", describe_tasks, replace=True)


def main() -> None:
    """Run the command line."""
    interrupted = "Interrupted. The same command continues with the missing scores."
    command_line(run, interrupted, RunEvalArguments)


if __name__ == "__main__":
    main()
