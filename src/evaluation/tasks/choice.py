"""A choice between texts: the most probable text is chosen, and should be the right one.

The rules are those of the challenge's pipelines (babylm/evaluation-pipeline-2025, and for
2026 babylm-org/babylm-eval as of July 2026). They differ in ties. In 2025 the first of the
tied texts was chosen, which is mostly the right one. In 2026 the pipeline draws one at
random. Here a tie in 2026 counts as wrong, so that a score depends on the model alone. The
predictions then hold a wrong answer, so that the official scripts compute the same score.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from src.evaluation.results import Result
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.scorer import Item, Scored, Scorer
from src.evaluation.tasks.rows import Fields, read_rows
from src.evaluation.tasks.task import Answer, Protocol, Task
from src.foundation import UserError, checksum_of_files

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """A question: several texts, of which one is right.

    Attributes:
        uid: official name of the part of the task that the question belongs to.
        answers: names of the texts in the official predictions.
        label: index of the right text.
        tags: further parts for which a score is reported, kind of part -> its name.
        ratio: share of people who prefer the first text (WUG).
    """

    uid: str
    items: tuple[Item, ...]
    answers: tuple[str, ...]
    label: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    ratio: float = np.nan


@dataclass(frozen=True)
class Format:
    """The format of a task's rows, and the rules by which its choices are scored.

    Attributes:
        fields: fields that a row must have, with their types.
        read: (row, name of its file without ending, protocol) -> choice, or None for a row
            that the protocol leaves out.
        split_of: uid -> its split. Means are taken over the uids of a split first.
        per_token: whether the mean log-probability of a token decides, not the sum.
        correlated: whether the score is Spearman's rho with `Choice.ratio`, not the share
            of right choices.
    """

    fields: Fields
    read: Callable[[Row, str, Protocol], Choice | None]
    split_of: Callable[[str], str] | None = None
    per_token: bool = False
    correlated: bool = False

    def load(
        self, directory: Path, folder: str, protocol: Protocol, **common: Any
    ) -> "ChoiceTask":
        """Read the *.jsonl files of a directory, in order of their names.

        Args:
            folder: official folder of the task, without that of the dataset.
            common: other fields of `Task`.
        """
        choices = []
        files = sorted(directory.glob("*.jsonl"))
        if not files:
            raise UserError(f"no *.jsonl file in {directory}")
        for file in files:

            def convert(row: Row, stem: str = file.stem) -> Choice | None:
                return self.read(row, stem, protocol)

            choices += filter(None, read_rows(file, self.fields, convert))
        if not choices:
            raise UserError(f"protocol {protocol} leaves nothing of {directory}")
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
        """Return the task with choices at even distances, so that each part has its share."""
        number = min(num_items, len(self.choices))
        indices = np.linspace(0, len(self.choices) - 1, number).round().astype(int)
        return replace(self, choices=tuple(self.choices[index] for index in indices))

    def prepare(self, scorer: Scorer) -> list[list[Query]]:
        return scorer.queries(self.items)

    def ask(self, scorer: Scorer, prepared: list[list[Query]]) -> Scored:
        return scorer.score(prepared)

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the result of one model.

        A choice with a text that is too long (NaN) is named and counts as wrong. A
        correlation leaves it out.
        """
        (answer,) = answers
        values = self._values(answer.content)
        decisions = [decide(c, v, self.protocol) for c, v in zip(self.choices, values)]
        if self.format.correlated:
            subscores = {}
            score = 100 * _human_correlation(self.choices, values)
        else:
            right = [c.label == index for c, (index, _) in zip(self.choices, decisions)]
            subscores = _shares(self.choices, right)
            if self.format.split_of:
                split = _split_means(subscores["UID"], self.format.split_of)
                subscores["split"] = split
            score = fmean(subscores.get("split", subscores["UID"]).values())
        ids = _ids(self.choices)
        predictions: dict = defaultdict(lambda: {"predictions": []})
        for choice, name, value, (index, _) in zip(
            self.choices, ids, values, decisions
        ):
            row = {"id": name, "pred": _prediction(choice, index, self.protocol)}
            if self.format.correlated:
                row["prob"] = first_share(value)
            predictions[choice.uid]["predictions"].append(row)
        return self.build_result(
            answers,
            score=score,
            num_ties=sum(tied for _, tied in decisions),
            too_long=tuple(i for i, v in zip(ids, values) if np.isnan(v).any()),
            subscores=subscores,
            files={
                "predictions.json": dict(predictions),
                "best_temperature_report.txt": _report(score, subscores),
            },
        )

    def _values(self, scored: Scored) -> list[np.ndarray]:
        """Return the scores of each choice's texts, arrays [num_texts].

        A text that stands twice in a choice gets the same score twice. Batching may give
        the two scores that differ in the last bits.
        """
        values = np.array(scored.log_probability, np.float64)
        if self.format.per_token:
            values = values / np.maximum(1, scored.num_tokens)
        ends = np.cumsum([len(choice.items) for choice in self.choices])
        of_choices = np.split(values, ends[:-1])
        for choice, of_texts in zip(self.choices, of_choices):
            if len(set(choice.items)) < len(choice.items):
                first = [choice.items.index(item) for item in choice.items]
                of_texts[:] = of_texts[first]
        return of_choices


def decide(choice: Choice, values: np.ndarray, protocol: Protocol) -> tuple[int, bool]:
    """Return the index of the chosen text, and whether texts are tied for the highest value.

    Of tied texts the first is chosen in 2025, the first wrong one in 2026. Where a text is
    too long to be scored (NaN), the first wrong one is chosen.

    Args:
        values: score of each text [num_texts].
    """
    first_wrong = 1 if choice.label == 0 else 0
    if np.isnan(values).any():
        return first_wrong, False
    highest = np.flatnonzero(values == values.max()).tolist()
    tied = len(highest) > 1
    if tied and protocol == 2026 and highest[0] == choice.label:
        return highest[1], tied
    return highest[0], tied


def _prediction(choice: Choice, index: int, protocol: Protocol) -> str:
    """Return the name of the chosen text in the predictions.

    The official scripts compare texts to find out whether an answer is right. Seven pairs of
    BLiMP have the same text twice, such as "Douglas's senator was left by Susan.". They are
    tied, so they are wrong in 2026, and the empty text stands for a wrong answer.
    """
    answer, right = choice.answers[index], choice.answers[choice.label]
    is_wrong = index != choice.label and protocol == 2026
    return "" if is_wrong and answer.strip() == right.strip() else answer


def _ids(choices: Sequence[Choice]) -> list[str]:
    """Return the official ids: the uid and the number of the choice within it, from 0."""
    uses: Counter = Counter()
    ids = []
    for choice in choices:
        ids.append(f"{choice.uid}_{uses[choice.uid]}")
        uses[choice.uid] += 1
    return ids


def _shares(
    choices: Sequence[Choice], right: Sequence[bool]
) -> dict[str, dict[str, float]]:
    """Return the percentage of right choices for each uid ("UID") and each tag."""
    groups: dict = defaultdict(lambda: defaultdict(list))
    for choice, is_right in zip(choices, right):
        for group, name in {"UID": choice.uid, **choice.tags}.items():
            groups[group][name].append(is_right)
    return {
        group: {name: 100 * sum(own) / len(own) for name, own in members.items()}
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
    """Return the first text's share of the probability of all texts [num_texts]."""
    shifted = np.exp(values - values.max())
    return float(shifted[0] / shifted.sum())


def _human_correlation(
    choices: Sequence[Choice], values: Sequence[np.ndarray]
) -> float:
    """Return Spearman's rho of the first text's shares, by the model and by people.

    NaN where one of the two is constant.
    """
    from scipy.stats import spearmanr

    shares = np.array([first_share(value) for value in values])
    ratios = np.array([choice.ratio for choice in choices])
    known = ~np.isnan(shares)
    shares, ratios = shares[known], ratios[known]
    if len(set(shares)) < 2 or len(set(ratios)) < 2:
        return np.nan
    return float(spearmanr(shares, ratios).statistic)


def _report(score: float, subscores: Mapping[str, Mapping[str, float]]) -> str:
    """Return best_temperature_report.txt. A correlation, without subscores, is not × 100."""
    metric, average, groups = "ACCURACY", score, subscores
    if not subscores:
        metric, average = "SPEARMAN'S RHO", score / 100
        groups = {"UID": {"avg": average}}
    lines = ["TEMPERATURE: 1.00", ""]
    for group, members in groups.items():
        lines.append(f"### {group.upper()} {metric}")
        lines += [f"{name}: {value:.2f}" for name, value in members.items()]
        lines.append("")
    return "\n".join([*lines, f"### AVERAGE {metric}", f"{average:.2f}", "", ""])
