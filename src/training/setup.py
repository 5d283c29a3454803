"""The decisions about a run, made before its Trainer exists."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import torch
import torch._functorch.config
from transformers import PreTrainedModel

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import Blocks
from src.data.order import Plan, check_budget, order_of
from src.data.prepare import Data
from src.data.reshuffling import ReshuffledBlocks
from src.evaluation.scoring.network import REFUSALS
from src.foundation import UserError, counted, first_line
from src.processes import by_main_process
from src.training.decision import Decision
from src.training.optimization.schedule import averaging_steps, choose_schedule
from src.training.record.milestones import milestone_steps, parse_milestones
from src.training.step import forward, micro_batching
from src.training.step.document_masking import add_mask, choose_document_masking
from src.training.step.micro_batching import MicroBatching, shortened
from src.training.step.regularization import add_stochastic_depth

# Limits of what can be planned, far above every real run: a plan has a number for each
# sequence, in memory.
MAX_STEPS, MAX_SEQUENCES = 10_000_000, 1_000_000_000
# Options that the line `Step:` shows if they are on.
SHOWN_OPTIONS = (
    "lr_scales weight_decay_scales weight_decay_schedule z_loss stochastic_depth"
    " input_masking"
).split()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """The decisions about a run, each with its reason.

    A run that only evaluates has no plan, and uses the architecture's own forward pass.

    Args:
        plan: the blocks and words of every step.
        forward: the forward pass of training, built from the decisions.
        masks_documents: whether our mask separates documents.
        precision: dtype of the matrix products.
        metric: name of the score that picks the best model.
        milestones: step -> name of each milestone that the run reaches.
        compiled: whether the step is compiled.
        attention: name of the attention; None: the architecture's own.
        logit_chunk: tokens whose logits are in memory at once; None: all of a micro-batch.
        micro_batching: micro-batch size and gradient accumulation steps.
        schedule: arguments of the learning rate schedule.
        averaging_steps: span of the averaged weights; None: no average.
    """

    plan: Optional[Plan]
    forward: Callable[..., Any]
    masks_documents: Decision[bool]
    precision: Decision[torch.dtype]
    metric: Optional[str]
    milestones: Mapping[int, str] = field(default_factory=dict)
    compiled: Decision[bool] = Decision(False, "not compiled")
    attention: Decision[Optional[str]] = Decision(None, "")
    logit_chunk: Decision[Optional[int]] = Decision(None, "")
    micro_batching: MicroBatching = MicroBatching(1, 1)
    schedule: Decision[Optional[dict[str, Any]]] = Decision(None, "")
    averaging_steps: Optional[int] = None

    def trainer_arguments(self, training: TrainingArguments) -> TrainingArguments:
        """Return the arguments of the Trainer: those of the run, with the decisions."""
        arguments = replace(
            training,
            max_steps=-1 if self.plan is None else self.plan.num_steps,
            per_device_train_batch_size=self.micro_batching.sequences,
            gradient_accumulation_steps=self.micro_batching.micro_batches,
            lr_scheduler_kwargs=self.schedule.value,
            metric_for_best_model=self.metric,
            remove_unused_columns=False,  # blocks are read as whole batches
            # Only CUDA copies from pinned memory.
            dataloader_pin_memory=training.dataloader_pin_memory
            and training.device.type == "cuda",
            # The Trainer would delete old checkpoints before the new one is sealed.
            save_total_limit=None,
        )
        # With several GPUs in one process, the Trainer would use the slow DataParallel.
        arguments._n_gpu = min(1, arguments.n_gpu)
        return arguments


def plan_run(args: Arguments, data: Data, sequences: int) -> Optional[Plan]:
    """Plan the blocks and words of every step; None for a run that does not train.

    Args:
        sequences: sequences of a step over all devices.

    Raises:
        UserError: the text exceeds the challenge's limits.
    """
    training = args.training
    if not training.do_train:
        return None
    seed = training.seed if training.data_seed is None else training.data_seed
    blocks = data.train
    if args.data.reshuffle_documents:
        blocks = ReshuffledBlocks(blocks, seed)
    order = order_of(args.data, blocks, seed)
    epochs, max_steps = training.num_train_epochs, None
    steps = epochs * max(1, len(order) / sequences)
    if training.max_steps > 0:
        steps = max_steps = training.max_steps
    drawn = max(steps * sequences, len(order))
    if steps > MAX_STEPS or drawn > MAX_SEQUENCES or sequences > 100 * len(order) > 0:
        raise UserError(
            f"a run of {steps:,.0f} steps, with {sequences:,} blocks in each step and"
            f" {len(order):,} in an epoch, is too large; it may have {MAX_STEPS:,} steps,"
            f" {MAX_SEQUENCES:,} blocks in all, and steps of 100 epochs: see"
            " training.max_steps, training.num_train_epochs, data.mix and the batch size"
        )
    length = (epochs, max_steps, training.max_words)
    plan = Plan(blocks, order, sequences, *length, args.data.block_size_schedule)
    check_budget(args.data, plan)
    return plan


@contextlib.contextmanager
def refusing(model: PreTrainedModel) -> Iterator[None]:
    """Raise `UserError` for a model that cannot compute the first batch."""
    try:
        yield
    except REFUSALS as error:
        raise UserError(
            f"model: {model.config.model_type} cannot compute a batch:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error


def decide(
    args: Arguments,
    reasons: Mapping[str, str],
    plan: Optional[Plan],
    model: PreTrainedModel,
    metric: Optional[str] = None,
) -> Setup:
    """Decide how the model is trained, and write `step_layout.json`.

    Args:
        reasons: key of an option that was null -> the reason for its value.
        metric: name of the score that picks the best model.

    Raises:
        UserError: a part of the schedule is longer than the run, a single sequence does not
            fit in memory, or documents cannot be separated.
    """
    training, run_dir = args.training, Path(args.training.output_dir)
    masking = choose_document_masking(args.data, model)
    setup = Setup(plan, model.forward, masking, _precision(training, reasons), metric)
    if plan is None:
        return setup
    milestones = parse_milestones(training.milestones)
    setup = replace(setup, milestones=milestone_steps(plan, milestones))
    if others := sorted({path.name for path in run_dir.glob("chck_*")} - {*milestones}):
        logger.warning(
            "warning: this run has %s, which training.milestones of this command lacks; it"
            " may lack later ones, too",
            ", ".join(others),
        )
    sequences = plan.blocks_per_step // training.world_size
    tokens = sequences * args.data.block_size
    recorded = by_main_process(lambda: micro_batching.recorded(run_dir, sequences))
    if recorded is not None:
        size, is_compiled = recorded
        name = "compiled" if is_compiled else "not compiled"
        compiled = Decision(is_compiled, name, "as when this run began")
    else:
        size = micro_batching.largest(training, args.data.block_size, sequences)
        num_tokens = plan.num_steps * tokens
        dtype = setup.precision.value
        compiled = forward.choose_compilation(training, model, dtype, num_tokens)
    setup = replace(
        setup,
        compiled=compiled,
        logit_chunk=forward.choose_logit_chunk(training, model, tokens),
        micro_batching=size,
        schedule=choose_schedule(training, plan.num_steps),
        averaging_steps=averaging_steps(training, plan.num_steps),
    )
    if training.stochastic_depth:
        add_stochastic_depth(model, training.stochastic_depth)
    # Otherwise the backward pass is compiled at its first use, and raises other errors.
    at_once = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
    try:
        with at_once:
            setup = _with_forward(setup, args, model)
    except torch._dynamo.exc.TorchDynamoException as error:  # imported on demand
        reason = first_line(error)
        logger.warning("torch.compile fails here, continuing without: %s", reason)
        compiled = Decision(False, "not compiled", f"it fails here: {reason}")
        setup = _with_forward(replace(setup, compiled=compiled), args, model)
    if training.world_size > 1:
        torch.compiler.reset()  # DDP compiles other graphs, to overlap communication
    if training.process_index == 0:
        setup.micro_batching.save(run_dir, setup.compiled.value)
    return setup


def _with_forward(setup: Setup, args: Arguments, model: PreTrainedModel) -> Setup:
    """Build the forward pass, and find the micro-batch size with it."""
    compiled, chunk = setup.compiled.value, setup.logit_chunk.value
    logger.info("Trying a step%s …", ", compiled: this can take minutes" * compiled)
    masks = setup.masks_documents.value
    attention = forward.choose_attention(args, model, compiled, masks)
    t = args.training
    losses = t.label_smoothing_factor, t.z_loss, t.input_masking
    setup = replace(
        setup,
        attention=attention,
        forward=forward.build_forward(model, attention.value, chunk, compiled, *losses),
    )
    size = micro_batching.fit(
        setup.micro_batching,
        args.data.block_size,
        lambda sequences: _train_on_one_batch(sequences, setup, args, model),
    )
    return replace(setup, micro_batching=size)


def _train_on_one_batch(
    sequences: int, setup: Setup, args: Arguments, model: PreTrainedModel
) -> int:
    """Run a forward and a backward pass as in training, and delete the gradients.

    If sequences grow during the run, there is a pass for each length, so that the compiler
    sees all of them. Memory is reserved for everything else that training needs: AdamW's
    moments, DDP's copy of the gradients, and the averaged weights. Under FSDP the step needs less
    than these whole weights and gradients, and scoring needs a whole copy of the weights. The
    random state is not restored, since the Trainer's constructor sets the seed again.
    """
    training, device, blocks = args.training, model.device, setup.plan.blocks
    copies = 2 + (training.world_size > 1) + (training.averaging is not None)
    copies = 1 if training.fsdp else copies
    weights = list(model.parameters())
    reserved = [torch.empty_like(p) for p in weights for _ in range(copies)]
    batch = blocks.__getitems__([i % len(blocks) for i in range(sequences)])
    batch = {name: values.to(device) for name, values in batch.items()}
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    was_training, dtype = model.training, setup.precision.value
    try:
        model.train()
        for size in dict(setup.plan.stages) or [blocks.block_size]:
            inputs = shortened(batch, size)
            if setup.masks_documents.value:
                inputs = add_mask(inputs, model)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = setup.forward(**inputs).loss
            loss.backward()
    finally:
        model.zero_grad()
        model.train(was_training)
        del reserved
    return sequences


def _precision(
    training: TrainingArguments, reasons: Mapping[str, str]
) -> Decision[torch.dtype]:
    """Return the dtype of the matrix products, as the arguments give it."""
    if training.fp16:
        return Decision(torch.float16, "float16", "training.fp16=true")
    given = f"training.bf16={str(bool(training.bf16)).lower()}"
    reason = reasons.get("training.bf16")
    if training.bf16:
        return Decision(torch.bfloat16, "bfloat16", reason or given)
    name = "float32 with TF32" if training.tf32 else "float32"
    return Decision(torch.float32, name, f"bfloat16: {reason}" if reason else given)


def report(
    setup: Setup, args: Arguments, model: PreTrainedModel, validation: Blocks
) -> None:
    """Log the model, the decisions about its training, and the size of the run."""
    training, plan = args.training, setup.plan
    weights = args.model.model_name_or_path
    logger.info(
        f"{model.config.model_type} with {model.num_parameters():,} parameters,"
        f" {f'weights of {weights}' if weights else 'random weights'},"
        f" on {training.device}"
    )
    if training.n_gpu > 1:
        logger.info(
            f"One of {training.n_gpu} GPUs is used; to use all: torchrun"
            f" --nproc_per_node={training.n_gpu} -m src.run_clm …"
        )
    if plan is None:
        return
    step = [
        f"{setup.micro_batching} on each of {counted(training.world_size, 'device')}",
        *(setup.precision, setup.compiled, setup.attention, setup.logit_chunk),
        setup.schedule,
    ]
    for option in SHOWN_OPTIONS:
        if (value := getattr(training, option)) not in (None, "constant", 0):
            step.append(f"{option}={value}")
    if plan.blocks.restart_positions:
        step.append(setup.masks_documents)
    if training.fsdp:
        step.append("weights, gradients and moments sharded over the devices (FSDP2)")
    if training.gradient_checkpointing:
        step.append("gradient checkpointing")
    if steps := setup.averaging_steps:
        step.append(f"weights averaged: {training.averaging} of {steps:,} steps")
    logger.info("Step: %s", "; ".join(map(str, step)))
    logger.info(
        f"{counted(len(plan.order), 'block')} of {plan.blocks.block_size} tokens,"
        f" {plan.blocks_per_step} per step:"
        f" {counted(plan.words_seen(plan.num_steps), 'word')} in"
        f" {counted(plan.num_steps, 'step')}; not trained on, because they do not fill a"
        f" block: the last {counted(plan.blocks.remainder, 'token')}"
    )
    for size, end in plan.stages:
        logger.info(f"Sequences of {size} tokens until step {end:,}")
    if training.milestones:
        logger.info(_describe_milestones(setup, training, model))
    if training.do_eval and training.eval_strategy != "no":
        logger.info(_cost_of_evaluations(training, plan, len(validation)))


def _describe_milestones(
    setup: Setup, training: TrainingArguments, model: PreTrainedModel
) -> str:
    """Return one line with the milestones, the size of each on disk, and those not reached."""
    names, size = setup.milestones, 4 * model.num_parameters() / 1e9
    asked = parse_milestones(training.milestones)
    line = f"Milestones, each of {size:.2g} GB: {len(names)} of {len(asked)}"
    if names:
        first, last = min(names), max(names)
        line += f", {names[first]} at step {first:,} to {names[last]} at step {last:,}"
    if missed := [name for name in asked if name not in names.values()]:
        line += f"; this run is too short for {missed[0]} and any later ones"
    return line


def _cost_of_evaluations(
    training: TrainingArguments, plan: Plan, num_blocks: int
) -> str:
    """Return one line with the cost of the evaluations, each of `num_blocks` blocks."""
    interval = plan.steps_per_epoch
    if training.eval_strategy == "steps":
        interval = training.eval_steps
        if interval < 1:
            interval = math.ceil(interval * plan.num_steps)
    delay = training.eval_delay  # in epochs, or in steps
    delay *= 1 if training.eval_strategy == "steps" else plan.steps_per_epoch
    number = max(1, int((plan.num_steps - delay) // interval))
    # An evaluation computes only a forward pass. Training also computes a backward pass, which
    # costs twice as much.
    share = number * num_blocks / (3 * plan.num_steps * plan.blocks_per_step)
    line = (
        f"{counted(number, 'evaluation')} of {counted(num_blocks, 'block')}, about"
        f" {100 * share:.0f} % of the training's computation"
    )
    if share > 0.1:
        affordable = max(1, int(0.1 / share * num_blocks))
        line += f"; data.max_eval_samples={affordable} makes it a tenth"
    return line
