"""Score models as the BabyLM challenge does.

    python -m src.run_eval checkpoint=exp/run-gpt2-small-babylm_10M/seed-42 tasks=fast
    python -m src.run_eval checkpoint='exp/run-*/*/checkpoint-*' tasks=[blimp,ewok]
    python -m src.run_eval checkpoint=owner/name revision=chck_10M tasks=full

`--help` lists the tasks and every key. What was scored before, on the same data by the same
rules, is shown and not scored again; what other rules give (`protocol`, `bf16`, fine-tuning's
`seed`) lies in folders of its own in `results_dir`. In bfloat16 it is told how many choices
differ from float32's, where these are there.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from src.arguments import RunEvalArguments, without_section
from src.configuration.checks import check_scoring
from src.configuration.command_line import command_line, set_up_logging
from src.configuration.schema import CONF_DIR, refuse_unknown_keys
from src.foundation import UserError
from src.hardware import fast_bfloat16, keep_freed_memory

# The other rooms are imported where they are used, which takes seconds: a mistyped key is
# told without them.
if TYPE_CHECKING:
    from src.evaluation.evaluator import Scoreboard
    from src.evaluation.glue.data import GlueTask
    from src.evaluation.models import Checkpoint

logger = logging.getLogger("src.run_eval")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run_eval")
def run(config: DictConfig) -> None:
    """Scores what `checkpoint` names; ends with an error if some of it could not be."""
    set_up_logging()
    try:
        refuse_unknown_keys(config, RunEvalArguments)
        values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
        evaluate(RunEvalArguments(**values))
    except UserError as error:  # not handed to Hydra, which would say more
        sys.exit(f"error: {without_section(str(error))}")


def evaluate(args: RunEvalArguments) -> None:
    """Find models and data, score, show. `UserError` at the end for what failed."""
    from src.evaluation.evaluator import Scoreboard, find_series
    from src.evaluation.models import find_checkpoints
    from src.evaluation.suite import Suite

    check(args)
    keep_freed_memory()
    quiet_libraries()
    places = (Path(args.cache_dir), args.token, args.trust_remote_code)
    models = find_checkpoints(args.checkpoint, args.revision, *places)
    zero_shot, tuned = split_tasks(args.tasks)
    suite = Suite.load(replace(args, tasks=zero_shot))
    if suite.missing:
        logger.info("%s has no data of: %s", args.data, ", ".join(suite.missing))
    series = {}
    if suite.word_contexts is not None:
        series = find_series(models, is_required="aoa" in zero_shot)
    board = Scoreboard(
        suite,
        Path(args.results_dir),
        series,
        tuning=glue_tasks(Path(args.data), tuned) if tuned else [],
        tuning_bf16=fast_bfloat16(use_cpu=False) if args.bf16 is None else args.bf16,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    )
    board.score_all(models)
    show(board, models, args)
    if board.failures:
        lines = [f"{name}: {reason}" for name, reason in board.failures.items()]
        raise UserError("not everything could be scored:\n  " + "\n  ".join(lines))


def check(args: RunEvalArguments) -> None:
    """Raise `UserError` for values that cannot be used, before anything is read."""
    check_scoring(args)
    if not args.checkpoint:
        raise UserError(
            "no model: name one with checkpoint=… (a run, a glob, a hub name)"
        )
    if not (args.tasks or args.pairs):
        raise UserError(f"nothing to score: choose tasks=… of {describe_tasks()}")


def split_tasks(tasks: Any) -> tuple[Any, list[str]]:
    """The zero-shot tasks, and those of fine-tuning; `glue` is all seven."""
    from src.evaluation.glue.data import FORMATS

    names = [tasks] if isinstance(tasks, str) else tasks or []
    tuned = [name for name in names if name in ("glue", *FORMATS)]
    rest: Any = [name for name in names if name not in tuned]
    if rest in (["full"], ["fast"]):
        rest = rest[0]
    return rest, list(FORMATS) if "glue" in tuned else tuned


def glue_tasks(data_dir: Path, names: list[str]) -> list["GlueTask"]:
    """Fine-tuning's data; what is named must be there, and `glue` names all."""
    from src.evaluation.glue.data import load
    from src.evaluation.tasks.rows import find_folder

    folder = find_folder(data_dir / "full_eval", "glue_filtered")
    if folder is None:
        raise UserError(f"tasks: no folder glue_filtered in {data_dir / 'full_eval'}")
    return load(folder, names)


def show(
    board: "Scoreboard", models: list["Checkpoint"], args: RunEvalArguments
) -> None:
    """A table for one model; for many, one line each. Of a model that failed, what it has."""
    from src.evaluation.table import overview, table

    entries = {model.origin: board.entries(model) for model in models}
    entries = {origin: own for origin, own in entries.items() if own}
    if len(entries) > 1:
        logger.info("\n%s", overview(entries))
    if len(entries) == 1 or args.by_phenomenon:
        for origin, own in entries.items():
            logger.info("\n%s\n%s", origin, table(own, args.by_phenomenon))
    if entries:
        seeds = {entry["seed"] for own in entries.values() for entry in own.values()}
        places = sorted(str(board.place(seed)) for seed in seeds)
        logger.info("Results: %s", ", ".join(dict.fromkeys(places)))


def quiet_libraries() -> None:
    """No bar for each file of weights, no report of what a class does not use."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()


def describe_tasks() -> str:
    """What `tasks` may be."""
    from src.evaluation.glue.data import FORMATS
    from src.evaluation.tasks.catalogue import GROUPS, TASKS

    fast = [f"{name}_fast" for name, t in TASKS.items() if t.fast not in (None, t.full)]
    lists = ([*TASKS, *GROUPS], fast, ["glue", *FORMATS])
    return "fast; full; or a list of\n        " + "\n        ".join(
        map(", ".join, lists)
    )


OmegaConf.register_new_resolver("describe_tasks", describe_tasks, replace=True)


def main() -> None:
    """The command line."""
    command_line(
        run,
        "Interrupted. The same command goes on with what is not scored yet.",
        RunEvalArguments,
    )


if __name__ == "__main__":
    main()
