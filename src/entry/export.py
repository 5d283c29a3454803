"""The stages that turn a finished run into an entry of the challenge."""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from src.arguments import ExportArguments, RunEvalArguments
from src.entry.checks import (
    Run,
    check_licence,
    check_name,
    check_other_python,
    check_predictions,
    check_run,
)
from src.entry.collate import Scored, collate
from src.entry.form import PREDICTIONS_FILE, build_form, describe_form, write_card
from src.entry.push import check_access, push
from src.entry.rules import TRACKS, Track
from src.evaluation.evaluator import Evaluator
from src.evaluation.glue.data import RECIPES
from src.evaluation.models import MODEL_FILES, find_checkpoints
from src.evaluation.results import model_folder
from src.evaluation.suite import Suite
from src.evaluation.table import report
from src.evaluation.tasks.aoa import MIN_POINTS
from src.evaluation.tasks.catalogue import expand, find_data
from src.foundation import (
    MANIFEST,
    UserError,
    counted,
    naming,
    sha256,
    shows_bars,
    write_atomically,
    write_manifest,
)

ENTRY, PREVIOUS, CARD = "entry", ".previous_entry", "main/README.md"
logger = logging.getLogger(__name__)


def export(args: ExportArguments) -> None:
    """Check a run, compute missing scores, write `entry/` in its directory, and push it.

    Raises:
        UserError: the run cannot be entered, or the server would refuse a part of the entry
            or count it as 0. The message names all such parts.
    """
    check_name(args.name)
    with naming("run"):
        run = load_run(args.run)
    track = find_track(args, run)
    checks = [*check_run(run, track), check_other_python(run, args.python_4_51)]
    checks.append(check_licence(args.hub.license))
    logger.info(
        "%s, track %s\n  %s", run.directory, track.name, "\n  ".join(map(str, checks))
    )
    faults = [str(check) for check in checks if check.passed is False]
    if any(check.ends_export and check.passed is False for check in checks):
        raise UserError("the run cannot be entered:\n  " + "\n  ".join(faults))
    entry, previous = run.directory / ENTRY, run.directory / PREVIOUS
    if previous.exists() and not entry.exists():  # a kill while the entry was replaced
        previous.rename(entry)
    shutil.rmtree(previous, ignore_errors=True)
    form = build_form(run, track, args.name, entry / "form.json")
    if args.hub.push:
        check_access(args.name, args.hub.token)
    scored = score(run, args)
    faults += write_entry(run, track, args, scored, form)
    logger.info("\n%s", report({str(run.directory): scored["main"].entries}, False))
    if faults:
        not_pushed = ", and was not pushed" * args.hub.push
        raise UserError(
            f"the entry is not ready{not_pushed}:\n  " + "\n  ".join(faults)
        )
    logger.info("The entry is ready. Fill in the open fields of form.json.")
    if args.hub.push:
        with naming("hub.push"):
            run_id = sha256(run.directory / "run.json")
            url = push(entry, args.name, run_id, args.hub.private, args.hub.token)
        logger.info("Pushed: %s", url)


def load_run(directory: str | None) -> Run:
    """Return the finished run in a directory.

    Raises:
        UserError: there is no run, or it is not finished, not trained or damaged.
    """
    if not directory:
        raise UserError("name a finished run: run=exp/<group>/<name>")
    path = Path(directory)
    if not (path / "run.json").is_file():
        raise UserError(f"{path} is not a run (it has no run.json)")
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if not (path / "results.json").is_file():
            raise UserError(
                f"{path} is not finished; this continues it: {record['command']}"
            )
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if "words_seen" not in results:
        raise UserError(f"{path} was not trained (training.do_train=false)")
    if not (path / "model.safetensors").is_file() and not any(path.glob("model-*")):
        raise UserError(f"{path} has no model")
    return Run(path, record, results, config)


def find_track(args: ExportArguments, run: Run) -> Track:
    """Return the chosen track, or by default the one with the run's budget of words."""
    budget = run.config["data"]["word_budget"]
    by_budget = [name for name, track in TRACKS.items() if track.words == budget]
    name = args.track or next(iter(by_budget), None)
    if name is None:
        raise UserError(
            f"choose track={' or '.join(TRACKS)}: the run's data.word_budget is {budget}"
        )
    return TRACKS[name]


def score(run: Run, args: ExportArguments) -> dict[str, Scored]:
    """Score the final model on the full tasks and the milestones on the fast ones.

    Existing results are reused.

    Returns:
        revision -> results.

    Raises:
        UserError: no task has data, or a model could not be scored.
    """
    steps = [model for path in run.milestones for model in find_checkpoints(str(path))]
    full = [*expand("full"), *RECIPES]
    if len(steps) < MIN_POINTS:
        full.remove("aoa")
    with naming("data"):
        plan = [([run.checkpoint], _with_data(full, args))]
        plan += [(steps, _with_data(expand("fast"), args))] if steps else []
    scored: dict[str, Scored] = {}
    for models, tasks in plan:
        options = dict(data=args.data, batch_tokens=args.batch_tokens)
        suite = Suite.load(RunEvalArguments(tasks=tasks, **options))
        results_dir, bars = Path(args.results_dir), shows_bars()
        evaluator = Evaluator(
            suite, models, results_dir, progress=bars, use_cpu=args.use_cpu
        )
        evaluator.run()
        if evaluator.failures:
            lines = [f"{name}: {why}" for name, why in evaluator.failures.items()]
            raise UserError("not everything could be scored:\n  " + "\n  ".join(lines))
        for model in models:
            folder = results_dir / model_folder(model.model) / model.revision
            scored[model.revision] = Scored(folder, evaluator.entries(model))
    return scored


def _with_data(names: Iterable[str], args: ExportArguments) -> list[str]:
    """Return the tasks that have data, and log the names of the others."""
    folders, missing = find_data(dict.fromkeys(names, False), Path(args.data))
    for name in set(RECIPES) & {*folders}:  # all tasks of GLUE share a folder
        if not (folders[name] / f"{name}.train.jsonl").is_file():
            del folders[name]
            missing.append(name)
    if missing:
        logger.warning("warning: %s has no data for %s", args.data, ", ".join(missing))
    return list(folders)


def write_entry(
    run: Run,
    track: Track,
    args: ExportArguments,
    scored: dict[str, Scored],
    form: dict[str, Any],
) -> list[str]:
    """Write `entry/` and return the faults of its predictions.

    The new entry replaces the old one only when it is complete. Files that the team has added
    to the old one, and a card that it has changed, are kept.

    Args:
        scored: revision -> results.
        form: the fields of the submission form.
    """
    entry, staging = run.directory / ENTRY, run.directory / ".entry"
    previous = run.directory / PREVIOUS
    shutil.rmtree(staging, ignore_errors=True)
    milestones = {path.name: path for path in run.milestones}
    for name, folder in {"main": run.directory, **milestones}.items():
        copy_model(folder, staging / name)
    predictions = staging / "predictions" / model_folder(args.name)
    for revision, results in scored.items():
        files = [f for item in results.entries.values() for f in item.get("files", [])]
        for file in ["scores.json", *files]:
            target = predictions / revision / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(results.folder / file, target)
    of_milestones = {name: scored[name] for name in milestones if name in scored}
    content = collate(scored["main"], of_milestones, track)
    text = json.dumps(content)
    write_atomically(predictions / PREDICTIONS_FILE, text)
    write_atomically(staging / "form.json", form)
    write_atomically(staging / "form.md", describe_form(form))
    card, entries = staging / CARD, scored["main"].entries
    write_card(run, card, form, args.hub.license, entries)
    write_manifest(staging)
    keep_changes(entry, staging)
    if entry.exists():
        entry.rename(previous)
    staging.rename(entry)
    shutil.rmtree(previous, ignore_errors=True)
    number = counted(len(milestones) + 1, "model")
    logger.info("Entry with %s: %s", number, entry)
    return check_predictions(json.loads(text), track, milestones)


def keep_changes(entry: Path, staging: Path) -> None:
    """Copy what the team has added to an entry, and its changed card, to the next entry."""
    if not (entry / MANIFEST).is_file():
        return
    sums = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
    for file in filter(Path.is_file, entry.rglob("*")):
        name = file.relative_to(entry).as_posix()
        is_changed = name == CARD and sums.get(name) != sha256(file)
        if is_changed or name not in (*sums, MANIFEST):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, staging / name)
            logger.warning("warning: %s is kept as you left it", file)


def copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model; use hard links if the file system allows them."""
    target.mkdir(parents=True)
    files = {path for pattern in MODEL_FILES for path in source.glob(pattern)}
    for file in files | {*source.glob("generation_config.json")}:
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)
