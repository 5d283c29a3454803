"""Everything that is decided about a run before its Trainer exists."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import PreTrainedModel

from src.arguments import Arguments, TrainingArguments
from src.data.order import Plan, check_budget, order_of
from src.data.prepare import Data
from src.foundation import first_line
from src.training.decision import Decision
from src.training.optimization.schedule import averaging_steps, choose_schedule
from src.training.step import forward, micro_batching
from src.training.step.document_masking import choose_document_masking
from src.training.step.micro_batching import MicroBatching

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """The decisions about a run, each with its reason.

    A run that only evaluates has no plan, and the architecture's own forward pass.

    Args:
        plan: the blocks of every step, and their words.
        forward: the forward pass of training, built from the decisions.
        masks_documents: whether documents are separated by a mask of ours.
        precision: type of the matrix products.
        compiled: whether the step is compiled.
        attention: name of the attention; None: the architecture's own.
        logit_chunk: tokens whose logits are in memory at once; None: all of a micro-batch.
        micro_batching: micro-batch size and gradient accumulation steps.
        schedule: arguments of the learning rate's schedule.
        averaging_steps: span of the average of the weights; None: no average.
        metric: name of the score that picks the best model.
    """

    plan: Optional[Plan]
    forward: Callable[..., Any]
    masks_documents: Decision[bool]
    precision: Decision[torch.dtype]
    compiled: Decision[bool] = Decision(False, "not compiled")
    attention: Decision[Optional[str]] = Decision(None, "")
    logit_chunk: Decision[Optional[int]] = Decision(None, "")
    micro_batching: MicroBatching = MicroBatching(1, 1)
    schedule: Decision[Optional[dict[str, Any]]] = Decision(None, "")
    averaging_steps: Optional[int] = None
    metric: Optional[str] = None

    def trainer_arguments(self, training: TrainingArguments) -> TrainingArguments:
        """Return the Trainer's arguments: those of the run, with what was decided."""
        size = self.micro_batching
        arguments = dataclasses.replace(
            training,
            max_steps=-1 if self.plan is None else self.plan.num_steps,
            per_device_train_batch_size=size.sequences,
            gradient_accumulation_steps=size.micro_batches,
            lr_scheduler_kwargs=self.schedule.value,
            metric_for_best_model=self.metric,
            # The Trainer would delete old checkpoints before the new one is sealed.
            save_total_limit=None,
        )
        if (
            arguments.n_gpu > 1
        ):  # the Trainer would choose DataParallel, the slowest way
            arguments._n_gpu = 1
        return arguments


def plan_run(args: Arguments, data: Data, sequences: int) -> Optional[Plan]:
    """Plan the blocks and words of every step; None for a run that does not train.

    Args:
        sequences: of a step, over all devices.

    Raises:
        UserError: the text is beyond the challenge's limits.
    """
    training = args.training
    if not training.do_train:
        return None
    seed = training.seed if training.data_seed is None else training.data_seed
    plan = Plan(
        data.train,
        order_of(args.data, data.train, seed),
        sequences,
        training.num_train_epochs,
        training.max_steps if training.max_steps > 0 else None,
        training.max_words,
        args.data.block_size_schedule,
    )
    check_budget(args.data, plan)
    return plan


def decide(
    args: Arguments,
    reasons: Mapping[str, str],
    plan: Optional[Plan],
    model: PreTrainedModel,
    metric: Optional[str] = None,
) -> Setup:
    """Decide how the model is trained, and record the micro-batching with the run.

    Args:
        reasons: key → why a value that was left open is what it is.
        metric: name of the score that picks the best model.

    Raises:
        UserError: a part of the schedule is longer than the run, the memory does not suffice
            for one sequence, or documents cannot be kept apart.
    """
    training, run_dir = args.training, Path(args.training.output_dir)
    setup = Setup(
        plan=plan,
        forward=model.forward,
        masks_documents=choose_document_masking(args.data, model),
        precision=_precision(training, reasons),
        metric=metric,
    )
    if plan is None:
        return setup
    sequences = plan.blocks_per_step // training.world_size
    block_size = args.data.block_size
    if recorded := micro_batching.recorded(run_dir, sequences):
        size, is_compiled = recorded
        compiled = Decision(
            is_compiled,
            "compiled" if is_compiled else "not compiled",
            "as when this run began",
        )
    else:
        size = micro_batching.largest(training, block_size, sequences)
        tokens = plan.num_steps * sequences * block_size
        compiled = forward.choose_compilation(training, model, tokens)
    setup = dataclasses.replace(
        setup,
        compiled=compiled,
        micro_batching=size,
        schedule=choose_schedule(training, plan.num_steps),
        averaging_steps=averaging_steps(training, plan.num_steps),
    )
    try:
        setup = _with_forward(setup, args, model)
    except _compiler_errors() as error:
        reason = first_line(error)
        logger.warning("torch.compile fails here, going on without: %s", reason)
        plain = Decision(False, "not compiled", f"it fails here: {reason}")
        setup = _with_forward(dataclasses.replace(setup, compiled=plain), args, model)
    if training.process_index == 0:
        setup.micro_batching.save(run_dir, setup.compiled.value)
    return setup


def _with_forward(setup: Setup, args: Arguments, model: PreTrainedModel) -> Setup:
    """Build the forward pass, and find the micro-batch size with it."""
    training, compiled = args.training, setup.compiled.value
    masks = setup.masks_documents.value
    tokens = setup.micro_batching.sequences_per_step * args.data.block_size
    chunk = forward.choose_logit_chunk(training, model, tokens)
    attention = forward.choose_attention(args, model, compiled, chunk.value, masks)
    built = forward.build_forward(
        model, attention.value, chunk.value, compiled, training.label_smoothing_factor
    )
    try_batch = functools.partial(
        micro_batching.train_on_one_batch,
        model=model,
        forward=built,
        args=args,
        blocks=setup.plan.blocks,
        masks_documents=masks,
        dtype=setup.precision.value,
    )
    return dataclasses.replace(
        setup,
        forward=built,
        attention=attention,
        logit_chunk=chunk,
        micro_batching=micro_batching.fit(setup.micro_batching, args, try_batch),
    )


def _compiler_errors() -> type[Exception]:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    return TorchDynamoException


def _precision(
    training: TrainingArguments, reasons: Mapping[str, str]
) -> Decision[torch.dtype]:
    """Return the type of the matrix products, which was resolved with the arguments."""
    if training.fp16:
        return Decision(torch.float16, "float16", "training.fp16=true")
    given = f"training.bf16={str(bool(training.bf16)).lower()}"
    reason = reasons.get("training.bf16")
    if training.bf16:
        return Decision(torch.bfloat16, "bfloat16", reason or given)
    name = "float32 with TF32" if training.tf32 else "float32"
    return Decision(torch.float32, name, f"bfloat16: {reason}" if reason else given)


def report(setup: Setup, args: Arguments, model: PreTrainedModel) -> None:
    """Log what is about to be trained, and what was decided about it."""
    training, plan = args.training, setup.plan
    weights = args.model.model_name_or_path
    logger.info(
        f"{model.config.model_type} with {model.num_parameters():,} parameters,"
        f" {f'weights of {weights}' if weights else 'random weights'},"
        f" on {training.device}"
    )
    if training.n_gpu > 1:
        logger.info(
            f"One of {training.n_gpu} GPUs is used; all of them by torchrun"
            f" --nproc_per_node={training.n_gpu} -m src.run_clm …"
        )
    if plan is None:
        return
    logger.info("Step: %s", "; ".join(map(str, _step_decisions(setup, training))))
    logger.info(
        f"{len(plan.order):,} blocks of {plan.blocks.block_size} tokens,"
        f" {plan.blocks_per_step} a step: {plan.words_seen(plan.num_steps):,} words in"
        f" {plan.num_steps:,} steps; {plan.blocks.remainder} tokens at the end fill no"
        " block and are not trained on"
    )
    epochs_end = math.ceil(training.num_train_epochs * plan.steps_per_epoch)
    if training.max_words and plan.num_steps == epochs_end:
        limit = f"training.max_words={training.max_words:,}"
        logger.info("The epochs end before %s", limit)
    for size, end in plan.stages:
        logger.info(f"Sequences of {size} tokens until step {end:,}")


def _step_decisions(setup: Setup, training: TrainingArguments) -> list[Any]:
    """Return the decisions that describe a step, as they are shown."""
    decisions: list[Any] = [
        f"{setup.micro_batching} on each of {training.world_size} device(s)",
        *(setup.precision, setup.compiled, setup.attention, setup.logit_chunk),
        setup.schedule,
    ]
    if setup.plan.blocks.restart_positions:
        decisions.append(setup.masks_documents)
    if training.gradient_checkpointing:
        decisions.append("gradient checkpointing")
    if setup.averaging_steps is not None:
        steps = f"{setup.averaging_steps:,} steps"
        decisions.append(f"weights averaged: {training.averaging} of {steps}")
    return decisions
