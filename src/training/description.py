"""What is about to be trained, and how a step is computed: said at a run's start."""

import logging
import math

from src.arguments import Arguments
from src.training.step.forward import CAUSAL, WRITTEN_OUT, FastForward
from src.training.trainer import LanguageModelTrainer

logger = logging.getLogger(__name__)


def describe(trainer: LanguageModelTrainer, args: Arguments, fast: FastForward) -> None:
    """Say what is about to be trained, on what."""
    model, plan, training = trainer.model, trainer.plan, args.training
    source = args.model.model_name_or_path
    logger.info(
        "%s with %s parameters, %s, on %s",
        model.config.model_type,
        f"{model.num_parameters():,}",
        f"weights of {source}" if source else "random weights",
        training.device,
    )
    if plan is not None:
        logger.info("Step: %s", "; ".join(_choices(trainer, fast)))
        logger.info(
            "%s blocks of %d tokens, %d a step: %s words in %s steps; %d tokens at the end"
            " fill no block and are not trained on",
            f"{len(plan.order):,}",
            plan.blocks.block_size,
            plan.blocks_per_step,
            f"{plan.words_seen(plan.num_steps):,}",
            f"{plan.num_steps:,}",
            plan.blocks.remainder,
        )
        limit = training.max_words
        if limit and plan.num_steps == math.ceil(
            training.num_train_epochs * plan.steps_per_epoch
        ):
            logger.info("The epochs end before training.max_words=%s", f"{limit:,}")
        for size, end in plan.stages:
            logger.info("Sequences of %d tokens until step %s", size, f"{end:,}")


def _choices(trainer: LanguageModelTrainer, fast: FastForward) -> list[str]:
    """How a step is computed, and why."""
    training, layout, kind = trainer.args, trainer.layout, trainer.args.device.type
    precision = "float16" if training.fp16 else "float32"
    if training.bf16:
        fast_device = "processor" if kind == "cpu" else "GPU"
        precision = f"bfloat16 (the {fast_device} is fast at it)"
    elif training.tf32:
        precision += " with TF32"
    attention = {
        None: f"{trainer.model.config._attn_implementation}, the architecture's own",
        CAUSAL: "causal, without a mask",
        WRITTEN_OUT: "written out for the compiler",
    }[fast.attention]
    compiled = "compiled" if layout.compiled else "not compiled"
    if training.torch_compile is None:
        compiled += " (a long run)" if layout.compiled else " (a short run)"
    choices = [
        f"{layout.micro_batches} x {layout.sequences} sequences on each of"
        f" {training.world_size} device(s)",
        precision,
        compiled,
        f"attention {attention}",
        _logits(trainer, fast),
    ]
    if trainer.plan.blocks.restart_positions:
        choices.append("documents apart")
    if training.gradient_checkpointing:
        choices.append("gradient checkpointing")
    return choices


def _logits(trainer: LanguageModelTrainer, fast: FastForward) -> str:
    """How many logits exist at once, and why all of them where they do."""
    training, plan = trainer.args, trainer.plan
    if fast.chunk:
        number = min(fast.chunk, trainer.layout.sequences * plan.blocks.block_size)
        return f"logits of {number} tokens at a time"
    reason = "the fused loss does not fit the architecture"
    if training.label_smoothing_factor:
        reason = "the fused loss knows no label smoothing"
    elif training.fp16:
        reason = "the fused loss's gradients would vanish in float16"
    elif training.logit_chunk == 0:
        reason = "training.logit_chunk=0"
    return f"all logits at once ({reason})"
