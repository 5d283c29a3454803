"""Exact log-probabilities of texts, as the challenge defines them.

The protocol is that of babylm-org/babylm-eval (April 2026) and its fork serdardoesml/babylm-eval
(July 2026). It is the same as in 2025. A text is tokenized with the tokenizer's own defaults,
special tokens included. A token is scored if it ends after the start of the scored part. Special
tokens have no characters and are never scored.

* causal: the log-probability of each token given the tokens before it. The first token is
  scored only if a special token (BOS) comes before it.
* mlm: pseudo-log-likelihood (Salazar et al. 2020). Each scored token is masked in a separate
  pass and read at its position.
* mntp: as mlm, but read one position earlier (masked next-token prediction, BehnamGhader et
  al. 2024).
"""

import math
from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from src.evaluation.scoring.network import (
    Network,
    autocast,
    evaluating,
    fast_layers,
    num_positions,
)
from src.evaluation.scoring.prefix_tree import Query, wanted_of_sequences
from src.foundation import UserError
from src.processes import gathered, rank_and_number

Backend = Literal["causal", "mlm", "mntp"]


@dataclass(frozen=True)
class Item:
    """A text that is scored from character `start` on."""

    text: str
    start: int = 0


@dataclass
class Scored:
    """The scores of N items."""

    # float64 [N], nats, sum over the scored tokens; NaN for texts beyond the model's context
    log_probability: np.ndarray
    num_tokens: np.ndarray  # int [N], scored tokens


@dataclass(frozen=True)
class Scorer:
    """A model, its tokenizer, and the settings for scoring texts.

    Args:
        backend: `causal`, or `mlm` and `mntp` for masked models.
        batch_tokens: maximum number of positions in a forward pass; a longer text gets a
            pass to itself.
        dtype: type of matrix products (autocast); None: the weights' type.
        progress: label of the progress bars; None: no bars.

    Raises:
        UserError: the model's vocabulary is smaller than the tokenizer's.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backend: Backend = "causal"
    batch_tokens: int = 16384
    dtype: Optional[torch.dtype] = None
    progress: Optional[str] = None

    def __post_init__(self) -> None:
        size = self.model.get_input_embeddings().weight.shape[0]
        if size < len(self.tokenizer):
            raise UserError(
                f"the model's vocabulary of {size:,} is too small for the tokenizer's"
                f" {len(self.tokenizer):,} entries"
            )

    def check_mask_token(self) -> None:
        """Raise `UserError` if the model is a masked one and the tokenizer has no mask token."""
        if self.backend != "causal" and self.tokenizer.mask_token_id is None:
            raise UserError(
                f"backend={self.backend} needs a tokenizer with a mask token"
            )

    def encode(self, texts: list[str]) -> BatchEncoding:
        """Return the ids of texts, which are special, and the characters (start, end) of each.

        Raises:
            UserError: the tokenizer is not a fast one, or lacks the mask token that masked
                models need.
        """
        self.check_mask_token()
        if not self.tokenizer.is_fast:
            raise UserError(
                "scoring needs a fast tokenizer, which reports the characters of each token"
            )
        return self.tokenizer(
            texts,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def queries(self, items: list[Item]) -> list[list[Query]]:
        """Return the queries of each item: one, or for masked models one per scored token.

        Raises:
            UserError: the tokenizer is not a fast one, or lacks the mask token that masked
                models need.
        """
        encoded = self.encode([item.text for item in items])
        mask = self.tokenizer.mask_token_id
        # A token is predicted at its own position or at the one before it.
        shift = 0 if self.backend == "mlm" else 1
        queries = []
        for item, ids, offsets in zip(items, encoded.input_ids, encoded.offset_mapping):
            ends = enumerate(end for _, end in offsets)
            scored = [i for i, end in ends if end > item.start and i >= shift]
            if self.backend == "causal":
                passes = [(tuple(ids[:-1]), scored)]
            else:
                passes = [((*ids[:i], mask, *ids[i + 1 :]), [i]) for i in scored]
            queries.append([])
            for inputs, predicted in passes:
                positions = tuple(i - shift for i in predicted)
                targets = tuple(ids[i] for i in predicted)
                queries[-1].append(Query(inputs, positions, targets, item.text))
        return queries

    def log_probabilities(self, queries: list[Query]) -> list[np.ndarray]:
        """Return the log-probabilities of each query's targets in nats, float64.

        They are NaN for a query that exceeds the model's context. If several processes train
        the model, all of them call this method, and each computes a share of the batches.

        Raises:
            UserError: the model gives NaN for another query. The message contains its name.
            Exception: in all processes, the error that one of them met, such as
                torch.OutOfMemoryError, or a signal that ends the evaluation.
        """
        max_length = num_positions(self.model) or math.inf
        share: Optional[np.ndarray] = None
        failure: Optional[Exception] = None
        try:
            share = self._compute_share(queries, max_length)
        except Exception as error:
            failure = error  # the other processes wait for this one's share
        shares, failures = zip(*gathered((share, failure)))
        if failure := next(filter(None, failures), None):
            raise failure
        flat = np.fmax.reduce(shares)  # each value is NaN in all shares but one
        ends = np.cumsum([len(query.targets) for query in queries], dtype=int)
        answers = np.split(flat, ends)[:-1]
        for query, values in zip(queries, answers):
            if len(query.ids) <= max_length and np.isnan(values).any():
                raise UserError(f"the model gives NaN for {query.name!r}")
        return answers

    def _compute_share(self, queries: list[Query], max_length: float) -> np.ndarray:
        """Return this process's share of the log-probabilities; all others are NaN.

        They are float64, one for each target of all queries. The batches do not depend on the
        number of processes, so neither do the values.
        """
        model, causal = self.model, self.backend == "causal"
        sequences = wanted_of_sequences(queries, causal, max_length)
        flat = np.full(sum(len(query.targets) for query in queries), np.nan)
        with evaluating(model), fast_layers(model, self.dtype), autocast(model, None):
            network = Network(model)
            batches = network.batches(sequences, causal, self.batch_tokens)
            rank, number = rank_and_number()
            share = batches[rank::number]
            with autocast(model, self.dtype):
                for batch in tqdm(share, self.progress, disable=not self.progress):
                    flat[batch.slots] = network.log_probabilities(batch)
        return flat

    def score(self, queries: list[list[Query]]) -> Scored:
        """Return the scores of N items.

        Raises:
            UserError: the model gives NaN.
        """
        answers = iter(self.log_probabilities([q for item in queries for q in item]))
        sums = [sum(next(answers).sum() for _ in item) for item in queries]
        numbers = [sum(len(query.targets) for query in item) for item in queries]
        return Scored(np.array(sums, float), np.array(numbers, int))
