"""The catalogue of tasks: their names, the locations of their data, and their loading.

Names, folders and sizes are those of the challenge's strict tracks (July 2026; WUG: 2025).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.arguments import ScoringArguments
from src.evaluation.glue.data import RECIPES, FineTuning
from src.evaluation.protocol import PROTOCOLS, STANDARD
from src.evaluation.tasks import formats
from src.evaluation.tasks.aoa import AgeOfAcquisition
from src.evaluation.tasks.reading import ReadingTimes
from src.evaluation.tasks.task import Task
from src.foundation import UserError, did_you_mean, naming

FULL, FAST, BOTH = ("full",), ("fast",), ("full", "fast")
OWN_PAIRS = "pairs"  # beginning of the names of the user's own tasks
DOWNLOAD = "`./download_data.sh eval` fetches the data, or says where they are"
# The order of tasks by `Task.takes`: slow ones come last.
ORDER = ("model", "series", "training")


@dataclass(frozen=True)
class Source:
    """The kind of a task, and the location of its data.

    Attributes:
        kind: an object whose method `load` takes a directory and fields, and returns the task.
        folder: its folder in full_eval, fast_eval or both.
        sets: the sets that have the folder, of `full` and `fast`.
        official: its folder among the official results, if it is not called as the task is.
        is_share: whether its score is a share of right answers, rather than a correlation
            or an explained variance.
    """

    kind: Any
    folder: str
    sets: Sequence[str] = FULL
    official: str | None = None
    is_share: bool = True


# fmt: off
TASKS = {
    "blimp": Source(formats.PAIRS, "blimp_filtered"),
    "blimp_fast": Source(formats.PAIRS, "blimp_fast", FAST),
    "supplement": Source(formats.PAIRS, "supplement_filtered", FULL, "blimp"),
    "supplement_fast": Source(formats.PAIRS, "supplement_fast", FAST, "blimp"),
    "ewok": Source(formats.EWOK, "ewok_filtered"),
    "ewok_fast": Source(formats.EWOK, "ewok_fast", FAST),
    "entity_tracking": Source(formats.ENTITY_TRACKING, "entity_tracking"),
    "entity_tracking_fast": Source(formats.ENTITY_TRACKING, "entity_tracking_fast", FAST),
    "comps": Source(formats.COMPS, "comps"),
    "global_piqa_parallel": Source(formats.GLOBAL_PIQA, "global_piqa_parallel", BOTH),
    "global_piqa_nonparallel": Source(formats.GLOBAL_PIQA, "global_piqa_nonparallel", BOTH),
    "wug_adj": Source(formats.WUG_ADJECTIVES, "wug_adj_nominalization", BOTH, is_share=False),
    "wug_past": Source(formats.WUG_PAST_TENSE, "wug_past_tense", BOTH, is_share=False),
    "reading": Source(ReadingTimes, "reading", BOTH, is_share=False),
    "aoa": Source(AgeOfAcquisition, "aoa", FULL, "AoA_word", is_share=False),
    **{n: Source(FineTuning, "glue_filtered", FULL, f"finetune/{n}") for n in RECIPES},
}
# fmt: on
GROUPS = {
    "global_piqa": ("global_piqa_parallel", "global_piqa_nonparallel"),
    "wug": ("wug_adj", "wug_past"),
    "glue": tuple(RECIPES),
}
# Each name that users may give -> its tasks.
NAMES = {**{name: (name,) for name in TASKS}, **GROUPS}
# These tasks have the same data in both sets, so their names with `_fast` mean the same.
NAMES |= {
    f"{name}_fast": members
    for name, members in NAMES.items()
    if all(TASKS[member].sets == BOTH for member in members)
}


def load_tasks(args: ScoringArguments, seed: int) -> tuple[list[Task], list[str]]:
    """Return the requested tasks, and the names of those that have no data.

    Args:
        seed: seed of fine-tuning.

    Raises:
        UserError: a name is unknown, a task that the user named has no data, or data cannot
            be used.
    """
    common = {"protocol": args.protocol, "bf16": bool(args.bf16)}
    with naming(args.key("tasks")):
        wanted = expand(args.tasks or [], args.protocol)
    with naming(args.key("data")):
        directories, missing = find_data(wanted, Path(args.data))
        tasks = []
        for name, directory in directories.items():
            source = TASKS[name]
            fields = {"name": name, "is_named": wanted[name], **common}
            if source.kind is FineTuning:
                fields |= {"bf16": args.bf16, "seed": seed}
                fields["exact_positions"] = args.exact_positions
            fields["folder"] = source.official or name.removesuffix("_fast")
            tasks.append(source.kind.load(directory, **fields))
    with naming(args.key("pairs")):
        pairs = [args.pairs] if isinstance(args.pairs, str) else args.pairs or []
        tasks += load_pairs_folders(pairs, **common)
    tasks.sort(key=lambda task: ORDER.index(task.takes))
    return tasks, missing


def expand(tasks: str | Sequence[str], protocol: int = STANDARD) -> dict[str, bool]:
    """Return a dictionary: task -> whether the user named it, rather than `full` or `fast`.

    Args:
        tasks: one or several of `full`, `fast` and the keys of `NAMES`.
        protocol: year of the rules, which may leave tasks out of `full` and `fast`.

    Raises:
        UserError: a name is unknown.
    """
    wanted: dict[str, bool] = {}
    for name in [tasks] if isinstance(tasks, str) else tasks:
        if name in BOTH:
            # Fine-tuning takes hours, so the sets leave it out.
            left_out = {*RECIPES, *PROTOCOLS[protocol].left_out}
            in_set = [t for t in TASKS if name in TASKS[t].sets and t not in left_out]
            wanted = {**dict.fromkeys(in_set, False), **wanted}
        elif name in NAMES:
            wanted |= dict.fromkeys(NAMES[name], True)
        else:
            known = [*BOTH, *TASKS, *GROUPS]
            hint = did_you_mean(name, known) or "."
            raise UserError(f"no task is named {name}{hint} Names: {', '.join(known)}")
    return wanted


def find_data(
    wanted: Mapping[str, bool], data_dir: Path
) -> tuple[dict[str, Path], list[str]]:
    """Return a dictionary, task -> folder of its data, and the names of tasks without data.

    If both sets have the folder, the one in full_eval is used.

    Args:
        wanted: task -> whether the user named it.

    Raises:
        UserError: a task that the user named has no data, or no task has.
    """
    folders, missing = {}, []
    for name, is_named in wanted.items():
        if folder := _find(TASKS[name], data_dir):
            folders[name] = folder
            continue
        missing.append(name)
        if is_named:
            source = TASKS[name]
            root = data_dir / f"{source.sets[0]}_eval"
            present = [other for other, s in TASKS.items() if _find(s, data_dir)]
            raise UserError(
                f"{name} needs the folder {source.folder} in {root}; {DOWNLOAD}. Tasks with"
                f" data: {', '.join(present) or 'none'}"
            )
    if wanted and not folders:
        raise UserError(f"no data of any task in {data_dir}; {DOWNLOAD}")
    return folders, missing


def _find(source: Source, data_dir: Path) -> Path | None:
    """Return the folder of a task's data, at any depth below a set's folder, or None.

    Raises:
        UserError: there are two, for example because an archive was unpacked into its own
            folder. Both copies would be scored, or the older one instead of the newer.
    """
    for name in source.sets:
        paths = (data_dir / f"{name}_eval").rglob(source.folder)
        folders = sorted(path for path in paths if path.is_dir())
        if len(folders) > 1:
            fault = f"only one folder may be called {source.folder}, found "
            raise UserError(fault + ", ".join(map(str, folders)))
        if folders:
            return folders[0]
    return None


def load_pairs_folders(folders: Sequence[str], **common: Any) -> list[Task]:
    """Return a task `pairs/<folder>` for each folder of the user's own minimal pairs.

    Args:
        common: other fields of `Task`.

    Raises:
        UserError: a folder is missing or empty, or two have the same name.
    """
    if gone := [folder for folder in folders if not Path(folder).is_dir()]:
        raise UserError(f"there is no folder {gone[0]}")
    paths = {path.name: path for path in (Path(f).resolve() for f in folders)}
    if len(paths) < len(folders):
        raise UserError(f"two folders may not have the same name, got {folders}")
    common["folder"] = OWN_PAIRS
    return [
        formats.PAIRS.load(path, name=f"{OWN_PAIRS}/{name}", **common)
        for name, path in paths.items()
    ]
