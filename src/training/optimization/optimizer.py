"""Muon and AdamW in one optimizer: Muon for the matrices inside the layers, AdamW for the rest.

Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal before it is
subtracted. The factor 0.2 · sqrt(larger side) of Liu et al. (2025, "Muon is scalable for LLM
training") makes its updates as large as AdamW's. So both share one learning rate and weight decay.
Since the factor is symmetric, layers may store their matrices transposed, as GPT-2 does. Each of
the matrices in a fused layer, such as those of queries, keys and values, has its own update.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, Optional

import torch
from huggingface_hub import HfApi
from torch import distributed, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Trainer
from transformers.utils import is_liger_kernel_available

from src.arguments import PARAMETER_KINDS, TrainingArguments
from src.foundation import UserError, blaming, first_line
from src.hardware import fast_bfloat16
from src.processes import rank_and_number
from src.training.optimization.parameters import Layout, kinds, layout
from src.training.optimization.schedule import choose_schedule

# A number of steps that is longer than every warm-up and cooldown that an option admits.
MANY_STEPS = 10**9
# Jordan et al.'s values: the decay of the momentum, and the coefficients of the iteration.
MOMENTUM = 0.95
COEFFICIENTS, NUM_ITERATIONS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7
# NorMuon's values: the decay of the second moments, and what is added to their roots.
SECOND_DECAY, SECOND_EPSILON = 0.95, 1e-10


class Muon(torch.optim.Optimizer):
    """An implementation of Muon that computes the updates of all matrices of one shape at once.

    `torch.optim.Muon` computes the same updates one by one. For GPT2-Small, it starts about
    1,300 kernels per step, and a fast GPU has to wait for them; this class starts about 100, and
    some more for each fused layer, whose parts are copied one by one. Under DDP, each process
    computes a share of the updates and gets the others' shares.

    `training.normuon` adds the normalization of NorMuon (2025, arXiv 2510.05491), and
    `training.cautious_weight_decay` the weight decay of arXiv 2510.12402 (2025).

    Args:
        layouts: the parameters, and the arrangement of the matrices in each of them.
    """

    def __init__(
        self, layouts: Mapping[nn.Parameter, Layout], training: TrainingArguments
    ):
        group = {"params": list(layouts), "weight_decay": training.weight_decay}
        super().__init__([group], {"lr": training.learning_rate})
        self.layouts, self.training = layouts, training

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
            states = [self._state_of(weight) for weight in weights]
            momenta = [state["momentum_buffer"] for state in states]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
            decay = group["lr"] * group["weight_decay"]
            if not self.training.cautious_weight_decay:
                torch._foreach_mul_(weights, 1 - decay)
            by_shape = defaultdict(list)
            for weight, update, state in zip(weights, updates, states):
                matrices, tensors = self.layouts[weight], [weight, update]
                if self.training.normuon:
                    tensors.append(state["second_moment"])
                for parts in zip(*map(matrices.split, tensors)):
                    by_shape[parts[0].shape, matrices.outputs].append(parts)
            for (shape, outputs), parts in by_shape.items():
                same_shape, updates, *moments = zip(*parts)
                stack = updates[0].new_empty(len(parts), *shape, dtype=dtype)
                torch._foreach_copy_(stack.unbind(), updates)
                flat = stack.flatten(1 + outputs, 2 + outputs)  # [N, rows, columns]
                rate = group["lr"] * 0.2 * math.sqrt(max(flat.shape[1:]))
                steps = _shared_orthogonal(flat).float().view_as(stack)
                if self.training.normuon:
                    steps = _normalized(steps, moments[0], 1 if outputs else 3)
                if self.training.cautious_weight_decay:
                    weight = torch.stack(same_shape)
                    decayed = weight * (weight * steps >= 0)
                    torch._foreach_add_(same_shape, decayed.unbind(), alpha=-decay)
                torch._foreach_add_(same_shape, steps.unbind(), alpha=-rate)

    def _state_of(self, weight: nn.Parameter) -> dict[str, torch.Tensor]:
        """Return a parameter's exponential averages, which start at 0."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
            if self.training.normuon:
                one_input = weight.grad.narrow(1 - self.layouts[weight].outputs, 0, 1)
                state["second_moment"] = torch.zeros_like(one_input)
        return state


def _normalized(
    steps: torch.Tensor, moments: Sequence[torch.Tensor], inputs: int
) -> torch.Tensor:
    """Divide each output of the steps by its usual size, and restore the norm of each step.

    Args:
        steps: [N, …], as `Layout.split` arranges matrices.
        moments: for each step, the moving average of each output's mean square, to be updated.
        inputs: dimension of the inputs.
    """
    squares = steps.square().mean(inputs, keepdim=True)
    torch._foreach_lerp_(moments, squares.unbind(), 1 - SECOND_DECAY)
    scaled = steps / (torch.stack(moments).sqrt() + SECOND_EPSILON)
    directions = functional.normalize(scaled.flatten(1), eps=EPSILON)
    return (directions * steps.flatten(1).norm(dim=1, keepdim=True)).view_as(steps)


def _shared_orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Return `nearly_orthogonal(x)`; each process computes a share of it."""
    rank, processes = rank_and_number()
    if processes == 1:
        return nearly_orthogonal(x)
    number = math.ceil(len(x) / processes)
    padded = functional.pad(x, (0, 0, 0, 0, 0, number * processes - len(x)))
    share = padded.chunk(processes)[rank]
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
        muon: the part for matrices, with one group.
        adamw: the part for the other parameters, of any shape.
    """

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW):
        self.parts = muon, adamw
        # Some of the library's schedules read the learning rate from the defaults.
        super().__init__([*muon.param_groups, *adamw.param_groups], muon.defaults)

    def step(self, closure: None = None) -> None:
        """Take a step with both parts. The Trainer never gives a closure."""
        muon, adamw = self.parts
        muon.param_groups = self.param_groups[:1]
        adamw.param_groups = self.param_groups[1:]
        muon.state = adamw.state = self.state
        muon.step()
        adamw.step()


def muon_with_adamw(
    adamw: torch.optim.AdamW, model: PreTrainedModel, training: TrainingArguments
) -> MuonAdamW:
    """Build the optimizer of `training.optimizer=muon`.

    Args:
        adamw: an optimizer of all parameters; those of Muon are taken from it.
    """
    names = [name for name, kind in kinds(model).items() if kind == "matrices"]
    layouts = {model.get_parameter(name): layout(model, name) for name in names}
    for group in adamw.param_groups:
        group["params"] = [p for p in group["params"] if p not in layouts]
    return MuonAdamW(Muon(layouts, training), adamw)


def check_optimizer(
    training: TrainingArguments, model: Optional[PreTrainedModel]
) -> None:
    """Raise `UserError` for training options that the libraries refuse.

    Args:
        model: the model, perhaps without memory for its weights; None: one that cannot be
            built without memory.
    """
    defaults = {
        f.name: f.default
        for f in fields(training)
        if f.init and f.default is not MISSING and f.name != "output_dir"
    }

    def build(values: dict[str, Any]) -> None:
        _try_training(replace(training, **values), model)

    values = {name: getattr(training, name) for name in defaults}
    blaming(build, values, defaults, "training")
    known = PARAMETER_KINDS if model is None else tuple(kinds(model).values())
    for option in ("lr_scales", "weight_decay_scales"):
        for kind in getattr(training, option) or {}:
            if kind not in known:
                raise UserError(
                    f"training.{option}: this model has no parameters of the kind {kind!r}; choose"
                    f" among {', '.join(dict.fromkeys(known))} (a tied head is part of the"
                    " embedding)"
                )
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
    for name, kind in kinds(model).items():
        parameter = model.get_parameter(name)
        if kind == "matrices" and parameter.ndim != 2:
            raise UserError(
                f"{key} is for matrices, but {name} of {model.config.model_type} has"
                f" {parameter.ndim} dimensions, {list(parameter.shape)}: use adamw"
            )
