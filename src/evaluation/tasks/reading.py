"""Reading times: the variance that surprisal explains beyond length, frequency and position.

The data are the words of 205 English sentences with eye-tracking and self-paced reading times
(de Varda et al. 2023), scored as in the challenge's pipelines (reading/ in
babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval, the same in both). The pipelines
tokenize a word without its context, and append the text of each of its tokens to the context.
So this task asks for token ids, not for texts: if a tokenizer adds no leading space to a bare
word, only the same ids give the challenge's score.
"""

import functools
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
from src.evaluation.tasks.rows import read_table
from src.evaluation.tasks.task import Answer, Task
from src.foundation import checksum_of_files

WORDS = ("Subtlex_log10", "length", "context_length")
SPILL_OVER = (*WORDS, "prev_length", "prev_pred")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
NUMBERS = (*WORDS, "prev_length", *EYE_TRACKING, SELF_PACED)
TEXTS = ("item", "word", "prev_item", "prev_word")
NUM_MASKS = 3  # masks after the context of a masked model, as in the pipelines


@dataclass(frozen=True, kw_only=True)
class ReadingTimes(Task):
    """The task of reading times. An answer is the `Scored` of all words, then of all previous.

    Attributes:
        contexts: (context, word) in the order of the file.
        previous: the same for the word before; None for the first word of a sentence.
        numbers: column -> its values [num_words], NaN where the file has none.
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
            UserError: the file or a column is missing, or a column of numbers has a text.
        """
        file = directory / "reading_data.csv"
        table = read_table(file, TEXTS, NUMBERS)
        # pandas reads the text "None" as a missing value. So the sentence "None of them"
        # loses its first word. As a context it is put back, as a previous word it is not.
        words = table[["item", "word", "prev_word"]].fillna("None")
        previous = zip(table["prev_item"], words["prev_word"])
        return cls(
            contexts=list(zip(words["item"], words["word"])),
            previous=[pair if isinstance(pair[0], str) else None for pair in previous],
            numbers={name: table[name].to_numpy() for name in NUMBERS},
            data_checksum=checksum_of_files([file]),
            **common,
        )

    @property
    def num_items(self) -> int:
        return len(self.contexts)

    def prepare(self, scorer: Scorer) -> list[list[Query]]:
        """Return the queries of each word, then those of each previous word.

        Most previous words are also words of the file, so each pair is tokenized once.

        Raises:
            UserError: the model is a masked one, and the tokenizer has no mask token.
        """
        scorer.check_mask_token()

        @functools.cache
        def queries(context: str, word: str) -> list[Query]:
            return word_queries(scorer.tokenizer, context, word, scorer.backend)

        return [queries(*p) if p else [] for p in (*self.contexts, *self.previous)]

    def result(self, answers: Sequence[Answer]) -> Result:
        """Return the mean of the scores of eye tracking and self-paced reading.

        Each score is `added_variance` × 100. That of eye tracking is a mean of four measures.
        """
        surprisal, previous = -answers[0].content.log_probability.reshape(2, -1)
        previous[[pair is None for pair in self.previous]] = math.nan
        columns = {**self.numbers, "pred": surprisal, "prev_pred": previous}
        eye = {n: 100 * added_variance(columns, n, WORDS) for n in EYE_TRACKING}
        self_paced = 100 * added_variance(columns, SELF_PACED, SPILL_OVER)
        eye_tracking = float(np.mean(list(eye.values())))
        lines = [f"EYE TRACKING SCORE: {eye_tracking:.2f}"]
        lines.append(f"SELF-PACED READING SCORE: {self_paced:.2f}\n")
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
                "report.txt": "\n".join(lines),
            },
        )


def word_queries(
    tokenizer: PreTrainedTokenizerBase, context: str, word: str, backend: Backend
) -> list[Query]:
    """Return one query for each token of `word` after `context`.

    The word's log-probability is the sum over the queries. From the second token on, the text
    of the earlier tokens is appended to the context. The text of the token itself is tokenized
    again, and the target is the first token of the result.
    """
    queries, text = [], context
    for token in tokenizer(word, add_special_tokens=False)["input_ids"]:
        piece = tokenizer.decode(token)
        target = token
        if queries:
            again = tokenizer(piece, add_special_tokens=False)["input_ids"]
            # The text may be empty (a lone "▁" of SentencePiece).
            target = again[0] if again else token
        queries.append(_query(tokenizer, text, target, backend))
        text += piece
    return queries


def _query(
    tokenizer: PreTrainedTokenizerBase, text: str, target: int, backend: Backend
) -> Query:
    """Return the query for the token after a text.

    A causal model predicts it at the last token of the text, `mlm` at the first of the masks
    after the text, and `mntp` at the token before that mask.
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

    It is (R² with − R² without) / (1 − R² without) of two least-squares fits, with and without
    "pred". Both have a constant, the predictors and their pairwise products. Each fit
    leaves out the words for which one of its values is NaN.

    Args:
        columns: name -> values [num_words].
    """
    r_squared = []
    for more in ((), ("pred",)):
        used = np.stack([columns[name] for name in (measure, *predictors, *more)])
        target, *values = used[:, ~np.isnan(used).any(axis=0)]
        pairs = combinations(values[: len(predictors)], 2)
        products = [first * second for first, second in pairs]
        matrix = np.stack([np.ones_like(target), *values, *products], axis=1)
        # Scale the columns to the same norm. Products can be 1e4 times the constant.
        norms = np.linalg.norm(matrix, axis=0)
        matrix = matrix / np.where(norms > 0, norms, 1)
        residuals = target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
        centred = target - target.mean()
        r_squared.append(float(1 - (residuals @ residuals) / (centred @ centred)))
    without, with_pred = r_squared
    return (with_pred - without) / (1 - without)
