"""The kinds of a model's parameters, and the matrices that one parameter holds."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.arguments import PARAMETER_KINDS, TrainingArguments

# Modules whose outputs are queries, keys and values, and their architectures. In the first ones,
# all queries come before all keys; in the others, each key-value head has its own queries, key
# and value. CodeGen has neither order, so its matrix stays whole, as do those of other code.
QUERY_KEY_VALUE = {"c_attn", "query_key_value", "qkv_proj", "Wqkv"}
ONE_AFTER_THE_OTHER = {"dbrx", "gpt2", "mpt", "openai-gpt", "phi3"}
BY_HEAD = set("bloom falcon gpt_bigcode gpt_neox gpt_neox_japanese persimmon".split())
# Modules whose outputs are a gate and the values that it multiplies.
GATE_AND_VALUES = {"gate_up_proj", "Wi"}
GATED = {"glm", "glm4", "modernbert-decoder", "phi3"}


def kinds(model: PreTrainedModel) -> dict[str, str]:
    """Return the kind of each parameter that is trained, by name: one of `PARAMETER_KINDS`.

    Tables of tokens or positions are `embedding`. So is the matrix of the vocabulary layer if it
    is tied to the table of tokens; otherwise it is `head`. Other parameters with at least two
    dimensions are `matrices`, and those with fewer are `vectors`: biases, norms, scalars.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kind = {p: "matrices" if p.ndim > 1 else "vectors" for p in named.values()}
    if head := model.get_output_embeddings():
        kind[head.weight] = "head"
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    kind.update(dict.fromkeys(tables, "embedding"))
    return {name: kind[p] for name, p in named.items()}


def split_by_kind(
    optimizer: torch.optim.Optimizer,
    model: PreTrainedModel,
    training: TrainingArguments,
) -> None:
    """Split an optimizer's groups by kind, and set the rates and decays that the kinds have.

    Without such rates and decays, the groups stay as they are.
    """
    rates, decays = training.lr_scales or {}, training.weight_decay_scales or {}
    if not (rates or decays):
        return
    kind_of = {model.get_parameter(name): kind for name, kind in kinds(model).items()}
    groups, optimizer.param_groups = optimizer.param_groups, []
    for group, kind in itertools.product(groups, PARAMETER_KINDS):
        of_kind = [p for p in group["params"] if kind_of[p] == kind]
        part = {**group, "params": of_kind}
        if kind in rates:
            part["lr"] = rates[kind] * training.learning_rate
        if kind in decays:
            part["weight_decay"] = decays[kind] * training.weight_decay
        if of_kind:
            optimizer.param_groups.append(part)


@dataclass(frozen=True)
class Layout:
    """The arrangement of the matrices in one parameter.

    Args:
        outputs: dimension of the outputs: 0, but 1 in the Conv1D of GPT-2.
        sizes: outputs of each matrix in a group of outputs.
        groups: number of groups, which are arranged alike.
    """

    outputs: int
    sizes: list[int]
    groups: int = 1

    def split(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the matrices of a parameter, or of numbers per output, as views.

        Their outputs have two dimensions, groups and outputs in a group, so that outputs that
        are not neighbours also have a view: [groups, outputs, inputs].
        """
        grouped = x.unflatten(self.outputs, (self.groups, sum(self.sizes)))
        return grouped.split(self.sizes, self.outputs + 1)


def layout(model: PreTrainedModel, name: str) -> Layout:
    """Return the arrangement of the matrices in the parameter of this name."""
    config = model.config.get_text_config()
    path = name.rpartition(".")[0]
    outputs = int(isinstance(model.get_submodule(path), Conv1D))
    number = model.get_parameter(name).shape[outputs]
    module, architecture = path.rpartition(".")[2], config.model_type
    if module in GATE_AND_VALUES and architecture in GATED:
        return Layout(outputs, [number // 2] * 2)
    architectures = ONE_AFTER_THE_OTHER | BY_HEAD
    if module not in QUERY_KEY_VALUE or architecture not in architectures:
        return Layout(outputs, [number])
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = (number // size - heads) // 2  # and as many heads of values
    if architecture in BY_HEAD:
        return Layout(outputs, [heads // key_heads * size, size, size], key_heads)
    return Layout(outputs, [heads * size, key_heads * size, key_heads * size])
