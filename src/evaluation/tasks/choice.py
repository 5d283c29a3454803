"""A choice between texts: the most probable is chosen, and must be the right one.

Rules of the challenge's pipelines (babylm/evaluation-pipeline-2025, and 2026:
babylm-org/babylm-eval as of July 2026). They differ in ties: in 2025 the first of the tied
texts was chosen, which is mostly the right one; in 2026 one is drawn at random. Ours for
2026 counts a tie as wrong, so that a score depends on nothing but the model, and writes a
wrong answer to the predictions, so that who collates them finds the same score.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import numpy as np

from src.evaluation.results import Result
from src.evaluation.scoring.texts import Item, Scored

Protocol = Literal[2025, 2026]


@dataclass(frozen=True)
class Choice:
    """One question: texts of which one is right.

    `uid` is the official name of the part of the task that it belongs to, `answers` are
    what the official predictions call the texts, `tags` are further parts to report.
    """

    uid: str
    items: tuple[Item, ...]
    answers: tuple[str, ...]
    label: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    ratio: float = np.nan  # of people who prefer the first text (WUG)


@dataclass(frozen=True)
class ChoiceTask:
    """A task read and ready: `items` to be scored, `result` of their scores."""

    name: str
    folder: str  # official place of the results: task/dataset
    protocol: Protocol
    choices: tuple[Choice, ...]
    data_checksum: str
    split_of: Callable[[str], str] | None = None  # uids whose mean is taken first
    per_token: bool = False  # the mean log-probability of a token decides, not the sum
    correlated: bool = False  # Spearman's rho with `ratio`, not the share of right ones

    @property
    def items(self) -> list[Item]:
        """The texts of all choices, one choice after the other."""
        return [item for choice in self.choices for item in choice.items]

    def result(self, scored: Scored) -> Result:
        """What the log-probabilities of `items`, in that order, amount to.

        A choice with a text that is too long (NaN) counts as wrong (in a correlation: not
        at all) and is named.
        """
        values = self._values(scored)
        decisions = [decide(c, v, self.protocol) for c, v in zip(self.choices, values)]
        right = [c.label == chosen for c, (chosen, _) in zip(self.choices, decisions)]
        ids = _ids(self.choices)
        if self.correlated:
            subscores = {}
            score = 100 * _human_correlation(self.choices, values)
        else:
            subscores = _shares(_groups(self.choices), right)
            if self.split_of:
                subscores["split"] = _split_means(subscores["UID"], self.split_of)
            score = fmean(subscores.get("split", subscores["UID"]).values())
        answers = [
            _answer(choice, index, self.protocol)
            for choice, (index, _) in zip(self.choices, decisions)
        ]
        chosen = _predictions(self.choices, ids, answers, values, self.correlated)
        report = _report(score, subscores, self.correlated)
        return Result(
            task=self.name,
            folder=self.folder,
            protocol=self.protocol,
            score=score,
            num_items=len(self.choices),
            num_ties=sum(tied for _, tied in decisions),
            too_long=tuple(i for i, v in zip(ids, values) if np.isnan(v).any()),
            subscores=subscores,
            files={"predictions.json": chosen, "best_temperature_report.txt": report},
            data_checksum=self.data_checksum,
        )

    def _values(self, scored: Scored) -> list[np.ndarray]:
        """Scores of each choice's texts.

        A text that stands twice in a choice gets the same score twice: batching may give
        it two that differ in the last bits.
        """
        values = np.array(scored.log_probability, np.float64)
        if self.per_token:
            values = values / np.maximum(1, scored.num_tokens)
        ends = np.cumsum([len(choice.items) for choice in self.choices])
        split = np.split(values, ends[:-1])
        for choice, own in zip(self.choices, split):
            if len(set(choice.items)) < len(choice.items):
                own[:] = own[[choice.items.index(item) for item in choice.items]]
        return split


def decide(choice: Choice, values: np.ndarray, protocol: Protocol) -> tuple[int, bool]:
    """Index of the chosen text, and whether several have the highest of `values` [texts].

    Of tied texts the first is chosen in 2025, the first wrong one in 2026. Where a text is
    too long to be scored (NaN), the first wrong one.
    """
    wrong = 1 if choice.label == 0 else 0
    if np.isnan(values).any():
        return wrong, False
    highest = np.flatnonzero(values == values.max()).tolist()
    tied = len(highest) > 1
    if tied and protocol == 2026 and highest[0] == choice.label:
        return highest[1], tied
    return highest[0], tied


def _answer(choice: Choice, chosen: int, protocol: Protocol) -> str:
    """What the predictions call the chosen text.

    The official scripts find out by the text itself whether it is right. Seven pairs of
    BLiMP have the same text twice, such as "Douglas's senator was left by Susan.": they are
    tied, so wrong in 2026, and a text that is wrong is the empty one.
    """
    answer, right = choice.answers[chosen], choice.answers[choice.label]
    is_wrong = chosen != choice.label and protocol == 2026
    return "" if is_wrong and answer.strip() == right.strip() else answer


def _ids(choices: Sequence[Choice]) -> list[str]:
    """Official ids: the uid and the number of the choice within it, from 0."""
    uses: dict[str, int] = defaultdict(int)
    ids = []
    for choice in choices:
        ids.append(f"{choice.uid}_{uses[choice.uid]}")
        uses[choice.uid] += 1
    return ids


def _groups(choices: Sequence[Choice]) -> dict[str, dict[str, list[int]]]:
    """ "UID" and each tag → its values → the choices (indices) that have it."""
    groups: dict = defaultdict(lambda: defaultdict(list))
    for index, choice in enumerate(choices):
        for group, name in {"UID": choice.uid, **choice.tags}.items():
            groups[group][name].append(index)
    return groups


def _shares(
    groups: Mapping[str, Mapping[str, list[int]]], right: Sequence[bool]
) -> dict[str, dict[str, float]]:
    """Percent of right choices in every group."""
    return {
        group: {
            name: 100 * sum(right[index] for index in indices) / len(indices)
            for name, indices in members.items()
        }
        for group, members in groups.items()
    }


def _split_means(
    shares: Mapping[str, float], split_of: Callable[[str], str]
) -> dict[str, float]:
    splits: dict[str, list[float]] = defaultdict(list)
    for uid, share in shares.items():
        splits[split_of(uid)].append(share)
    return {name: fmean(values) for name, values in splits.items()}


def first_share(values: np.ndarray) -> float:
    """How much of the probability of the texts the first one has."""
    shifted = np.exp(values - values.max())
    return float(shifted[0] / shifted.sum())


def _human_correlation(
    choices: Sequence[Choice], values: Sequence[np.ndarray]
) -> float:
    pairs = [
        (first_share(value), choice.ratio)
        for choice, value in zip(choices, values)
        if not np.isnan(value).any()
    ]
    return spearman(*np.array(pairs).T) if pairs else np.nan


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two arrays [n]; NaN where one of them is constant."""
    first, second = _ranks(first), _ranks(second)
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm > 0 else np.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _predictions(
    choices: Sequence[Choice],
    ids: Sequence[str],
    answers: Sequence[str],
    values: Sequence[np.ndarray],
    with_probability: bool,
) -> dict[str, dict[str, list[dict]]]:
    """predictions.json: uid → its choices in the order of its file."""
    found: dict = defaultdict(lambda: {"predictions": []})
    for choice, name, answer, value in zip(choices, ids, answers, values):
        prediction = {"id": name, "pred": answer}
        if with_probability:
            prediction["prob"] = first_share(value)
        found[choice.uid]["predictions"].append(prediction)
    return dict(found)


def _report(
    score: float, subscores: Mapping[str, Mapping[str, float]], correlated: bool
) -> str:
    """best_temperature_report.txt; a correlation is not × 100 there."""
    metric = "SPEARMAN'S RHO" if correlated else "ACCURACY"
    average = score / 100 if correlated else score
    groups = {"UID": {"avg": average}} if correlated else subscores
    lines = ["TEMPERATURE: 1.00", ""]
    for group, members in groups.items():
        lines.append(f"### {group.upper()} {metric}")
        lines += [f"{name}: {value:.2f}" for name, value in members.items()]
        lines.append("")
    return "\n".join([*lines, f"### AVERAGE {metric}", f"{average:.2f}", "", ""])
