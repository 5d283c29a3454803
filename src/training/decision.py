"""A decision about a run, with its reason."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A value, its description and the reason for it.

    `str(decision)` is the text in the line `Step:`: "bfloat16 (the GPU is fast at it)".
    """

    value: T
    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name
