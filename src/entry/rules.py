"""The challenge's rules for an entry: tracks, checkpoints, and the sizes of all predictions.

The collate script of serdardoesml/babylm-eval (July 2026) and the leaderboard's own checks expect
these sizes. The rules of a later year get a file of sizes of their own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = json.loads(
    Path(__file__).with_name("sizes_2026.json").read_text(encoding="utf-8")
)
MAX_EPOCHS = 10
SMALL = tuple(f"chck_{n}M" for n in (*range(1, 10), *range(10, 101, 10)))
LARGE = tuple(f"chck_{n}M" for n in range(200, 1001, 100))


@dataclass(frozen=True)
class Track:
    """A track of the challenge.

    Args:
        words: maximum number of unique words, as split by white space.
        milestones: the names of the checkpoints, in order.
    """

    name: str
    words: int
    milestones: tuple[str, ...]


TRACKS = {
    "strict-small": Track("strict-small", 10_000_000, SMALL),
    "strict": Track("strict", 100_000_000, (*SMALL, *LARGE)),
}
# Part of the file of predictions -> its task in `src/evaluation/tasks/catalogue.py`.
FULL_PARTS = {
    "blimp": "blimp",
    "blimp_supplement": "supplement",
    "ewok": "ewok",
    "entity_tracking_filtered": "entity_tracking",
    "comps": "comps",
    "global_piqa_parallel": "global_piqa_parallel",
    "global_piqa_nonparallel": "global_piqa_nonparallel",
    "reading": "reading",
}
FAST_PARTS = {
    "blimp": "blimp_fast",
    "blimp_supplement": "supplement_fast",
    "ewok": "ewok_fast",
    "entity_tracking_filtered": "entity_tracking_fast",
    "global_piqa_parallel": "global_piqa_parallel",
    "global_piqa_nonparallel": "global_piqa_nonparallel",
    "reading": "reading",
}


def expected_size(part: str, name: str, fast: bool = False) -> int | None:
    """Return how many predictions a subset must have; None for an unknown name.

    Args:
        part: a key of `FULL_PARTS`, or `glue`.
        name: name of the subset, such as a phenomenon of BLiMP.
        fast: whether the predictions are a checkpoint's, on the fast tasks.
    """
    if part.startswith("global_piqa"):
        return 1
    sizes = SIZES["fast" if fast else "full"][part]
    return sizes.get(name.lower()) if isinstance(sizes, dict) else sizes
