"""Document masking: attention and positions that stay within each document of a block.

If positions restart with each document (`Blocks.restart_positions`), transformers recognizes a
packed sequence, and for most architectures builds a block-diagonal mask. Other architectures need
that mask as an input. `choose_document_masking` tries both on the model itself: a document in a
packed sequence must have the same logits as alone.
"""

import inspect

import torch
from transformers import PretrainedConfig, PreTrainedModel

from src.arguments import DataTrainingArguments
from src.evaluation.scoring.network import evaluating
from src.foundation import UserError
from src.training.decision import Decision

NAME = "document masking"


def document_mask(position_ids: torch.Tensor, additive: bool = False) -> torch.Tensor:
    """Return the mask with which a token attends to itself and its document's earlier tokens.

    Args:
        position_ids: positions [B, T], which are 0 where a document begins.
        additive: return 0 and the smallest float32 instead of True and False.

    Returns:
        The mask [B, 1, T, T].
    """
    documents = (position_ids == 0).cumsum(-1)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    if not additive:
        return mask
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)


def add_mask(
    inputs: dict[str, torch.Tensor], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Return the inputs with the document mask that follows from their positions."""
    eager = model.config._attn_implementation == "eager"
    return {**inputs, "attention_mask": document_mask(inputs["position_ids"], eager)}


def choose_document_masking(
    data: DataTrainingArguments, model: PreTrainedModel
) -> Decision[bool]:
    """Decide whether our mask is needed to separate documents.

    It is not needed if positions that restart are enough, or if tokens may attend across
    documents.

    Raises:
        UserError: neither way separates documents in this architecture.
    """
    if data.attend_across_documents:
        return Decision(False, "attention across documents")
    config = model.config
    name = f"{config.model_type} with {config._attn_implementation} attention"
    refusal = f"data.attend_across_documents=false: {name} cannot: "
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(refusal + "it takes no position_ids")
    if "flash" in config._attn_implementation:
        raise UserError(
            refusal + "it supports packed documents only in a batch of one sequence;"
            " choose model.attn_implementation=sdpa"
        )
    with evaluating(model):
        if _separates(model, needs_mask=False):
            return Decision(False, NAME, "by positions that restart")
        if not has_windows(config) and _separates(model, needs_mask=True):
            return Decision(True, NAME, "by a mask")
    raise UserError(refusal + "a document's logits depend on the one before it")


def has_windows(config: PretrainedConfig) -> bool:
    """Return whether some layers attend only to recent tokens. Our mask would undo that."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(getattr(config, "sliding_window", None)) or layers != {"full_attention"}


def _separates(model: PreTrainedModel, needs_mask: bool) -> bool:
    """Return whether documents in a packed sequence do not affect each other.

    The logits must be close to those of the document alone, and must not change by a single
    bit when the document before it changes. The first test is inexact, since products on a GPU
    are rounded; only the second one detects a small leak.
    """
    size = model.config.vocab_size
    ids = torch.arange(2 * 2 * 4, device=model.device) % size
    positions = torch.arange(4, device=model.device).repeat(2, 2)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        """Return the logits [2, 2 documents, 4, V] of two sequences [2, 8]."""
        inputs = {"input_ids": ids, "position_ids": positions}
        inputs = add_mask(inputs, model) if needs_mask else inputs
        return model(**inputs, use_cache=False).logits.unflatten(1, (2, 4))

    packed = logits(ids.view(2, 8))
    changed = ids.view(2, 2, 4).clone()
    changed[:, 0] = (changed[:, 0] + size // 2) % size
    alone = model(ids.view(4, 4), use_cache=False).logits.view_as(packed)
    is_near = (packed - alone).abs().max() <= 1e-2 * alone.std()
    after_changed = logits(changed.flatten(1))[:, 1]
    return bool(is_near) and torch.equal(packed[:, 1], after_changed)
