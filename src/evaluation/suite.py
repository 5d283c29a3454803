"""The tasks of an evaluation, read once and asked of many models.

    suite = Suite.load(args.evaluation)
    for result in suite.score(model, tokenizer):
        print(result.task, result.score)

For models that share a tokenizer, texts are tokenized once. A model is left as it was: its
device, its mode and the random state.
"""

import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import ScoringArguments
from src.evaluation.models import Checkpoint, backend_of
from src.evaluation.results import STANDARD_SEED, Result
from src.evaluation.scoring.network import num_positions
from src.evaluation.scoring.scorer import Backend, Scorer
from src.evaluation.tasks.catalogue import OWN_PAIRS, TASKS, load_tasks
from src.evaluation.tasks.task import Answer, Task
from src.foundation import UserError


@functools.lru_cache(maxsize=1)
def _tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
    """Return all that ids and texts depend on. Equal tokenizers have equal rules."""
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else id(tokenizer),
        str(tokenizer.special_tokens_map),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
    )


@dataclass
class Suite:
    """The tasks of an evaluation, and the settings by which models are asked.

    Attributes:
        missing: names of the tasks of `full` or `fast` that have no data.
    """

    tasks: list[Task]
    args: ScoringArguments = field(default_factory=ScoringArguments)
    missing: list[str] = field(default_factory=list)
    _prepared: dict[tuple, dict[str, Any]] = field(default_factory=dict, init=False)

    @classmethod
    def load(cls, args: ScoringArguments, seed: int = STANDARD_SEED) -> "Suite":
        """Read the tasks that `args` ask for.

        Args:
            seed: seed of fine-tuning.

        Raises:
            UserError: data that are missing or cannot be used.
        """
        tasks, missing = load_tasks(args, seed)
        return cls(tasks, args, missing)

    def sample(self, num_items: int) -> "Suite":
        """Return a suite with a sample of `num_items` of each task; 0: without tasks."""
        tasks = [task.sample(num_items) for task in self.tasks] if num_items else []
        return replace(self, tasks=tasks)

    @property
    def immediate(self) -> list[Task]:
        """The tasks that take one model as it is: those of `score`."""
        return [task for task in self.tasks if task.takes == "model"]

    @property
    def deferred(self) -> list[str]:
        """Names of the tasks that take several models, or train one."""
        return [task.name for task in self.tasks if task.takes != "model"]

    @property
    def checksums(self) -> dict[str, str]:
        """Name -> checksum of the data, of the immediate tasks."""
        return {task.name: task.data_checksum for task in self.immediate}

    @property
    def score_names(self) -> list[str]:
        """Names that `scores` gives to the results of the immediate tasks."""
        return list(_score_names({task.name: task.parts for task in self.immediate}))

    def backend_for(self, model: PreTrainedModel) -> Backend:
        """Return the backend by which a model is asked."""
        if self.args.backend == "auto":
            return backend_of(type(model).__name__)
        return self.args.backend

    def scorer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Optional[str] = None,
    ) -> Scorer:
        """Return a scorer with the suite's settings.

        Args:
            progress: label of the progress bars; None: no bars.

        Raises:
            UserError: the model's vocabulary does not hold the tokenizer's entries.
        """
        dtype = torch.bfloat16 if self.args.bf16 else None
        backend, batch_tokens = self.backend_for(model), self.args.batch_tokens
        return Scorer(model, tokenizer, backend, batch_tokens, dtype, progress)

    def _prepare(self, task: Task, scorer: Scorer) -> Any:
        """Return what a task prepares, made once for models that share a tokenizer."""
        rules = _tokenizer_rules(scorer.tokenizer)
        key = (rules, scorer.backend, num_positions(scorer.model))
        if key not in self._prepared:
            self._prepared.clear()  # of other tokenizers nothing is kept
        prepared = self._prepared.setdefault(key, {})
        if task.name not in prepared:
            prepared[task.name] = task.prepare(scorer)
        return prepared[task.name]

    def ask(
        self, task: Task, scorer: Scorer, checkpoint: Optional[Checkpoint] = None
    ) -> Answer:
        """Ask a model a task.

        Args:
            checkpoint: the model on disk; None for a model that is being trained.

        Raises:
            UserError: the model gives NaN, or memory is too small.
        """
        start = time.perf_counter()
        if scorer.progress:
            scorer = replace(scorer, progress=f"{scorer.progress}, {task.name}")
        try:
            content = task.ask(scorer, self._prepare(task, scorer))
        except torch.OutOfMemoryError as error:
            key = self.args.key("batch_tokens")
            raise UserError(f"out of memory: give a smaller {key}") from error
        return Answer(content, checkpoint, time.perf_counter() - start)

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Result]:
        """Yield the result of each immediate task as soon as it is there.

        Raises:
            UserError: the model's vocabulary does not hold the tokenizer's entries. Or, at
                the end, tasks have no result, since the model gives NaN or memory is too
                small.
        """
        scorer = self.scorer(model, tokenizer)
        failures = []
        for task in self.immediate:
            try:
                answer = self.ask(task, scorer)
            except UserError as error:
                failures.append(f"{error} ({task.name})")
            else:
                yield task.result([answer])
        if failures:
            raise UserError("; ".join(failures))


def _score_names(
    parts: Mapping[str, Iterable[str]],
) -> dict[str, tuple[str, Optional[str]]]:
    """Return name of a score in a run's log -> its task and part (None: the whole task).

    The user's own pairs are named `pairs`, or `pairs_<folder>` where there are several
    folders. Their parts follow behind that name.

    Args:
        parts: task -> names of its parts.
    """
    pairs = [task for task in parts if task.startswith(OWN_PAIRS)]
    names = {task: OWN_PAIRS if pairs == [task] else task for task in parts}
    of_parts = {f"{names[task]}_{p}": (task, p) for task in pairs for p in parts[task]}
    return {**of_parts, **{name: (task, None) for task, name in names.items()}}


def scores(results: Iterable[Result]) -> dict[str, float]:
    """Return shares and correlations: {"blimp": 0.71, "pairs": 0.9, "pairs_order": 1.0}.

    Undefined scores (NaN) are left out.
    """
    by_task = {result.task: result for result in results}
    parts = {task: r.subscores.get("UID", {}) for task, r in by_task.items()}
    percent = {
        name: by_task[task].score if part is None else parts[task][part]
        for name, (task, part) in _score_names(parts).items()
    }
    return {n: value / 100 for n, value in percent.items() if not math.isnan(value)}


def is_score(name: str) -> bool:
    """Return whether a number has a name that `scores` gives, unlike a loss or a count."""
    is_own = f"{name}_".startswith(f"{OWN_PAIRS}_")
    return is_own or name in TASKS


def is_share(name: str) -> bool:
    """Return whether a score is the share of right answers."""
    return name not in TASKS or TASKS[name].is_share


def of_whole_tasks(names: Iterable[str]) -> list[str]:
    """Return the names of scores, without those of parts of a task that is among them."""
    of_scores = [name for name in names if is_score(name)]
    pairs = [name for name in of_scores if name.startswith(OWN_PAIRS)]
    parts_of_others = tuple(f"{name}_" for name in pairs)
    return [
        name
        for name in of_scores
        if name not in pairs or not name.startswith(parts_of_others)
    ]
