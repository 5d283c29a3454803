"""The evaluation of several models on several tasks.

A model is loaded once, and only if one of its results is missing. A result is written as soon
as all of its answers are known. If a model or a task fails, the evaluation of the others
continues.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Optional

from src.evaluation.models import Checkpoint, load
from src.evaluation.results import Entry, ResultKey, ResultsFolder
from src.evaluation.suite import Suite
from src.evaluation.tasks.task import Answer, Task
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError, first_line, naming

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job:
    """A task, the model that gets the score, and the models whose answers it is made of.

    Attributes:
        answers: the answers so far. It is empty again when the result has been written.
    """

    task: Task
    owner: Checkpoint
    asked: Sequence[Checkpoint]
    answers: dict[Checkpoint, Answer] = field(default_factory=dict)


@dataclass(eq=False)
class Evaluator:
    """The models, the tasks, and the results on disk.

    Args:
        overwrite: whether tasks that have a result are scored again.
        progress: whether progress bars are shown.
        trust_remote_code: whether Python code that comes with a model is run.
        use_cpu: whether models are scored on the CPU, even if there is a GPU.

    Attributes:
        failures: name of a model, or of a model and a task, that failed -> the reason.

    Raises:
        UserError: a task needs several checkpoints of a run, and there are too few.
    """

    suite: Suite
    models: Sequence[Checkpoint]
    results_dir: Path
    overwrite: bool = False
    progress: bool = False
    trust_remote_code: bool = False
    use_cpu: bool = False

    def __post_init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._warned: set[tuple[str, str]] = set()  # (model, warning)
        self.jobs = []
        for task in self.suite.tasks:
            with naming(task.name):
                series = task.series(self.models).items()
            self.jobs += [Job(task, owner, asked) for owner, asked in series]

    def run(self) -> None:
        """Ask the models all tasks whose results are missing, and write the results."""
        in_series = [checkpoint for job in self.jobs for checkpoint in job.asked]
        for checkpoint in dict.fromkeys([*self.models, *in_series]):
            if jobs := self._lacking(checkpoint):
                with self._catching(checkpoint.origin):
                    self._ask(checkpoint, jobs)
            elif checkpoint in self.models and checkpoint.origin not in self.failures:
                LOGGER.info("%s: scored already", checkpoint.origin)
        for job in self.jobs:
            if job.answers:  # of some models, but not of all
                lost = ", ".join(c.origin for c in job.asked if c not in job.answers)
                with self._catching(f"{job.owner.origin}, {job.task.name}"):
                    raise UserError(f"left out, since {lost} could not be scored")

    def _lacking(self, checkpoint: Checkpoint) -> list[Job]:
        """Return the jobs that ask this model and have no result."""
        lacking = []
        for job in self.jobs:
            if checkpoint in job.asked:
                with self._catching(job.owner.origin):
                    if self.overwrite or not self._stored(job):
                        lacking.append(job)
        return lacking

    def _ask(self, checkpoint: Checkpoint, jobs: Iterable[Job]) -> None:
        """Ask one model, add its answers to the jobs', and write the complete results."""
        for job in jobs:
            self.folder(job.task.seed).check_writable(self._key(job))
        backend = checkpoint.backend(self.suite.args.backend)
        options = (self.trust_remote_code, self.use_cpu)
        model, tokenizer = load(checkpoint, backend, *options)
        for warning in check_tokenizer(tokenizer, backend):
            if (checkpoint.model, warning) not in self._warned:  # once for a whole run
                LOGGER.warning("warning: %s: %s", checkpoint.origin, warning)
            self._warned.add((checkpoint.model, warning))
        label = checkpoint.origin if self.progress else None
        scorer = self.suite.scorer(model, tokenizer, label)
        for job in jobs:
            with self._catching(f"{checkpoint.origin}, {job.task.name}"):
                job.answers[checkpoint] = self.suite.ask(job.task, scorer, checkpoint)
                if len(job.answers) == len(job.asked):
                    answers = [job.answers.pop(asked) for asked in job.asked]
                    result = job.task.result(answers)
                    self.folder(job.task.seed).write(self._key(job), result)
                    name, score = job.owner.origin, result.score
                    LOGGER.info("%s: %s %.2f", name, job.task.name, score)

    @contextlib.contextmanager
    def _catching(self, name: str) -> Iterator[None]:
        """Catch an error in the block, and record it as the failure of `name`.

        It may be of any type, since a model may come with Python code.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            if name not in self.failures:
                LOGGER.error("%s: failed; the reason is given at the end", name)
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.failures[name] = str(error) if isinstance(error, UserError) else reason

    def folder(self, seed: Optional[int]) -> ResultsFolder:
        """Return the folder of results by the rules of this evaluation.

        Args:
            seed: seed of fine-tuning; None for the other tasks.
        """
        # Fine-tuning in bfloat16 gets another folder only if the user asked for bfloat16, not
        # if it was chosen because of the hardware.
        args = self.suite.args
        rules = (args.protocol, bool(args.bf16), seed, args.exact_positions)
        return ResultsFolder(self.results_dir, *rules)

    def _key(self, job: Job) -> ResultKey:
        dtype = "bfloat16" if job.task.bf16 else "float32"
        backend = job.owner.backend(self.suite.args.backend)
        return ResultKey(job.owner, backend, dtype)

    def _stored(self, job: Job, member: Optional[str] = None) -> Optional[Entry]:
        """Return the entry of a job's result in `scores.json`, or None.

        Args:
            member: return the entry of this task instead of the job's, for any data.
        """
        checksum = None if member else job.task.checksum(job.asked)
        folder = self.folder(job.task.seed)
        return folder.find(self._key(job), member or job.task.name, checksum)

    def entries(self, checkpoint: Checkpoint) -> dict[str, Entry]:
        """Return a dictionary of the model's results: task -> entry of `scores.json`.

        The mean of several tasks is added if all of them have a result by the same rules,
        from this evaluation or an earlier one.
        """
        entries: dict[str, Optional[Entry]] = {}
        jobs = [job for job in self.jobs if job.owner == checkpoint]
        try:
            for job in jobs:
                entries[job.task.name] = self._stored(job)
            for mean, job in {job.task.mean: job for job in jobs}.items():
                members = mean.members if mean else ()
                parts = {m: entries.get(m, self._stored(job, m)) for m in members}
                if parts and None not in parts.values():
                    entries[mean.name] = _mean_entry(parts)
        except (Exception, SystemExit):  # `run` has recorded the failure
            return {}
        return {name: entry for name, entry in entries.items() if entry is not None}


def _mean_entry(parts: Mapping[str, Entry]) -> Entry:
    """Return the entry of a mean.

    Args:
        parts: task -> its entry of `scores.json`.
    """
    return {
        **next(iter(parts.values())),
        "score": fmean(part["score"] for part in parts.values()),
        "items": sum(part["items"] for part in parts.values()),
        "seconds": sum(part["seconds"] for part in parts.values()),
        "data_checksum": None,
        "subscores": {"task": {name: part["score"] for name, part in parts.items()}},
    }
