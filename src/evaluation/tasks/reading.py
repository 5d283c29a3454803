"""Reading times: what a model's surprisal adds to length, frequency and position.

The words of 205 English sentences with eye-tracking and self-paced reading times (de Varda
et al. 2023), scored as the challenge's pipelines score them (reading/ in
babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval, the same in both). A word is
tokenized without its context, and a word of several tokens goes from token to token by
way of their text. So ids are asked for here, not texts: with a tokenizer that gives a bare
word no leading space, only they lead to the score that the challenge would give.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.evaluation.results import Result
from src.evaluation.scoring.network import log_probabilities
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.texts import Backend
from src.evaluation.tasks.choice import Protocol
from src.evaluation.tasks.rows import checksum
from src.foundation import UserError

WORDS = ("Subtlex_log10", "length", "context_length")
SPILL_OVER = (*WORDS, "prev_length", "prev_pred")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
NUMBERS = (*WORDS, "prev_length", *EYE_TRACKING, SELF_PACED)
TEXTS = ("item", "word", "prev_item", "prev_word")
# The pipelines read the table with pandas, which takes these for a missing text.
MISSING = frozenset(("", "None", "NA", "N/A", "NaN", "nan", "NULL", "null", "n/a"))
NUM_MASKS = 3  # behind the context of a masked model: room for words to come


@dataclass(frozen=True)
class Reading:
    """The words in the order of the file: texts, and numbers [num_words], NaN where none."""

    contexts: list[tuple[str, str]]  # context, word
    previous: list[tuple[str, str] | None]  # of the word before; None for the first
    numbers: dict[str, np.ndarray]
    data_checksum: str


def load(folder: Path) -> Reading:
    """Reads reading_data.csv. Raises `UserError` for a missing column or a bad number."""
    file = folder / "reading_data.csv"
    if not file.exists():
        raise UserError(f"evaluation.data: no reading_data.csv in {folder}")
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        rows = list(reader)
    if lacking := set(NUMBERS + TEXTS) - set(reader.fieldnames or ()):
        raise UserError(f"evaluation.data: {file} lacks the columns {sorted(lacking)}")
    if not rows:
        raise UserError(f"evaluation.data: {file} is empty")
    numbers = {name: np.empty(len(rows)) for name in NUMBERS}
    for index, row in enumerate(rows):
        for name in NUMBERS:
            numbers[name][index] = _number(
                row[name], f"{file}, row {index + 1}: {name}"
            )
    return Reading(
        contexts=[
            ("None" if row["item"] in MISSING else row["item"], row["word"])
            for row in rows
        ],
        previous=[
            (
                None
                if row["prev_item"] in MISSING
                else (row["prev_item"], row["prev_word"])
            )
            for row in rows
        ],
        numbers=numbers,
        data_checksum=checksum([file]),
    )


def _number(text: str | None, place: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError as error:
        raise UserError(
            f"evaluation.data: {place} must be a number: {text!r}"
        ) from error


def word_queries(
    tokenizer: PreTrainedTokenizerBase, context: str, word: str, backend: Backend
) -> list[Query]:
    """One query a token of `word` behind `context`; their log-probabilities add up.

    Behind the first token, the context is continued by the text of the tokens so far, and
    the text of the next one is tokenized anew: of that, the first token counts.
    """
    queries, text = [], context
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    for place, token in enumerate(ids):
        piece = tokenizer.decode(token)
        target = token
        if place > 0:
            # A piece may be no text at all (a lone "▁" of SentencePiece).
            target = (
                tokenizer(piece, add_special_tokens=False)["input_ids"] or [token]
            )[0]
        queries.append(_query(tokenizer, text, target, backend))
        text += piece
    return queries


def _query(
    tokenizer: PreTrainedTokenizerBase, text: str, target: int, backend: Backend
) -> Query:
    """Causal: the last token predicts. mlm: the first of the masks behind the text is the
    place; mntp: the token before it."""
    if backend == "causal":
        ids = tokenizer(text)["input_ids"]
        return Query(tuple(ids), (len(ids) - 1,), (target,), text)
    ids = tokenizer(text + tokenizer.mask_token * NUM_MASKS)["input_ids"]
    position = len(ids) - NUM_MASKS - (backend == "mntp")
    if ids[-1] != tokenizer.mask_token_id:
        position -= 1  # a special token ends the text
    return Query(tuple(ids), (position,), (target,), text)


@dataclass(frozen=True)
class Prepared:
    """The queries of all words, made once for many checkpoints of one tokenizer."""

    reading: Reading
    queries: list[Query]  # each once
    words: list[list[int]]  # indices of `queries` of each word
    previous: list[list[int] | None]  # of the word before it


def prepare(
    reading: Reading, tokenizer: PreTrainedTokenizerBase, backend: Backend = "causal"
) -> Prepared:
    """Tokenizes. The word before a word is mostly a word of the file: it is asked once."""
    indices: dict[Query, int] = {}
    known: dict[tuple[str, str], list[int]] = {}

    def of(pair: tuple[str, str]) -> list[int]:
        if pair not in known:
            queries = word_queries(tokenizer, *pair, backend)
            known[pair] = [indices.setdefault(q, len(indices)) for q in queries]
        return known[pair]

    words = [of(pair) for pair in reading.contexts]
    previous = [pair and of(pair) for pair in reading.previous]
    return Prepared(reading, list(indices), words, previous)


def surprisals(
    model: PreTrainedModel,
    prepared: Prepared,
    backend: Backend = "causal",
    batch_tokens: int = 16384,
    dtype: torch.dtype | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Nats of the queries [num_queries], NaN beyond the model's positions."""
    found = log_probabilities(
        model, prepared.queries, backend == "causal", batch_tokens, dtype, progress
    )
    return -np.concatenate(found)


def result(
    prepared: Prepared, surprisals: np.ndarray, protocol: Protocol = 2026
) -> Result:
    """The score from the `surprisals` of the prepared queries.

    The mean of eye tracking (mean of four measures) and self-paced reading, each × 100.
    """
    reading = prepared.reading
    surprisal = _sums(prepared.words, surprisals)
    previous = _sums(prepared.previous, surprisals)
    columns = {**reading.numbers, "pred": surprisal, "prev_pred": previous}
    eye = {name: 100 * added_variance(columns, name, WORDS) for name in EYE_TRACKING}
    self_paced = 100 * added_variance(columns, SELF_PACED, SPILL_OVER)
    eye_tracking = float(np.mean(list(eye.values())))
    report = (
        f"EYE TRACKING SCORE: {eye_tracking:.2f}\n"
        f"SELF-PACED READING SCORE: {self_paced:.2f}\n"
    )
    predictions = [
        {"id": index, "pred": float(word), "prev_pred": float(before)}
        for index, (word, before) in enumerate(zip(surprisal, previous))
    ]
    return Result(
        task="reading",
        folder="reading",
        protocol=protocol,
        score=(eye_tracking + self_paced) / 2,
        num_items=len(surprisal),
        too_long=tuple(f"reading_{i}" for i in np.flatnonzero(np.isnan(surprisal))),
        subscores={
            "measure": {"eye_tracking": eye_tracking, "self_paced": self_paced},
            "eye_tracking": eye,
        },
        files={
            "predictions.json": {"reading": {"predictions": predictions}},
            "report.txt": report,
        },
        data_checksum=reading.data_checksum,
    )


def _sums(words: Sequence[list[int] | None], values: np.ndarray) -> np.ndarray:
    """Surprisal in nats of each word [num_words], NaN where there is none."""
    return np.array([math.nan if w is None else values[w].sum() for w in words])


def added_variance(
    columns: dict[str, np.ndarray], measure: str, predictors: Sequence[str]
) -> float:
    """What `pred` explains of the variance that the predictors leave unexplained.

    Least squares on a constant, the predictors and their pairwise products, without and
    with "pred" [num_words]: (R² with − R² without) / (1 − R² without). Each of the two
    drops the words that lack a value of its own.
    """
    without = _r_squared(columns, measure, predictors, ())
    return (_r_squared(columns, measure, predictors, ("pred",)) - without) / (
        1 - without
    )


def _r_squared(
    columns: dict[str, np.ndarray],
    measure: str,
    predictors: Sequence[str],
    more: Sequence[str],
) -> float:
    """R² of `measure` on the predictors, their products, and `more` without products."""
    used = np.stack([columns[name] for name in (measure, *predictors, *more)])
    whole = ~np.isnan(used).any(axis=0)
    target, *values = used[:, whole]
    base = values[: len(predictors)]
    products = [first * second for first, second in combinations(base, 2)]
    matrix = np.stack([np.ones_like(target), *values, *products], axis=1)
    # Columns of one size: a product of two reaches 1e4 times the constant.
    norms = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(norms > 0, norms, 1)
    residuals = target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
    centred = target - target.mean()
    return float(1 - (residuals @ residuals) / (centred @ centred))
