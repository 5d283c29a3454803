"""The single file of predictions that the challenge asks for, built from the results on disk.

The official collate script (`collate_preds` of serdardoesml/babylm-eval, July 2026) reads the same
folders and writes the same content. In both files, a part that is missing or has the wrong size is
null. There is one difference: this module keeps the surprisals of a run that ended before the last
milestone, because the server accepts them.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.entry.rules import FAST_PARTS, FULL_PARTS, SIZES, Track, expected_size
from src.evaluation.glue.data import RECIPES
from src.evaluation.results import Entry

logger = logging.getLogger(__name__)

Predictions = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Scored:
    """The results of one model.

    Args:
        folder: the folder of its `scores.json`.
        entries: task -> entry of `scores.json`.
    """

    folder: Path
    entries: Mapping[str, Entry]

    def read(self, task: str, name: str = "predictions.json") -> Any:
        """Return the content of one of a task's official files; None without a result."""
        files = self.entries.get(task, {}).get("files", [])
        file = next((f for f in files if f.endswith(f"/{name}")), None)
        if file is None:
            return None
        return json.loads((self.folder / file).read_text(encoding="utf-8"))


def collate(
    main: Scored, milestones: Mapping[str, Scored], track: Track
) -> dict[str, Any]:
    """Return the content of `all_full_preds_and_fast_scores_<backend>.json`.

    Args:
        main: the final model's results on the full tasks.
        milestones: name of a milestone -> its results on the fast tasks.
    """
    content: dict[str, Any] = {
        part: _of_right_size(part, main.read(task)) for part, task in FULL_PARTS.items()
    }
    surprisals = main.read("aoa", "surprisal.json")
    is_whole = _is_whole(surprisals, milestones)
    content["aoa_surprisals"] = surprisals if is_whole else None
    content["aoa"] = main.read("aoa", "aoa_score.json")
    content["glue"] = {}
    for task in RECIPES:
        content["glue"] |= _of_right_size("glue", main.read(task)) or {}
    content["fast_eval_results"] = {
        part: [
            _fast_scores(part, milestones[name]) if name in milestones else None
            for name in track.milestones
        ]
        for part in FAST_PARTS
    }
    return content


def _of_right_size(
    part: str, predictions: Predictions | None, fast: bool = False
) -> Predictions | None:
    """Return the predictions of a part of the file; None, with a warning, for a wrong size."""
    if predictions is None:
        return None
    sizes = {x: len(rows["predictions"]) for x, rows in predictions.items()}
    expected = {x: expected_size(part, x, fast) for x in predictions}
    total = SIZES["global_piqa"].get(part, len(predictions))
    if sizes == expected and len(predictions) == total:
        return predictions
    wrong = [x for x in sizes if sizes[x] != expected[x]]
    counts = ", ".join(f"{x} {sizes[x]} instead of {expected[x]}" for x in wrong[:3])
    counts = counts or f"{len(predictions)} instead of {total}"
    logger.warning("warning: %s has a wrong number of predictions: %s", part, counts)
    return None


def _is_whole(surprisals: dict[str, Any] | None, milestones: Iterable[str]) -> bool:
    """Return whether there are surprisals of all words at all milestones of the run."""
    steps = Counter(row["step"] for row in (surprisals or {}).get("results", []))
    return steps == dict.fromkeys(milestones, SIZES["aoa_pairs"]) and bool(steps)


def _fast_scores(part: str, scored: Scored) -> dict[str, float] | None:
    """Return a milestone's scores by subset as numbers from 0 to 1; None without a result."""
    task = FAST_PARTS[part]
    predictions = _of_right_size(part, scored.read(task), fast=True)
    if predictions is None:
        return None
    subscores = scored.entries[task]["subscores"]
    if part == "reading":
        measures = {"spr": "self_paced", "rt": "eye_tracking"}
        return {k: subscores["measure"][v] / 100 for k, v in measures.items()}
    if part.startswith("global_piqa"):
        return {part: scored.entries[task]["score"] / 100}
    # Like the script, divide the number of right choices by the number of choices.
    shares = {}
    for name, content in predictions.items():
        number = len(content["predictions"])
        shares[name] = round(subscores["UID"][name] / 100 * number) / number
    return shares
