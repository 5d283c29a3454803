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
# The names of licences that the hub knows (huggingface.co/docs/hub/repositories-licenses).
LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m"
    " bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd"
    " bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5"
    " cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0"
    " cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0"
    " cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0"
    " epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl"
    " lgpl-2.1 lgpl-3.0 isc ms-pl mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0"
    " postgresql ofl-1.1 ncsa unlicense zlib pddl other"
).split()
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
