"""The interface that all tasks share.

Evaluation and training use only these methods. A new kind of task is a subclass of
`Task` and an entry in `catalogue.TASKS`.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Optional

from src.evaluation.models import Checkpoint
from src.evaluation.protocol import PROTOCOLS, STANDARD, Protocol
from src.evaluation.results import Result
from src.evaluation.scoring.scorer import Scorer


class Mean(NamedTuple):
    """A score that is the mean of several tasks' scores."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The answer of one model to one task.

    Attributes:
        content: what `Task.ask` returned.
        checkpoint: the model; None for a model that is being trained.
        seconds: time for tokenizing and scoring.
    """

    content: Any
    checkpoint: Optional[Checkpoint] = None
    seconds: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A task with its data, which asks models and turns their answers into a result.

        prepared = task.prepare(scorer)
        answer = Answer(task.ask(scorer, prepared))
        result = task.result([answer])

    Attributes:
        name: the name of its score, such as `blimp_fast`.
        folder: folder of its files among the official results.
        protocol: year of the challenge's rules, a key of `PROTOCOLS`.
        data_checksum: SHA-256 of its data.
        bf16: whether matrix products are in bfloat16.
        seed: seed of fine-tuning; None for tasks without randomness.
        is_named: whether the user named the task, rather than `full` or `fast`.
        takes: what a score needs. `model`: one model as it is. `series`: several checkpoints
            of a run. `training`: one model, of which the task trains a copy.
        mean: the mean that the score is a part of, if any.
    """

    name: str
    folder: str
    data_checksum: str
    protocol: int = STANDARD
    bf16: bool = False
    seed: Optional[int] = None
    is_named: bool = True
    takes: ClassVar[Literal["model", "series", "training"]] = "model"
    mean: ClassVar[Optional[Mean]] = None

    @property
    def rules(self) -> Protocol:
        """The challenge's rules."""
        return PROTOCOLS[self.protocol]

    @property
    @abc.abstractmethod
    def num_items(self) -> int:
        """The number of items that a model is asked."""

    @property
    def parts(self) -> Sequence[str]:
        """The names of the parts that have scores of their own."""
        return ()

    def sample(self, num_items: int) -> "Task":
        """Return the task with `num_items` of its items, if its score can be sampled."""
        return self

    def series(
        self, models: Sequence[Checkpoint]
    ) -> Mapping[Checkpoint, Sequence[Checkpoint]]:
        """Return a dictionary: model that gets a score -> the models that are asked for it.

        Raises:
            UserError: the task needs several models and gets too few.
        """
        return {model: [model] for model in models}

    def checksum(self, asked: Sequence[Optional[Checkpoint]]) -> str:
        """Return the checksum of everything that the score depends on besides its model."""
        return self.data_checksum

    @abc.abstractmethod
    def prepare(self, scorer: Scorer) -> Any:
        """Return everything that can be computed without the weights, such as token ids.

        It may depend on the scorer's tokenizer, backend and number of positions. It is
        reused for all models that share these.
        """

    def ask(self, scorer: Scorer, prepared: Any) -> Any:
        """Return the model's answer, an `Answer.content`. The model is not changed.

        Raises:
            UserError: the model gives NaN, or the task cannot be asked of it.
        """
        return scorer.score(prepared)

    @abc.abstractmethod
    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the result of one answer, or of the answers of a series, in its order."""

    def build_result(self, answers: Sequence[Answer], **measured: Any) -> Result:
        """Return a result with the fields that follow from the task and the answers."""
        return Result(
            task=self.name,
            folder=self.folder,
            protocol=self.protocol,
            data_checksum=self.checksum([answer.checkpoint for answer in answers]),
            seed=self.seed,
            seconds=sum(answer.seconds for answer in answers),
            num_items=self.num_items * len(answers),
            **measured,
        )
