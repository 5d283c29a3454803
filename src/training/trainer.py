"""The Trainer over blocks: its loss, its order of blocks, its evaluation, its checkpoints.

Everything that concerns private parts of Hugging Face's Trainer stands in this module. What is
decided about a run before the Trainer exists is in `setup.py`, what happens around the steps
in `callbacks.py`.
"""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size
from tqdm.contrib.logging import logging_redirect_tqdm
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
from src.foundation import UserError, write_atomically
from src.training.callbacks import Console, OrderEpochs, ProgressBars, StopOnSignal
from src.training.optimization.averaging import WeightAverage
from src.training.optimization.divergence import DivergenceCheck
from src.training.optimization.optimizer import muon_with_adamw
from src.training.record.checkpoints import newest_whole, prune, seal
from src.training.record.throughput import Clock, Progress, peak_flops
from src.training.setup import Setup
from src.training.step.document_masking import add_mask
from src.training.task_scores import TaskScores, check_metric

LOSS_WINDOW = "loss_window.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The way training ended.

    Args:
        signal: number of the signal that stopped it; None: all steps are done.
        best_step: step of the final model, where it is not the last; else None.
        averaged_steps: span of the average that is the final model; None: it is not one.
    """

    signal: Optional[int] = None
    best_step: Optional[int] = None
    averaged_steps: Optional[int] = None


class LanguageModelTrainer(Trainer):
    """Hugging Face's Trainer over `Blocks`, whose labels are already the next tokens.

    Args:
        args: all arguments of the run; they are left as they are.
        setup: what was decided about the run.
        model: on its device.
        data: the blocks of the validation text, and the names of its files.
        tasks: the tasks that the model is scored on.
        callbacks: more of them, which come last.
        clock: of the whole job; None: a new one.
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
        )
        self.model_accepts_loss_kwargs = True  # it shall count the targets of a batch
        self._loss_shifts_labels = False  # or it would not count the first of them
        self.setup, self.tokenizer, self.tasks = setup, tokenizer, tasks
        self.file_names = data.validation_names
        self.run_dir = Path(self.args.output_dir)
        self.save_total_limit = args.training.save_total_limit
        self.clock = clock or Clock()
        self._num_parameters = model.num_parameters()
        self._peak_flops = peak_flops(self.args.device, self.args.world_size)
        self._began = self._last_log = Progress(0, 0, 0.0)
        self._compiled_sizes: set[int] = set()
        vocab_size = model.config.get_text_config().vocab_size
        self.divergence = DivergenceCheck(uniform_loss=math.log(vocab_size))
        self.weight_average: Optional[WeightAverage] = None
        self.stop = StopOnSignal()
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if setup.plan is not None:
            self.add_callback(OrderEpochs(setup.plan))
        if setup.averaging_steps is not None:
            self.weight_average = WeightAverage(
                model,
                self.args.averaging,
                setup.averaging_steps,
                setup.plan.num_steps,
            )
            self.add_callback(self.weight_average)
        for callback in (self.stop, ContinueLogs(self), Console()):
            self.add_callback(callback)
        if sys.stderr.isatty() and not self.args.disable_tqdm:  # no bars in a log file
            self.add_callback(ProgressBars())
        for callback in callbacks:
            self.add_callback(callback)

    @property
    def plan(self) -> Optional[Plan]:
        """The blocks of every step; None for a run that only evaluates."""
        return self.setup.plan

    # Training

    def fit(self) -> Outcome:
        """Train from the newest whole checkpoint of the run, or from the beginning.

        Raises:
            UserError: the loss diverges, or the memory does not suffice.
        """
        with self.args.main_process_first():  # it sets damaged checkpoints aside
            checkpoint = newest_whole(self.run_dir)
        transformers.utils.logging.disable_progress_bar()  # one for each saved file
        # It warns of tied weights as "missing", and of shares of the run written as steps.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        if checkpoint is not None:
            logger.info("Continuing from %s", checkpoint)
            if self.weight_average is not None:
                self.weight_average.load(checkpoint)
        if checkpoint is None or not self._load_last_step(checkpoint):
            self._train_from(checkpoint)
        if self.stop.received is not None:
            return Outcome(signal=self.stop.received)
        if self.weight_average is not None and self._keep_average():
            return Outcome(averaged_steps=self.weight_average.steps)
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return Outcome(best_step=None if best == self.state.global_step else best)

    def _load_last_step(self, checkpoint: Path) -> bool:
        """Load the model of a run whose steps are all done; False where some are left.

        The Trainer would take one more step: it looks whether it is at the end only after
        each.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        if not self.args.load_best_model_at_end or not best.is_dir():
            state.best_global_step = None  # the final model is the last
            best = checkpoint
        self._load_from_checkpoint(str(best))
        return True

    def _train_from(self, checkpoint: Optional[Path]) -> None:
        began = time.perf_counter()
        try:
            with self.clock.phase("training"), logging_redirect_tqdm():
                self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            raise UserError(f"out of memory{self._smaller_micro_batch()}") from error
        finally:
            self.stop.restore()
        if self.tasks.seconds:
            share = self.tasks.seconds / (time.perf_counter() - began)
            logger.info(
                "Scoring tasks took %.1f %% of the training's time", 100 * share
            )

    def _smaller_micro_batch(self) -> str:
        """Record half the micro-batch for the next start; return what will happen then."""
        size = self.setup.micro_batching.halved()
        if size is None:
            return ""
        if self.is_world_process_zero():
            size.save(self.run_dir, self.setup.compiled.value)
        return (
            f": the same command goes on in micro-batches of {size.sequences} sequences"
        )

    def _keep_average(self) -> bool:
        """Leave the averaged weights in the model where they score better than its own.

        `training.metric_for_best_model` decides, measured as during training. Without an
        evaluation the average is kept unseen.
        """
        average, args = self.weight_average, self.args
        name = f"The average of the weights ({average.kind} of {average.steps} steps)"
        if not args.do_eval:
            average.swap()
            logger.info("%s is the final model", name)
            return True
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        before = self.state.best_metric if args.load_best_model_at_end else None
        if before is None:
            before = self.evaluate()[metric]
        average.swap()
        after = self.evaluate()[metric]
        is_better = after > before if args.greater_is_better else after < before
        if not is_better:
            average.swap()
        verdict = "it is the final model" if is_better else "it is not kept"
        logger.info(
            "%s has %s %.5g, without %.5g: %s", name, metric, after, before, verdict
        )
        return is_better

    def compute_loss(
        self,
        model: Any,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Return the micro-batch's share of the mean loss over the batch's tokens, in nats.

        It is multiplied by the number of processes, over which DDP averages the gradients.
        """
        return model(**inputs).loss / num_items_in_batch * self.args.world_size

    def floating_point_ops(self, inputs: dict) -> int:
        """Return 6 for each parameter and token (Kaplan et al. 2020)."""
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
        """Train on a micro-batch, in sequences of the length that the schedule gives."""
        step = self.state.global_step
        size = self.plan.block_size(step)
        compiles = self.setup.compiled.value and size not in self._compiled_sizes
        with self.clock.phase("compile") if compiles else contextlib.nullcontext():
            inputs = shortened(inputs, size)
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._compiled_sizes.add(size)
        self.divergence.add(step, loss)
        return loss

    # Logs

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log with the words seen so far, and the rates since the last log."""
        if self.plan is not None:
            if "loss" in logs:
                self._refuse_diverged_loss(logs["loss"])
                logs = {**logs, **self._rates_since(self._last_log)}
                self._last_log = self._progress()
            logs = {**logs, "words": self.plan.words_seen(self.state.global_step)}
        super().log(logs, start_time)

    @property
    def rates(self) -> dict[str, float]:
        """Tokens and words a second, and MFU, over all steps of this process."""
        return {} if self.plan is None else self._rates_since(self._began)

    def _rates_since(self, before: Progress) -> dict[str, float]:
        flops_per_token = 6 * self._num_parameters
        return self._progress().rates_since(before, flops_per_token, self._peak_flops)

    def _progress(self) -> Progress:
        """Return the progress until now; what fills up a batch counts in its tokens."""
        step, plan = self.state.global_step, self.plan
        tokens = step * plan.blocks_per_step * plan.blocks.block_size
        seconds = self.clock.seconds()["training"]
        return Progress(tokens, plan.words_seen(step), seconds)

    # Divergence

    def _refuse_diverged_loss(self, mean: Optional[float] = None) -> None:
        """Raise `UserError` for a step, or a mean since the last log, that diverges."""
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
                f"the loss is {loss:.3g} at step {step + 1}, of blocks {blocks[:8]}… from"
                f" {', '.join(files)}"
            )

    def _refuse_diverged_weights(self) -> None:
        """Raise `UserError` for weights that are not finite.

        The loss of the last step was computed before its update, and does not show them.
        """
        self._refuse_diverged_loss()
        finite = [p.detach().isfinite().all() for p in self.model.parameters()]
        if not torch.stack(finite).all():
            self._refuse(
                f"weights are infinite or no numbers after step {self.state.global_step}"
            )

    def _refuse(self, fault: str) -> NoReturn:
        """Raise `UserError`, with the checkpoints that are left on disk."""
        best = self.state.best_model_checkpoint
        has_best = best is not None and Path(best).is_dir()
        raise UserError(
            f"{fault}: training stops. The newest checkpoint:"
            f" {newest_whole(self.run_dir) or 'none yet'}"
            + (f"; the best by evaluation: {best}" if has_best else "")
            + ". A smaller training.learning_rate or a longer training.warmup_steps may"
            " help"
        )

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, seal it, and delete those over the limit."""
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

    def _loss_window(self) -> dict[str, Any]:
        """Return what the Trainer forgets of the losses since the last log, by process.

        A continued run so logs the losses of one that did not stop, and refuses the same.
        """
        losses = {str(self.args.process_index): float(self._tr_loss)}
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(gathered, losses)
            losses = {rank: loss for part in gathered for rank, loss in part.items()}
        return {
            "loss": losses,
            "last_logged_step": self._globalstep_last_logged,
            "first_mean": self.divergence.first_mean,
        }

    def continue_logs(self) -> None:
        """Begin to measure; restore what `_loss_window` saved in a run that continues."""
        state = self.state
        self._began = self._last_log = self._progress()._replace(seconds=0.0)
        if not state.global_step:
            return
        checkpoint = self.run_dir / f"checkpoint-{state.global_step}"
        window = json.loads((checkpoint / LOSS_WINDOW).read_text(encoding="utf-8"))
        self._tr_loss += window["loss"].get(str(self.args.process_index), 0.0)
        self._globalstep_last_logged = window["last_logged_step"]
        self.divergence.first_mean = window.get("first_mean")
        best = self.run_dir / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None
        if not best.is_dir():  # lost: the best of what follows is the best there is
            state.best_metric = state.best_global_step = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        check_metric(self.args.metric_for_best_model, metrics)
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # or it would be gone at the end
        return is_new_best

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_tokenizer(self.tokenizer, Path(output_dir or self.args.output_dir))

    # Evaluation

    @torch.no_grad()
    def prediction_step(
        self,
        model: Any,
        inputs: dict,
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return three numbers a block (`block_statistics`), all that is kept of a batch."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with self.compute_loss_context_manager():
            logits = model(**inputs).logits
        statistics = block_statistics(logits, labels, IGNORE_INDEX)
        return None, statistics, statistics

    def evaluate(
        self, ignore_keys: Any = None, all_items: bool = False
    ) -> dict[str, float]:
        """Score the tasks, measure the text, and log both as one row.

        `eval_runtime` is that of the text alone, `eval_scoring_runtime` that of the tasks.

        Args:
            all_items: score all items of every task, not the sample of training.
        """
        if self.plan is not None:
            self._refuse_diverged_weights()
        blocks = self.eval_dataset
        with self.clock.phase("evaluation"):
            scores = self.tasks.score(self.model, self.tokenizer, all_items)
            start = time.time()
            output = self.evaluation_loop(
                self.get_eval_dataloader(), "Evaluation", prediction_loss_only=False
            )
            scores |= summarize(
                output.predictions,
                blocks.words,
                blocks.bytes,
                blocks.owners,
                self.file_names,
            )
            metrics = {f"eval_{name}": score for name, score in scores.items()}
            metrics |= speed_metrics("eval", start, output.num_samples)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics


class ContinueLogs(TrainerCallback):
    """Callback that calls the trainer when it has reset its logs, and before the first step."""

    def __init__(self, trainer: LanguageModelTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.continue_logs()


def shortened(inputs: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """Cut a batch of blocks [B, T] into sequences [B·T/size, size]; positions restart."""
    inputs = {name: values.reshape(-1, size) for name, values in inputs.items()}
    if "position_ids" in inputs:
        positions = torch.arange(size, device=inputs["position_ids"].device)
        inputs["position_ids"] = inputs["position_ids"].minimum(positions)
    return inputs
