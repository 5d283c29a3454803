"""How probable are texts: the challenge's scores of sentences, exact and fast.

The protocol (babylm-org/babylm-eval, April 2026, and its fork serdardoesml/babylm-eval, July
2026; the same in 2025). A text is tokenized with the tokenizer's own defaults, special tokens
included. Scored are the tokens whose last character lies behind the start of the scored part;
special tokens have no characters and never are.

* causal: log-probability of each token given those before it; the first token only counts
  where something (BOS) stands before it.
* mlm: pseudo-log-likelihood (Salazar et al. 2020), each scored token hidden behind the mask in
  a pass of its own, read at its place.
* mntp: the same, read one place earlier (masked next-token prediction, BehnamGhader et al. 2024).
"""

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.evaluation.scoring.network import log_probabilities
from src.evaluation.scoring.prefix_tree import Query
from src.foundation import UserError

Backend = Literal["causal", "mlm", "mntp"]


@dataclass(frozen=True)
class Item:
    """A text of which the part from character `start` on is scored."""

    text: str
    start: int = 0


@dataclass
class Scored:
    """The scores of N items."""

    # float64 [N], nats, summed over the scored tokens; NaN beyond the model's positions
    log_probability: np.ndarray
    num_tokens: np.ndarray  # int [N], scored tokens


def score(
    model: PreTrainedModel,
    questions: list[list[Query]],
    backend: Backend = "causal",
    batch_tokens: int = 16384,
    dtype: Optional[torch.dtype] = None,
    progress: Optional[str] = None,
) -> Scored:
    """The scores of N items from what `queries` made of them.

    The other arguments, and what is raised, as in `network.log_probabilities`.
    """
    flat = [query for of_item in questions for query in of_item]
    causal = backend == "causal"
    answers = iter(
        log_probabilities(model, flat, causal, batch_tokens, dtype, progress)
    )
    found = [[next(answers) for _ in of_item] for of_item in questions]
    return Scored(
        np.array([sum(tokens.sum() for tokens in item) for item in found], float),
        np.array([sum(map(len, item)) for item in found], int),
    )


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise `UserError` for tokens that the model does not have."""
    size = model.get_input_embeddings().weight.shape[0]
    if size < len(tokenizer):
        raise UserError(
            f"the model's vocabulary of {size:,} does not hold the tokenizer's"
            f" {len(tokenizer):,} entries"
        )


def queries(
    tokenizer: PreTrainedTokenizerBase, items: list[Item], backend: Backend
) -> list[list[Query]]:
    """What to ask a model about each item: one query, or one for each masked token."""
    if not items:
        return []
    if not tokenizer.is_fast:
        raise UserError(
            "scoring needs a fast tokenizer (one that tells each token's characters)"
        )
    if backend != "causal" and tokenizer.mask_token_id is None:
        raise UserError(f"backend={backend} needs a tokenizer with a mask token")
    encoded = tokenizer(
        [item.text for item in items],
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    found = []
    for item, ids, offsets in zip(
        items, encoded["input_ids"], encoded["offset_mapping"]
    ):
        scored = [i for i, (_, end) in enumerate(offsets) if end > item.start]
        if backend == "causal":
            found.append(_causal(item, ids, [i for i in scored if i]))
        else:
            found.append(_masked(item, ids, scored, tokenizer.mask_token_id, backend))
    return found


def _causal(item: Item, ids: list[int], scored: list[int]) -> list[Query]:
    positions = tuple(i - 1 for i in scored)
    targets = tuple(ids[i] for i in scored)
    return [Query(tuple(ids[:-1]), positions, targets, item.text)]


def _masked(
    item: Item, ids: list[int], scored: list[int], mask: int, backend: Backend
) -> list[Query]:
    shift = 1 if backend == "mntp" else 0
    return [
        Query((*ids[:i], mask, *ids[i + 1 :]), (i - shift,), (ids[i],), item.text)
        for i in scored
        if i >= shift
    ]
