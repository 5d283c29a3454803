"""A choice that was made about a run, with the reason for it."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A value, what it is called on the line `Step:`, and why it was chosen.

    `str(decision)` is the text of that line: "bfloat16 (the GPU is fast at it)".
    """

    value: T
    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name
