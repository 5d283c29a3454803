"""Age of acquisition: are words learned in the order in which children learn them?

A word's surprisal in its contexts over a run's checkpoints gives its learning curve; a
sigmoid is fitted to it, and to the share of children who say the word at 16 to 30 months.
Where each passes its threshold is the word's age; the score is the correlation of the two
ages over the words (Chang & Bergen 2022; AoA_word/ and utils.py in
babylm/evaluation-pipeline-2025 and, as of July 2026, babylm-org/babylm-eval).

The two protocols differ in the model's curve. 2025: every context of every checkpoint is a
point, chance is log2 of 300,000 though surprisals are in nats, the fit is free. 2026: the
mean of a checkpoint's contexts is a point, chance is the tokens of the word times the log of
the vocabulary, the fit has bounds, and a correlation with p above 0.1 counts as 0.

scipy, since which words count is decided by where its `curve_fit` ends, or that it does not
converge: another optimizer would give another score.
"""

import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.evaluation.results import Result
from src.evaluation.scoring.texts import Item
from src.evaluation.tasks.choice import Protocol
from src.evaluation.tasks.rows import checksum
from src.foundation import UserError

AGES = np.arange(16, 31)  # months
MIN_WORDS = 3  # of which a correlation can be told
MAX_P = 0.1  # beyond, 2026 has a score of 0
CHANCE_2025 = math.log2(300_000)
CHILD_START = [1.0, 0.1, AGES.mean(), 0.0]
CHILD_BOUNDS = ([0, 0, AGES[0], -0.5], [2.0, 1.0, AGES[-1], 0.5])


@dataclass(frozen=True)
class WordContexts:
    """Words in contexts, and when children know them.

    `pairs` are (word, context, number of the context within the word); `known` is the share
    of children who say a word at each of AGES [num_ages].
    """

    pairs: list[tuple[str, str, int]]
    known: dict[str, np.ndarray]
    data_checksum: str

    @property
    def words(self) -> list[str]:
        return list(dict.fromkeys(word for word, _, _ in self.pairs))


def load(folder: Path) -> WordContexts:
    """Reads cdi_childes.json (contexts; words of one letter are left out) and cdi_human.csv."""
    contexts_file, human_file = folder / "cdi_childes.json", folder / "cdi_human.csv"
    for file in (contexts_file, human_file):
        if not file.exists():
            raise UserError(f"evaluation.data: no {file.name} in {folder}")
    try:
        contexts = json.loads(contexts_file.read_text(encoding="utf-8"))
        pairs = [
            (word, row["context"], number)
            for word, rows in contexts.items()
            for number, row in enumerate(rows)
            if len(word) > 1
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"evaluation.data: {contexts_file} must map words to lists of"
            f' {{"context": …}}: {error!r}'
        ) from error
    if not pairs:
        raise UserError(f"evaluation.data: {contexts_file} has no word in a context")
    known = _read_known(human_file)
    return WordContexts(pairs, known, checksum([contexts_file, human_file]))


def _read_known(file: Path) -> dict[str, np.ndarray]:
    known: dict[str, np.ndarray] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=1):
            try:
                shares = [float(row[str(age)] or "nan") for age in AGES]
                known.setdefault(row["word"], np.array(shares))
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(
                    f"evaluation.data: {file}, row {number}: needs word and the share of"
                    f" children at {AGES[0]} to {AGES[-1]} months: {error!r}"
                ) from error
    return known


def items(data: WordContexts) -> list[Item]:
    """The text of each pair, of which the word is scored."""
    before = [context.strip() + " " for _, context, _ in data.pairs]
    return [
        Item(text + word.strip(), len(text))
        for text, (word, _, _) in zip(before, data.pairs)
    ]


def chance_surprisals(
    data: WordContexts, tokenizer: PreTrainedTokenizerBase, protocol: Protocol
) -> dict[str, float]:
    """Surprisal of each word by chance: nats, and bits in 2025.

    The tokens of a word are those that it adds to a fixed word before it.
    """
    if protocol == 2025:
        return dict.fromkeys(data.words, CHANCE_2025)

    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    alone = num_tokens("The")
    nats = math.log(tokenizer.vocab_size)
    return {w: max(1, num_tokens(f"The {w}") - alone) * nats for w in data.words}


def sigmoid(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    return a / (1 + np.exp(-b * (x - c))) + d


def _crossing(
    x: np.ndarray, y: np.ndarray, threshold: float, least: float = 0, **fit
) -> float | None:
    """Where the sigmoid fitted to the points (x, y) [n] passes the threshold, if it does."""
    from scipy.optimize import OptimizeWarning, curve_fit

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", OptimizeWarning)
            (a, b, c, d), _ = curve_fit(sigmoid, x, y, **fit)
    except (RuntimeError, ValueError, TypeError):  # no end; no start; too few points
        return None
    if b <= least or a <= least or threshold <= d or threshold >= a + d:
        return None
    return float(c - np.log(a / (threshold - d) - 1) / b)


def child_age(shares: np.ndarray) -> float | None:
    """Months at which half of the children say a word, from their shares at AGES."""
    given = ~np.isnan(shares)
    if given.sum() < MIN_WORDS:
        return None
    ages = AGES[given]
    lower, upper = CHILD_BOUNDS
    bounds = ([*lower[:2], ages[0], lower[3]], [*upper[:2], ages[-1], upper[3]])
    start = [*CHILD_START[:2], ages.mean(), CHILD_START[3]]
    age = _crossing(ages, shares[given], 0.5, p0=start, bounds=bounds, maxfev=1000)
    return age if age is not None and ages[0] <= age <= ages[-1] else None


def model_age(
    num_words: np.ndarray, surprisals: np.ndarray, chance: float, protocol: Protocol
) -> float | None:
    """log10 of the words seen when a word's surprisal is halfway from chance to its least.

    Args:
        num_words: seen at each point, ascending [num_points].
        surprisals: of the word there, NaN where there is none [num_points].
    """
    given = ~np.isnan(surprisals)
    if len(surprisals) < MIN_WORDS or not given.any():
        return None
    seen, curve = num_words[given], -surprisals[given]
    steps = np.log10(seen + 1)
    low, high = curve.min(), curve.max()
    size = high - low
    fit = {"p0": [size, 1.0, steps.mean(), low], "maxfev": 1000}
    if protocol == 2026:
        lower = [0.0, 0.0, steps.min() - 1, low - 2 * size - 1]
        upper = [10 * size + 1, 100.0, steps.max() + 1, high + 1]
        fit.update(bounds=(lower, upper), maxfev=20000)
    threshold = -(chance - 0.5 * (chance + high))
    least = 1e-6 if protocol == 2026 else 0
    age = _crossing(steps, curve, threshold, least, **fit)
    if age is None or age > math.log10(np.finfo(float).max):
        return None
    return age if seen[0] <= 10**age - 1 <= seen[-1] else None


def result(
    data: WordContexts,
    chance: Mapping[str, float],
    surprisals: Mapping[str, np.ndarray],
    num_words: Mapping[str, int],
    protocol: Protocol = 2026,
    model: str = "",
) -> Result:
    """The score of a run.

    Args:
        chance: `chance_surprisals` of the run's tokenizer.
        surprisals: checkpoint ("chck_1M") → nats of each pair, NaN where too long
            [num_pairs].
        num_words: checkpoint → words seen.
    """
    steps = sorted(surprisals, key=num_words.__getitem__)
    if len(steps) < MIN_WORDS:
        raise UserError(
            f"aoa needs at least {MIN_WORDS} checkpoints of a run, got {len(steps)}: {steps}"
        )
    seen = np.array([num_words[step] for step in steps])
    table = np.stack([surprisals[step] for step in steps])
    lost = np.flatnonzero(np.isnan(table).any(axis=0))
    if protocol == 2026:
        table = _whole_points(data, table)
    ages = _ages(data, chance, seen, table, protocol)
    score, r, p = _correlation(np.array(list(ages.values())), protocol)
    return Result(
        task="aoa",
        folder="AoA_word",
        protocol=protocol,
        score=100 * score,
        num_items=len(data.pairs) * len(steps),
        too_long=tuple(f"{data.pairs[i][0]}_{data.pairs[i][2]}" for i in lost),
        subscores={
            "words": {"with_both_ages": len(ages), "all": len(data.words)},
            "correlation": {"r": 100 * r, "p": p},
        },
        files={
            "surprisal.json": _official(data, steps, seen, table, model),
            "aoa_score.json": {"aoa": score},
        },
        data_checksum=data.data_checksum,
    )


def _whole_points(data: WordContexts, table: np.ndarray) -> np.ndarray:
    """NaN for all contexts of a word, at a checkpoint, where one is too long: their mean is.

    The official reader skips single values that are null, and takes the mean of the rest.
    """
    words = np.array([word for word, _, _ in data.pairs])
    lost = [np.isin(words, words[row]) for row in np.isnan(table)]
    return np.where(lost, np.nan, table)


def _ages(
    data: WordContexts,
    chance: Mapping[str, float],
    seen: np.ndarray,
    table: np.ndarray,
    protocol: Protocol,
) -> dict[str, tuple[float, float]]:
    """(model's age, children's) of the words that have both; table [checkpoints, pairs]."""
    columns: dict[str, list[int]] = {}
    for index, (word, _, _) in enumerate(data.pairs):
        columns.setdefault(word, []).append(index)
    ages = {}
    for word, chosen in columns.items():
        if word not in data.known:
            continue
        points, words = table[:, chosen].mean(axis=1), seen
        if protocol == 2025:
            points, words = table[:, chosen].ravel(), np.repeat(seen, len(chosen))
        child = child_age(data.known[word])
        if child is None:
            continue
        own = model_age(words, points, chance[word], protocol)
        if own is not None:
            ages[word] = (own, child)
    return ages


def _correlation(ages: np.ndarray, protocol: Protocol) -> tuple[float, float, float]:
    """(score, Pearson's r, its p) of pairs of ages [num_words, 2]; 0 where r cannot be told."""
    from scipy.stats import pearsonr

    if len(ages) < MIN_WORDS:
        return 0.0, math.nan, math.nan
    r, p = map(float, pearsonr(ages[:, 0], ages[:, 1]))
    return 0.0 if protocol == 2026 and p > MAX_P else r, r, p


def _official(
    data: WordContexts,
    steps: Sequence[str],
    seen: np.ndarray,
    table: np.ndarray,
    model: str,
) -> dict:
    """surprisal.json: an entry a checkpoint and pair."""
    results = [
        {
            "step": step,
            "word_count": int(words),
            "target_word": word,
            "context_id": number,
            "context": context,
            "surprisal": float(surprisal),
        }
        for step, words, row in zip(steps, seen, table)
        for (word, context, number), surprisal in zip(data.pairs, row)
    ]
    metadata = {
        "model_name": model,
        "use_bos_only": False,
        "total_steps": len(steps),
        "completed_steps": len(steps),
    }
    return {"metadata": metadata, "results": results}
