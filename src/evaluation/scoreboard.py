"""Many models, many tasks: what is scored already is not scored again, what fails stops nothing.

Each model is loaded once, and only if something is to be scored; its results are on disk
before the next one's turn.
"""

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import UserError
from src.evaluation import aoa, glue
from src.evaluation.models import Checkpoint, load
from src.evaluation.results import (
    Result,
    Subject,
    find_stored,
    read_record,
    write_results,
)
from src.evaluation.suite import Suite
from src.evaluation.tokenizer_checks import check_tokenizer

LOGGER = logging.getLogger(__name__)


@dataclass
class Scoreboard:
    """What models are asked, and what has come of it.

    `tuning` has the tasks of fine-tuning, `tuning_bf16` says whether these train in bfloat16.
    """

    suite: Suite
    results_dir: Path
    tuning: Sequence[glue.GlueTask] = ()
    tuning_bf16: bool = False
    seed: int = 42  # of fine-tuning
    overwrite: bool = False
    progress: bool = False
    failures: dict[str, str] = field(default_factory=dict)  # model → why
    # AoA, filled while the checkpoints pass: nats [num_pairs], and seconds.
    _surprisals: dict[Checkpoint, np.ndarray] = field(default_factory=dict)
    _seconds: dict[Checkpoint, float] = field(default_factory=dict)
    _chance: dict[str, float] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def score_all(
        self,
        models: Sequence[Checkpoint],
        series: Optional[dict[Checkpoint, list[Checkpoint]]] = None,
    ) -> None:
        """Scores models; `failures` tells of those that could not be.

        Args:
            series: for AoA, the model whose score it is → the checkpoints of its training.
        """
        todo = {
            o: steps for o, steps in (series or {}).items() if self._lacks_aoa(o, steps)
        }
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
            self.failures[name] = str(error)
            LOGGER.error("error: %s: %s", name, error)

    def entries(self, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        """Task → its entry of `scores.json`, of the tasks asked for that are there."""
        subject = self._subject(checkpoint)
        stored = read_record(self.results_dir, subject)["scores"].get(
            subject.backend, {}
        )
        names = [
            *self.suite.checksums,
            "aoa",
            *(task.name for task in self.tuning),
            "glue",
        ]
        asked = [n for n in names if n != "aoa" or self.suite.word_contexts]
        asked = [n for n in asked if n != "glue" or self.tuning]
        return {name: stored[name] for name in asked if name in stored}

    def _subject(self, checkpoint: Checkpoint) -> Subject:
        return Subject(
            checkpoint.model,
            checkpoint.revision,
            checkpoint.checksum,
            checkpoint.backend(self.suite.backend),
            "bfloat16" if self.suite.dtype else "float32",
        )

    def _tuning_subject(self, checkpoint: Checkpoint) -> Subject:
        dtype = "bfloat16" if self.tuning_bf16 else "float32"
        return replace(self._subject(checkpoint), dtype=dtype)

    def _unscored(self, subject: Subject, checksums: dict[str, str]) -> list[str]:
        """Names of the tasks (→ checksum of their data) that are to be scored."""
        record = read_record(self.results_dir, subject)
        protocol = self.suite.protocol
        return [
            name
            for name, checksum in checksums.items()
            if self.overwrite
            or not find_stored(record, subject, name, protocol, checksum)
        ]

    def _score(self, checkpoint: Checkpoint, is_asked: bool, in_series: bool) -> None:
        """Everything that one model is needed for."""
        names, tuning = [], []
        if is_asked:
            subject = self._tuning_subject(checkpoint)
            checksums = {t.name: t.identity(None, self.seed) for t in self.tuning}
            tuned = self._unscored(subject, checksums)
            tuning = [task for task in self.tuning if task.name in tuned]
            names = self._unscored(self._subject(checkpoint), self.suite.checksums)
        if not (names or tuning or in_series):
            LOGGER.info("%s: scored already", checkpoint.origin)
            return
        backend = checkpoint.backend(self.suite.backend)
        model, tokenizer = load(checkpoint, backend)
        self._warn(checkpoint, tokenizer, backend)
        bar = checkpoint.origin if self.progress else None
        if names:
            self._write(checkpoint, self.suite.score(model, tokenizer, names, bar))
        if in_series:
            start = time.perf_counter()
            nats = self.suite.word_surprisals(model, tokenizer, bar)
            self._surprisals[checkpoint] = nats
            self._seconds[checkpoint] = time.perf_counter() - start
            self._chance = aoa.chance_surprisals(
                self.suite.word_contexts, tokenizer, self.suite.protocol
            )
        self._tune(checkpoint, model, tokenizer, tuning)

    def _write(
        self,
        checkpoint: Checkpoint,
        results: Iterable[Result],
        subject: Optional[Subject] = None,
    ) -> None:
        results, subject = list(results), subject or self._subject(checkpoint)
        write_results(self.results_dir, subject, results, checkpoint.seed)
        found = ", ".join(f"{result.task} {result.score:.2f}" for result in results)
        LOGGER.info("%s: %s", checkpoint.origin, found)

    def _warn(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, backend: str
    ) -> None:
        """What is wrong with a tokenizer, once for all checkpoints of a run."""
        for warning in check_tokenizer(tokenizer, backend):
            if warning not in self._warned:
                LOGGER.warning("warning: %s: %s", checkpoint.origin, warning)
            self._warned.add(warning)

    def _tune(
        self,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[glue.GlueTask],
    ) -> None:
        """Fine-tunes on each task; their mean where all seven are there."""
        if not tasks:
            return
        from src.evaluation.finetuning import finetune  # with it the whole Trainer

        subject = self._tuning_subject(checkpoint)
        for task in tasks:
            result = finetune(
                model,
                tokenizer,
                task,
                subject.backend,
                self.suite.protocol,
                self.seed,
                bf16=self.tuning_bf16,
                batch_tokens=self.suite.batch_tokens,
            )
            self._write(checkpoint, [result], subject)
        mean = glue.average(_results(self.entries(checkpoint)))
        if mean is not None:
            self._write(checkpoint, [mean], subject)

    def _lacks_aoa(self, owner: Checkpoint, steps: Sequence[Checkpoint]) -> bool:
        lacks = []
        with self._noting(owner.origin):
            wanted = {"aoa": self._aoa_checksum(steps)}
            lacks = self._unscored(self._subject(owner), wanted)
        return bool(lacks)

    def _aoa_checksum(self, steps: Sequence[Checkpoint]) -> str:
        """Other checkpoints are other data."""
        parts = [self.suite.word_contexts.data_checksum, *(s.checksum for s in steps)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def _score_series(self, owner: Checkpoint, steps: Sequence[Checkpoint]) -> None:
        if lost := [step.origin for step in steps if step not in self._surprisals]:
            raise UserError(f"left out, since {', '.join(lost)} could not be scored")
        result = aoa.result(
            self.suite.word_contexts,
            self._chance,
            {step.revision: self._surprisals[step] for step in steps},
            {step.revision: step.words_seen for step in steps},
            self.suite.protocol,
            owner.model,
        )
        checksum = self._aoa_checksum(steps)
        seconds = sum(self._seconds[step] for step in steps)
        self._write(owner, [replace(result, data_checksum=checksum, seconds=seconds)])


def _results(entries: dict[str, dict[str, Any]]) -> list[Result]:
    """As much of stored results as their mean takes."""
    return [
        Result(
            task=name,
            folder="",
            protocol=entry["protocol"],
            score=entry["score"],
            num_items=entry["items"],
            seconds=math.nan if entry["seconds"] is None else entry["seconds"],
            data_checksum=entry["data_checksum"],
        )
        for name, entry in entries.items()
    ]


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
        own = [model for model in models if model.model == name]
        final = [model for model in own if model.revision == "main"]
        steps = [step for model in final for step in model.checkpoints()]
        steps += [model for model in own if model.revision != "main"]
        steps = list({step.revision: step for step in steps}.values())
        if unknown := [step.origin for step in steps if step.words_seen is None]:
            fault = f"the words seen are not known of {', '.join(unknown[:3])}"
        elif len(steps) < aoa.MIN_WORDS:
            fault = f"it takes {aoa.MIN_WORDS} checkpoints of a run, {name} has {len(steps)}"
        else:
            steps.sort(key=lambda step: step.words_seen)
            found[(final or steps)[0 if final else -1]] = steps
            continue
        if is_required:
            raise UserError(f"evaluation.tasks: aoa: {fault}")
        LOGGER.info("No aoa for %s: %s", name, fault)
    return found
