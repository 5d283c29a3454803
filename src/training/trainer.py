"""The Trainer over blocks.

The subclass changes four things: the loss (a mean over the tokens of the optimizer's whole
batch), the order of the blocks (a function of seed and epoch), what an evaluation keeps of
a batch (three numbers a block), and the scores made of them. Everything periodic is in
`callbacks.py`.
"""

import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, Optional

import torch
import transformers
from torch.nn import functional as F
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import IGNORED, Blocks
from src.data.order import Plan, check_budget, order_of
from src.data.prepare import Data
from src.data.tokenizer import save as save_tokenizer
from src.evaluation.language_modeling import block_statistics, summarize
from src.evaluation.suite import Suite
from src.training.callbacks import (
    Console,
    KeepCheckpoints,
    OrderEpochs,
    ProgressBars,
    StopOnSignal,
)
from src.training.documents_apart import masked, needs_mask
from src.training.model import architecture, build
from src.training.task_scores import TaskScores, check_metric

logger = logging.getLogger(__name__)


class LanguageModelTrainer(Trainer):
    """Hugging Face's Trainer over `Blocks`, whose labels are already the next tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        plan: Optional[Plan],
        eval_blocks: Optional[Blocks],
        file_names: list[str],
        callbacks: list[TrainerCallback],
    ):
        # The Trainer would delete old checkpoints before the new one is sealed.
        save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=plan.blocks if plan else None,
            eval_dataset=eval_blocks,
            compute_loss_func=self._mean_token_loss,
            compute_metrics=self._scores,
        )
        self._loss_shifts_labels = False  # or it would not count the first target
        self.tokenizer, self.file_names = tokenizer, file_names
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.plan, self.masks_documents = plan, False
        self.task_scores: Optional[TaskScores] = None
        self.found_scores: dict[str, float] = {}  # of the evaluation in progress
        if plan is not None:
            self.add_callback(OrderEpochs(plan))
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        self.checkpoints = KeepCheckpoints(self, save_total_limit)
        self.add_callback(self.checkpoints)
        self.add_callback(Console())
        if sys.stderr.isatty() and not args.disable_tqdm:  # a log file wants no bars
            self.add_callback(ProgressBars())
        for callback in callbacks:
            self.add_callback(callback)

    def _mean_token_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        """The micro-batch's share of the mean loss over the whole batch's tokens, in nats."""
        loss = F.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )
        return loss / num_items_in_batch

    def _get_train_sampler(self, train_dataset: Optional[Blocks] = None) -> Plan:
        return self.plan

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        return masked(inputs, self.model) if self.masks_documents else inputs

    def training_step(
        self, model: Any, inputs: dict, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A micro-batch, in sequences of the length that the schedule has for this step."""
        inputs = shortened(inputs, self.plan.block_size(self.state.global_step))
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Every log says how many words were seen."""
        if self.plan is not None:
            words = self.plan.words_seen(self.state.global_step)
            logs = {**logs, "words": words}
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        check_metric(self.args.metric_for_best_model, metrics)
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # or it would be gone at the end
        return is_new_best

    @torch.no_grad()
    def prediction_step(
        self,
        model: Any,
        inputs: dict,
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Three numbers a block (`block_statistics`) are all that is kept of a batch."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with self.compute_loss_context_manager():
            logits = model(**inputs).logits
        statistics = block_statistics(logits, labels, IGNORED)
        return None, statistics, statistics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The challenge's scores, and what is measured of the text.

        The scores come first, so that the `eval_runtime` is that of the text alone.
        """
        if self.task_scores is not None:
            self.found_scores = self.task_scores.score(
                self.model, self.tokenizer, final=not self.is_in_train
            )
        return super().evaluate(*args, **kwargs)

    def _scores(self, prediction: EvalPrediction) -> dict[str, float]:
        blocks = self.callback_handler.eval_dataloader.dataset
        of_text = summarize(
            prediction.predictions,
            blocks.words,
            blocks.bytes,
            blocks.owners,
            self.file_names,
        )
        return {**of_text, **self.found_scores}

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_tokenizer(self.tokenizer, Path(output_dir or self.args.output_dir))


def shortened(inputs: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """A batch of blocks [B, T] as B·T/size sequences [B·T/size, size]; positions restart."""
    inputs = {name: values.reshape(-1, size) for name, values in inputs.items()}
    if "position_ids" in inputs:
        own = torch.arange(size, device=inputs["position_ids"].device)
        inputs["position_ids"] = inputs["position_ids"].minimum(own)
    return inputs


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
        training.train_batch_size
        * training.gradient_accumulation_steps
        * training.world_size,
        training.num_train_epochs,
        training.max_steps if training.max_steps > 0 else None,
        training.max_words,
        args.data.block_size_schedule,
    )
    check_budget(args.data, plan)
    training.max_steps = plan.num_steps
    return plan


def build_trainer(
    args: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    suite: Optional[Suite] = None,
    wandb_run: Optional[Any] = None,
) -> LanguageModelTrainer:
    """Model, data and callbacks of a run, put together."""
    plan = plan_of(args, data.train) if args.training.do_train else None
    set_seed(args.training.seed)  # the weights are drawn from it
    model = build(args.model, architecture(args.model), tokenizer)
    callbacks = []
    if wandb_run is not None:
        from src.training.wandb_logging import WandbLogging

        callbacks.append(WandbLogging(wandb_run, has_words=plan is not None))
    trainer = LanguageModelTrainer(
        model,
        tokenizer,
        args.training,
        plan,
        data.validation if args.training.do_eval else None,
        data.validation_names,
        callbacks,
    )
    if suite is not None and suite.checksums:
        number = args.evaluation.items_while_training
        trainer.task_scores = TaskScores(suite, number)
        trainer.task_scores.check(model, tokenizer)
    if not args.data.attend_across_documents:
        trainer.masks_documents = needs_mask(trainer.model)
    _describe(trainer, args)
    return trainer


def _describe(trainer: LanguageModelTrainer, args: Arguments) -> None:
    """Say what is about to be trained, on what."""
    model, plan, training = trainer.model, trainer.plan, args.training
    source = args.model.model_name_or_path
    precision = "bfloat16" if training.bf16 else "float16" if training.fp16 else None
    logger.info(
        "%s with %s parameters, %s, on %s in %s",
        model.config.model_type,
        f"{model.num_parameters():,}",
        f"weights of {source}" if source else "random weights",
        training.device,
        precision or "float32",
    )
    if plan is not None:
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


def train(trainer: LanguageModelTrainer, checkpoint: Optional[Path]) -> bool:
    """Train, from `checkpoint` where there is one. False where a signal stopped it."""
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
            trainer._load_from_checkpoint(str(best if use_best else checkpoint))
            return True
    trainer.checkpoints.resumed_from = checkpoint
    began = time.perf_counter()
    with logging_redirect_tqdm():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.task_scores is not None and trainer.task_scores.seconds:
        share = trainer.task_scores.seconds / (time.perf_counter() - began)
        logger.info("Scoring tasks took %.1f %% of the training's time", 100 * share)
    return trainer.stop.received is None
