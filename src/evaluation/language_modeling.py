"""Language-modeling metrics: loss, perplexity, accuracy, bits per byte, perplexity per word.

Loss (in nats), perplexity and the accuracy of the most probable next token are means over
tokens, so they depend on the tokenizer. Bits per byte and perplexity per word can be compared
across tokenizers: the log-probability of the whole text is divided by its number of bytes or
whitespace words.
"""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# Float32 logits in memory at once: a CPU is fastest with few, which stay in its cache; a GPU would
# wait for the start of many small computations.
MAX_LOGITS = {"cpu": 1, "other": 2**27}


@torch.no_grad()
def block_statistics(
    logits: torch.Tensor, labels: torch.Tensor, ignored: int = -100
) -> torch.Tensor:
    """Return negative log-likelihood in nats, hits and targets of each block, float32 [B, 3].

    It takes a few blocks at a time, so the float32 logits of a whole batch never exist at once.

    Args:
        logits: [B, T, V].
        labels: the next tokens, already shifted [B, T].
        ignored: label of positions without a target.
    """
    most = MAX_LOGITS.get(logits.device.type, MAX_LOGITS["other"])
    number = max(1, most // logits[0].numel())
    parts = []
    for part, targets in zip(logits.split(number), labels.split(number)):
        part = part.float()
        losses = F.cross_entropy(
            part.flatten(0, 1),
            targets.flatten(),
            ignore_index=ignored,
            reduction="none",
        )
        counted = targets != ignored
        hits = (part.argmax(-1) == targets) & counted
        values = [losses.view_as(targets), hits, counted]
        parts.append(
            torch.stack([value.sum(-1, dtype=torch.float) for value in values], -1)
        )
    return torch.cat(parts)


def summarize(
    statistics: np.ndarray,
    words: np.ndarray,
    num_bytes: np.ndarray,
    files: np.ndarray,
    names: list[str],
) -> dict[str, float]:
    """Return the metrics of all blocks, and of each file with the prefix `files/<name>/`.

    The prefix keeps the names of files apart from those of metrics.

    Args:
        statistics: `block_statistics` of N blocks [N, 3].
        words, num_bytes: words and bytes of each block's targets [N].
        files: index into `names` of each block's file [N].
        names: names of the files. For a single file, the metrics have no prefix.
    """
    accuracy = next_token_accuracy()
    metrics = {}
    groups = {"": np.ones(len(files), bool)}
    if len(names) > 1:
        groups.update({f"files/{name}/": files == i for i, name in enumerate(names)})
    for prefix, chosen in groups.items():
        if not chosen.any():
            continue  # with `data.max_eval_samples`, a file may have no block
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
    """Return next-token accuracy as an `evaluate.Metric` that needs no network.

    `evaluate.load("accuracy")` downloads a script. This metric takes counts (hits as
    predictions, targets as references), so its memory does not grow with the text.
    """
    import datasets
    import evaluate

    counts = datasets.Value("int64")

    class NextTokenAccuracy(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Share of tokens that the model ranked first.",
                citation="",
                features=datasets.Features(predictions=counts, references=counts),
            )

        def _compute(self, predictions: list, references: list) -> dict[str, float]:
            return {"accuracy": sum(predictions) / max(1, sum(references))}

    return NextTokenAccuracy(keep_in_memory=True)
