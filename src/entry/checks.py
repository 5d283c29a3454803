"""Checks of an entry: the run against its track, and the predictions against the server's rules.

The server's rules were published with the leaderboard of 2026. The server refuses some faults and
counts others as 0 without a message. The checks name each of them.
"""

import json
import subprocess
import tempfile
from collections import Counter
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
    LICENCES,
    MAX_EPOCHS,
    SIZES,
    Track,
    expected_size,
)
from src.evaluation.models import Checkpoint, find_checkpoints, load
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import (
    UserError,
    counted,
    did_you_mean,
    fault_by_manifest,
    first_line,
    parse_words,
    sha256,
)
from src.training.record.milestones import TOLERANCE, WORDS_FILE, parse_milestones

# Another version of a library may change a logit by this much.
LOGIT_TOLERANCE = 1e-3
SAMPLE = "The dog near the cats sleeps ."
# A program for the other Python. It saves a text's tokens and a model's logits for them.
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
    """A check and its result.

    Args:
        passed: whether the check passed; None if it could not be made.
        detail: the reason for the result.
        ends_export: whether the export ends here if the check fails, before hours of scoring.
    """

    name: str
    passed: bool | None
    detail: str
    ends_export: bool = False

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
        """The folders of the milestones, sorted by words."""
        folders = self.directory.glob("chck_*")
        words = {path: parse_words(path.name.removeprefix("chck_")) for path in folders}
        # Folders with other names are left out; `check_milestones` names them.
        return sorted(filter(words.get, words), key=words.get)

    @property
    def checkpoint(self) -> Checkpoint:
        """The final model."""
        (checkpoint,) = find_checkpoints(str(self.directory))
        return checkpoint


def check_run(run: Run, track: Track) -> Iterator[Check]:
    """Yield the checks of a run's words, epochs, milestones, final model and tokenizer."""
    results, limit, most = run.results, track.words, MAX_EPOCHS * track.words
    words, seen = results.get("corpus_words"), results["words_seen"]
    detail = f"{words:,} of at most {limit:,}" if words else "not in results.json"
    yield Check("unique words", words <= limit if words else None, detail)
    yield Check("words seen", seen <= most, f"{seen:,} of at most {most:,}")
    epochs = results["epochs"]
    yield Check("epochs", epochs <= MAX_EPOCHS, f"{epochs:.4g} of {MAX_EPOCHS}")
    yield check_milestones(run, track)
    try:
        model, tokenizer = load(run.checkpoint, "causal", use_cpu=True)
    except UserError as error:
        yield Check("loads", False, f"{run.directory} {error}")
        return
    with torch.no_grad():
        logits = model(**tokenizer(SAMPLE, return_tensors="pt")).logits
    finite = bool(logits.isfinite().all())
    detail = f"with transformers {run.record['versions']['transformers']}"
    yield Check("loads", finite, detail if finite else "its logits are not finite")
    faults = check_tokenizer(tokenizer)
    yield Check("tokenizer", not faults, "; ".join(faults) or "BOS, no EOS, bare words")


def check_milestones(run: Run, track: Track) -> Check:
    """Check that the milestones are the track's, undamaged, and saved at the right words."""
    name, seen = "milestones", run.results["words_seen"]
    wanted = parse_milestones([n.removeprefix("chck_") for n in track.milestones])
    due = [n for n, words in wanted.items() if words * (1 - TOLERANCE) <= seen]
    folders = {path.name: path for path in run.directory.glob("chck_*")}
    if unknown := sorted({*folders} - {*wanted}):
        detail = f"{', '.join(unknown)} is no checkpoint of {track.name}"
        names = f"{track.milestones[0]} … {track.milestones[-1]}"
        return Check(name, False, f"{detail}, whose names are {names}")
    if not folders:
        return Check(name, False, "none; train with +milestones=strict_small or strict")
    if missing := [n for n in due if n not in folders]:
        return Check(name, False, f"{', '.join(missing)} missing")
    this_run = sha256(run.directory / "run.json")
    for milestone, folder in folders.items():
        if fault := fault_by_manifest(folder):
            return Check(name, False, f"{milestone} {fault}", ends_export=True)
        try:
            record = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
            words, of_run = record["words"], record["run"]
        except (OSError, ValueError, KeyError, TypeError):
            return Check(name, False, f"{milestone} has no {WORDS_FILE}")
        if of_run != this_run:
            detail = f"{milestone} belongs to another run"
            return Check(name, False, detail, ends_export=True)
        target = wanted[milestone]
        if not (1 - TOLERANCE) * target <= words <= 1.1 * target:
            return Check(name, False, f"{milestone} has seen {words:,} words")
    ends = "; the run ended before the others" * (len(due) < len(wanted))
    return Check(name, bool(due), f"{len(due)} of {len(wanted)}{ends}")


def check_licence(licence: str | None) -> Check:
    """Check that the model card gets a licence that the hub knows."""
    if licence is None:
        detail = "none; give hub.license=mit, apache-2.0, cc-by-4.0 or another one"
    elif licence in LICENCES:
        return Check("licence", True, licence)
    else:
        hint = did_you_mean(licence, LICENCES) or "; other stands for any other"
        detail = f"{licence} is none of the hub's names{hint}"
    return Check("licence", False, detail, ends_export=True)


def check_other_python(run: Run, python: str | None) -> Check:
    """Check that the final model gives the same logits in another environment.

    Args:
        python: path of the Python of an environment with the challenge's transformers
            4.51.3; None leaves the check open.
    """
    name = "transformers 4.51.3"
    if python is None:
        return Check(name, None, "to check it, give python_4_51=<env>/bin/python")
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
    model, tokenizer = load(run.checkpoint, "causal", use_cpu=True)
    if tokenizer(SAMPLE)["input_ids"] != ids[0].tolist():
        return Check(name, False, "the tokenizer gives different tokens")
    with torch.no_grad():
        ours = model(torch.from_numpy(ids)).logits.numpy()
    largest = float(np.abs(ours - logits).max())
    detail = f"the largest difference of two logits is {largest:.1e}"
    return Check(name, largest <= LOGIT_TOLERANCE, detail)


def check_predictions(
    content: Mapping[str, Any], track: Track, milestones: Collection[str]
) -> list[str]:
    """Return the faults of the predictions that the server would refuse or count as 0.

    Args:
        content: the content of the file of predictions.
        milestones: names of the milestones that the run has reached.
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
        faults.append("the file holds NaN or infinity, which JSON does not allow")
    return faults


def _faults_of_part(part: str, predictions: Any) -> Iterator[str]:
    """Yield the faults of the final model's predictions for one part of the file."""
    if not predictions:
        yield f"{part} counts as 0: it has no results, or a wrong number of them"
        return
    size = SIZES["global_piqa"].get(part)
    if size is not None and len(predictions) != size:
        yield f"{part} is refused: {len(predictions)} examples instead of {size}"
    present = {name.lower() for name in predictions}
    for name in SIZES["full"].get(part, ()):
        if name not in present:
            yield f"{part}/{name} counts as 0: it is missing"
    kind = {"glue": int, "reading": float}.get(part, str)
    for name, rows in predictions.items():
        rows, size = rows["predictions"], expected_size(part, name)
        if size is None:
            yield f"{part}/{name} is not read: the server does not know this name"
        elif len(rows) != size:
            yield f"{part}/{name} is refused: {len(rows)} predictions instead of {size}"
        elif wrong := [row for row in rows if type(row["pred"]) is not kind]:
            yield (
                f"{part}/{name} is refused: a prediction must be {kind.__name__}, got"
                f" {wrong[0]['pred']!r}"
            )


def _faults_of_aoa(content: Mapping[str, Any], track: Track) -> Iterator[str]:
    """Yield the faults of the score and the surprisals of age of acquisition."""
    score = (content.get("aoa") or {}).get("aoa")
    surprisals = (content.get("aoa_surprisals") or {}).get("results")
    if type(score) not in (int, float):
        yield 'aoa counts as 0: it must be {"aoa": <correlation>}'
    elif not -1 <= score <= 1:
        yield f"aoa is {score:g}, but the server multiplies it by 100: give the correlation"
    if not surprisals:
        yield "aoa counts as 0: aoa_surprisals is missing or incomplete"
        return
    size = SIZES["aoa_pairs"]
    for name, number in Counter(row["step"] for row in surprisals).items():
        if name not in track.milestones:
            yield f"aoa_surprisals: {name} is no checkpoint of {track.name}"
        elif number != size:
            yield f"aoa_surprisals is refused: {number} rows of {name} instead of {size}"


def _faults_of_fast(
    part: str, scores: Any, track: Track, milestones: Collection[str]
) -> Iterator[str]:
    """Yield the faults of the fast scores of all checkpoints for one part of the file."""
    key, number = f"fast_eval_results/{part}", len(track.milestones)
    if not isinstance(scores, list):
        yield f"{key} counts as 0: it is missing"
        return
    if len(scores) > number:
        yield f"{key} is refused: {len(scores)} checkpoints instead of {number}"
    scored = dict(zip(track.milestones, scores))
    if empty := [name for name in scored if not scored[name] and name in milestones]:
        shown = ", ".join(empty[:3]) + " …" * (len(empty) > 3)
        yield f"{key} counts as 0 for {counted(len(empty), 'checkpoint')}: {shown}"
    if not part.startswith("global_piqa"):
        sizes = SIZES["fast"][part]
        names = SIZES["full"][part] if isinstance(sizes, int) else sizes
        names = ("spr", "rt") if part == "reading" else names
        for milestone, values in scored.items():
            present = {name.lower() for name in values or ()}
            for name in names if present else ():
                if name not in present:
                    yield f"{key}/{name} of {milestone} is missing"
    flat = [v for s in scores if s for v in s.values()]
    if flat and part != "reading" and not any(flat):
        yield f"{key} is 0 for every checkpoint"


def check_name(name: str | None) -> None:
    """Raise `UserError` unless `name` can be the name of a repository on the hub."""
    if not name or name.count("/") != 1:
        raise UserError(f"name must be <owner>/<model>, got {name!r}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"name={name} is not allowed on the hub: {first_line(error)}"
        ) from error
