"""Choices between texts: a model chooses the most probable of several texts; one is right.

The rules of each year are in `src/evaluation/protocol.py`.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import softmax

from src.evaluation.protocol import PROTOCOLS, STANDARD, Protocol
from src.evaluation.results import Result
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.scorer import Item, Scored, Scorer
from src.evaluation.tasks.rows import Fields, read_rows
from src.evaluation.tasks.task import Answer, Task
from src.foundation import UserError, checksum_of_files

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """A question: several texts, of which one is right.

    Attributes:
        uid: official name of the part of the task that the question belongs to.
        answers: names of the texts in the official predictions.
        label: index of the right text.
        tags: other groups of questions with a score: kind of group -> name of the group.
        ratio: share of people who prefer the first text (WUG).
    """

    uid: str
    items: tuple[Item, ...]
    answers: tuple[str, ...]
    label: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    ratio: float = np.nan

    def is_right(self, index: int) -> bool:
        """Return whether an answer is right, by its text, as the challenge's server compares it.

        Seven pairs of BLiMP have the same text twice, such as "Douglas's senator was left by
        Susan.".
        """
        return self.answers[index].strip() == self.answers[self.label].strip()


@dataclass(frozen=True)
class Format:
    """The format of a task's rows, and the rules by which its choices are scored.

    Attributes:
        fields: fields that a row must have, with their types.
        read: function of a row, its file's name without ending (`stem`) and the rules.
            Returns the choice, or None for a row that the rules leave out.
        has_splits: whether the score is a mean over splits, each the mean over its uids.
            Such a uid is `<split>_<number>_ops`.
        per_token: whether texts are compared by the mean log-probability of their tokens,
            not by the sum.
        correlated: whether the score is Spearman's rho with `Choice.ratio`, not the share
            of right choices.
    """

    fields: Fields
    read: Callable[[Row, str, Protocol], Choice | None]
    has_splits: bool = False
    per_token: bool = False
    correlated: bool = False

    def load(
        self, directory: Path, folder: str, protocol: int = STANDARD, **common: Any
    ) -> "ChoiceTask":
        """Read the *.jsonl files of a directory, in the order of their names.

        Args:
            folder: official folder of the task, without the dataset's own folder in it.
            common: other fields of `Task`.

        Raises:
            UserError: there is no file or no choice, or a row cannot be used.
        """
        choices = []
        files = sorted(directory.glob("*.jsonl"))
        if not files:
            raise UserError(f"no *.jsonl file in {directory}")
        for file in files:
            rules = PROTOCOLS[protocol]
            convert = functools.partial(self.read, stem=file.stem, rules=rules)
            choices += filter(None, read_rows(file, self.fields, convert))
        if not choices:
            raise UserError(f"protocol {protocol} leaves out all rows of {directory}")
        return ChoiceTask(
            format=self,
            choices=tuple(choices),
            folder=f"{folder}/{directory.name}",
            protocol=protocol,
            data_checksum=checksum_of_files(files),
            **common,
        )


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(Task):
    """A task of choices between texts. An answer is a `Scored` of the choices' texts."""

    format: Format
    choices: tuple[Choice, ...]

    @property
    def num_items(self) -> int:
        return len(self.choices)

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(choice.uid for choice in self.choices))

    @property
    def items(self) -> list[Item]:
        """The texts of all choices, one choice after the other."""
        return [item for choice in self.choices for item in choice.items]

    def sample(self, num_items: int) -> "ChoiceTask":
        """Return the task with `num_items` choices that are evenly spaced over all parts."""
        number = min(num_items, len(self.choices))
        indices = np.linspace(0, len(self.choices) - 1, number).round().astype(int)
        return replace(self, choices=tuple(self.choices[index] for index in indices))

    def prepare(self, scorer: Scorer) -> list[list[Query]]:
        return scorer.queries(self.items)

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the result of one model.

        A choice with a text that is too long (NaN) is reported. A correlation leaves it out.
        """
        predictions: dict = defaultdict(lambda: {"predictions": []})
        too_long, right, shares, num_ties = [], [], [], 0
        for choice, values in zip(self.choices, self._values(answers[0].content)):
            index, tied = decide(choice, values, self.rules)
            rows = predictions[choice.uid]["predictions"]
            # The official id is the uid and the number of the choice within it, from 0.
            row = {"id": f"{choice.uid}_{len(rows)}"}
            row["pred"] = choice.answers[index]
            if self.format.correlated:
                # The first text's share of the probability of all texts.
                row["prob"] = float(softmax(values)[0])
                shares.append(row["prob"])
            rows.append(row)
            right.append(choice.is_right(index))
            num_ties += tied
            if np.isnan(values).any():
                too_long.append(row["id"])
        if self.format.correlated:
            subscores = {}
            score = 100 * _correlation(
                shares, [choice.ratio for choice in self.choices]
            )
        else:
            subscores = self._accuracies(right)
            score = fmean(subscores.get("split", subscores["UID"]).values())
        return self.build_result(
            answers,
            score=score,
            num_ties=num_ties,
            too_long=tuple(too_long),
            subscores=subscores,
            files={
                "predictions.json": dict(predictions),
                "best_temperature_report.txt": _report(score, subscores),
            },
        )

    def _values(self, scored: Scored) -> list[np.ndarray]:
        """Return the scores of each choice's texts, arrays [num_texts].

        If a choice has the same text twice, both get the first one's score, since the scores
        may differ in the last bits if they come from different batches.
        """
        values = np.array(scored.log_probability, np.float64)
        if self.format.per_token:
            values = values / np.maximum(1, scored.num_tokens)
        ends = np.cumsum([len(choice.items) for choice in self.choices])
        return [
            of_texts[[choice.items.index(item) for item in choice.items]]
            for choice, of_texts in zip(self.choices, np.split(values, ends[:-1]))
        ]

    def _accuracies(self, right: Sequence[bool]) -> dict[str, dict[str, float]]:
        """Return the percentage of right choices for each uid ("UID"), tag and split.

        Args:
            right: whether each choice is right [num_choices].
        """
        groups: dict = defaultdict(lambda: defaultdict(list))
        for choice, is_right in zip(self.choices, right):
            for group, name in {"UID": choice.uid, **choice.tags}.items():
                groups[group][name].append(100 * is_right)
        if self.format.has_splits:
            for uid, values in groups["UID"].items():
                groups["split"][uid.rsplit("_", 2)[0]].append(fmean(values))
        return {
            group: {name: fmean(values) for name, values in members.items()}
            for group, members in groups.items()
        }


def decide(choice: Choice, values: np.ndarray, rules: Protocol) -> tuple[int, bool]:
    """Return the index of the chosen text, and whether different texts are tied for it.

    Args:
        values: score of each text, NaN for one that is too long to be scored [num_texts].
    """
    if rules.nan_is_least:
        values = np.where(np.isnan(values), -np.inf, values)
    elif np.isnan(values).any():
        return 1 if choice.label == 0 else 0, False
    highest = np.flatnonzero(values == values.max()).tolist()
    if rules.ties_are_wrong:
        highest.sort(key=choice.is_right)  # wrong ones come first
    return highest[0], len({choice.answers[index].strip() for index in highest}) > 1


def _correlation(shares: Sequence[float], ratios: Sequence[float]) -> float:
    """Return Spearman's rho of the model's and people's shares for the first text.

    It is NaN if one of the two is constant. Choices with a share of NaN are left out.
    """
    from scipy.stats import spearmanr

    known = ~np.isnan(shares)
    shares, ratios = np.array(shares)[known], np.array(ratios)[known]
    if len(set(shares)) < 2 or len(set(ratios)) < 2:
        return np.nan
    return float(spearmanr(shares, ratios).statistic)


def _report(score: float, subscores: Mapping[str, Mapping[str, float]]) -> str:
    """Return best_temperature_report.txt, in which a correlation is not multiplied by 100."""
    metric = "ACCURACY" if subscores else "SPEARMAN'S RHO"
    average = score if subscores else score / 100
    lines = ["TEMPERATURE: 1.00"]
    for group, members in (subscores or {"UID": {"avg": average}}).items():
        lines += ["", f"### {group.upper()} {metric}"]
        lines += [f"{name}: {value:.2f}" for name, value in members.items()]
    return "\n".join([*lines, "", f"### AVERAGE {metric}", f"{average:.2f}", "", ""])
