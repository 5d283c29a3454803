"""Attention and positions that stay inside each of the documents of a block.

Positions that restart with each document (`Blocks.restart_positions`) tell transformers that
a sequence is packed: it then makes a mask of blocks along the diagonal, for most
architectures. Others take the same mask when it is handed to them. Which of the two a model
needs is tried, not looked up: packed and alone, a document must have the same logits.
"""

import inspect

import torch
from transformers import PretrainedConfig, PreTrainedModel

from src.foundation import UserError


def document_mask(position_ids: torch.Tensor, additive: bool = False) -> torch.Tensor:
    """Which positions see which [B, 1, T, T]: those before them in their own document.

    True or, `additive`, 0 where they do; a document begins wherever `position_ids` [B, T]
    are 0.
    """
    documents = (position_ids == 0).cumsum(-1)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    if not additive:
        return mask
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)


def masked(
    inputs: dict[str, torch.Tensor], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """The inputs, with the mask that follows from their positions."""
    eager = model.config._attn_implementation == "eager"
    return {**inputs, "attention_mask": document_mask(inputs["position_ids"], eager)}


@torch.no_grad()
def needs_mask(model: PreTrainedModel) -> bool:
    """Whether positions that restart are not enough for this model, but a mask is.

    Raises `UserError`, with the reason, where neither keeps documents apart.
    """
    config = model.config
    name = f"{config.model_type} with {config._attn_implementation} attention"
    refusal = f"data.attend_across_documents=false: {name} cannot: "
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(refusal + "it takes no position_ids")
    if "flash" in config._attn_implementation:
        raise UserError(
            refusal
            + "it knows packed documents in a batch of one sequence only; choose"
            " model.attn_implementation=sdpa"
        )
    training = model.training
    model.eval()
    tried = [False] if has_windows(config) else [False, True]
    found = [mask for mask in tried if _keeps_apart(model, mask)]
    model.train(training)
    if not found:
        raise UserError(refusal + "a document's logits depend on the one before it")
    return found[0]


def has_windows(config: PretrainedConfig) -> bool:
    """Whether some layers see less than all that is before: our mask would undo that."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(getattr(config, "sliding_window", None)) or layers != {"full_attention"}


def _keeps_apart(model: PreTrainedModel, mask: bool) -> bool:
    """Whether a packed document has the logits it has alone, to the bit whatever is before."""
    size = model.config.vocab_size
    ids = torch.arange(2 * 2 * 4, device=model.device) % size
    positions = torch.arange(4, device=model.device).repeat(2, 2)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        """[2, 2 documents, 4, V] of two sequences [2, 8]."""
        inputs = {"input_ids": ids, "position_ids": positions}
        inputs = masked(inputs, model) if mask else inputs
        found = model(**inputs, use_cache=False).logits
        return found.unflatten(1, (2, 4))

    packed = logits(ids.view(2, 8))
    other = ids.view(2, 2, 4).clone()
    other[:, 0] = (other[:, 0] + size // 2) % size  # another first document
    alone = model(ids.view(4, 4), use_cache=False).logits.view_as(packed)
    # The products of a GPU are rounded to some ten bits; a leak shows in the second test.
    near = (packed - alone).abs().max() <= 1e-2 * alone.std()
    return bool(near) and torch.equal(packed[:, 1], logits(other.flatten(1))[:, 1])
