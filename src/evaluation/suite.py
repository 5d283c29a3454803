"""The tasks of an evaluation, read once and asked of many models.

    suite = Suite.load(args.evaluation)
    for result in suite.score(model, tokenizer):
        print(result.task, result.score)

Between two models with the same tokenizer nothing is tokenized again. A model is left as it
is: its device, its mode, the random state.
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import ScoringArguments
from src.evaluation.models import backend_of
from src.evaluation.results import Result
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.texts import Backend, check_vocabulary, queries, score
from src.evaluation.tasks import aoa, reading
from src.evaluation.tasks.catalogue import (
    OWN_PAIRS,
    TASKS,
    load,
    load_pairs_folders,
    select,
)
from src.evaluation.tasks.choice import ChoiceTask, Protocol
from src.foundation import UserError


class Tokenized:
    """Tasks as one tokenizer gives them to one kind of model, made when first asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, backend: Backend) -> None:
        self.tokenizer, self.backend = tokenizer, backend
        self._made: dict[str, Any] = {}

    def queries(
        self, name: str, data: Union[ChoiceTask, aoa.WordContexts]
    ) -> list[list[Query]]:
        """What to ask about each text of a task."""
        if name not in self._made:
            items = data.items if isinstance(data, ChoiceTask) else aoa.items(data)
            self._made[name] = queries(self.tokenizer, items, self.backend)
        return self._made[name]

    def reading_queries(self, data: reading.Reading) -> reading.Prepared:
        if "reading" not in self._made:
            made = reading.prepare(data, self.tokenizer, self.backend)
            self._made["reading"] = made
        return self._made["reading"]

    def serves(self, tokenizer: PreTrainedTokenizerBase, backend: Backend) -> bool:
        """Whether this tokenizer would give the same; another object may."""
        same = tokenizer is self.tokenizer or _rules(tokenizer) == _rules(
            self.tokenizer
        )
        return same and backend == self.backend


def _rules(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
    """All that ids and texts depend on: a fast tokenizer is its description."""
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else id(tokenizer),
        str(tokenizer.special_tokens_map),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
    )


@dataclass
class Suite:
    """Tasks with their data, and how models are asked.

    `missing` names the tasks of `full` or `fast` that have no data. AoA's contexts are here,
    but its score is one of many models: see `word_surprisals` and `aoa.result`.
    """

    choices: list[ChoiceTask]
    reading_times: Optional[reading.Reading] = None
    word_contexts: Optional[aoa.WordContexts] = None
    missing: list[str] = field(default_factory=list)
    protocol: Protocol = 2026
    backend: Literal["auto", "causal", "mlm", "mntp"] = "auto"
    batch_tokens: int = 16384
    dtype: Optional[torch.dtype] = None  # of matrix products; None: float32
    _tokenized: Optional[Tokenized] = None  # for the last model

    @classmethod
    def load(cls, args: ScoringArguments) -> "Suite":
        """Reads what `args` ask for. Raises `UserError` for data that cannot be used."""
        found, missing = select(args.tasks, Path(args.data)) if args.tasks else ([], [])
        folders = [args.pairs] if isinstance(args.pairs, str) else args.pairs or []
        if absent := [folder for folder in folders if not Path(folder).is_dir()]:
            raise UserError(f"evaluation.pairs={absent[0]}: there is no such folder")
        choices = [load(s, args.protocol) for s in found if TASKS[s.task].format]
        own = {s.task: s.folder for s in found if not TASKS[s.task].format}
        return cls(
            choices=choices + load_pairs_folders(folders, args.protocol),
            reading_times=reading.load(own["reading"]) if "reading" in own else None,
            word_contexts=aoa.load(own["aoa"]) if "aoa" in own else None,
            missing=missing,
            protocol=args.protocol,
            backend=args.backend,
            batch_tokens=args.batch_tokens,
            dtype=torch.bfloat16 if args.bf16 else None,
        )

    def sample(self, num_choices: int) -> "Suite":
        """The first-to-last spread of `num_choices` of every task; 0: no task at all."""
        if not num_choices:
            return replace(self, choices=[], reading_times=None, _tokenized=None)
        choices = [
            replace(task, choices=_spread(task.choices, num_choices))
            for task in self.choices
        ]
        return replace(self, choices=choices, _tokenized=None)

    @property
    def checksums(self) -> dict[str, str]:
        """Task → checksum of its data, of all tasks that one model can be asked."""
        found = {task.name: task.data_checksum for task in self.choices}
        if self.reading_times is not None:
            found["reading"] = self.reading_times.data_checksum
        return found

    def backend_for(self, model: PreTrainedModel) -> Backend:
        if self.backend == "auto":
            return backend_of(type(model).__name__)
        return self.backend

    @property
    def score_names(self) -> list[str]:
        """What `scores` calls the results of all tasks."""
        parts = {task.name: [c.uid for c in task.choices] for task in self.choices}
        if self.reading_times is not None:
            parts["reading"] = []
        return list(_places(parts))

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        names: Optional[Collection[str]] = None,
        progress: Optional[str] = None,
    ) -> Iterator[Result]:
        """The result of each task, or of each of those named, when it is done; not AoA's.

        Args:
            names: keys of `checksums`.
            progress: label of the bars; None for none.

        Raises:
            UserError: the model gives NaN, it is out of memory: at the end, for all tasks
                that have no result; its vocabulary does not hold the tokenizer's: at once.
        """
        tokenized = self._tokenize(model, tokenizer)
        faults = []
        for name in self.checksums:
            if names is not None and name not in names:
                continue
            start = time.perf_counter()
            try:
                result = self._result(name, model, tokenized, progress)
            except UserError as error:
                faults.append(f"{error} ({name})")
            except torch.OutOfMemoryError:
                advice = "give a smaller evaluation.batch_tokens"
                faults.append(f"out of memory: {advice} ({name})")
            else:
                yield replace(result, seconds=time.perf_counter() - start)
        if faults:
            raise UserError("; ".join(faults))

    def word_surprisals(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Optional[str] = None,
    ) -> np.ndarray:
        """Nats of AoA's words in their contexts, NaN where too long [num_pairs]."""
        tokenized = self._tokenize(model, tokenizer)
        scored = score(
            model,
            tokenized.queries("aoa", self.word_contexts),
            tokenized.backend,
            self.batch_tokens,
            self.dtype,
            progress,
        )
        return -scored.log_probability

    def _tokenize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Tokenized:
        check_vocabulary(model, tokenizer)
        backend = self.backend_for(model)
        if self._tokenized is None or not self._tokenized.serves(tokenizer, backend):
            self._tokenized = Tokenized(tokenizer, backend)
        return self._tokenized

    def _result(
        self,
        name: str,
        model: PreTrainedModel,
        tokenized: Tokenized,
        progress: Optional[str],
    ) -> Result:
        options = (tokenized.backend, self.batch_tokens, self.dtype)
        label = progress and f"{progress}, {name}"
        if name == "reading":
            prepared = tokenized.reading_queries(self.reading_times)
            surprisals = reading.surprisals(model, prepared, *options, label)
            return reading.result(prepared, surprisals, self.protocol)
        (task,) = (task for task in self.choices if task.name == name)
        return task.result(score(model, tokenized.queries(name, task), *options, label))


def _spread(choices: Sequence[Any], number: int) -> tuple[Any, ...]:
    """`number` of the choices, at even distances: of every part its share."""
    places = np.linspace(0, len(choices) - 1, min(number, len(choices)))
    return tuple(choices[place] for place in places.round().astype(int))


def _places(parts: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, Optional[str]]]:
    """Name of a score where a run is logged → its task and part; None for the whole task.

    The user's own pairs are called `pairs`, and `pairs_<folder>` where there are several
    folders; behind that, their parts.

    Args:
        parts: task → names of its parts.
    """
    own = [task for task in parts if task.startswith(OWN_PAIRS)]
    names = {task: OWN_PAIRS if own == [task] else task for task in parts}
    found = {f"{names[task]}_{p}": (task, p) for task in own for p in parts[task]}
    return {**found, **{name: (task, None) for task, name in names.items()}}


def scores(results: Iterable[Result]) -> dict[str, float]:
    """Shares and correlations, flat: {"blimp": 0.71, "pairs": 0.9, "pairs_word_order": 1.0}.

    What is not defined (NaN) is left out.
    """
    by_task = {result.task: result for result in results}
    parts = {task: r.subscores.get("UID", {}) for task, r in by_task.items()}
    found = {
        name: by_task[task].score if part is None else parts[task][part]
        for name, (task, part) in _places(parts).items()
    }
    return {name: score / 100 for name, score in found.items() if not math.isnan(score)}


def is_score(name: str) -> bool:
    """Whether a number is called as `scores` calls them, not as a loss or a count."""
    own = f"{name}_".startswith(f"{OWN_PAIRS}_")
    return own or name.removesuffix("_fast") in TASKS


def is_share(name: str) -> bool:
    """Whether a score is the share of right choices: no correlation, no explained variance."""
    task = TASKS.get(name.removesuffix("_fast"))
    return task is None or (task.format is not None and not task.correlated)


def of_whole_tasks(names: Iterable[str]) -> list[str]:
    """The scores among the names, without those of parts where the whole is there."""
    found = [name for name in names if is_score(name)]
    own = [name for name in found if name.startswith(OWN_PAIRS)]
    wholes = tuple(f"{name}_" for name in own)
    return [name for name in found if name not in own or not name.startswith(wholes)]
