"""Age of acquisition: whether a model and children learn words in the same order.

The learning curve of a word is its surprisal in its contexts over a run's checkpoints. A
sigmoid is fitted to it, and another one to the share of children who say the word at 16 to 30
months. A word's age is the point where its sigmoid passes a threshold. The score is the
correlation, over the words, of the model's ages with the children's (Chang & Bergen 2022;
AoA_word/ and utils.py in babylm/evaluation-pipeline-2025 and, as of July 2026,
babylm-org/babylm-eval).

The two protocols differ in the model's curve:

* 2025: each context at each checkpoint is a point. Chance is log2 of 300,000, although surprisals
  are in nats. The fit has no bounds.
* 2026: the mean over the contexts at each checkpoint is a point. Chance is the number of the
  word's tokens times the log of the vocabulary's size. The fit has bounds, and a correlation with
  p above 0.1 counts as 0.

The fit is scipy's `curve_fit`. Its convergence decides which words count, so another optimizer
would give another score.
"""

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.evaluation.models import Checkpoint
from src.evaluation.protocol import Protocol
from src.evaluation.results import Result
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.scorer import Item, Scorer
from src.evaluation.tasks.rows import existing, read_table
from src.evaluation.tasks.task import Answer, Task
from src.foundation import UserError, checksum_of_files, first_line

LOGGER = logging.getLogger(__name__)
AGES = np.arange(16, 31)  # months
MIN_POINTS = 3  # points of a curve, and words of a correlation
MAX_P = 0.1  # the score of 2026 is 0 if p is above it
CHANCE_2025 = math.log2(300_000)


class Surprisals(NamedTuple):
    """The answer of one checkpoint.

    Attributes:
        nats: surprisal of each word in its context, NaN if the text is too long [num_pairs].
        chance: word -> its surprisal by chance, which depends on the tokenizer.
    """

    nats: np.ndarray
    chance: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class AgeOfAcquisition(Task):
    """The task of age of acquisition. An answer is the `Surprisals` of a checkpoint.

    Attributes:
        pairs: (word, context, number of the context among those of the word).
        known: word -> share of children who say it at each of `AGES` [num_ages].
    """

    pairs: list[tuple[str, str, int]]
    known: dict[str, np.ndarray]
    takes: ClassVar = "series"

    @classmethod
    def load(cls, directory: Path, **common: Any) -> "AgeOfAcquisition":
        """Read cdi_childes.json (contexts) and cdi_human.csv (children's ages).

        Words of one letter are left out.

        Args:
            common: other fields of `Task`.

        Raises:
            UserError: a file is missing or cannot be used.
        """
        contexts_file = existing(directory / "cdi_childes.json")
        human_file = directory / "cdi_human.csv"
        try:
            contexts = json.loads(contexts_file.read_text(encoding="utf-8"))
            pairs = [
                (word, row["context"], number)
                for word, rows in contexts.items()
                for number, row in enumerate(rows)
                if len(word) > 1
            ]
            if wrong := [c for _, c, _ in pairs if not isinstance(c, str)]:
                raise TypeError(f"{wrong[0]!r} is no text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = 'must map words to lists of {"context": …}'
            fault = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{contexts_file} {expected}: {fault}") from error
        if not pairs:
            raise UserError(f"{contexts_file} has no word in a context")
        table = read_table(human_file, ["word"], [str(age) for age in AGES])
        table = table.drop_duplicates("word").set_index("word")
        return cls(
            pairs=pairs,
            known=dict(zip(table.index, table.to_numpy())),
            data_checksum=checksum_of_files([contexts_file, human_file]),
            **common,
        )

    @property
    def num_items(self) -> int:
        return len(self.pairs)

    @property
    def words(self) -> list[str]:
        return list(dict.fromkeys(word for word, _, _ in self.pairs))

    @property
    def items(self) -> list[Item]:
        """The text of each pair, of which only the word is scored."""
        pairs = [(context.strip() + " ", word) for word, context, _ in self.pairs]
        return [Item(context + word.strip(), len(context)) for context, word in pairs]

    def series(
        self, models: Sequence[Checkpoint]
    ) -> dict[Checkpoint, list[Checkpoint]]:
        """Return a dictionary: model that gets a run's score -> checkpoints by words seen.

        The checkpoints are the given ones and, if the final model is given, those in its
        directory. The final model gets the score, or the last checkpoint without it.
        A run with too few checkpoints is left out, or refused if the user named the task.
        """
        series = {}
        for run in dict.fromkeys(model.model for model in models):
            given = [model for model in models if model.model == run]
            final = [model for model in given if model.revision == "main"]
            try:
                steps = _steps(given, final)
            except UserError as error:
                if self.is_named:
                    raise
                LOGGER.info("No %s for %s: %s", self.name, run, error)
            else:
                series[[*steps, *final][-1]] = steps
        return series

    def checksum(self, asked: Sequence[Checkpoint]) -> str:
        """Return the checksum of the data and the checkpoints."""
        parts = [self.data_checksum, *(step.checksum for step in asked)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def prepare(self, scorer: Scorer) -> list[list[Query]]:
        return scorer.queries(self.items)

    def ask(self, scorer: Scorer, prepared: list[list[Query]]) -> Surprisals:
        chance = chance_surprisals(self.words, scorer.tokenizer, self.rules)
        return Surprisals(-scorer.score(prepared).log_probability, chance)

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the result of a run from the answers of its checkpoints by words seen."""
        steps = [answer.checkpoint for answer in answers]
        table = np.stack([answer.content.nats for answer in answers])
        too_long = np.flatnonzero(np.isnan(table).any(axis=0))
        if self.rules.mean_surprisals:
            # If one of a word's contexts is too long for a checkpoint, the word has no mean at
            # that checkpoint. So all its surprisals become null in surprisal.json; otherwise
            # the official reader would average the other contexts.
            words = np.array([word for word, _, _ in self.pairs])
            incomplete = [np.isin(words, words[row]) for row in np.isnan(table)]
            table = np.where(incomplete, np.nan, table)
        seen = [step.words_seen for step in steps]
        ages = self._ages(np.array(seen), table, answers[-1].content.chance)
        score, r, p = _correlation(ages, self.rules)
        return self.build_result(
            answers,
            score=100 * score,
            too_long=tuple(f"{self.pairs[i][0]}_{self.pairs[i][2]}" for i in too_long),
            subscores={
                "words": {"with_both_ages": len(ages), "all": len(self.words)},
                "correlation": {"r": 100 * r, "p": p},
            },
            files={
                "surprisal.json": self._official_surprisals(steps, seen, table),
                "aoa_score.json": {"aoa": score},
            },
        )

    def _ages(
        self, seen: np.ndarray, table: np.ndarray, chance: Mapping[str, float]
    ) -> np.ndarray:
        """Return the model's age and the children's of each word that has both [num_words, 2].

        Args:
            seen: words that each checkpoint has seen [num_steps].
            table: surprisals [num_steps, num_pairs].
        """
        words, ages = np.array([word for word, _, _ in self.pairs]), []
        for word in self.words:
            child = child_age(self.known[word]) if word in self.known else None
            if child is None:
                continue
            points = table[:, words == word]
            if not self.rules.mean_surprisals:
                steps, curve = np.repeat(seen, points.shape[1]), points.ravel()
            else:
                steps, curve = seen, points.mean(axis=1)
            age = model_age(steps, curve, chance[word], self.rules)
            if age is not None:
                ages.append((age, child))
        return np.array(ages)

    def _official_surprisals(
        self, steps: Sequence[Checkpoint], seen: Sequence[int], table: np.ndarray
    ) -> dict[str, Any]:
        """Return surprisal.json, with an entry for each checkpoint and pair."""
        results = [
            {
                "step": step.revision,
                "word_count": num_words,
                "target_word": word,
                "context_id": number,
                "context": context,
                "surprisal": float(surprisal),
            }
            for step, num_words, row in zip(steps, seen, table)
            for (word, context, number), surprisal in zip(self.pairs, row)
        ]
        num_steps = len(steps)
        metadata = {"model_name": steps[-1].model, "use_bos_only": False}
        metadata |= {"total_steps": num_steps, "completed_steps": num_steps}
        return {"metadata": metadata, "results": results}


def _steps(given: list[Checkpoint], final: list[Checkpoint]) -> list[Checkpoint]:
    """Return a run's checkpoints by words seen: given ones, and those of the final model.

    Raises:
        UserError: there are too few checkpoints, or one has seen an unknown number of words.
    """
    steps = [step for model in final for step in model.checkpoints()]
    steps += [model for model in given if model not in final]
    steps = list({step.revision: step for step in steps}.values())
    if unknown := [step.origin for step in steps if step.words_seen is None]:
        names = ", ".join(unknown[:3])
        raise UserError(f"the number of words seen is unknown for {names}")
    if len(steps) < MIN_POINTS:
        fault = f"{given[0].model} has {len(steps)}"
        raise UserError(
            f"it needs {MIN_POINTS} checkpoints of a run, {fault}: a run that is trained with"
            " training.save_total_limit=null keeps all"
        )
    return sorted(steps, key=lambda step: step.words_seen)


def chance_surprisals(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, rules: Protocol
) -> dict[str, float]:
    """Return the surprisal of each word by chance, in nats (2026) or bits (2025).

    The number of a word's tokens is the number of tokens that it adds to the text "The".
    """
    if not rules.mean_surprisals:
        return dict.fromkeys(words, CHANCE_2025)

    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    alone = num_tokens("The")
    nats = math.log(tokenizer.vocab_size)
    return {w: max(1, num_tokens(f"The {w}") - alone) * nats for w in words}


def sigmoid(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    return a / (1 + np.exp(-b * (x - c))) + d


def _crossing(
    x: np.ndarray, y: np.ndarray, threshold: float, least: float = 0, **fit
) -> float | None:
    """Return the x at which the sigmoid fitted to the points (x, y) [n] passes the threshold.

    It is None if the fit fails, or if the sigmoid does not rise through the threshold within
    the range of x.

    Args:
        x: ascending values.
        least: the sigmoid's slope and height must be above this value.
        fit: other arguments of `curve_fit`.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", OptimizeWarning)
            (a, b, c, d), _ = curve_fit(sigmoid, x, y, **fit)
    except (RuntimeError, ValueError, TypeError):
        # The fit fails: no convergence, a start out of bounds, or too few points.
        return None
    if b <= least or a <= least or threshold <= d or threshold >= a + d:
        return None
    crossing = float(c - np.log(a / (threshold - d) - 1) / b)
    return crossing if x[0] <= crossing <= x[-1] else None


def child_age(shares: np.ndarray) -> float | None:
    """Return the month at which half of the children say a word, or None.

    Args:
        shares: share of children who say it at each of `AGES`, NaN if unknown [num_ages].
    """
    given = ~np.isnan(shares)
    if given.sum() < MIN_POINTS:
        return None
    ages = AGES[given]
    bounds = ([0, 0, ages[0], -0.5], [2.0, 1.0, ages[-1], 0.5])
    start = [1.0, 0.1, ages.mean(), 0.0]
    return _crossing(ages, shares[given], 0.5, p0=start, bounds=bounds, maxfev=1000)


def model_age(
    num_words: np.ndarray, surprisals: np.ndarray, chance: float, rules: Protocol
) -> float | None:
    """Return log10 of the words seen when surprisal is halfway from chance to its minimum.

    It is None if the curve has no such point.

    Args:
        num_words: words seen at each point, ascending [num_points].
        surprisals: surprisal of the word at each point, NaN if unknown [num_points].
        chance: surprisal of the word by chance.
    """
    given = ~np.isnan(surprisals)
    if len(surprisals) < MIN_POINTS or not given.any():
        return None
    seen, curve = num_words[given], -surprisals[given]
    steps = np.log10(seen + 1)
    low, high = curve.min(), curve.max()
    size = high - low
    fit = {"p0": [size, 1.0, steps.mean(), low], "maxfev": 1000}
    if rules.mean_surprisals:
        lower = [0.0, 0.0, steps.min() - 1, low - 2 * size - 1]
        upper = [10 * size + 1, 100.0, steps.max() + 1, high + 1]
        fit = {**fit, "bounds": (lower, upper), "maxfev": 20000, "least": 1e-6}
    return _crossing(steps, curve, -(chance - 0.5 * (chance + high)), **fit)


def _correlation(ages: np.ndarray, rules: Protocol) -> tuple[float, float, float]:
    """Return the score, Pearson's r and its p for pairs of ages [num_words, 2].

    With too few words, the score is 0 and the others are NaN.
    """
    from scipy.stats import pearsonr

    if len(ages) < MIN_POINTS:
        return 0.0, math.nan, math.nan
    r, p = map(float, pearsonr(ages[:, 0], ages[:, 1]))
    return 0.0 if rules.mean_surprisals and p > MAX_P else r, r, p
