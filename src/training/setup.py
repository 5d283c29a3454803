"""A run put together: plan, model, step, data, callbacks; and trained."""

import logging
import time
from pathlib import Path
from typing import Any, Callable, Optional

import transformers
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import Blocks
from src.data.order import Plan, check_budget, order_of
from src.data.prepare import Data
from src.evaluation.suite import Suite
from src.foundation import UserError
from src.training.description import describe
from src.training.model import architecture, build
from src.training.optimization.averaging import keep_better
from src.training.optimization.schedule import check_lengths, schedule_kwargs
from src.training.record.checkpoints import newest_whole, step
from src.training.record.throughput import Clock
from src.training.step.document_masking import needs_mask
from src.training.step.forward import (
    WRITTEN_OUT,
    FastForward,
    find_fast_forward,
    install,
)
from src.training.step.micro_batching import (
    StepLayout,
    find_layout,
    logit_chunk,
    sequences_per_step,
)
from src.training.task_scores import TaskScores
from src.training.trainer import LanguageModelTrainer

logger = logging.getLogger(__name__)


def plan_of(args: Arguments, blocks: Blocks) -> Plan:
    """What every step trains on; `args.training.max_steps` is set to their number."""
    training = args.training
    order = order_of(
        args.data,
        blocks,
        training.seed if training.data_seed is None else training.data_seed,
    )
    plan = Plan(
        blocks,
        order,
        sequences_per_step(training, args.data.block_size),
        training.num_train_epochs,
        training.max_steps if training.max_steps > 0 else None,
        training.max_words,
        args.data.block_size_schedule,
    )
    check_budget(args.data, plan)
    check_lengths(training, plan.num_steps)
    training.max_steps = plan.num_steps
    training.lr_scheduler_kwargs = schedule_kwargs(training, plan.num_steps)
    return plan


def build_trainer(
    args: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    suite: Optional[Suite] = None,
    wandb_run: Optional[Any] = None,
    layout: Optional[StepLayout] = None,
    clock: Optional[Clock] = None,
) -> LanguageModelTrainer:
    """Model, data and callbacks of a run, put together.

    Args:
        layout: how a step is divided, where the run has recorded it; None: it is found.
        clock: of the whole job; None: a new one.
    """
    training = args.training
    _use_one_gpu(training)
    plan = plan_of(args, data.train) if training.do_train else None
    set_seed(training.seed)  # the weights are drawn from it
    model = build(args.model, architecture(args.model), tokenizer).to(training.device)
    masks = not args.data.attend_across_documents and needs_mask(model)
    fast = FastForward()
    if plan is not None:
        size = args.data.block_size
        if layout is None or not layout.fits(plan.blocks_per_step, training.world_size):
            layout = find_layout(training, model, size, plan.num_steps)
        fast = _speed_up(model, args, layout, masks)
    # An evaluation alone has no batches of training, but the Trainer wants a number.
    layout = layout or StepLayout(1, 1)
    training.per_device_train_batch_size = layout.sequences
    training.gradient_accumulation_steps = layout.micro_batches
    trainer = LanguageModelTrainer(
        model,
        tokenizer,
        training,
        plan,
        data.validation if training.do_eval else None,
        data.validation_names,
        _logging(wandb_run, has_words=plan is not None),
        clock,
    )
    trainer.layout, trainer.masks_documents = layout, masks
    if suite is not None and suite.checksums:
        number = args.evaluation.items_while_training
        trainer.task_scores = TaskScores(suite, number)
        trainer.task_scores.check(model, tokenizer)
    describe(trainer, args, fast)
    return trainer


def _use_one_gpu(args: TrainingArguments) -> None:
    """Each process: on several, the Trainer would choose DataParallel, the slowest way."""
    if args.n_gpu > 1:
        every = f"torchrun --nproc_per_node={args.n_gpu} -m src.run_clm"
        logger.info("One of %d GPUs is used; all of them by %s …", args.n_gpu, every)
        args._n_gpu = 1


def _logging(wandb_run: Optional[Any], has_words: bool) -> list[TrainerCallback]:
    if wandb_run is None:
        return []
    from src.training.record.wandb_logging import WandbLogging

    return [WandbLogging(wandb_run, has_words)]


def _speed_up(
    model: PreTrainedModel, args: Arguments, layout: StepLayout, masks: bool
) -> FastForward:
    """Installs the fast forward pass in the model, as far as it fits."""
    training = args.training
    fast = find_fast_forward(model, layout.compiled, logit_chunk(training))
    if args.model.attn_implementation:
        fast.attention = None
    if not (args.data.attend_across_documents or masks):
        fast.attention = None  # the model's own sees where positions restart
    if fast.attention == WRITTEN_OUT and training.gradient_checkpointing:
        fast.attention = None  # what is computed again must be the same operations
    install(model, fast, training.label_smoothing_factor)
    return fast


def train_within_memory(
    build: Callable[[Optional[StepLayout]], LanguageModelTrainer], run_dir: Path
) -> tuple[LanguageModelTrainer, bool]:
    """Build and train; where memory does not suffice, once more in half the micro-batch.

    The layout is on disk before the first step: a run that continues uses the same.
    Returns the trainer, and False where a signal stopped it.
    """
    layout, retried = StepLayout.load(run_dir), False
    while True:
        trainer = build(layout=layout)
        if trainer.is_world_process_zero():
            trainer.layout.save(run_dir)
        with trainer.args.main_process_first():  # it sets damaged checkpoints aside
            checkpoint = newest_whole(run_dir)
        try:
            return trainer, train(trainer, checkpoint)
        except RuntimeError as error:
            layout = trainer.layout.halved()
            if retried or layout is None or not should_reduce_batch_size(error):
                raise
            layout.save(run_dir)
            if (
                trainer.args.world_size > 1
            ):  # the other processes are in the middle of a step
                raise UserError(
                    f"out of memory: the same command goes on in micro-batches of"
                    f" {layout.sequences} sequences"
                ) from error
        logger.warning(
            "Out of memory: going on in micro-batches of %d sequences instead of %d; a"
            " step sees the same",
            layout.sequences,
            trainer.layout.sequences,
        )
        retried = True
        del trainer
        release_memory()


def train(trainer: LanguageModelTrainer, checkpoint: Optional[Path]) -> bool:
    """Train, from `checkpoint` where there is one. False where a signal stopped it."""
    if trainer.weight_average is not None and checkpoint:
        trainer.weight_average.load(checkpoint)
    done = _train(trainer, checkpoint)
    if trainer.weight_average is not None and done:
        keep_better(trainer)
    return done


def _train(trainer: LanguageModelTrainer, checkpoint: Optional[Path]) -> bool:
    transformers.utils.logging.disable_progress_bar()  # one for each saved file
    # It warns of tied weights as "missing", and of shares of the run written as steps.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if checkpoint:
        logger.info("Continuing from %s", checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:
            # Only what comes after training is missing. The Trainer would take one more
            # step: it looks whether it is at the end only after each.
            trainer.state = state
            best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
            use_best = trainer.args.load_best_model_at_end and best.is_dir()
            if not use_best:
                state.best_global_step = None  # the final model is the last
            trainer._load_from_checkpoint(str(best if use_best else checkpoint))
            return True
    trainer.checkpoints.resumed_from = checkpoint
    plan, done = trainer.plan, step(checkpoint) if checkpoint else 0
    tokens = plan.blocks_per_step * plan.blocks.block_size
    trainer.throughput.begin(done * tokens, plan.words_seen(done))
    began = time.perf_counter()
    resumed = str(checkpoint) if checkpoint else None
    try:
        with trainer.clock.phase("training"), logging_redirect_tqdm():
            trainer.train(resume_from_checkpoint=resumed)
    finally:
        trainer.stop.restore()
    if trainer.task_scores is not None and trainer.task_scores.seconds:
        share = trainer.task_scores.seconds / (time.perf_counter() - began)
        logger.info("Scoring tasks took %.1f %% of the training's time", 100 * share)
    return trainer.stop.received is None
