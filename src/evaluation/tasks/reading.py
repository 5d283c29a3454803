"""Reading times: the variance that surprisal explains beyond length, frequency and position.

The data are the words of 205 English sentences with eye-tracking and self-paced reading times
(de Varda et al. 2023), scored as in the challenge's pipelines (reading/ in
babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval, the same in both). The pipelines
tokenize a word without its context, and go from token to token of a word through their text.
So this task asks for ids, not for texts: where a tokenizer gives a bare word no leading space,
only the ids lead to the challenge's score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.evaluation.results import Result
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.scorer import Backend, Scorer
from src.evaluation.tasks.rows import existing, read_table
from src.evaluation.tasks.task import Answer, Task
from src.foundation import checksum_of_files

WORDS = ("Subtlex_log10", "length", "context_length")
SPILL_OVER = (*WORDS, "prev_length", "prev_pred")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
NUMBERS = (*WORDS, "prev_length", *EYE_TRACKING, SELF_PACED)
TEXTS = ("item", "word", "prev_item", "prev_word")
NUM_MASKS = 3  # behind the context of a masked model: room for words to come


@dataclass(frozen=True)
class Prepared:
    """The queries of all words, as one tokenizer gives them.

    Attributes:
        queries: the distinct queries.
        words: indices into `queries` of each word.
        previous: indices of the word before it; None for the first word of a sentence.
    """

    queries: list[Query]
    words: list[list[int]]
    previous: list[list[int] | None]


@dataclass(frozen=True, kw_only=True)
class ReadingTimes(Task):
    """The task of reading times.

    An answer holds the surprisal of each word and of the word before it in nats, an array
    [2, num_words] with NaN where a text is too long or there is no word before.

    Attributes:
        contexts: (context, word) in the order of the file.
        previous: the same of the word before; None for the first word of a sentence.
        numbers: column -> its values [num_words], NaN where there is none.
    """

    contexts: list[tuple[str, str]]
    previous: list[tuple[str, str] | None]
    numbers: dict[str, np.ndarray]

    @classmethod
    def load(cls, directory: Path, **common: Any) -> "ReadingTimes":
        """Read reading_data.csv as the pipelines do, with the defaults of pandas.

        Args:
            common: other fields of `Task`.

        Raises:
            UserError: the file or a column is missing, or a number is no number.
        """
        file = existing(directory / "reading_data.csv")
        table = read_table(file, TEXTS, NUMBERS)
        # pandas takes the text "None" for a missing one: the sentence "None of them" loses
        # its first word, which is put back as a context but not as a word before another.
        contexts = table[["item", "word"]].fillna("None")
        previous = table[["prev_item", "prev_word"]].fillna({"prev_word": "None"})
        return cls(
            contexts=list(contexts.itertuples(index=False, name=None)),
            previous=[
                pair if isinstance(pair[0], str) else None
                for pair in previous.itertuples(index=False, name=None)
            ],
            numbers={name: table[name].to_numpy() for name in NUMBERS},
            data_checksum=checksum_of_files([file]),
            **common,
        )

    @property
    def num_items(self) -> int:
        return len(self.contexts)

    def prepare(self, scorer: Scorer) -> Prepared:
        """Return the queries. The word before a word is mostly in the file: it is asked once."""
        indices: dict[Query, int] = {}
        known: dict[tuple[str, str], list[int]] = {}

        def indices_of(pair: tuple[str, str]) -> list[int]:
            if pair not in known:
                queries = word_queries(scorer.tokenizer, *pair, scorer.backend)
                known[pair] = [indices.setdefault(q, len(indices)) for q in queries]
            return known[pair]

        words = [indices_of(pair) for pair in self.contexts]
        previous = [pair and indices_of(pair) for pair in self.previous]
        return Prepared(list(indices), words, previous)

    def ask(self, scorer: Scorer, prepared: Prepared) -> np.ndarray:
        nats = -np.concatenate(scorer.log_probabilities(prepared.queries))
        return np.array(
            [
                [math.nan if word is None else nats[word].sum() for word in words]
                for words in (prepared.words, prepared.previous)
            ]
        )

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the mean of eye tracking (mean of four measures) and self-paced reading.

        Each is `added_variance` × 100.
        """
        surprisal, previous = answers[0].content
        columns = {**self.numbers, "pred": surprisal, "prev_pred": previous}
        eye = {
            name: 100 * added_variance(columns, name, WORDS) for name in EYE_TRACKING
        }
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
        return self.build_result(
            answers,
            score=(eye_tracking + self_paced) / 2,
            too_long=tuple(f"reading_{i}" for i in np.flatnonzero(np.isnan(surprisal))),
            subscores={
                "measure": {"eye_tracking": eye_tracking, "self_paced": self_paced},
                "eye_tracking": eye,
            },
            files={
                "predictions.json": {"reading": {"predictions": predictions}},
                "report.txt": report,
            },
        )


def word_queries(
    tokenizer: PreTrainedTokenizerBase, context: str, word: str, backend: Backend
) -> list[Query]:
    """Return one query for each token of `word` behind `context`.

    Their log-probabilities add up. Behind the first token, the context is continued by the
    text of the tokens so far. The text of the next token is tokenized again, and the first
    token of that is the target.
    """
    queries, text = [], context
    for token in tokenizer(word, add_special_tokens=False)["input_ids"]:
        piece = tokenizer.decode(token)
        target = token
        if queries:
            again = tokenizer(piece, add_special_tokens=False)["input_ids"]
            # A piece may be no text at all (a lone "▁" of SentencePiece).
            target = again[0] if again else token
        queries.append(_query(tokenizer, text, target, backend))
        text += piece
    return queries


def _query(
    tokenizer: PreTrainedTokenizerBase, text: str, target: int, backend: Backend
) -> Query:
    """Return the query for the token behind a text.

    causal: it is predicted at the last token. mlm: at the first of the masks behind the
    text. mntp: at the token before that mask.
    """
    if backend == "causal":
        ids = tokenizer(text)["input_ids"]
        return Query(tuple(ids), (len(ids) - 1,), (target,), text)
    ids = tokenizer(text + tokenizer.mask_token * NUM_MASKS)["input_ids"]
    position = len(ids) - NUM_MASKS - (backend == "mntp")
    if ids[-1] != tokenizer.mask_token_id:
        position -= 1  # a special token ends the text
    return Query(tuple(ids), (position,), (target,), text)


def added_variance(
    columns: dict[str, np.ndarray], measure: str, predictors: Sequence[str]
) -> float:
    """Return the share of the unexplained variance of `measure` that "pred" explains.

    It is (R² with − R² without) / (1 − R² without) of two least-squares fits on a constant,
    the predictors and their pairwise products, with and without "pred". Each of the two
    drops the words that lack one of its own values.

    Args:
        columns: name -> values [num_words].
    """
    without = _r_squared(columns, measure, predictors, ())
    with_pred = _r_squared(columns, measure, predictors, ("pred",))
    return (with_pred - without) / (1 - without)


def _r_squared(
    columns: dict[str, np.ndarray],
    measure: str,
    predictors: Sequence[str],
    more: Sequence[str],
) -> float:
    """Return R² of `measure` on predictors, their products, and `more` without products."""
    used = np.stack([columns[name] for name in (measure, *predictors, *more)])
    target, *values = used[:, ~np.isnan(used).any(axis=0)]
    base = values[: len(predictors)]
    products = [first * second for first, second in combinations(base, 2)]
    matrix = np.stack([np.ones_like(target), *values, *products], axis=1)
    # Columns of one size: a product of two reaches 1e4 times the constant.
    norms = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(norms > 0, norms, 1)
    residuals = target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
    centred = target - target.mean()
    return float(1 - (residuals @ residuals) / (centred @ centred))
