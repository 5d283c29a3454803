"""Muon for the matrices inside the layers, AdamW for everything else: one optimizer.

Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal before it is
subtracted. With the factor of Liu et al. (2025, "Muon is scalable for LLM training"),
0.2 · sqrt(larger side), its updates are as large as AdamW's, so that both share one
learning rate and weight decay; and it does not matter whether a layer stores its matrix
transposed, as GPT-2 does.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from src.arguments import TrainingArguments
from src.foundation import UserError


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer.

    They work on its groups and its state, so that schedules, gradient scalers and checkpoints
    see an optimizer like any other.

    Args:
        matrices: groups of parameters [rows, columns], for Muon.
        others: groups of parameters of any shape, for AdamW.
        kwargs: AdamW's; its learning rate and weight decay are Muon's too.
    """

    def __init__(self, matrices: list[dict], others: list[dict], **kwargs: Any):
        shared = {"lr": kwargs["lr"]}
        self.parts = [
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **shared),
            torch.optim.AdamW(others, **kwargs),
        ]
        super().__init__([*matrices, *others], {})
        self._share()

    def _share(self) -> None:
        """Give the two parts this optimizer's groups and state."""
        first, second = self.parts
        number = len(first.param_groups)
        first.param_groups = self.param_groups[:number]
        second.param_groups = self.param_groups[number:]
        first.state = second.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load groups and state, which are replaced, and share them again."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Take a step of both parts."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss


def muon_with_adamw(
    model: PreTrainedModel, decayed: list[str], adamw: dict[str, Any]
) -> MuonAdamW:
    """Build the optimizer of `training.optimizer=muon`.

    Args:
        decayed: names of AdamW's parameters that decay; Muon's all do.
        adamw: AdamW's arguments, `lr` and `weight_decay` among them.
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
    """Return the matrices inside the layers by name, and all other parameters.

    The others are the embeddings, the head and the vectors.
    """
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    head = model.get_output_embeddings()
    outside = {id(p) for p in tables} | ({id(head.weight)} if head else set())
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inside = {n: p for n, p in named.items() if p.ndim > 1 and id(p) not in outside}
    return inside, {n: p for n, p in named.items() if n not in inside}


def check_optimizer(training: TrainingArguments, config: PretrainedConfig) -> None:
    """Raise `UserError` if this torch has no Muon, or Muon does not fit the architecture."""
    if training.optimizer != "muon":
        return
    key = "training.optimizer=muon"
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"{key} needs torch 2.9 or newer, this is {torch.__version__}")
    with torch.device("meta"):  # shapes without weights
        model = AutoModelForCausalLM.from_config(config)
    matrices, _ = matrices_inside(model)
    for name, parameter in matrices.items():
        if parameter.ndim != 2:
            raise UserError(
                f"{key} is for matrices, but {name} of {config.model_type} has"
                f" {parameter.ndim} dimensions, {list(parameter.shape)}: use adamw"
            )
    if not matrices:
        raise UserError(f"{key}: {config.model_type} has no matrix in its layers")
