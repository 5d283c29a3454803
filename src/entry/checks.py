"""Checks of an entry: the run against its track, and the predictions against the server's rules.

The server's rules were published with the leaderboard of 2026. It refuses some faults, and counts
others as 0 without a word; here each of them is named.
"""

import json
import math
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from src.entry.rules import (
    FAST_PARTS,
    FULL_PARTS,
    MAX_EPOCHS,
    SIZES,
    Track,
    expected_size,
)
from src.evaluation.glue.data import RECIPES
from src.evaluation.models import Checkpoint, load
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError, counted, fault_by_manifest, first_line, sha256
from src.training.record.milestones import TOLERANCE, WORDS_FILE, parse_milestones

# The largest difference of two logits that comes from another version of a library.
LOGIT_TOLERANCE = 1e-3
SAMPLE = "The dog near the cats sleeps ."
# The program for another Python: the logits of a model for the tokens of a text.
OTHER_PYTHON = """\
import sys, numpy, torch, transformers
directory, text, file = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
model = transformers.AutoModelForCausalLM.from_pretrained(directory).float().eval()
ids = torch.tensor([tokenizer(text)["input_ids"]])
with torch.no_grad():
    numpy.savez(file, ids=ids.numpy(), logits=model(ids).logits.numpy())
"""


@dataclass(frozen=True)
class Check:
    """A check with its result.

    Args:
        passed: None: it could not be made.
        detail: what was found.
    """

    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "open"}[self.passed]
        return f"{mark}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class Run:
    """A finished run on disk.

    Args:
        record: the content of `run.json`.
        results: the content of `results.json`.
        config: the content of `config.yaml`.
    """

    directory: Path
    record: Mapping[str, Any]
    results: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def milestones(self) -> list[Path]:
        """The folders of the milestones, by words."""
        folders = {path.name: path for path in self.directory.glob("chck_*")}
        known = parse_known(folders)
        return [folders[name] for name in sorted(known, key=known.get)]


def parse_known(names: Any) -> dict[str, int]:
    """Return a dictionary, name -> words, of the names that are names of milestones."""
    known = {}
    for name in names:
        try:
            known |= parse_milestones([name.removeprefix("chck_")])
        except UserError:
            continue
    return {name: words for name, words in known.items() if name in names}


def check_run(run: Run, track: Track, backend: str) -> Iterator[Check]:
    """Yield the checks of a run's words, epochs and tokenizer.

    Args:
        backend: the backend by which it is scored.
    """
    results, limit = run.results, track.words
    words, seen = results.get("corpus_words"), results.get("words_seen", 0)
    detail = f"{words:,} of at most {limit:,}" if words else "not in results.json"
    yield Check("unique words", words and words <= limit, detail)
    yield Check(
        "words seen",
        seen <= MAX_EPOCHS * limit,
        f"{seen:,} of at most {MAX_EPOCHS * limit:,}",
    )
    epochs = results.get("epochs", math.inf)
    yield Check("epochs", epochs <= MAX_EPOCHS, f"{epochs:.4g} of {MAX_EPOCHS}")
    yield check_milestones(run, track)
    checkpoint = Checkpoint(
        run.directory, run.directory.name, "main", str(run.directory)
    )
    try:
        model, tokenizer = load(checkpoint, checkpoint.backend(), use_cpu=True)
    except UserError as error:
        yield Check("loads", False, f"{run.directory} {error}")
        return
    with torch.no_grad():
        logits = model(**tokenizer(SAMPLE, return_tensors="pt")).logits
    finite = bool(logits.isfinite().all())
    detail = f"with transformers {run.record['versions']['transformers']}"
    yield Check("loads", finite, detail if finite else "its logits are not finite")
    faults = check_tokenizer(tokenizer, backend)
    yield Check("tokenizer", not faults, "; ".join(faults) or "BOS, no EOS, bare words")


def check_milestones(run: Run, track: Track) -> Check:
    """Check that the milestones are those of the track, whole, and at the right words."""
    name, seen = "milestones", run.results.get("words_seen", 0)
    wanted = parse_known(track.milestones)
    due = [n for n, words in wanted.items() if words * (1 - TOLERANCE) <= seen]
    folders = {path.name: path for path in run.directory.glob("chck_*")}
    if unknown := sorted({*folders} - {*wanted}):
        detail = f"{', '.join(unknown)} is no checkpoint of {track.name}"
        return Check(name, False, f"{detail}, whose names are {track.milestones[0]} … "
                     f"{track.milestones[-1]}")  # fmt: skip
    if missing := [n for n in due if n not in folders]:
        return Check(name, False, f"{', '.join(missing)} missing")
    this_run = sha256(run.directory / "run.json")
    for milestone, folder in folders.items():
        if fault := fault_by_manifest(folder):
            return Check(name, False, f"{milestone} {fault}")
        try:
            record = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
            words, of_run = record["words"], record["run"]
        except (OSError, ValueError, KeyError, TypeError):
            return Check(name, False, f"{milestone} has no {WORDS_FILE}")
        if of_run != this_run:
            return Check(name, False, f"{milestone} is of another run")
        target = wanted[milestone]
        if not (1 - TOLERANCE) * target <= words <= 1.1 * target:
            return Check(name, False, f"{milestone} has seen {words:,} words")
    ends = ", since the run ended there" * (len(due) < len(wanted))
    return Check(name, bool(due), f"{len(due)} of {len(wanted)}{ends}")


def check_other_python(run: Run, python: str | None) -> Check:
    """Check that a model gives the same logits in another environment.

    Args:
        python: the Python of an environment with the challenge's transformers 4.51.3.
    """
    name = "transformers 4.51.3"
    if python is None:
        return Check(name, None, "give python_4_51=<env>/bin/python to check it")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npz"
        program = [python, "-c", OTHER_PYTHON, str(run.directory), SAMPLE, str(file)]
        try:
            done = subprocess.run(program, capture_output=True, text=True)
        except OSError as error:
            raise UserError(f"python_4_51={python}: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            return Check(name, False, f"fails: {last}")
        with np.load(file) as other:
            ids, logits = other["ids"], other["logits"]
    checkpoint = Checkpoint(
        run.directory, run.directory.name, "main", str(run.directory)
    )
    model, tokenizer = load(checkpoint, "causal", use_cpu=True)
    if tokenizer(SAMPLE)["input_ids"] != ids[0].tolist():
        return Check(name, False, "the tokenizer gives other tokens")
    with torch.no_grad():
        ours = model(torch.from_numpy(ids)).logits.numpy()
    largest = float(np.abs(ours - logits).max())
    detail = f"the largest difference of two logits is {largest:.1e}"
    return Check(name, largest <= LOGIT_TOLERANCE, detail)


def check_predictions(
    content: Mapping[str, Any], track: Track, milestones: Collection[str]
) -> list[str]:
    """Return what the server would refuse or read as 0 in the file of predictions.

    Args:
        content: the content of the collated file.
        milestones: the milestones that the run has reached.
    """
    faults: list[str] = []
    if "entity_tracking" in content:
        faults.append(
            "entity_tracking counts as 0: the server reads entity_tracking_filtered"
        )
    for part in (*FULL_PARTS, "glue"):
        faults += _faults_of_part(part, content.get(part))
    faults += _faults_of_aoa(content, track)
    fast = content.get("fast_eval_results") or {}
    for part in FAST_PARTS:
        faults += _faults_of_fast(part, fast.get(part), track, milestones)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        faults.append("the file holds NaN or infinity, which JSON lacks")
    return faults


def _faults_of_part(part: str, predictions: Any) -> Iterator[str]:
    """Yield the faults of the predictions of the final model on one task."""
    if not predictions:
        yield f"{part} counts as 0: it is missing or has the wrong size"
        return
    is_piqa = part.startswith("global_piqa")
    if is_piqa and len(predictions) != (size := SIZES["global_piqa"][part]):
        yield f"{part} is refused: {len(predictions)} examples instead of {size}"
    wanted = RECIPES if part == "glue" else () if is_piqa else SIZES["full"][part]
    present = {name.lower() for name in predictions}
    for name in wanted:
        if name not in present:
            yield f"{part}/{name} counts as 0: it is missing"
    kind = {"glue": int, "reading": float}.get(part, str)
    for name, rows in predictions.items():
        rows, size = rows["predictions"], expected_size(part, name)
        if size is None:
            yield f"{part}/{name} is not read: the server knows no such part"
        elif len(rows) != size:
            yield f"{part}/{name} is refused: {len(rows)} predictions instead of {size}"
        elif wrong := [row for row in rows if type(row["pred"]) is not kind]:
            yield (
                f"{part}/{name} is refused: a prediction must be {kind.__name__}, got"
                f" {wrong[0]['pred']!r}"
            )


def _faults_of_aoa(content: Mapping[str, Any], track: Track) -> Iterator[str]:
    """Yield the faults of age of acquisition."""
    score = (content.get("aoa") or {}).get("aoa")
    surprisals = (content.get("aoa_surprisals") or {}).get("results")
    if type(score) not in (int, float):
        yield 'aoa counts as 0: it must be {"aoa": <correlation>}'
    elif not -1 <= score <= 1:
        yield f"aoa is {score:g}, but the server multiplies it by 100: give the correlation"
    if not surprisals:
        yield "aoa counts as 0: aoa_surprisals is missing or incomplete"
        return
    steps = [row["step"] for row in surprisals]
    for name in dict.fromkeys(steps):
        if name not in track.milestones:
            yield f"aoa_surprisals: {name} is no checkpoint of {track.name}"
        elif (number := steps.count(name)) != SIZES["aoa_pairs"]:
            size = SIZES["aoa_pairs"]
            yield f"aoa_surprisals is refused: {number} rows of {name} instead of {size}"


def _faults_of_fast(
    part: str, scores: Any, track: Track, milestones: Collection[str]
) -> Iterator[str]:
    """Yield the faults of the fast scores of all checkpoints on one task."""
    key, number = f"fast_eval_results/{part}", len(track.milestones)
    if not isinstance(scores, list):
        yield f"{key} counts as 0: it is missing"
        return
    if len(scores) > number:
        counts = f"{len(scores)} checkpoints instead of {number}"
        yield f"{key} is refused: {counts}"
    scored = zip(track.milestones, scores)
    empty = [name for name, s in scored if not s and name in milestones]
    if empty:
        shown = ", ".join(empty[:3]) + " …" * (len(empty) > 3)
        yield f"{key} counts as 0 for {counted(len(empty), 'checkpoint')}: {shown}"
    if not part.startswith("global_piqa"):
        sizes = SIZES["fast"][part]
        names = SIZES["full"][part] if isinstance(sizes, int) else sizes
        names = ("spr", "rt") if part == "reading" else names
        for milestone, values in zip(track.milestones, scores):
            present = {name.lower(): value for name, value in (values or {}).items()}
            for name in names if present else ():
                if name not in present:
                    yield f"{key}/{name} of {milestone} is missing"
    flat = [v for s in scores if s for v in s.values()]
    if flat and part != "reading" and not any(flat):
        yield f"{key} is 0 for every checkpoint"


def check_name(name: str | None) -> None:
    """Raise `UserError` for what is no name of a repository on the hub."""
    if not name or name.count("/") != 1:
        raise UserError(f"name must be <owner>/<model>, got {name!r}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"name={name} is no name on the hub: {first_line(error)}"
        ) from error
