"""Noise in training that a small text needs: stochastic depth and random input tokens.

The random numbers come from PyTorch's generator, as those of dropout do. Checkpoints have its state,
so a continued run draws the same numbers.
"""

import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from src.foundation import UserError


def add_stochastic_depth(model: PreTrainedModel, probability: float) -> None:
    """Let sequences skip layers in training, at random (Huang et al. 2016).

    A sequence skips layer l of L with probability p = `probability` * l / L. Otherwise, what the
    layer adds to it is divided by 1 - p, as in dropout, so that the expected output stays the same
    and evaluation needs no factor. A layer is computed even for sequences that skip it. So every
    parameter has a gradient in every step, as DDP expects, and the step can be compiled. Hooks on
    the layers do this, so the saved model stays the same.

    Raises:
        UserError: the architecture does not say which modules are its layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        name = model.config.model_type
        raise UserError(f"training.stochastic_depth: the layers of {name} are unknown")
    for number, layer in enumerate(layers, 1):
        hook = functools.partial(_skip, probability * number / len(layers))
        layer.register_forward_hook(hook, with_kwargs=True)


def _skip(probability: float, layer: nn.Module, args: tuple, kwargs: dict, output: Any):
    """Return a layer's output; sequences that skip the layer keep its input."""
    if not layer.training:
        return output
    before = args[0] if args else kwargs["hidden_states"]
    is_alone = isinstance(output, torch.Tensor)
    after = output if is_alone else output[0]
    shape = (len(after), *[1] * (after.dim() - 1))
    kept = torch.rand(shape, device=after.device) >= probability
    after = before + torch.where(kept, (after - before) / (1 - probability), 0)
    return after if is_alone else (after, *output[1:])


def with_random_tokens(ids: torch.Tensor, share: float) -> torch.Tensor:
    """Return inputs [B, T] in which a share of the tokens is replaced by others of the batch.

    The replacements have the frequencies of the text (unigram noise, Xie et al. 2017). A mask
    token would need an entry in the vocabulary, which many tokenizers lack.
    """
    others = torch.randint(ids.numel(), ids.shape, device=ids.device)
    replaced = torch.rand(ids.shape, device=ids.device) < share
    return torch.where(replaced, ids.flatten()[others], ids)
