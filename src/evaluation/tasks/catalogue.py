"""The catalogue of tasks: names, places of the data, and the tasks that the user asks for.

Names, folders and sizes are those of the challenge's strict tracks (July 2026; WUG: 2025).
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.arguments import ScoringArguments
from src.evaluation.glue.data import FORMATS, FineTuning
from src.evaluation.tasks import formats
from src.evaluation.tasks.aoa import AgeOfAcquisition
from src.evaluation.tasks.reading import ReadingTimes
from src.evaluation.tasks.rows import find_folder
from src.evaluation.tasks.task import Protocol, Task
from src.foundation import UserError, naming

FULL, FAST = ("full",), ("fast",)
OWN_PAIRS = "pairs"  # beginning of the names of the user's own tasks
# Tasks that take long come last.
ORDER = ("model", "series", "training")


@dataclass(frozen=True)
class Source:
    """The place of a task's data, and the function that reads them.

    Attributes:
        load: (directory, fields of `Task`) -> the task.
        official: its folder among the official results.
        folder: its folder in full_eval, fast_eval or both.
        sets: the sets that have the folder, of `full` and `fast`.
        is_share: whether its score is a share of right answers, rather than a correlation
            or an explained variance.
        trains: whether the task trains a copy of the model. `full` leaves such tasks out.
    """

    load: Callable[..., Task]
    official: str
    folder: str
    sets: Sequence[str] = FULL
    is_share: bool = True
    trains: bool = False

    def find(self, data_dir: Path) -> Path | None:
        """Return the folder of the data. Where both sets have it, either copy will do."""
        folders = [find_folder(data_dir / f"{s}_eval", self.folder) for s in self.sets]
        return next((folder for folder in folders if folder), None)


# fmt: off
TASKS = {
    "blimp": Source(formats.PAIRS.load, "blimp", "blimp_filtered"),
    "blimp_fast": Source(formats.PAIRS.load, "blimp", "blimp_fast", FAST),
    "supplement": Source(formats.PAIRS.load, "blimp", "supplement_filtered"),
    "supplement_fast": Source(formats.PAIRS.load, "blimp", "supplement_fast", FAST),
    "ewok": Source(formats.EWOK.load, "ewok", "ewok_filtered"),
    "ewok_fast": Source(formats.EWOK.load, "ewok", "ewok_fast", FAST),
    "entity_tracking": Source(
        formats.ENTITY_TRACKING.load, "entity_tracking", "entity_tracking"
    ),
    "entity_tracking_fast": Source(
        formats.ENTITY_TRACKING.load, "entity_tracking", "entity_tracking_fast", FAST
    ),
    "comps": Source(formats.COMPS.load, "comps", "comps"),
    "global_piqa_parallel": Source(
        formats.GLOBAL_PIQA.load,
        "global_piqa_parallel", "global_piqa_parallel", FULL + FAST,
    ),
    "global_piqa_nonparallel": Source(
        formats.GLOBAL_PIQA.load,
        "global_piqa_nonparallel", "global_piqa_nonparallel", FULL + FAST,
    ),
    "wug_adj": Source(
        formats.WUG_ADJECTIVES.load,
        "wug_adj", "wug_adj_nominalization", FULL + FAST, is_share=False,
    ),
    "wug_past": Source(
        formats.WUG_PAST_TENSE.load,
        "wug_past", "wug_past_tense", FULL + FAST, is_share=False,
    ),
    "reading": Source(
        ReadingTimes.load, "reading", "reading", FULL + FAST, is_share=False
    ),
    "aoa": Source(AgeOfAcquisition.load, "AoA_word", "aoa", is_share=False),
    **{
        name: Source(FineTuning.load, f"finetune/{name}", "glue_filtered", trains=True)
        for name in FORMATS
    },
}
# fmt: on
GROUPS = {
    "global_piqa": ("global_piqa_parallel", "global_piqa_nonparallel"),
    "wug": ("wug_adj", "wug_past"),
    "glue": tuple(FORMATS),
}


def load_tasks(args: ScoringArguments, seed: int) -> tuple[list[Task], list[str]]:
    """Return the tasks that are asked for, and the names of those that have no data.

    Args:
        seed: seed of fine-tuning.

    Raises:
        UserError: an unknown task; a task that the user named has no data; data that cannot
            be used.
    """
    common = {"protocol": args.protocol, "bf16": bool(args.bf16)}
    of_training = {"protocol": args.protocol, "bf16": args.bf16, "seed": seed}
    with naming(args.key("tasks")):
        wanted = expand(args.tasks or [])
    with naming(args.key("data")):
        found, missing = find_data(wanted, Path(args.data))
        tasks = [
            TASKS[name].load(
                directory,
                name=name,
                folder=TASKS[name].official,
                is_named=wanted[name],
                **(of_training if TASKS[name].trains else common),
            )
            for name, directory in found.items()
        ]
    folders = [args.pairs] if isinstance(args.pairs, str) else args.pairs or []
    with naming(args.key("pairs")):
        tasks += load_pairs_folders(folders, **common)
    tasks.sort(key=lambda task: ORDER.index(task.takes))
    return tasks, missing


def expand(tasks: str | Sequence[str]) -> dict[str, bool]:
    """Return task -> whether the user named it, rather than `full` or `fast`.

    Args:
        tasks: one or several of `full`, `fast`, keys of `TASKS` and keys of `GROUPS`.
    """
    wanted: dict[str, bool] = {}
    for name in [tasks] if isinstance(tasks, str) else tasks:
        if name in FULL + FAST:
            in_set = [t for t, s in TASKS.items() if name in s.sets and not s.trains]
            wanted = {**dict.fromkeys(in_set, False), **wanted}
        else:
            wanted |= dict.fromkeys(_members(name), True)
    return wanted


def _members(name: str) -> Sequence[str]:
    """Return the tasks that a name means."""
    members = GROUPS.get(name, (name,))
    if all(member in TASKS for member in members):
        return members
    # Where both sets have the same data, the suffix makes no difference.
    whole = name.removesuffix("_fast")
    members = GROUPS.get(whole, (whole,))
    if all(m in TASKS and TASKS[m].sets == FULL + FAST for m in members):
        return members
    known = ["full", "fast", *TASKS, *GROUPS]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    raise UserError(f"must be names of {', '.join(known)}; got {name}{hint}")


def find_data(
    wanted: Mapping[str, bool], data_dir: Path
) -> tuple[dict[str, Path], list[str]]:
    """Return task -> the folder of its data, and the names of tasks without data.

    Args:
        wanted: task -> whether the user named it.

    Raises:
        UserError: a task that the user named has no data, or none has.
    """
    found, missing = {}, []
    for name, is_named in wanted.items():
        folder = TASKS[name].find(data_dir)
        if folder is not None:
            found[name] = folder
        elif is_named:
            root = data_dir / f"{TASKS[name].sets[0]}_eval"
            raise UserError(f"{name} needs the folder {TASKS[name].folder} in {root}")
        else:
            missing.append(name)
    if wanted and not found:
        raise UserError(f"no data of any task in {data_dir}")
    return found, missing


def load_pairs_folders(
    folders: Sequence[str], protocol: Protocol = 2026, bf16: bool = False
) -> list[Task]:
    """Return the tasks of the user's own minimal pairs, a folder each: `pairs_<folder>`.

    Raises:
        UserError: a folder is missing or empty, or two have the same name.
    """
    tasks: dict[str, Task] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        name = f"{OWN_PAIRS}_{folder.resolve().name}"
        if name in tasks:
            raise UserError(f"two folders may not have the same name, got {folders}")
        tasks[name] = formats.PAIRS.load(
            folder.resolve(),
            name=name,
            folder=OWN_PAIRS,
            protocol=protocol,
            bf16=bf16,
        )
    return list(tasks.values())
