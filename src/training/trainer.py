"""The Trainer over blocks.

The subclass changes the loss (a mean over the tokens of the optimizer's whole batch), the
order of the blocks (a function of seed and epoch), what an evaluation keeps of a batch (three
numbers a block) and the scores made of them; and it measures its own time. Everything periodic
is in `callbacks.py`, what makes a step fast in `fast_forward.py`.
"""

import contextlib
import copy
import math
import sys
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from src.arguments import TrainingArguments
from src.data.blocks import IGNORE_INDEX, Blocks
from src.data.order import Plan
from src.data.packing.tokenizer import save as save_tokenizer
from src.evaluation.language_modeling import block_statistics, summarize
from src.foundation import UserError
from src.training.callbacks import (
    Console,
    KeepCheckpoints,
    OrderEpochs,
    ProgressBars,
    StopOnSignal,
)
from src.training.optimization.averaging import WeightAverage
from src.training.optimization.divergence import LossWatch
from src.training.optimization.optimizer import muon_with_adamw
from src.training.record.checkpoints import newest_whole
from src.training.record.throughput import Clock, Throughput, peak_flops
from src.training.step.document_masking import masked
from src.training.step.micro_batching import StepLayout
from src.training.task_scores import TaskScores, check_metric


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
        clock: Optional[Clock] = None,
    ):
        # The Trainer would delete old checkpoints before the new one is sealed.
        save_total_limit, args = args.save_total_limit, copy.copy(args)
        args.save_total_limit = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=plan.blocks if plan else None,
            eval_dataset=eval_blocks,
            compute_metrics=self._scores,
        )
        self.model_accepts_loss_kwargs = True  # it shall count the targets of a batch
        self._loss_shifts_labels = False  # or it would not count the first of them
        self._num_parameters = model.num_parameters()
        self.tokenizer, self.file_names = tokenizer, file_names
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.plan, self.masks_documents = plan, False
        self.layout, self._sizes_seen = StepLayout(1, 1), set()
        self.clock = clock or Clock()
        self.throughput = Throughput(
            self.clock,
            6 * self._num_parameters,
            peak_flops(args.device, args.world_size),
        )
        self.watch = LossWatch(math.log(model.config.get_text_config().vocab_size))
        self.task_scores: Optional[TaskScores] = None
        self.found_scores: dict[str, float] = {}  # of the evaluation in progress
        self.stop = StopOnSignal()
        self.checkpoints = KeepCheckpoints(self, save_total_limit)
        self.weight_average: Optional[WeightAverage] = None
        self.average_kept = False  # whether it is the final model
        self._add_callbacks(callbacks)

    def _add_callbacks(self, others: list[TrainerCallback]) -> None:
        args = self.args
        if self.plan is not None:
            self.add_callback(OrderEpochs(self.plan))
            if args.averaging is not None:
                self.weight_average = WeightAverage(
                    self.model,
                    args.averaging,
                    args.averaging_steps,
                    self.plan.num_steps,
                )
                self.add_callback(self.weight_average)
        self.add_callback(self.stop)
        self.add_callback(self.checkpoints)
        self.add_callback(Console())
        if sys.stderr.isatty() and not args.disable_tqdm:  # a log file wants no bars
            self.add_callback(ProgressBars())
        for callback in others:
            self.add_callback(callback)

    def compute_loss(
        self,
        model: Any,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """The micro-batch's share of the mean loss over the whole batch's tokens, in nats.

        Times the number of processes, over which DDP takes the mean of the gradients.
        """
        return model(**inputs).loss / num_items_in_batch * self.args.world_size

    def floating_point_ops(self, inputs: dict) -> int:
        """6 for each parameter and token (Kaplan et al. 2020), not counted anew each step."""
        return 6 * self._num_parameters * inputs["input_ids"].numel()

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """The library's, or Muon with it."""
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
        return masked(inputs, self.model) if self.masks_documents else inputs

    def training_step(
        self, model: Any, inputs: dict, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A micro-batch, in sequences of the length that the schedule has for this step."""
        step = self.state.global_step
        size = self.plan.block_size(step)
        compiles = self.layout.compiled and size not in self._sizes_seen
        with self.clock.phase("compile") if compiles else contextlib.nullcontext():
            inputs = shortened(inputs, size)
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._sizes_seen.add(size)
        self.watch.add(step, loss)
        return loss

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Every log says how many words were seen, and how fast."""
        if self.plan is not None:
            words = self.plan.words_seen(self.state.global_step)
            if "loss" in logs:
                self._refuse_bad_loss(logs["loss"])
                logs = {**logs, **self.throughput.since_last(self.tokens_seen, words)}
            logs = {**logs, "words": words}
        super().log(logs, start_time)

    @property
    def tokens_seen(self) -> int:
        """Positions of all steps until now; those that fill up a batch are among them."""
        plan = self.plan
        return self.state.global_step * plan.blocks_per_step * plan.blocks.block_size

    @property
    def rates(self) -> dict[str, float]:
        """Tokens and words a second, and utilisation, over all steps of this process."""
        if self.plan is None:
            return {}
        words = self.plan.words_seen(self.state.global_step)
        return self.throughput.overall(self.tokens_seen, words)

    def _refuse_bad_loss(self, mean: Optional[float] = None) -> None:
        """Raises `UserError` where a step, or the mean since the last log, is beyond reason."""
        bad, last = self.watch.bad_step(), self.state.global_step
        if bad is None and mean is not None and self.watch.diverges(mean):
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

    def _refuse_spoilt_weights(self) -> None:
        """Before they are evaluated or saved: the last step's loss is from before it."""
        self._refuse_bad_loss()
        finite = [p.detach().isfinite().all() for p in self.model.parameters()]
        if not torch.stack(finite).all():
            self._refuse(
                f"weights are infinite or no numbers after step {self.state.global_step}"
            )

    def _refuse(self, fault: str) -> NoReturn:
        """Raises `UserError`, with what is left on disk."""
        newest = newest_whole(Path(self.args.output_dir))
        best = self.state.best_model_checkpoint
        has_best = best is not None and Path(best).is_dir()
        raise UserError(
            f"{fault}: training stops. The newest checkpoint: {newest or 'none yet'}"
            + (f"; the best by evaluation: {best}" if has_best else "")
            + ". A smaller training.learning_rate or a longer training.warmup_steps may"
            " help"
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves weights that are numbers."""
        self._refuse_spoilt_weights()
        with self.clock.phase("saving"):
            super()._save_checkpoint(model, trial)
            if self.weight_average is not None and self.args.should_save:
                name = f"checkpoint-{self.state.global_step}"
                self.weight_average.save(Path(self.args.output_dir) / name)

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
        statistics = block_statistics(logits, labels, IGNORE_INDEX)
        return None, statistics, statistics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The challenge's scores, and what is measured of the text.

        The scores come first, so that the `eval_runtime` is that of the text alone.
        """
        if self.is_in_train:
            self._refuse_spoilt_weights()
        with self.clock.phase("evaluation"):
            return self._score_and_evaluate(*args, **kwargs)

    def evaluate_as_in_training(self) -> dict[str, float]:
        """After training, what an evaluation during it would have found."""
        self.is_in_train = True
        try:
            return self.evaluate()
        finally:
            self.is_in_train = False

    def _score_and_evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
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
