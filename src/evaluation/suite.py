"""The tasks of an evaluation, read once and asked of many models.

    suite = Suite.load(args.evaluation)
    results = suite.score(model, tokenizer)
    scores(results)  # {"blimp": 0.71, "reading": 0.056}

Between two models with the same tokenizer nothing is tokenized again. A model is left as it
is: its device, its mode, the random state.
"""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import ScoringArguments, UserError
from src.evaluation import aoa, reading
from src.evaluation.models import backend_of
from src.evaluation.network import is_too_long, log_probabilities, num_positions
from src.evaluation.prefix_tree import Query
from src.evaluation.results import Result
from src.evaluation.scoring import Backend, Scored, check_vocabulary, queries
from src.evaluation.tasks.catalogue import (
    TASKS,
    all_results,
    load,
    load_pairs_folders,
    select,
)
from src.evaluation.tasks.choice import ChoiceTask, Protocol


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

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        names: Optional[Collection[str]] = None,
        progress: Optional[str] = None,
    ) -> list[Result]:
        """Results of all tasks, or of those named; AoA is not among them.

        Args:
            names: keys of `checksums`.
            progress: label of a bar; None for no bar.

        Raises:
            UserError: the model gives NaN, or its vocabulary does not hold the tokenizer's.
        """
        tokenized = self._tokenize(model, tokenizer)
        chosen = [t for t in self.choices if names is None or t.name in names]
        results = self._score_choices(chosen, model, tokenized, progress)
        if self.reading_times is not None and (names is None or "reading" in names):
            results.append(self._score_reading(model, tokenized))
        return results

    def word_surprisals(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Optional[str] = None,
    ) -> np.ndarray:
        """Nats of AoA's words in their contexts, NaN where too long [num_pairs]."""
        tokenized = self._tokenize(model, tokenizer)
        scored = self._ask(
            model, tokenized.queries("aoa", self.word_contexts), progress
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

    def _score_choices(
        self,
        tasks: Sequence[ChoiceTask],
        model: PreTrainedModel,
        tokenized: Tokenized,
        progress: Optional[str],
    ) -> list[Result]:
        """All in one call; a task's time is its share of the tokens."""
        start = time.perf_counter()
        parts = [tokenized.queries(task.name, task) for task in tasks]
        scored = self._ask(model, [q for part in parts for q in part], progress)
        results = all_results(tasks, scored)
        seconds = time.perf_counter() - start
        sizes = [sum(len(q.ids) for of_item in part for q in of_item) for part in parts]
        return [
            replace(result, seconds=seconds * size / max(1, sum(sizes)))
            for result, size in zip(results, sizes)
        ]

    def _score_reading(self, model: PreTrainedModel, tokenized: Tokenized) -> Result:
        start = time.perf_counter()
        prepared = tokenized.reading_queries(self.reading_times)
        surprisals = reading.surprisals(
            model, prepared, tokenized.backend, self.batch_tokens, self.dtype
        )
        result = reading.result(prepared, surprisals, self.protocol)
        return replace(result, seconds=time.perf_counter() - start)

    def _ask(
        self,
        model: PreTrainedModel,
        questions: list[list[Query]],
        progress: Optional[str],
    ) -> Scored:
        """The scores of N items from their queries."""
        flat = [query for of_item in questions for query in of_item]
        causal = self.backend_for(model) == "causal"
        answers = iter(
            log_probabilities(
                model, flat, causal, self.batch_tokens, self.dtype, progress
            )
        )
        limit = num_positions(model)
        found = [[next(answers) for _ in of_item] for of_item in questions]
        return Scored(
            np.array([sum(tokens.sum() for tokens in item) for item in found]),
            np.array([sum(map(len, item)) for item in found], int),
            np.array([any(is_too_long(q, limit) for q in item) for item in questions]),
        )


def _spread(choices: Sequence[Any], number: int) -> tuple[Any, ...]:
    """`number` of the choices, at even distances: of every part its share."""
    places = np.linspace(0, len(choices) - 1, min(number, len(choices)))
    return tuple(choices[place] for place in places.round().astype(int))


def is_score(name: str) -> bool:
    """Whether a number is called as `scores` calls them, not as a loss or a count."""
    return name.removesuffix("_fast") in TASKS or name.startswith("pairs")


def scores(results: Sequence[Result]) -> dict[str, float]:
    """Shares and correlations, flat: {"blimp": 0.71, "pairs": 0.9, "pairs_word_order": 1.0}.

    The user's own pairs are called `pairs`, and `pairs_<folder>` where there are several
    folders; behind that, their parts. What is not defined (NaN) is left out.
    """
    own = [result for result in results if result.folder.startswith("pairs/")]
    found = {}
    for result in results:
        name = result.task
        if result in own:
            name = "pairs" if len(own) == 1 else f"pairs_{result.task}"
            parts = result.subscores["UID"]
            found.update({f"{name}_{part}": share for part, share in parts.items()})
        found[name] = result.score
    return {name: score / 100 for name, score in found.items() if not math.isnan(score)}
