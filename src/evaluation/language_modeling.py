"""How well a model predicts text: loss, accuracy, and figures that survive a tokenizer.

Per token: loss in nats, perplexity, accuracy of the most probable next token. They depend
on what a token is. Bits per byte and perplexity per word do not: the log-probability of the
whole text, divided by its bytes or by its whitespace words.
"""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


@torch.no_grad()
def block_statistics(
    logits: torch.Tensor, labels: torch.Tensor, ignored: int = -100
) -> torch.Tensor:
    """Sums over each block [B, 3]: negative log-likelihood in nats, hits, targets.

    `logits` [B, T, V] belong to the already shifted `labels` [B, T]. One block at a time:
    the float32 logits of a whole batch are never there at once.
    """
    rows = []
    for block_logits, block_labels in zip(logits, labels):
        block_logits = block_logits.float()
        loss = F.cross_entropy(
            block_logits, block_labels, ignore_index=ignored, reduction="sum"
        )
        counted = block_labels != ignored
        hits = (block_logits.argmax(-1) == block_labels) & counted
        rows.append(torch.stack([loss, hits.sum().float(), counted.sum().float()]))
    return torch.stack(rows)


def summarize(
    statistics: np.ndarray,
    words: np.ndarray,
    num_bytes: np.ndarray,
    files: np.ndarray,
    names: list[str],
) -> dict[str, float]:
    """Metrics over all blocks and, behind `<name>_`, over each file's.

    Args:
        statistics: `block_statistics` of every block [N, 3].
        words, num_bytes: what each block's targets hold [N].
        files: index into `names` of each block's file [N].
    """
    accuracy = next_token_accuracy()
    metrics = {}
    groups = {"": np.ones(len(files), bool)}
    if len(names) > 1:
        groups.update({f"{name}_": files == i for i, name in enumerate(names)})
    for prefix, chosen in groups.items():
        if not chosen.any():
            continue  # a subset of blocks may miss a file
        loss, hits, targets = statistics[chosen].astype(np.float64).sum(axis=0)
        figures = {
            "loss": loss / targets,
            "perplexity": _exp(loss / targets),
            **accuracy.compute(predictions=[int(hits)], references=[int(targets)]),
            "bits_per_byte": loss / math.log(2) / max(1, num_bytes[chosen].sum()),
            "word_perplexity": _exp(loss / max(1, words[chosen].sum())),
        }
        metrics.update({prefix + name: float(value) for name, value in figures.items()})
    return metrics


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def next_token_accuracy() -> Any:
    """The accuracy as an `evaluate` metric that needs no hub.

    `evaluate.load("accuracy")` fetches its script. This one is defined here, and takes
    counts (hits, targets), so that what it holds does not grow with the text.
    """
    import datasets
    import evaluate

    class NextTokenAccuracy(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Share of tokens that the model ranked first.",
                citation="",
                inputs_description="predictions: hits; references: targets (counts).",
                features=datasets.Features(
                    predictions=datasets.Value("int64"),
                    references=datasets.Value("int64"),
                ),
            )

        def _compute(self, predictions: list, references: list) -> dict[str, float]:
            return {"accuracy": sum(predictions) / max(1, sum(references))}

    return NextTokenAccuracy(keep_in_memory=True)
