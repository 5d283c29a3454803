"""Muon and AdamW in one optimizer: Muon for the matrices inside the layers, AdamW for the rest.

Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal before it is
subtracted. The factor 0.2 · sqrt(larger side) of Liu et al. (2025, "Muon is scalable for LLM
training") makes its updates as large as AdamW's. So both share one learning rate and weight decay.
Since the factor is symmetric, layers may store their matrices transposed, as GPT-2 does.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from src.arguments import TrainingArguments
from src.foundation import UserError


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer.

    Both parts use the parameter groups and the state of this optimizer, so it works with
    schedules, gradient scalers and checkpoints like any other.

    Args:
        matrices: parameter groups for Muon; their parameters are [rows, columns].
        others: parameter groups for AdamW; their parameters have any shape.
        kwargs: AdamW's arguments; Muon has the same learning rate.
    """

    def __init__(self, matrices: list[dict], others: list[dict], **kwargs: Any):
        self.parts = [
            torch.optim.Muon(matrices, kwargs["lr"], adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **kwargs),
        ]
        super().__init__([*matrices, *others], {})
        self._share()

    def _share(self) -> None:
        """Give this optimizer's groups and state to the two parts."""
        first, second = self.parts
        number = len(first.param_groups)
        first.param_groups = self.param_groups[:number]
        second.param_groups = self.param_groups[number:]
        first.state = second.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load new groups and a new state, and share them again."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:
        """Take a step with both parts. The Trainer never gives a closure."""
        for part in self.parts:
            part.step()


def muon_with_adamw(
    model: PreTrainedModel, decayed: list[str], adamw: dict[str, Any]
) -> MuonAdamW:
    """Build the optimizer of `training.optimizer=muon`.

    Args:
        decayed: names of the parameters with weight decay; Muon's always have it.
        adamw: AdamW's arguments, including `lr` and `weight_decay`.
    """
    matrices, rest = matrices_inside(model)
    decay = adamw["weight_decay"]
    groups = [
        {"params": [p for n, p in rest.items() if n in decayed], "weight_decay": decay},
        {"params": [p for n, p in rest.items() if n not in decayed], "weight_decay": 0},
    ]
    groups = [group for group in groups if group["params"]]
    inside = {"params": list(matrices.values()), "weight_decay": decay}
    return MuonAdamW([inside], groups, **adamw)


def matrices_inside(
    model: PreTrainedModel,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return two dictionaries of parameters by name: the matrices inside the layers, the rest.

    The rest are the embeddings, the vocabulary layer and the vectors.
    """
    outside = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    if head := model.get_output_embeddings():
        outside.append(head.weight)
    ids = {id(parameter) for parameter in outside}
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inside = {n: p for n, p in named.items() if p.ndim > 1 and id(p) not in ids}
    return inside, {n: p for n, p in named.items() if n not in inside}


def check_optimizer(training: TrainingArguments, config: PretrainedConfig) -> None:
    """Raise `UserError` if torch has no Muon, or Muon does not fit the architecture."""
    if training.optimizer != "muon":
        return
    key = "training.optimizer=muon"
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"{key} needs torch 2.9 or newer, got {torch.__version__}")
    with torch.device("meta"):  # shapes without weights
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in matrices_inside(model)[0].items():
        if parameter.ndim != 2:
            raise UserError(
                f"{key} is for matrices, but {name} of {config.model_type} has"
                f" {parameter.ndim} dimensions, {list(parameter.shape)}: use adamw"
            )
