"""Texts that a run's models write from the same beginnings, as its training goes on."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.evaluation.models import Checkpoint, load, local_checkpoint, model_folder
from src.foundation import UserError, write_atomically
from src.reporting.runs import RunData

MAX_MODELS = 5


def texts_table(run: RunData, beginnings: Sequence[str], results: Path) -> dict:
    """Return a table of texts of the models on disk, as `write_page` takes it.

    Of more than `MAX_MODELS` models, about that many are chosen, spread over words seen on a
    log axis. The texts are kept beside the models' scores, and a model that has not changed is
    not loaded again. A model that cannot be used is added to the run's faults.
    """
    written: dict[tuple[str, int], list[str]] = {}
    for words, folder in _spread(run).items():
        model = local_checkpoint(folder)
        cache = results / model_folder(model.model) / model.revision / "texts.json"
        try:
            written[model.revision, words] = _texts(model, list(beginnings), cache)
        except UserError as error:
            run.faults.append(f"{folder} {error}")
    numbered = enumerate(beginnings)
    rows = [[x, *of, texts[i]] for i, x in numbered for of, texts in written.items()]
    return {
        "caption": f"Texts written by {run.name}",
        "columns": ["beginning", "model", "words seen", "text"],
        "rows": rows,
        "notes": ["Sampled with top_p=0.9, each model with the same random numbers."],
    }


def _spread(run: RunData) -> dict[int, Path]:
    """Return the folders of about `MAX_MODELS` models by the words that they have seen."""
    folders = {n: run.directory / x.removeprefix("main") for x, n in run.words.items()}
    known = [n for n in folders if n and (folders[n] / "config.json").exists()]
    if not known:
        return {}
    wanted = np.geomspace(known[0], known[-1], MAX_MODELS)
    nearest = np.abs(np.log(np.divide.outer(known, wanted))).argmin(0)
    return {known[i]: folders[known[i]] for i in np.unique(nearest)}


def _texts(model: Checkpoint, beginnings: list[str], cache: Path) -> list[str]:
    """Return the texts of a model, from the cache if they are of this model."""
    key = {"model": model.checksum, "beginnings": beginnings}
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["key"] == key:
            return known["texts"]
    from src.training.final_model import write_texts  # takes seconds

    texts = write_texts(*load(model, "causal"), beginnings, seed=0)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cache, {"key": key, "texts": texts})
    return texts
