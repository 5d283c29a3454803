"""The evaluation of many models on many tasks.

A model is loaded once, and only if a task lacks a result of it. A result is written as soon as
all its answers are there. A failure of a model or a task does not stop the others.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Optional

import torch
from transformers import PreTrainedTokenizerBase

from src.evaluation.models import Checkpoint, load
from src.evaluation.results import Result, ResultKey, ResultsFolder
from src.evaluation.suite import Suite
from src.evaluation.tasks.task import Answer, Task
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError, first_line, naming

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job:
    """A task, the model that gets its score, and the models that are asked for it."""

    task: Task
    owner: Checkpoint
    asked: Sequence[Checkpoint]


Answers = dict[Job, dict[Checkpoint, Answer]]


class Evaluator:
    """The models, the tasks they are asked, and the results on disk.

    Args:
        overwrite: whether tasks that have a result are scored again.
        progress: whether progress bars are shown.

    Attributes:
        failures: what failed -> the reason.

    Raises:
        UserError: a task takes several checkpoints of a run, and there are too few.
    """

    def __init__(
        self,
        suite: Suite,
        models: Sequence[Checkpoint],
        results_dir: Path,
        overwrite: bool = False,
        progress: bool = False,
    ) -> None:
        self.suite, self.models, self.results_dir = suite, models, results_dir
        self.overwrite, self.progress = overwrite, progress
        self.failures: dict[str, str] = {}
        self._warned: set[tuple[str, str]] = set()  # (model, warning)
        self.jobs = []
        for task in suite.tasks:
            with naming(task.name):
                series = task.series(models).items()
            self.jobs += [Job(task, owner, asked) for owner, asked in series]

    def run(self) -> None:
        """Ask every model every task that lacks a result."""
        answers: Answers = defaultdict(dict)
        in_series = [checkpoint for job in self.jobs for checkpoint in job.asked]
        for checkpoint in dict.fromkeys([*self.models, *in_series]):
            if jobs := self._lacking(checkpoint):
                with self._noting(checkpoint.origin):
                    self._ask(checkpoint, jobs, answers)
            elif checkpoint in self.models and checkpoint.origin not in self.failures:
                LOGGER.info("%s: scored already", checkpoint.origin)
        for job, given in answers.items():
            lost = ", ".join(c.origin for c in job.asked if c not in given)
            reason = f"left out, since {lost} could not be scored"
            self._note(f"{job.owner.origin}, {job.task.name}", reason)

    def _lacking(self, checkpoint: Checkpoint) -> list[Job]:
        """Return the jobs that ask this model and have no result."""
        jobs = []
        for job in self.jobs:
            if checkpoint in job.asked:
                with self._noting(job.owner.origin):
                    if self.overwrite or self._stored(job) is None:
                        jobs.append(job)
        return jobs

    def _ask(
        self, checkpoint: Checkpoint, jobs: Sequence[Job], answers: Answers
    ) -> None:
        """Ask one model, add its answers, and write the results that are complete.

        Answers that have become a result are removed.
        """
        backend = checkpoint.backend(self.suite.args.backend)
        model, tokenizer = load(checkpoint, backend)
        self._warn(checkpoint, tokenizer, backend)
        label = checkpoint.origin if self.progress else None
        scorer = self.suite.scorer(model, tokenizer, label)
        for job in jobs:
            with self._noting(f"{checkpoint.origin}, {job.task.name}"):
                answer = self.suite.ask(job.task, scorer, checkpoint)
                answers[job][checkpoint] = answer
                if len(answers[job]) == len(job.asked):
                    given = answers.pop(job)
                    self._write(job, job.task.result([given[c] for c in job.asked]))

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note an error in the block as the failure of `name`."""
        try:
            yield
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            is_ours = isinstance(error, UserError)
            self._note(name, str(error) if is_ours else first_line(error))

    def _note(self, name: str, reason: str) -> None:
        if name not in self.failures:
            LOGGER.error("%s: failed, the reason comes at the end", name)
        self.failures[name] = reason

    def _warn(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, backend: str
    ) -> None:
        """Log what is wrong with a tokenizer, once for all checkpoints of a run."""
        for warning in check_tokenizer(tokenizer, backend):
            if (checkpoint.model, warning) not in self._warned:
                LOGGER.warning("warning: %s: %s", checkpoint.origin, warning)
            self._warned.add((checkpoint.model, warning))

    def _write(self, job: Job, result: Result) -> None:
        entry = self.folder(job.task.seed).write(self._key(job), result)
        score = "undefined" if entry["score"] is None else f"{entry['score']:.2f}"
        LOGGER.info("%s: %s %s", job.owner.origin, result.task, score)

    def folder(self, seed: Optional[int]) -> ResultsFolder:
        """Return the folder of results by the rules that count here.

        Args:
            seed: seed of fine-tuning; None for the other tasks.
        """
        # Fine-tuning's own bfloat16 counts where the user asked for it, not where the
        # hardware decided.
        args = self.suite.args
        return ResultsFolder(self.results_dir, args.protocol, bool(args.bf16), seed)

    def _key(self, job: Job) -> ResultKey:
        return ResultKey(
            job.owner.model,
            job.owner.revision,
            job.owner.checksum,
            job.owner.backend(self.suite.args.backend),
            "bfloat16" if job.task.bf16 else "float32",
            job.owner.seed,
        )

    def _stored(self, job: Job, member: Optional[str] = None) -> Optional[dict]:
        """Return the entry of a job's result in `scores.json`, if it is there.

        Args:
            member: another task instead, scored by the same rules on any data.
        """
        name = member or job.task.name
        checksum = None if member else job.task.checksum(job.asked)
        folder = self.folder(job.task.seed)
        return folder.find(self._key(job), {name: checksum}).get(name)

    def entries(self, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        """Return the model's results: task -> entry of `scores.json`.

        A mean of several tasks is added where all of them have a result by the same rules,
        from now or before.
        """
        entries: dict[str, Optional[dict[str, Any]]] = {}
        jobs = [job for job in self.jobs if job.owner == checkpoint]
        try:
            for job in jobs:
                entries[job.task.name] = self._stored(job)
            for mean, job in {job.task.mean: job for job in jobs}.items():
                members = mean.members if mean else ()
                parts = {m: entries.get(m, self._stored(job, m)) for m in members}
                if parts and None not in parts.values():
                    entries[mean.name] = mean_entry(parts)
        except (UserError, OSError):  # `run` has noted it
            return {}
        return {name: entry for name, entry in entries.items() if entry is not None}


def mean_entry(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entry of a mean.

    Args:
        parts: task -> its entry of `scores.json`.
    """
    seconds = [part["seconds"] for part in parts.values()]
    return {
        **next(iter(parts.values())),
        "score": fmean(part["score"] for part in parts.values()),
        "items": sum(part["items"] for part in parts.values()),
        "seconds": None if None in seconds else sum(seconds),
        "data_checksum": None,
        "subscores": {"task": {name: part["score"] for name, part in parts.items()}},
    }
