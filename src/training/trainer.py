"""The Trainer for blocks: its loss, evaluation, logs and checkpoints.

All code that depends on private parts of Hugging Face's Trainer is in this module. The decisions
about a run have been made in `setup.py`.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
import transformers
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import speed_metrics

from src.arguments import Arguments
from src.data.blocks import IGNORE_INDEX, Blocks
from src.data.order import Plan
from src.data.packing.tokenizer import save as save_tokenizer
from src.data.prepare import Data
from src.evaluation.language_modeling import block_statistics, summarize
from src.foundation import UserError, shows_bars, write_atomically
from src.hardware import peak_flops
from src.training.callbacks import Console, ProgressBars, StopOnSignal
from src.training.model import save_config
from src.training.optimization.averaging import WeightAverage
from src.training.optimization.divergence import DivergenceCheck
from src.training.optimization.optimizer import muon_with_adamw
from src.training.record.checkpoints import newest_whole, prune, seal
from src.training.record.ledger import Ledger
from src.training.record.milestones import Milestones
from src.training.record.run_record import TrainingStopped
from src.training.record.throughput import Clock, rates
from src.training.setup import Setup
from src.training.step.document_masking import add_mask
from src.training.step.micro_batching import shortened
from src.training.task_scores import TaskScores

LOSS_WINDOW = "loss_window.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The end of training.

    Args:
        signal: number of the signal that stopped it; None: all steps are done.
        best_step: step of the final model; None: the last step, or an average.
        averaged_steps: span of the average if the final model is one; None: it is not.
    """

    signal: Optional[int] = None
    best_step: Optional[int] = None
    averaged_steps: Optional[int] = None


class LanguageModelTrainer(Trainer):
    """Hugging Face's Trainer for `Blocks`, whose labels are already shifted.

    Args:
        args: all arguments of the run, which are not changed.
        setup: the decisions about the run.
        model: the model on its device.
        data: the validation blocks and the names of their files.
        tasks: the tasks on which the model is scored.
        callbacks: further callbacks, which come last.
        clock: the clock of the whole job; None: a new one.

    Attributes:
        plan: the blocks of every step; None for a run that only evaluates.
    """

    def __init__(
        self,
        args: Arguments,
        setup: Setup,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Data,
        tasks: TaskScores,
        callbacks: Sequence[TrainerCallback] = (),
        clock: Optional[Clock] = None,
    ):
        if setup.plan is not None:
            model.forward = setup.forward
        super().__init__(
            model=model,
            args=setup.trainer_arguments(args.training),
            train_dataset=None if setup.plan is None else setup.plan.blocks,
            eval_dataset=data.validation if args.training.do_eval else None,
            data_collator=dict,  # `Blocks` returns whole batches
        )
        # Make the Trainer count all targets of a batch, including the first one of each block.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.setup, self.plan = setup, setup.plan
        self.tokenizer, self.tasks = tokenizer, tasks
        self.file_names = data.validation_names
        self.run_dir = Path(self.args.output_dir)
        self.save_total_limit = args.training.save_total_limit
        self.clock = clock or Clock()
        self._num_parameters = model.num_parameters()
        dtype, tf32 = setup.precision.value, bool(self.args.tf32)
        self._peak_flops = peak_flops(self.args.device, dtype, tf32)
        self._began = self._last_log = (0, 0.0)  # step, seconds of training
        vocab_size = model.config.get_text_config().vocab_size
        self.divergence = DivergenceCheck(uniform_loss=math.log(vocab_size))
        self.stop = StopOnSignal()
        self.weight_average: Optional[WeightAverage] = None
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if steps := setup.averaging_steps:
            kind, num_steps = self.args.averaging, setup.plan.num_steps
            self.weight_average = WeightAverage(model, kind, steps, num_steps)
            self.add_callback(self.weight_average)
        for callback in (self.stop, TrainerHooks(self)):
            self.add_callback(callback)
        if setup.milestones:
            words = setup.plan.words
            save = self._save_milestone
            milestones = Milestones(self.run_dir, setup.milestones, words, save)
            self.add_callback(milestones)
        if setup.plan is not None and self.is_world_process_zero():
            self.add_callback(Ledger(self.run_dir, setup.plan))
        self.bars = ProgressBars()
        if shows_bars() and not self.args.disable_tqdm:
            self.add_callback(self.bars)
        for callback in callbacks:
            self.add_callback(callback)

    # Training

    def fit(self) -> Outcome:
        """Train from the newest complete checkpoint of the run, or from the beginning.

        Raises:
            UserError: the loss diverges, or memory runs out.
        """
        with self.args.main_process_first():  # it renames damaged checkpoints
            checkpoint = newest_whole(self.run_dir)
            if self.args.should_save:
                prune(self.run_dir)  # what a killed process did not finish
        transformers.utils.logging.disable_progress_bar()  # one for each saved file
        # Suppress warnings about tied weights and about options that are shares of the run.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        if checkpoint is not None:
            logger.info("Continuing from %s", checkpoint)
            if self.weight_average is not None:
                self.weight_average.load(checkpoint)
        if checkpoint is None or not self._load_finished(checkpoint):
            self._train_from(checkpoint)
        if self.stop.received is not None:
            return Outcome(signal=self.stop.received)
        if self.weight_average is not None and self._keep_average():
            return Outcome(averaged_steps=self.weight_average.steps)
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return Outcome(best_step=None if best == self.state.global_step else best)

    def _load_finished(self, checkpoint: Path) -> bool:
        """Return whether all steps of a run are done, and load its final model if so.

        The Trainer would train one more step, since it checks for the end only after a step.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        if not self.args.load_best_model_at_end or not best.is_dir():
            state.best_global_step = None  # the final model is the last one
            best = checkpoint
        self._load_from_checkpoint(str(best))
        self.log({"total_flos": state.total_flos})  # in place of the lost summary
        return True

    def _train_from(self, checkpoint: Optional[Path]) -> None:
        """Train until the end or a signal. If memory runs out, record a smaller micro-batch."""
        try:
            with self.clock.phase("training"):
                # The table at the end of the run shows the evaluations after training.
                suites = self.tasks.sample, self.tasks.suite
                self.add_callback(Console([suite.num_items for suite in suites]))
                self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            smaller = self.setup.micro_batching.halved()
            if smaller is None:
                raise TrainingStopped("out of memory") from error
            if self.is_world_process_zero():
                smaller.save(self.run_dir, self.setup.compiled.value)
            raise TrainingStopped(
                "out of memory: the same command continues with micro-batches of"
                f" {smaller.sequences} sequences"
            ) from error
        finally:
            self.stop.restore()
            self.remove_callback(Console)
            self.bars.close()  # also after an error, whose message would follow the bar

    def _keep_average(self) -> bool:
        """Put the average into the model if it is the final model, and return whether it is.

        It is the final model if `training.metric_for_best_model`, measured as during training,
        is better with it than without it, or if the run has no evaluation.
        """
        average, args = self.weight_average, self.args
        name = f"The average of the weights ({average.kind} of {average.steps} steps)"
        if not args.do_eval:
            average.swap()
            logger.info("%s is the final model", name)
            return True
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        last, rows = self.state.global_step, self.state.log_history
        logged = [row[metric] for row in rows if row["step"] == last and metric in row]
        before = self.state.best_metric if args.load_best_model_at_end else None
        if before is None:  # the last step, which has perhaps been evaluated
            before = logged[-1] if logged else self.evaluate()[metric]
        average.swap()
        after = self.evaluate()[metric]
        is_better = after > before if args.greater_is_better else after < before
        if not is_better:
            average.swap()
        verdict = "it is the final model" if is_better else "it is not kept"
        logger.info(
            "%s has %s %.5g, without it %.5g: %s", name, metric, after, before, verdict
        )
        return is_better

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ) -> torch.Tensor:
        """Return the micro-batch's share of the mean loss over the batch's tokens, in nats.

        DDP averages the gradients over the processes, so the loss is multiplied by their number.
        """
        return model(**inputs).loss / num_items_in_batch * self.args.world_size

    def floating_point_ops(self, inputs: dict) -> int:
        """Return 6 FLOPs for each parameter and token (Kaplan et al. 2020)."""
        return 6 * self._num_parameters * inputs["input_ids"].numel()

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """Create the library's optimizer, or Muon with AdamW."""
        if self.optimizer is None and self.args.optimizer == "muon":
            _, adamw = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = muon_with_adamw(
                self.model,
                self.get_decay_parameter_names(self.model),
                {**adamw, "weight_decay": self.args.weight_decay},
            )
        return super().create_optimizer(*args)

    def _get_train_sampler(self, train_dataset: Optional[Blocks] = None) -> Plan:
        return self.plan

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        if self.setup.masks_documents.value:
            return add_mask(inputs, self.model)
        return inputs

    def training_step(
        self, model: Any, inputs: dict, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Train on a micro-batch, cut into sequences of the length that the plan gives."""
        step = self.state.global_step
        inputs = shortened(inputs, self.plan.block_size(step))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.divergence.add(step, loss)
        return loss

    # Logs

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log with the words seen so far, and the rates since the last log.

        A stopped run logs no summary, so that it logs the same rows as one that did not stop.
        """
        if self.stop.received is not None and "train_runtime" in logs:
            return
        if self.plan is not None:
            if "loss" in logs:
                self._refuse_diverged_loss(logs["loss"])
                logs = {**logs, **self._rates_since(*self._last_log)}
                seconds = self.clock.seconds()["training"]
                self._last_log = (self.state.global_step, seconds)
            logs = {**logs, "words": self.plan.words_seen(self.state.global_step)}
        super().log(logs, start_time)

    @property
    def rates(self) -> dict[str, float]:
        """Tokens and words per second, and MFU, over all steps of this process."""
        return {} if self.plan is None else self._rates_since(*self._began)

    def _rates_since(self, step: int, seconds: float) -> dict[str, float]:
        """Return the rates since a step."""
        plan, now = self.plan, self.state.global_step
        return rates(
            tokens=(plan.blocks_seen(now) - plan.blocks_seen(step))
            * plan.blocks.block_size,
            words=plan.words_seen(now) - plan.words_seen(step),
            seconds=self.clock.seconds()["training"] - seconds,
            flops_per_token=6 * self._num_parameters,
            peak=self._peak_flops and self._peak_flops * self.args.world_size,
        )

    # Divergence

    def _refuse_diverged_loss(self, mean: Optional[float] = None) -> None:
        """Raise `UserError` if a step's loss is not finite, or the mean loss diverges.

        Args:
            mean: the mean loss since the last log; None: it is not checked.
        """
        bad, last = self.divergence.first_not_finite(), self.state.global_step
        if bad is None and mean is not None and self.divergence.diverges(mean):
            logged = [row["step"] for row in self.state.log_history if "loss" in row]
            first = max(logged, default=0) + 1
            if first < last:
                self._refuse(f"the mean loss of steps {first}–{last} is {mean:.3g}")
            bad = last - 1, mean
        if bad is not None:
            step, loss = bad
            blocks = self.plan.blocks_of(step)
            names = [file["name"] for file in self.plan.blocks.stream.files]
            files = sorted({names[i] for i in self.plan.blocks.owners[blocks]})
            self._refuse(
                f"the loss is {loss:.3g} at step {step + 1}, on blocks {blocks[:8]}… from"
                f" {', '.join(files)}"
            )

    def _refuse_diverged_weights(self) -> None:
        """Raise `UserError` if a loss or a weight is not finite.

        The loss of the last step was computed before its update, so it does not show whether
        the update was finite.
        """
        self._refuse_diverged_loss()
        finite = [p.detach().isfinite().all() for p in self.model.parameters()]
        if not torch.stack(finite).all():
            self._refuse(f"weights are not finite after step {self.state.global_step}")

    def _refuse(self, fault: str) -> NoReturn:
        """Raise `UserError` with a fault, and name the checkpoints that are on disk."""
        best = self.state.best_model_checkpoint
        has_best = best is not None and Path(best).is_dir()
        raise TrainingStopped(
            f"{fault}: training stops. The newest checkpoint:"
            f" {newest_whole(self.run_dir) or 'none yet'}"
            + (f"; the best by evaluation: {best}" if has_best else "")
            + ". A smaller training.learning_rate or a longer training.warmup_steps may"
            " help"
        )

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save and seal a checkpoint, and delete old ones beyond the limit."""
        self._refuse_diverged_weights()
        checkpoint = self.run_dir / f"checkpoint-{self.state.global_step}"
        with self.clock.phase("saving"):
            super()._save_checkpoint(model, trial)
            window = self._loss_window()
            if not self.args.should_save:
                return
            if self.weight_average is not None:
                self.weight_average.save(checkpoint)
            write_atomically(checkpoint / LOSS_WINDOW, window)
            seal(checkpoint)
            best = self.state.best_model_checkpoint
            prune(self.run_dir, self.save_total_limit, best)

    def _save_milestone(self, directory: str) -> None:
        """Save the model and the tokenizer of a milestone. All processes call it."""
        self._refuse_diverged_weights()
        with self.clock.phase("saving"):
            self.save_model(directory)

    def _loss_window(self) -> dict[str, Any]:
        """Return the sums since the last log, which the Trainer's checkpoint lacks.

        With them, a continued run logs the same losses as a run that did not stop, and detects
        divergence at the same step.
        """
        loss = (str(self.args.process_index), float(self._tr_loss))
        return {
            "loss": dict(gather_object([loss])),  # by process
            "last_logged_step": self._globalstep_last_logged,
            "first_mean": self.divergence.first_mean,
        }

    def restore_logs(self) -> None:
        """Start the measurement of rates, and restore `_loss_window` in a continued run."""
        state = self.state
        self._began = self._last_log = (state.global_step, 0.0)
        if not state.global_step:
            return
        checkpoint = self.run_dir / f"checkpoint-{state.global_step}"
        window = json.loads((checkpoint / LOSS_WINDOW).read_text(encoding="utf-8"))
        self._tr_loss += window["loss"].get(str(self.args.process_index), 0.0)
        self._globalstep_last_logged = window["last_logged_step"]
        self.divergence.first_mean = window.get("first_mean")
        best = self.run_dir / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None
        if not best.is_dir():  # the best checkpoint was lost: find a new best from here
            state.best_metric = state.best_global_step = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        metric = self.args.metric_for_best_model
        if metric and f"eval_{metric.removeprefix('eval_')}" not in metrics:
            # A correlation is undefined if the model gives all items the same score.
            raise UserError(
                f"training.metric_for_best_model={metric} has no defined value in this"
                f" evaluation, which has {', '.join(metrics)}"
            )
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # even between two regular saves
        return is_new_best

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        if not self.run_dir.is_dir():
            raise TrainingStopped(
                f"{self.run_dir} was moved or deleted while the run was training. If you"
                " move it back, the same command continues from its newest checkpoint"
            )
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            save_config(self.model, directory)
            save_tokenizer(self.tokenizer, directory)

    # Evaluation

    @torch.no_grad()
    def prediction_step(
        self, model, inputs, prediction_loss_only, ignore_keys=None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return None for the loss, and the `block_statistics` as both logits and labels."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with self.compute_loss_context_manager():
            logits = model(**inputs).logits
        statistics = block_statistics(logits, labels, IGNORE_INDEX)
        return None, statistics, statistics

    def evaluate(
        self, ignore_keys: Any = None, all_items: bool = False
    ) -> dict[str, float]:
        """Score the tasks, evaluate the text if there is any, and log both as one row.

        `eval_runtime` is the time for the text only, and `eval_scoring_runtime` the time for
        the tasks.

        Args:
            all_items: score all items of every task, not only the sample.
        """
        if self.plan is not None:
            self._refuse_diverged_weights()
        blocks, speed = self.eval_dataset, {}
        with self.clock.phase("evaluation"):
            with self.clock.phase("scoring"):
                scores = self.tasks.score(self.model, self.tokenizer, all_items)
            if blocks is not None:
                start, batches = time.time(), self.get_eval_dataloader()
                output = self.evaluation_loop(
                    batches, "Evaluation", prediction_loss_only=False
                )
                rows, words, files = output.predictions, blocks.words, blocks.owners
                scores |= summarize(rows, words, blocks.bytes, files, self.file_names)
                speed = speed_metrics("eval", start, output.num_samples, len(batches))
            metrics = {f"eval_{name}": score for name, score in scores.items()} | speed
            if metrics:
                self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics


class TrainerHooks(TrainerCallback):
    """Callback that restores the trainer's logs, and sets the epoch of its plan.

    The Trainer resets its logs just before `on_train_begin`. It calls `on_epoch_begin` also if
    a run continues within an epoch.
    """

    def __init__(self, trainer: LanguageModelTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restore_logs()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.plan.set_epoch(int(state.epoch or 0))
