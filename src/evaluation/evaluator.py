"""Many models, many tasks: what is scored already is not scored again, what fails stops nothing.

Each model is loaded once, and only if something is to be scored. A result is on disk as soon
as it is there: what comes after it may fail or be interrupted.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import without_section
from src.evaluation.glue import data as glue
from src.evaluation.models import Checkpoint, load
from src.evaluation.results import (
    Result,
    Subject,
    find_stored,
    place,
    read_record,
    write_result,
)
from src.evaluation.suite import Suite
from src.evaluation.tasks import aoa
from src.evaluation.tokenizer_checks import check_tokenizer
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)


class WordScores(NamedTuple):
    """What AoA takes of one checkpoint."""

    surprisals: np.ndarray  # nats [num_pairs]
    chance: dict[str, float]  # word → surprisal by chance, of its tokenizer
    seconds: float


@dataclass
class Scoreboard:
    """What models are asked, and what has come of it.

    `series` has, for AoA, the model whose score it is → the checkpoints of its training.
    `tuning` has the tasks of fine-tuning, `tuning_bf16` says whether these train in bfloat16:
    asked for, as the suite's, or since the hardware is fast at it.
    """

    suite: Suite
    results_dir: Path
    series: Mapping[Checkpoint, Sequence[Checkpoint]] = field(default_factory=dict)
    tuning: Sequence[glue.GlueTask] = ()
    tuning_bf16: bool = False
    seed: int = 42  # of fine-tuning
    overwrite: bool = False
    progress: bool = False
    failures: dict[str, str] = field(default_factory=dict)  # model → why
    _words: dict[Checkpoint, WordScores] = field(default_factory=dict)
    _encoded: dict[tuple[str, str, int], glue.EncodedTask] = field(default_factory=dict)
    _warned: set[tuple[str, str]] = field(default_factory=set)  # (model, warning)

    def score_all(self, models: Sequence[Checkpoint]) -> None:
        """Scores models; `failures` tells of what could not be."""
        todo = {o: s for o, s in self.series.items() if self._lacks_aoa(o)}
        in_series = [step for steps in todo.values() for step in steps]
        for checkpoint in dict.fromkeys([*models, *in_series]):
            with self._noting(checkpoint.origin):
                self._score(checkpoint, checkpoint in models, checkpoint in in_series)
        for owner, steps in todo.items():
            with self._noting(f"{owner.origin}, aoa"):
                self._score_series(owner, steps)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """What goes wrong in the block is the failure of `name`; the others go on."""
        try:
            yield
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                error = "out of memory: give a smaller evaluation.batch_tokens"
            self.failures[name] = without_section(str(error))
            LOGGER.error("%s: failed, the reason comes at the end", name)

    def entries(self, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        """Task → its entry of `scores.json`, of those asked for that are there.

        Beside tasks of fine-tuning `glue`, where all seven have been scored by this protocol
        with this seed, now or before.
        """
        try:
            subject = self._subject(checkpoint)
            record = read_record(self.place(), subject)
            tuning_record = read_record(self.place(self.seed), subject)
            checksums = dict(self.suite.checksums)
            if checkpoint in self.series:
                checksums["aoa"] = self._aoa_checksum(checkpoint)
        except (UserError, OSError):  # `score_all` has told of it
            return {}
        protocol = self.suite.protocol
        found = {
            name: find_stored(record, subject, name, protocol, checksum)
            for name, checksum in checksums.items()
        }
        if self.tuning:
            own = {task.name: task.data_checksum for task in self.tuning}
            stored = (tuning_record, self._tuning_subject(checkpoint))
            tuned = {
                name: find_stored(*stored, name, protocol, own.get(name), self.seed)
                for name in glue.FORMATS
            }
            found.update((name, tuned[name]) for name in own)
            found["glue"] = glue.average(tuned)
        return {name: entry for name, entry in found.items() if entry is not None}

    def place(self, seed: Optional[int] = None) -> Path:
        """Where results lie by the rules that count here; with the seed, fine-tuning's."""
        # Fine-tuning's bfloat16 counts where it was asked for, not where hardware chose it.
        year, is_bf16 = self.suite.protocol, self.suite.dtype is not None
        return place(self.results_dir, year, is_bf16, seed)

    def _subject(self, checkpoint: Checkpoint) -> Subject:
        return Subject(
            checkpoint.model,
            checkpoint.revision,
            checkpoint.checksum,
            checkpoint.backend(self.suite.backend),
            "bfloat16" if self.suite.dtype else "float32",
            checkpoint.seed,
        )

    def _tuning_subject(self, checkpoint: Checkpoint) -> Subject:
        dtype = "bfloat16" if self.tuning_bf16 else "float32"
        return replace(self._subject(checkpoint), dtype=dtype)

    def _unscored(
        self, subject: Subject, checksums: dict[str, str], seed: Optional[int] = None
    ) -> list[str]:
        """Names of the tasks (→ checksum of their data) that are to be scored.

        Args:
            seed: of fine-tuning, whose tasks they are; None for the others.
        """
        record = read_record(self.place(seed), subject)
        protocol = self.suite.protocol
        return [
            name
            for name, checksum in checksums.items()
            if self.overwrite
            or not find_stored(record, subject, name, protocol, checksum, seed)
        ]

    def _score(self, checkpoint: Checkpoint, is_asked: bool, in_series: bool) -> None:
        """Everything that one model is needed for."""
        names, tuning = self._lacking(checkpoint) if is_asked else ([], [])
        if not (names or tuning or in_series):
            LOGGER.info("%s: scored already", checkpoint.origin)
            return
        subject = self._subject(checkpoint)
        model, tokenizer = load(checkpoint, subject.backend)
        self._warn(checkpoint, tokenizer, subject.backend)
        bar = checkpoint.origin if self.progress else None
        if names:
            for result in self.suite.score(model, tokenizer, names, bar):
                self._write(checkpoint, subject, result)
        if in_series:
            self._words[checkpoint] = self._ask_words(model, tokenizer, bar)
        for task in tuning:
            with self._noting(f"{checkpoint.origin}, {task.name}"):
                self._tune(checkpoint, model, tokenizer, task)

    def _lacking(self, checkpoint: Checkpoint) -> tuple[list[str], list[glue.GlueTask]]:
        """Zero-shot tasks, and those of fine-tuning, that are to be scored."""
        names = self._unscored(self._subject(checkpoint), self.suite.checksums)
        subject = self._tuning_subject(checkpoint)
        checksums = {task.name: task.data_checksum for task in self.tuning}
        tuned = self._unscored(subject, checksums, self.seed)
        return names, [task for task in self.tuning if task.name in tuned]

    def _write(self, checkpoint: Checkpoint, subject: Subject, result: Result) -> None:
        exact = place(self.results_dir, self.suite.protocol, is_bf16=False)
        float32_dir = exact if self.suite.dtype else None
        entry = write_result(self.place(result.seed), subject, result, float32_dir)
        score = "undefined" if entry["score"] is None else f"{entry['score']:.2f}"
        LOGGER.info("%s: %s %s", checkpoint.origin, result.task, score)

    def _warn(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, backend: str
    ) -> None:
        """What is wrong with a tokenizer, once for all checkpoints of a run."""
        for warning in check_tokenizer(tokenizer, backend):
            if (checkpoint.model, warning) not in self._warned:
                LOGGER.warning("warning: %s: %s", checkpoint.origin, warning)
            self._warned.add((checkpoint.model, warning))

    def _tune(
        self,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: glue.GlueTask,
    ) -> None:
        """Fine-tunes on a task, which is tokenized once for all models with a tokenizer."""
        from src.evaluation.glue.finetuning import (  # the whole Trainer
            finetune,
            max_length,
        )

        limit = max_length(model, task.recipe)
        rules = (task.name, checkpoint.tokenizer_checksum, limit)
        if rules not in self._encoded:
            # Of other tokenizers nothing is kept: models of one mostly follow each other.
            kept = {k: v for k, v in self._encoded.items() if k[1:] == rules[1:]}
            self._encoded = {**kept, rules: glue.encode(task, tokenizer, limit)}
        subject = self._tuning_subject(checkpoint)
        result = finetune(
            model,
            tokenizer,
            self._encoded[rules],
            subject.backend,
            self.suite.protocol,
            self.seed,
            bf16=self.tuning_bf16,
            batch_tokens=self.suite.batch_tokens,
        )
        self._write(checkpoint, subject, result)

    def _lacks_aoa(self, owner: Checkpoint) -> bool:
        lacks = []
        with self._noting(owner.origin):
            wanted = {"aoa": self._aoa_checksum(owner)}
            lacks = self._unscored(self._subject(owner), wanted)
        return bool(lacks)

    def _aoa_checksum(self, owner: Checkpoint) -> str:
        """Other checkpoints are other data."""
        steps = self.series[owner]
        parts = [self.suite.word_contexts.data_checksum, *(s.checksum for s in steps)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def _ask_words(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        bar: Optional[str],
    ) -> WordScores:
        start = time.perf_counter()
        nats = self.suite.word_surprisals(model, tokenizer, bar)
        chance = aoa.chance_surprisals(
            self.suite.word_contexts, tokenizer, self.suite.protocol
        )
        return WordScores(nats, chance, time.perf_counter() - start)

    def _score_series(self, owner: Checkpoint, steps: Sequence[Checkpoint]) -> None:
        """AoA, from what the checkpoints have left; a run has one tokenizer."""
        if lost := [step.origin for step in steps if step not in self._words]:
            raise UserError(f"left out, since {', '.join(lost)} could not be scored")
        words = [self._words[step] for step in steps]
        result = aoa.result(
            self.suite.word_contexts,
            words[-1].chance,
            {step.revision: own.surprisals for step, own in zip(steps, words)},
            {step.revision: step.words_seen for step in steps},
            self.suite.protocol,
            owner.model,
        )
        checksum = self._aoa_checksum(owner)
        seconds = sum(own.seconds for own in words)
        result = replace(result, data_checksum=checksum, seconds=seconds)
        self._write(owner, self._subject(owner), result)


def find_series(
    models: Sequence[Checkpoint], is_required: bool
) -> dict[Checkpoint, list[Checkpoint]]:
    """AoA's series: the model whose score it is → its checkpoints, by words seen.

    A run's own checkpoints, with those that are given; the score is the final model's, or the
    last checkpoint's where that is not given. Too few checkpoints raise `UserError` where AoA
    `is_required`; else they are told.
    """
    found = {}
    for name in dict.fromkeys(model.model for model in models):
        try:
            owner, steps = _series([model for model in models if model.model == name])
        except UserError as error:
            if is_required:
                raise UserError(f"evaluation.tasks: aoa: {error}") from error
            LOGGER.info("No aoa for %s: %s", name, error)
        else:
            found[owner] = steps
    return found


def _series(given: Sequence[Checkpoint]) -> tuple[Checkpoint, list[Checkpoint]]:
    """The model whose score it is, and the checkpoints, of one run's models."""
    final = [model for model in given if model.revision == "main"]
    steps = [step for model in final for step in model.checkpoints()]
    steps += [model for model in given if model.revision != "main"]
    steps = list({step.revision: step for step in steps}.values())
    if unknown := [step.origin for step in steps if step.words_seen is None]:
        raise UserError(f"the words seen are not known of {', '.join(unknown[:3])}")
    if len(steps) < aoa.MIN_WORDS:
        raise UserError(
            f"it takes {aoa.MIN_WORDS} checkpoints of a run, {given[0].model} has"
            f" {len(steps)}"
        )
    steps.sort(key=lambda step: step.words_seen)
    return (final or steps)[0 if final else -1], steps
