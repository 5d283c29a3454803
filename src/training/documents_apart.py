"""Attention and positions that stay inside each of the documents of a block.

Positions that restart with each document (`Blocks.restart_positions`) tell transformers that
a sequence is packed: it then makes a mask of blocks along the diagonal, for most
architectures. Others take the same mask when it is handed to them. Which of the two a model
needs is tried, not looked up: packed and alone, a document must have the same logits.
"""

import inspect

import torch
from transformers import PreTrainedModel

from src.arguments import UserError


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
    name = (
        f"{model.config.model_type} with {model.config._attn_implementation} attention"
    )
    refusal = f"data.attend_across_documents=false: {name} cannot: "
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(refusal + "it takes no position_ids")
    training = model.training
    model.eval()
    ids = torch.arange(2 * 2 * 4, device=model.device) % model.config.vocab_size
    positions = torch.arange(4, device=model.device).repeat(2, 2)
    inputs = {"input_ids": ids.view(2, 8), "position_ids": positions}
    # Flash attention knows half precision only.
    flash = "flash" in model.config._attn_implementation
    with torch.autocast(model.device.type, torch.bfloat16, enabled=flash):
        alone = model(ids.view(4, 4), use_cache=False).logits.flatten().float()
        tolerance = (5e-2 if flash else 1e-3) * alone.std()
        # Flash attention takes no mask of this form.
        for tried in (inputs,) if flash else (inputs, masked(inputs, model)):
            packed = model(**tried, use_cache=False).logits.flatten().float()
            difference = (packed - alone).abs().max()
            if difference <= tolerance:
                model.train(training)
                return "attention_mask" in tried
    raise UserError(
        f"{refusal}the logits of packed documents differ from those of the documents alone"
        f" by up to {float(difference):.2g}"
    )
