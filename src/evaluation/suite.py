"""The tasks of an evaluation: their data is read once, for several models.

    suite = Suite.load(args.evaluation)
    for result in suite.score(model, tokenizer):
        print(result.task, result.score)

Texts are tokenized once for all models with the same tokenizer. Scoring does not change a
model's device or mode, or the random state.
"""

import functools
import math
import re
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
    """Return everything that token ids depend on. Equal tokenizers have equal rules."""
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else id(tokenizer),
        str(tokenizer.special_tokens_map),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
    )


@dataclass
class Suite:
    """The tasks of an evaluation and the settings for asking them.

    Attributes:
        missing: names of the tasks of `full` or `fast` that have no data.
    """

    tasks: list[Task]
    args: ScoringArguments = field(default_factory=ScoringArguments)
    missing: list[str] = field(default_factory=list)
    _prepared: dict[tuple, dict[str, Any]] = field(default_factory=dict, init=False)

    @classmethod
    def load(cls, args: ScoringArguments, seed: int = STANDARD_SEED) -> "Suite":
        """Read the data of the tasks in `args`.

        Args:
            seed: seed of fine-tuning.

        Raises:
            UserError: data are missing or cannot be used.
        """
        tasks, missing = load_tasks(args, seed)
        return cls(tasks, args, missing)

    def sample(self, num_items: int) -> "Suite":
        """Return a suite with `num_items` items of each task. For 0, it has no tasks."""
        tasks = [task.sample(num_items) for task in self.tasks] if num_items else []
        return replace(self, tasks=tasks)

    @property
    def immediate(self) -> list[Task]:
        """The tasks that score one model without training it. `score` asks only these."""
        return [task for task in self.tasks if task.takes == "model"]

    @property
    def num_items(self) -> int:
        """The number of items of the immediate tasks."""
        return sum(task.num_items for task in self.immediate)

    @property
    def deferred(self) -> list[str]:
        """The names of the tasks that need several checkpoints or train a model."""
        return [task.name for task in self.tasks if task.takes != "model"]

    @property
    def score_names(self) -> list[str]:
        """The names that `scores` gives to the results of the immediate tasks."""
        return list(_score_names({task.name: task.parts for task in self.immediate}))

    def backend_for(self, model: PreTrainedModel) -> Backend:
        """Return the backend for a model."""
        is_auto = self.args.backend == "auto"
        return backend_of(type(model).__name__) if is_auto else self.args.backend

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
            UserError: the model's vocabulary is too small for the tokenizer.
        """
        dtype = torch.bfloat16 if self.args.bf16 else None
        backend, batch_tokens = self.backend_for(model), self.args.batch_tokens
        return Scorer(model, tokenizer, backend, batch_tokens, dtype, progress)

    def _prepare(self, task: Task, scorer: Scorer) -> Any:
        """Return `task.prepare(scorer)`, computed once for models with the same tokenizer."""
        rules = _tokenizer_rules(scorer.tokenizer)
        key = (rules, scorer.backend, num_positions(scorer.model))
        if key not in self._prepared:
            self._prepared.clear()  # nothing is kept for other tokenizers
        prepared = self._prepared.setdefault(key, {})
        if task.name not in prepared:
            prepared[task.name] = task.prepare(scorer)
        return prepared[task.name]

    def ask(
        self, task: Task, scorer: Scorer, checkpoint: Optional[Checkpoint] = None
    ) -> Answer:
        """Return the answer of a model to a task.

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
            raise UserError(f"out of memory: set a smaller {key}") from error
        return Answer(content, checkpoint, time.perf_counter() - start)

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Result]:
        """Yield the result of each immediate task as soon as it is known.

        Raises:
            UserError: the model's vocabulary is too small for the tokenizer. Or tasks have
                failed, because the model gives NaN or memory is too small; this error comes
                after the results of the other tasks.
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
    """Return a dictionary: name of a score in a run's log -> its task and part.

    The part is None for the score of a whole task, which has the task's name. Only the user's
    own pairs have scores of parts, called `pairs/<folder>/<part>`. If there is only one folder
    of own pairs, its scores are called `pairs` and `pairs/<part>`.

    Args:
        parts: task -> names of its parts.
    """
    own = [task for task in parts if task.startswith(f"{OWN_PAIRS}/")]
    names: dict[str, tuple[str, Optional[str]]] = {}
    for task in parts:
        name = OWN_PAIRS if own == [task] else task
        if task in own:
            names |= {f"{name}/{part}": (task, part) for part in parts[task]}
        names[name] = (task, None)
    return names


def scores(results: Iterable[Result]) -> dict[str, float]:
    """Return the scores as shares and correlations, not times 100; leave out NaN.

    For example: {"blimp": 0.71, "pairs": 0.9, "pairs/order": 1.0}.
    """
    by_task = {result.task: result for result in results}
    parts = {task: r.subscores.get("UID", {}) for task, r in by_task.items()}
    percent = {
        name: by_task[task].score if part is None else parts[task][part]
        for name, (task, part) in _score_names(parts).items()
    }
    return {n: value / 100 for n, value in percent.items() if not math.isnan(value)}


def is_score(name: str) -> bool:
    """Return whether `name` is a name that `scores` gives, and not a loss or a count.

    Earlier versions joined the parts of a name by `_`.
    """
    return name in TASKS or re.fullmatch(f"{OWN_PAIRS}([/_].*)?", name) is not None


def is_share(name: str) -> bool:
    """Return whether a score is a share of right answers."""
    return name not in TASKS or TASKS[name].is_share


def of_whole_tasks(names: Iterable[str]) -> list[str]:
    """Return the names of scores, without those of parts if the whole task is also there."""
    of_scores = [name for name in names if is_score(name)]
    parts = tuple(f"{name}/" for name in of_scores if name.startswith(OWN_PAIRS))
    return [name for name in of_scores if not name.startswith(parts)]
