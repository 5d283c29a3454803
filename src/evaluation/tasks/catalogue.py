"""Which zero-shot tasks there are, where their data lies, which of them are asked for.

Names, folders and sizes are those of the challenge's strict tracks (July 2026; WUG: 2025).
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from src.evaluation.tasks import formats
from src.evaluation.tasks.choice import ChoiceTask, Protocol
from src.evaluation.tasks.formats import Format
from src.evaluation.tasks.rows import checksum, find_folder, read_rows
from src.foundation import UserError

Subset = Literal["full", "fast"]
# Of the name of a task that has two sets of data.
SUFFIX = {"full": "", "fast": "_fast"}
OWN_PAIRS = "pairs"  # what the names of the user's own tasks begin with


@dataclass(frozen=True)
class Task:
    """Where a task's data lies, and how they are read.

    `fast` is None for a task that has no fast subset. A task without a `format` is no
    choice between texts: `evaluation/reading.py` and `evaluation/aoa.py` have it.
    """

    official: str  # its folder among the official results
    full: str  # its folder in full_eval
    fast: str | None  # its folder in fast_eval
    format: Format | None = None
    split_of: Callable[[str], str] | None = None
    per_token: bool = False
    correlated: bool = False


WUG_ADJECTIVES = Format(formats.WUG_FIELDS, formats.wug("wug_adj"))
WUG_PAST_TENSE = Format(formats.WUG_FIELDS, formats.wug("wug_past"))
# fmt: off
TASKS = {
    "blimp": Task("blimp", "blimp_filtered", "blimp_fast", formats.PAIRS),
    "supplement": Task("blimp", "supplement_filtered", "supplement_fast", formats.PAIRS),
    "ewok": Task("ewok", "ewok_filtered", "ewok_fast", formats.EWOK),
    "entity_tracking": Task(
        "entity_tracking", "entity_tracking", "entity_tracking_fast",
        formats.ENTITY_TRACKING, split_of=formats.entity_split,
    ),
    "comps": Task("comps", "comps", None, formats.COMPS),
    "global_piqa_parallel": Task(
        "global_piqa_parallel", "global_piqa_parallel", "global_piqa_parallel",
        formats.GLOBAL_PIQA, per_token=True,
    ),
    "global_piqa_nonparallel": Task(
        "global_piqa_nonparallel", "global_piqa_nonparallel", "global_piqa_nonparallel",
        formats.GLOBAL_PIQA, per_token=True,
    ),
    "wug_adj": Task(
        "wug_adj", "wug_adj_nominalization", "wug_adj_nominalization", WUG_ADJECTIVES,
        correlated=True,
    ),
    "wug_past": Task(
        "wug_past", "wug_past_tense", "wug_past_tense", WUG_PAST_TENSE, correlated=True
    ),
    "reading": Task("reading", "reading", "reading"),
    "aoa": Task("AoA_word", "aoa", None),
}
# fmt: on
GROUPS = {
    "global_piqa": ("global_piqa_parallel", "global_piqa_nonparallel"),
    "wug": ("wug_adj", "wug_past"),
}


@dataclass(frozen=True)
class Selected:
    """A task that is asked for and has its data."""

    task: str  # key of TASKS
    subset: Subset
    folder: Path

    @property
    def name(self) -> str:
        """What its score is called: "blimp", "blimp_fast"."""
        return _name(self.task, self.subset)


def select(
    tasks: str | Sequence[str], data_dir: Path
) -> tuple[list[Selected], list[str]]:
    """The tasks asked for that have their data, and the names of those that have not.

    Args:
        tasks: "full", "fast", or names: of TASKS, of GROUPS, or of a fast subset
            ("blimp_fast"). What is named must have its data.
        data_dir: the folder that holds full_eval and fast_eval.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if len(names) > 1 and (alone := [name for name in names if name in SUFFIX]):
        raise UserError(
            f"evaluation.tasks: {alone[0]} stands alone, got [{', '.join(names)}]"
        )
    explicit = names[0] not in SUFFIX
    wanted = list(_named(names) if explicit else _subset(names[0]))
    found, missing = [], []
    for name, subset in wanted:
        folder = _folder(TASKS[name], subset, data_dir)
        if folder is not None:
            found.append(Selected(name, subset, folder))
        elif explicit:
            raise UserError(
                f"evaluation.tasks: {_name(name, subset)} needs the folder"
                f" {_folder_name(TASKS[name], subset)} in {data_dir / f'{subset}_eval'}"
            )
        else:
            missing.append(_name(name, subset))
    if not found:
        raise UserError(f"evaluation.tasks={tasks}: no data of any task in {data_dir}")
    return found, missing


def _subset(subset: Subset) -> Iterable[tuple[str, Subset]]:
    for name, task in TASKS.items():
        if _folder_name(task, subset):
            yield name, subset


def _named(names: Sequence[str]) -> Iterable[tuple[str, Subset]]:
    """Each (task, subset) once, in the order in which it was asked for."""
    wanted: dict[tuple[str, Subset], None] = {}
    for asked in names:
        subset: Subset = "fast" if asked.endswith(SUFFIX["fast"]) else "full"
        name = asked.removesuffix(SUFFIX[subset])
        members = GROUPS.get(name, (name,))
        if not all(m in TASKS and _folder_name(TASKS[m], subset) for m in members):
            fast = [f"{n}_fast" for n, task in TASKS.items() if task.fast]
            known = ["full", "fast", *TASKS, *GROUPS, *fast]
            close = difflib.get_close_matches(asked, known, n=1)
            raise UserError(
                f"evaluation.tasks must be of {', '.join(known)}; got {asked}"
                + (f": did you mean {close[0]}?" if close else "")
            )
        wanted.update(dict.fromkeys((member, subset) for member in members))
    return wanted


def _name(name: str, subset: Subset) -> str:
    two = TASKS[name].fast not in (None, TASKS[name].full)
    return name + SUFFIX[subset] if two else name


def _folder_name(task: Task, subset: Subset) -> str | None:
    return task.full if subset == "full" else task.fast


def _folder(task: Task, subset: Subset, data_dir: Path) -> Path | None:
    """Its data. Where the fast subset is the whole task, either copy will do."""
    name = _folder_name(task, subset)
    found = find_folder(data_dir / f"{subset}_eval", name)
    if found is None and task.full == task.fast:
        other = "fast" if subset == "full" else "full"
        return find_folder(data_dir / f"{other}_eval", name)
    return found


def load(selected: Selected, protocol: Protocol) -> ChoiceTask:
    """Reads a task that has a format: its rows become choices."""
    task = TASKS[selected.task]
    folder = f"{task.official}/{_folder_name(task, selected.subset)}"
    loaded = load_pairs(selected.folder, task.format, protocol, "evaluation.data")
    return replace(
        loaded,
        name=selected.name,
        folder=folder,
        split_of=task.split_of,
        per_token=task.per_token,
        correlated=task.correlated,
    )


def load_pairs(
    folder: Path,
    format: Format = formats.PAIRS,
    protocol: Protocol = 2026,
    key: str = "evaluation.pairs",
) -> ChoiceTask:
    """A folder of minimal pairs in BLiMP's format: pairs_<folder>. Errors name `key`."""
    choices = []
    for file, number, row in read_rows(folder, format.fields, key):
        try:
            choice = format.read(row, file.stem, protocol)
        except UserError as error:
            place = f"{key}: {file}, line {number}"
            raise UserError(f"{place}: {error}") from error
        if choice is not None:
            choices.append(choice)
    if not choices:
        raise UserError(f"{key}: protocol {protocol} leaves nothing of {folder}")
    return ChoiceTask(
        name=f"{OWN_PAIRS}_{folder.name}",
        folder=f"{OWN_PAIRS}/{folder.name}",
        protocol=protocol,
        choices=tuple(choices),
        data_checksum=checksum(list(folder.glob("*.jsonl"))),
    )


def load_pairs_folders(
    folders: Sequence[Path], protocol: Protocol = 2026
) -> list[ChoiceTask]:
    """The user's own folders of minimal pairs; their names must tell them apart."""
    places: dict[str, Path] = {}
    for folder in folders:
        name = Path(folder).resolve().name
        if other := places.get(name):
            raise UserError(
                f"evaluation.pairs: two folders may not have the same name, got {other}"
                f" and {folder}"
            )
        places[name] = folder
    return [load_pairs(Path(f).resolve(), protocol=protocol) for f in places.values()]
