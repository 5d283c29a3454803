"""Minimal pairs: is the grammatical sentence of two the more probable one?

A sentence's score is the sum of the log-probabilities of its tokens but the first, the
tokenizer called with its own defaults (BLiMP's measure, Warstadt et al. 2020, as in the
challenge's pipeline); ours puts BOS first. A pair is right only if the good sentence's score is strictly higher.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.arguments import UserError


def load_pairs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Paradigm → its pairs, one a JSON line with `sentence_good` and `sentence_bad`."""
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise UserError(f"evaluation.pairs: no *.jsonl file in {folder}")
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> list[dict[str, Any]]:
    pairs = []
    # Not `splitlines`: a sentence may hold what it takes for a line's end (U+2028).
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            pair = json.loads(line)
            pair["sentence_good"], pair["sentence_bad"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"evaluation.pairs: {file}, line {number}: {error!r}"
            ) from error
        pairs.append(pair)
    return pairs


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    batch_size: int = 64,
) -> list[float]:
    """Log-probability in nats of each text. Texts of equal length share a batch: no padding."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, ids), default=1) - 1
    if positions is not None and longest > positions:
        raise UserError(
            f"evaluation.pairs: a sentence of {longest} tokens is beyond the model's"
            f" {positions} positions"
        )
    scores = [0.0] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda i: len(ids[i]))
    model.eval()
    while by_length:
        length = len(ids[by_length[0]])
        batch = [i for i in by_length[:batch_size] if len(ids[i]) == length]
        by_length = by_length[len(batch) :]
        tokens = torch.tensor([ids[i] for i in batch], device=model.device)
        logits = model(input_ids=tokens[:, :-1]).logits.float()
        losses = F.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], reduction="none"
        ).sum(dim=1)
        for i, loss in zip(batch, losses.tolist()):
            scores[i] = -loss
    return scores


def accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    paradigms: dict[str, list[dict[str, Any]]],
) -> dict[str, float]:
    """Share of pairs that are right: of each paradigm, and their mean as `pairs`."""
    shares = {}
    for name, pairs in paradigms.items():
        texts = [
            pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")
        ]
        scores = score(model, tokenizer, texts)
        right = [good > bad for good, bad in zip(scores[::2], scores[1::2])]
        shares[f"pairs_{name}"] = sum(right) / len(right)
    return {**shares, "pairs": sum(shares.values()) / len(shares)}
