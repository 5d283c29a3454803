"""A classifier: a model without its vocabulary layer, and a head on the state of one token.

The head and the token are those of finetune/classifier_model.py and eval_finetuning.sh in
babylm/evaluation-pipeline-2025 and babylm-org/babylm-eval (script of May to July 2026).
`AutoModelForSequenceClassification` is not used, since its heads differ by architecture.
"""

import copy
import logging

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from src.evaluation.glue.data import Recipe
from src.evaluation.scoring.network import REFUSALS, num_positions
from src.foundation import UserError

LOGGER = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A copy of a model that has the pipelines' head instead of its vocabulary layer.

    Args:
        recipe: the number of labels and the dropout are read from it.
        last: whether the head reads the last token (of texts padded on the left) or the
            first one.
        exact_positions: whether the tokens of a text are numbered from its first token. If
            not, the model numbers them as it does by itself. Models with absolute positions,
            such as GPT-2, then number them from the padding, as in the pipelines.

    Attributes:
        depends_on_padding: whether the padding on the left of a text changes its logits.

    Raises:
        UserError: the model is an encoder-decoder.
    """

    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, last: bool, exact_positions: bool
    ) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            raise UserError("encoder-decoder models cannot be fine-tuned")
        self.last = last
        self.backbone = copy.deepcopy(model.base_model).float().train()
        self.backbone.config.get_text_config().use_cache = False
        if not any(weight.requires_grad for weight in self.backbone.parameters()):
            self.backbone.requires_grad_(True)  # the model was loaded for scoring only
        size = self._width()
        self.head = nn.Sequential(
            nn.LayerNorm(size, elementwise_affine=False),
            nn.Linear(size, size),
            nn.GELU(),
            nn.LayerNorm(size, elementwise_affine=False),
            nn.Dropout(recipe.classifier_dropout),
            nn.Linear(size, recipe.num_labels),
        )
        is_exact = not last or self._ignores_padding()
        needs_positions = exact_positions and not is_exact
        self.gives_positions = needs_positions and self._ignores_padding(True)
        self.depends_on_padding = not (is_exact or self.gives_positions)
        if exact_positions and self.depends_on_padding:
            LOGGER.warning(
                "%s gives other states to a text if it is padded on the left: scores depend"
                " on the other texts of a batch",
                type(self.backbone).__name__,
            )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [B, num_labels] for ids and mask [B, T]."""
        states = self._states(ids, mask, self.gives_positions)
        return self.head(states[:, -1 if self.last else 0]).float()

    def _states(
        self, ids: torch.Tensor, mask: torch.Tensor, gives_positions: bool = False
    ) -> torch.Tensor:
        """Return the last hidden states [B, T, D] for ids and mask [B, T]."""
        inputs = {"input_ids": ids, "attention_mask": mask, "return_dict": True}
        if gives_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        states = getattr(self.backbone(**inputs), "last_hidden_state", None)
        if states is None:
            # A model with its own code may return another kind of output.
            output = self.backbone(**inputs, output_hidden_states=True)
            states = output.hidden_states[-1]
        return states

    @torch.no_grad()
    def _width(self) -> int:
        """Return the size of the last hidden states. In OPT it may differ from `hidden_size`."""
        token = torch.ones((1, 1), dtype=torch.long, device=self.backbone.device)
        return self._states(token, token).shape[-1]

    @torch.no_grad()
    def _ignores_padding(self, gives_positions: bool = False) -> bool:
        """Return whether padding on the left changes no state of a text.

        This is tested on the model itself, not looked up by its name. With rotary positions,
        or positions that are counted from the mask, the states are right without
        `position_ids`. With absolute ones they need them.
        """
        vocab_size = self.backbone.get_input_embeddings().weight.shape[0]
        length = min(8, max(2, (num_positions(self.backbone) or 8))) // 2
        pad = self.backbone.config.get_text_config().pad_token_id or 0
        text = ((pad + 1 + torch.arange(length)) % vocab_size)[None]
        text = text.to(self.backbone.device)
        mask = torch.ones_like(text)
        ids, padded_mask = F.pad(text, (length, 0), value=pad), F.pad(mask, (length, 0))
        self.backbone.eval()
        alone = self._states(text, mask)
        try:
            padded = self._states(ids, padded_mask, gives_positions)[:, length:]
            return torch.allclose(padded, alone, atol=1e-3, rtol=1e-3)
        except REFUSALS:
            return False
        finally:
            self.backbone.train()
