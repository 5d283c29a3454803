"""The Trainer over blocks.

The subclass changes four things: the loss (a mean over the tokens of the optimizer's whole
batch), the order of the blocks (a function of seed and epoch), what an evaluation keeps of
a batch (three numbers a block), and the scores made of them. Everything periodic is in
`callbacks.py`.
"""

import logging
import sys
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
from src.data.blocks import IGNORED, Blocks, EpochOrder
from src.data.prepare import Data
from src.data.tokenizer import save as save_tokenizer
from src.evaluation.language_modeling import block_statistics, summarize
from src.training.callbacks import (
    Console,
    KeepCheckpoints,
    OrderEpochs,
    ProgressBars,
    StopOnSignal,
)
from src.training.model import architecture, build

logger = logging.getLogger(__name__)


class LanguageModelTrainer(Trainer):
    """Hugging Face's Trainer over `Blocks`, whose labels are already the next tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        train_blocks: Optional[Blocks],
        eval_blocks: Optional[Blocks],
        file_names: list[str],
        callbacks: list[TrainerCallback],
    ):
        # The Trainer would delete old checkpoints before the new one is sealed.
        save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_blocks,
            eval_dataset=eval_blocks,
            compute_loss_func=self._mean_token_loss,
            compute_metrics=self._scores,
        )
        self._loss_shifts_labels = False  # or it would not count the first target
        self.tokenizer, self.file_names = tokenizer, file_names
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.order_seed = args.seed if args.data_seed is None else args.data_seed
        if train_blocks is not None:
            self.order = EpochOrder(len(train_blocks), self.order_seed)
            self.add_callback(OrderEpochs(self.order))
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

    def _get_train_sampler(self, train_dataset: Optional[Blocks] = None) -> EpochOrder:
        return self.order

    @property
    def blocks_per_step(self) -> int:
        """Blocks of the optimizer's batch, over all devices and micro-batches."""
        return (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
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

    def _scores(self, prediction: EvalPrediction) -> dict[str, float]:
        blocks = self.callback_handler.eval_dataloader.dataset
        return summarize(
            prediction.predictions,
            blocks.words,
            blocks.bytes,
            blocks.owners,
            self.file_names,
        )

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_tokenizer(self.tokenizer, Path(output_dir or self.args.output_dir))


def build_trainer(
    args: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    wandb_run: Optional[Any] = None,
) -> LanguageModelTrainer:
    """Model, data and callbacks of a run, put together."""
    set_seed(args.training.seed)  # the weights are drawn from it
    model = build(args.model, architecture(args.model), tokenizer)
    callbacks = []
    if wandb_run is not None:
        from src.training.wandb_logging import WandbLogging

        callbacks.append(WandbLogging(wandb_run))
    trainer = LanguageModelTrainer(
        model,
        tokenizer,
        args.training,
        data.train if args.training.do_train else None,
        data.validation if args.training.do_eval else None,
        data.validation_names,
        callbacks,
    )
    logger.info(
        "%s with %s parameters, %s, on %s in %s",
        model.config.model_type,
        f"{model.num_parameters():,}",
        (
            f"weights of {args.model.model_name_or_path}"
            if args.model.model_name_or_path
            else "random weights"
        ),
        args.training.device,
        (
            "bfloat16"
            if args.training.bf16
            else "float16" if args.training.fp16 else "float32"
        ),
    )
    if args.training.do_train:
        logger.info(
            "%s blocks of %d tokens, %d a step; %d tokens at the end fill no block and are"
            " not trained on",
            f"{len(data.train):,}",
            data.train.block_size,
            trainer.blocks_per_step,
            data.train.remainder,
        )
    return trainer


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
    with logging_redirect_tqdm():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.stop.received is None
