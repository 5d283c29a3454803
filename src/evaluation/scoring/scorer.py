"""A model ready to be asked how probable texts are."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.evaluation.scoring.network import log_probabilities
from src.evaluation.scoring.prefix_tree import Query
from src.evaluation.scoring.texts import (
    Backend,
    Item,
    Scored,
    check_vocabulary,
    queries,
    score,
)


@dataclass(frozen=True)
class Scorer:
    """A model, its tokenizer, and the settings with which texts are scored.

    Args:
        backend: `causal`, or `mlm` and `mntp` for masked models (`texts.py`).
        batch_tokens: bound of the positions of a forward pass; a longer text goes alone.
        dtype: of matrix products (autocast); None: what the weights are.
        progress: label of the progress bars; None: no bars.

    Raises:
        UserError: the model's vocabulary does not hold the tokenizer's entries.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backend: Backend = "causal"
    batch_tokens: int = 16384
    dtype: Optional[torch.dtype] = None
    progress: Optional[str] = None

    def __post_init__(self) -> None:
        check_vocabulary(self.model, self.tokenizer)

    def queries(self, items: list[Item]) -> list[list[Query]]:
        """Return the queries of each item: one, or one for each masked token."""
        return queries(self.tokenizer, items, self.backend)

    def log_probabilities(self, asked: list[Query]) -> list[np.ndarray]:
        """Return, of each query, the log-probabilities of its targets, nats, float64."""
        return log_probabilities(
            self.model,
            asked,
            self.backend == "causal",
            self.batch_tokens,
            self.dtype,
            self.progress,
        )

    def score(self, asked: list[list[Query]]) -> Scored:
        """Return the scores of N items from their queries."""
        return score(
            self.model,
            asked,
            self.backend,
            self.batch_tokens,
            self.dtype,
            self.progress,
        )
