"""Communication between the processes of a run, which torchrun starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, TypeVar

from torch import distributed

from src.foundation import UserError

T = TypeVar("T")


def rank_and_number() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_of_peers(error: BaseException) -> bool:
    """Return whether an error comes from the death of another process, or from torchrun.

    Gloo and NCCL raise a `RuntimeError` in the processes that are left, and torchrun raises
    `SignalException` in them. Code that expects errors of the user's input may wrap it.
    """
    cause: Optional[BaseException] = error
    while cause is not None:
        if re.search("gloo|NCCL|SignalException", f"{type(cause).__name__}: {cause}"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def gathered(value: T) -> list[T]:
    """Return the values of all processes, by rank. All processes call it."""
    values = [value] * rank_and_number()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def by_main_process(decide: Callable[[], T]) -> T:
    """Return what the main process decides. All processes call it.

    Use it for short decisions only, since the other processes wait in a collective.

    Raises:
        UserError: in all processes, if the main process raised it.
    """
    outcome: Any = None
    if rank_and_number()[0] == 0:
        try:
            outcome = decide(), None
        except UserError as error:
            outcome = None, error
    decision, error = gathered(outcome)[0]
    if error is not None:
        raise error
    return decision


def check_same(name: str, value: Any) -> None:
    """Raise `UserError` in all processes if one of them has another value than the first.

    Otherwise, on nodes without a shared disk, processes would continue from different
    checkpoints, or wait for each other without end.
    """
    values = gathered(value)
    if others := [rank for rank, other in enumerate(values) if other != values[0]]:
        raise UserError(
            f"process {others[0]} does not see the same {name} as process 0: all nodes must"
            " have the same data and share the folder of the run, for example by"
            " training.output_dir= on a shared disk"
        )


def check_shared(file: Path) -> None:
    """Raise `UserError` in all processes if not all of them read the same file."""
    check_same(str(file), file.read_bytes() if file.is_file() else None)
