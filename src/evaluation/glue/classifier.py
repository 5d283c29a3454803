"""A model without its vocabulary layer, with a head that tells classes apart by one token.

The head and the token are those of finetune/classifier_model.py and eval_finetuning.sh in
babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval (script of May to July 2026). Not
`AutoModelForSequenceClassification`, whose heads differ by architecture.
"""

import contextlib
import copy
import inspect
import logging
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from src.evaluation.scoring.network import REFUSALS, num_positions
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A copy of a model without its vocabulary layer, and the pipelines' head on one token.

    Args:
        last: reads the last token (texts padded on the left), else the first.
    """

    def __init__(
        self, model: PreTrainedModel, num_labels: int, dropout: float, last: bool
    ) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            raise UserError("fine-tuning knows no encoder-decoder models")
        self.backbone = copy.deepcopy(model.base_model).float().train()
        if not any(weight.requires_grad for weight in self.backbone.parameters()):
            self.backbone.requires_grad_(True)  # it was only to be evaluated
        size = _width(self.backbone)
        self.head = nn.Sequential(
            nn.LayerNorm(size, elementwise_affine=False),
            nn.Linear(size, size),
            nn.GELU(),
            nn.LayerNorm(size, elementwise_affine=False),
            nn.Dropout(dropout),
            nn.Linear(size, num_labels),
        )
        self.last = last
        self.gives_positions = last and _needs_positions(self.backbone)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: Optional[torch.Tensor] = None,
    ) -> dict[str, torch.Tensor]:
        """Logits [B, num_labels] and the mean cross-entropy in nats, from ids and mask [B, T]."""
        states = _states(self.backbone, input_ids, attention_mask, self.gives_positions)
        logits = self.head(states[:, -1 if self.last else 0]).float()
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def _states(
    backbone: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    gives_positions: bool,
) -> torch.Tensor:
    """The last states [B, T, D] for ids and mask [B, T]."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if gives_positions:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    takes = inspect.signature(type(backbone).forward).parameters
    if "use_cache" in takes:
        inputs["use_cache"] = False
    output = backbone(**inputs, return_dict=True)
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        states = backbone(
            **inputs, return_dict=True, output_hidden_states=True
        ).hidden_states[-1]
    return states


@torch.no_grad()
def _width(backbone: PreTrainedModel) -> int:
    """Of the last states: not always the configuration's `hidden_size` (OPT projects them)."""
    token = torch.ones((1, 1), dtype=torch.long, device=backbone.device)
    return _states(backbone, token, token, False).shape[-1]


@torch.no_grad()
def _needs_positions(backbone: PreTrainedModel) -> bool:
    """Whether padding on the left moves a text's positions, and `position_ids` mend that.

    Not looked up by name but tried: with rotary positions, or with positions that are counted
    from the mask, the states are right without.
    """
    vocab_size = backbone.get_input_embeddings().weight.shape[0]
    size = min(8, max(2, (num_positions(backbone) or 8)))
    pad = backbone.config.get_text_config().pad_token_id or 0
    text = (pad + 1 + torch.arange(size // 2)) % vocab_size
    ids = torch.cat([torch.full((size - len(text),), pad), text])[None]
    ids, mask = ids.to(backbone.device), torch.zeros_like(ids).to(backbone.device)
    mask[:, -len(text) :] = 1
    short = slice(size - len(text), None)
    backbone.eval()
    try:
        wanted = _states(backbone, ids[:, short], mask[:, short], False)
        for gives_positions in (False, True):
            with contextlib.suppress(*REFUSALS):
                found = _states(backbone, ids, mask, gives_positions)[:, short]
                if torch.allclose(found, wanted, atol=1e-3, rtol=1e-3):
                    return gives_positions
    finally:
        backbone.train()
    LOGGER.warning(
        "%s reads a text otherwise where it is padded on the left: scores depend on the"
        " other texts of a batch",
        type(backbone).__name__,
    )
    return False


@dataclass(frozen=True)
class Collate:
    """Rows to a padded batch: ids, mask [B, T] of the longest text's T, and labels [B]."""

    pad_id: int
    left: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            place = slice(width - size, None) if self.left else slice(size)
            ids[index, place] = torch.tensor(row["input_ids"])
            mask[index, place] = 1
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
