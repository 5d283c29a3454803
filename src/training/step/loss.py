"""Fused linear cross-entropy: the loss from hidden states, without all logits in memory.

The logits of a micro-batch of 8 x 512 tokens over 16,384 entries take 256 MB in float32, and
autograd keeps them, their softmax and their gradient. Here one chunk of tokens at a time goes
through the vocabulary layer, and its share of the gradients is computed immediately. Only tensors
of the size of the hidden states and of the weight stay in memory, as in the Liger kernels (Hsu et
al. 2024). torch 2.13's `functional.linear_cross_entropy` computes the same, but was 1.8 to
2.8 times slower on a CPU, and less exact in bfloat16.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from src.data.blocks import IGNORE_INDEX

# Logits in memory at once. This many stay in a CPU's cache; a GPU is fast at large products.
NUM_LOGITS = {"cpu": 2**23, "other": 2**27}


def loss_of_chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    z_loss: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a chunk of C tokens and its gradient.

    Args:
        hidden: states before the vocabulary layer [C, H].
        weight: weight of the vocabulary layer, perhaps with rows of padding [V', H].
        labels: the next tokens [C].
        vocab_size: number of rows that are not padding, V.
        z_loss: weight of the squared logarithm of the softmax's normalizer, which keeps the
            logits small (Chowdhery et al. 2022).

    Returns:
        The summed loss in nats [], and its gradient with respect to the logits [C, V'].
    """
    logits = (hidden @ weight.T).float()
    if vocab_size < len(weight):
        logits[:, vocab_size:] = -math.inf  # the gradient is 0 there
    log_sum = logits.logsumexp(-1)
    counts = labels != IGNORE_INDEX
    labels = labels.where(counts, 0)
    label_logits = logits.gather(-1, labels[:, None])[:, 0]
    losses, factor = log_sum - label_logits, 1.0
    if z_loss:
        losses = losses + z_loss * log_sum**2
        factor = 1 + 2 * z_loss * log_sum[:, None]
    loss = torch.where(counts, losses, 0.0).sum()
    entries = torch.arange(logits.shape[-1], device=logits.device)
    probabilities = (logits - log_sum[:, None]).exp()
    gradient = probabilities * factor - (entries == labels[:, None]).float()
    return loss, torch.where(counts[:, None], gradient, 0.0).to(hidden.dtype)


class _FusedLoss(torch.autograd.Function):
    """The autograd function of `fused_loss`, with the gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, num_tokens, dtype, of_chunk):
        vocab_size = len(weight)
        if dtype != torch.float32:  # a GPU is fast at products of multiples of 8 only
            weight = functional.pad(weight, (0, 0, 0, -vocab_size % 8))
        states, matrix = hidden.to(dtype), weight.to(dtype)
        by_hidden, by_weight = torch.empty_like(states), torch.zeros_like(weight)
        total = torch.zeros((), device=hidden.device)
        parts = (states, labels, by_hidden)
        for part, targets, gradient in zip(*(t.split(num_tokens) for t in parts)):
            loss, by_logits = of_chunk(part, matrix, targets, vocab_size)
            total += loss
            torch.mm(by_logits, matrix, out=gradient)
            by_weight += by_logits.T @ part
        ctx.save_for_backward(by_hidden, by_weight[:vocab_size])
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx, scale):
        by_hidden, by_weight = ctx.saved_tensors
        gradients = (by_hidden * scale).to(ctx.dtype), by_weight * scale
        return *gradients, None, None, None, None


def fused_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_tokens: int,
    of_chunk: Callable[..., Any] = loss_of_chunk,
) -> torch.Tensor:
    """Return the cross-entropy in nats, summed over the labels that are not `IGNORE_INDEX`.

    Args:
        hidden: states before the vocabulary layer [N, H].
        weight: weight of the vocabulary layer, which has no bias [V, H].
        labels: the next tokens [N].
        num_tokens: number of tokens in a chunk.
        of_chunk: `loss_of_chunk`, perhaps compiled or with a `z_loss`.
    """
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return _FusedLoss.apply(hidden, weight, labels, num_tokens, dtype, of_chunk)
