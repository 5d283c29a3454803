"""Muon and AdamW in one optimizer: Muon for the matrices inside the layers, AdamW for the rest.

Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal before it is
subtracted. The factor 0.2 · sqrt(larger side) of Liu et al. (2025, "Muon is scalable for LLM
training") makes its updates as large as AdamW's. So both share one learning rate and weight decay.
Since the factor is symmetric, layers may store their matrices transposed, as GPT-2 does.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from typing import Any, Optional

import torch
from huggingface_hub import HfApi
from torch import distributed, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Trainer
from transformers.utils import is_liger_kernel_available

from src.arguments import TrainingArguments
from src.foundation import UserError, blaming, first_line
from src.hardware import fast_bfloat16
from src.training.optimization.schedule import choose_schedule

# A number of steps that is longer than every warm-up and cooldown that an option admits.
MANY_STEPS = 10**9
# Jordan et al.'s values: the decay of the momentum, and the coefficients of the iteration.
MOMENTUM = 0.95
COEFFICIENTS, NUM_ITERATIONS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7


class Muon(torch.optim.Optimizer):
    """An implementation of Muon that computes the updates of all matrices of one shape at once.

    `torch.optim.Muon` computes the same updates one by one. For GPT2-Small, it starts about
    1,300 kernels per step, and a fast GPU has to wait for them; this class starts about 100.
    Under DDP, each process computes a share of the updates and gets the others' shares.

    Args:
        params: parameter groups with a `weight_decay`; their parameters are [rows, columns].
    """

    def __init__(self, params: Iterable[dict], lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take a step. The Trainer never gives a closure."""
        # GPUs before Ampere are fast at float16, but not at bfloat16. No value exceeds 1 by much,
        # so float16 does not overflow.
        is_old_gpu = torch.cuda.is_available() and not fast_bfloat16(use_cpu=False)
        dtype = torch.float16 if is_old_gpu else torch.bfloat16
        # torch's own optimizers also use the `_foreach` functions. There are no public ones.
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            gradients = [weight.grad for weight in weights]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            by_shape = defaultdict(list)
            for weight, update in zip(weights, updates):
                by_shape[weight.shape].append((weight, update))
            for shape, pairs in by_shape.items():
                same_shape, updates = zip(*pairs)
                stack = updates[0].new_empty(len(pairs), *shape, dtype=dtype)
                torch._foreach_copy_(stack.unbind(), updates)
                steps = _shared_orthogonal(stack).float().unbind()
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_add_(same_shape, steps, alpha=-rate)

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the exponential average of a parameter's gradients, which starts at 0."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
        return state["momentum_buffer"]


def _shared_orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Return `nearly_orthogonal(x)`; each process computes a share of it."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    if processes == 1:
        return nearly_orthogonal(x)
    number = math.ceil(len(x) / processes)
    padded = functional.pad(x, (0, 0, 0, 0, 0, number * processes - len(x)))
    share = padded.chunk(processes)[distributed.get_rank()]
    distributed.all_gather_into_tensor(padded, nearly_orthogonal(share))
    return padded[: len(x)]


def nearly_orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Return matrices [N, rows, columns] with singular values between about 0.7 and 1.2.

    The singular vectors stay the same. This is the quintic Newton-Schulz iteration of Jordan et
    al. (2024).
    """
    if x.shape[1] > x.shape[2]:
        return nearly_orthogonal(x.mT).mT
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class MuonAdamW(torch.optim.Optimizer):
    """Muon and torch's AdamW as one optimizer.

    Both parts use the parameter groups and the state of this optimizer, so it works with
    schedules, gradient scalers and checkpoints like any other.

    Args:
        matrices: parameter groups for Muon; their parameters are [rows, columns].
        others: parameter groups for AdamW; their parameters have any shape.
        kwargs: AdamW's arguments; Muon has the same learning rate.
    """

    def __init__(self, matrices: list[dict], others: list[dict], **kwargs: Any):
        self.parts = [
            Muon(matrices, kwargs["lr"]),
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


def check_optimizer(
    training: TrainingArguments, model: Optional[PreTrainedModel]
) -> None:
    """Raise `UserError` for training options that the libraries refuse.

    Args:
        model: the model, perhaps without memory for its weights; None: one that cannot be
            built without memory.
    """
    if not training.deepspeed:  # its plugin can be made only once
        defaults = {
            f.name: f.default
            for f in fields(training)
            if f.init and f.default is not MISSING and f.name != "output_dir"
        }

        def build(values: dict[str, Any]) -> None:
            _try_training(replace(training, **values), model)

        values = {name: getattr(training, name) for name in defaults}
        blaming(build, values, defaults, "training")
    if training.optimizer == "muon" and model is not None:
        _check_muon(model)


def _try_training(
    training: TrainingArguments, model: Optional[PreTrainedModel]
) -> None:
    """Build a Trainer, its optimizer and its schedule for one small matrix.

    Many options can be judged only by the libraries, such as `optim_args` or `report_to`.
    Otherwise they would be judged after the data has been prepared.
    """
    if training.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("the package liger-kernel is not installed")
    if kwargs := training.gradient_checkpointing_kwargs:
        try:
            checkpoint(torch.sin, torch.ones(1, requires_grad=True), **kwargs)
        except (TypeError, ValueError) as error:
            key = "training.gradient_checkpointing_kwargs"
            raise UserError(f"{key}={kwargs}: {first_line(error)}") from error
    recomputes = model is None or model.supports_gradient_checkpointing
    if training.gradient_checkpointing and not recomputes:
        raise UserError(
            f"training.gradient_checkpointing=true: {model.config.model_type} has none"
        )
    if training.push_to_hub:
        HfApi(token=training.hub_token).whoami()
    for names in (training.debug, training.label_names, training.include_for_metrics):
        list(names or ())
    with tempfile.TemporaryDirectory() as directory:
        schedule = choose_schedule(training, MANY_STEPS).value
        small = replace(
            training,
            output_dir=directory,
            push_to_hub=False,
            label_smoothing_factor=0.0,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            lr_scheduler_kwargs=schedule,
        )
        trainer = Trainer(
            nn.Linear(2, 2), small, train_dataset=[None], eval_dataset=[None]
        )
        trainer.get_train_dataloader()
        optimizer_of = Trainer.get_optimizer_cls_and_kwargs
        chosen = optimizer_of(small, model)
        if small.optim_args and chosen == optimizer_of(
            replace(small, optim_args=None), model
        ):
            raise ValueError(f"{small.optim.value} has no such arguments")
        if small.optim_target_modules:  # they name layers of the model
            return
        trainer.create_optimizer_and_scheduler(MANY_STEPS)
        for rate in getattr(trainer.lr_scheduler, "lr_lambdas", ()):
            for step in (0, 1, MANY_STEPS // 2, MANY_STEPS - 1):
                if not rate(step) >= 0:
                    raise ValueError(f"at step {step:,}, the rate would be negative")


def _check_muon(model: PreTrainedModel) -> None:
    """Raise `UserError` if Muon does not fit the architecture."""
    key = "training.optimizer=muon"
    for name, parameter in matrices_inside(model)[0].items():
        if parameter.ndim != 2:
            raise UserError(
                f"{key} is for matrices, but {name} of {model.config.model_type} has"
                f" {parameter.ndim} dimensions, {list(parameter.shape)}: use adamw"
            )
