"""The Trainer, and the callbacks that make a run one that can be stopped and continued.

The subclass changes four things: the loss (a mean over the tokens of the optimizer's whole
batch), the order of the blocks (a function of seed and epoch), what an evaluation keeps of
a batch (three numbers a block), and the scores made of them. Everything periodic is a
callback.
"""

import json
import logging
import signal
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
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from src.arguments import Arguments, TrainingArguments
from src.data.blocks import IGNORED, Blocks, EpochOrder
from src.data.prepare import Data
from src.data.tokenizer import save as save_tokenizer
from src.evaluation.language_modeling import block_statistics, summarize
from src.training.checkpoints import prune, seal
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
        self.stop = StopOnSignal()
        self.order_seed = args.seed if args.data_seed is None else args.data_seed
        self.add_callback(OrderEpochs(train_blocks, self.order_seed))
        self.add_callback(self.stop)
        self.add_callback(KeepCheckpoints(self, save_total_limit))
        self.add_callback(Console())
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
        return self.callback(OrderEpochs).sampler

    @property
    def blocks_per_step(self) -> int:
        """Blocks of the optimizer's batch, over all devices and micro-batches."""
        return (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )

    def callback(self, kind: type) -> TrainerCallback:
        """The callback of that class."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

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


class OrderEpochs(TrainerCallback):
    """Tells the sampler which epoch it is, also after a resume in mid-epoch."""

    def __init__(self, blocks: Optional[Blocks], seed: int):
        self.sampler = EpochOrder(len(blocks), seed) if blocks is not None else None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """SIGTERM, SIGUSR1 and Ctrl-C: save at the end of the step, then stop.

    A second signal ends the process at once, as it would without this.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.received: Optional[int] = None
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        self._restore()
        logger.warning(
            "%s: saving after this step, then stopping (once more: stop at once)",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {n: signal.signal(n, self._receive) for n in self.SIGNALS}

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()

    def on_step_end(self, args, state, control, **kwargs):
        if self._anywhere(args):
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # The Trainer ends the epoch wherever it stops; it is only over at its real end.
        if self.received and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False

    def _anywhere(self, args: TrainingArguments) -> bool:
        """Whether any process was told to stop: they must all stop at the same step."""
        if args.world_size > 1:
            flag = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.received = int(flag) or None
        return self.received is not None


class KeepCheckpoints(TrainerCallback):
    """Seals what was saved, keeps the best, deletes what is over the limit.

    It also saves the loss summed up since the last log, which the Trainer forgets, so that
    the losses a continued run logs are those of one that did not stop.
    """

    def __init__(self, trainer: Trainer, limit: Optional[int]):
        self.trainer, self.limit = trainer, limit
        self.resumed_from: Optional[Path] = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.resumed_from is not None:
            window = json.loads((self.resumed_from / "loss_window.json").read_text())
            rank = str(args.process_index)
            self.trainer._tr_loss += window["loss"].get(rank, 0.0)
            self.trainer._globalstep_last_logged = window["last_logged_step"]
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
            if not best.is_dir():  # lost: the best of what follows is the best there is
                state.best_metric = state.best_global_step = None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not args.load_best_model_at_end or not self.trainer.is_in_train:
            return
        name = args.metric_for_best_model
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        best = state.best_metric
        if value is not None and (
            best is None or (value > best if args.greater_is_better else value < best)
        ):
            control.should_save = True  # or the best model would be gone at the end

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        losses = {str(args.process_index): float(self.trainer._tr_loss)}
        if args.world_size > 1:
            gathered = [None] * args.world_size
            torch.distributed.all_gather_object(gathered, losses)
            losses = {rank: loss for part in gathered for rank, loss in part.items()}
        if not state.is_world_process_zero:
            return
        window = {
            "loss": losses,
            "last_logged_step": self.trainer._globalstep_last_logged,
        }
        (checkpoint / "loss_window.json").write_text(json.dumps(window))
        seal(checkpoint)
        prune(Path(args.output_dir), self.limit, state.best_model_checkpoint)


class Console(ProgressCallback):
    """A progress bar, and one short line for each log and evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            shown = {key: logs[key] for key in ("loss", "learning_rate", "grad_norm")}
        elif "eval_loss" in logs:
            keys = "loss perplexity accuracy bits_per_byte word_perplexity".split()
            shown = {f"eval {key}": logs[f"eval_{key}"] for key in keys}
        else:
            return
        line = "  ".join(
            f"{key} {value:.4g}" for key, value in shown.items() if value is not None
        )
        logger.info("step %d/%d  %s", state.global_step, state.max_steps, line)


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
        args.model.model_name_or_path or "random weights",
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
    trainer.callback(KeepCheckpoints).resumed_from = checkpoint
    if checkpoint:
        logger.info("Continuing from %s", checkpoint)
    transformers.utils.logging.disable_progress_bar()  # one for each saved file
    # It warns of tied weights as "missing" whenever it loads a checkpoint.
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with logging_redirect_tqdm():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.stop.received is None
