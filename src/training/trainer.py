"""The Trainer for blocks: its loss, evaluation, logs and checkpoints.

All code that depends on private parts of Hugging Face's Trainer is in this module. The decisions
about a run have been made in `setup.py`.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from src.arguments import Arguments
from src.data.blocks import IGNORE_INDEX, Blocks
from src.data.order import Plan
from src.data.packing.tokenizer import save as save_tokenizer
from src.data.prepare import Data
from src.evaluation.language_modeling import block_statistics, summarize
from src.foundation import MANIFEST, UserError, shows_bars
from src.hardware import peak_flops
from src.processes import by_main_process, check_shared, gathered
from src.training.callbacks import (
    Console,
    EvaluationStopped,
    ProgressBars,
    StopOnSignal,
)
from src.training.model import save_config
from src.training.optimization.averaging import WeightAverage
from src.training.optimization.divergence import DivergenceCheck
from src.training.optimization.optimizer import muon_with_adamw
from src.training.optimization.parameters import split_by_kind
from src.training.optimization.schedule import WEIGHT_DECAYS, WeightDecaySchedule
from src.training.record.checkpoints import newest_whole, prune, seal
from src.training.record.ledger import Ledger
from src.training.record.milestones import Milestones
from src.training.record.run_record import TrainingStopped
from src.training.record.throughput import Clock, rates
from src.training.setup import Setup
from src.training.step.document_masking import add_mask
from src.training.step.micro_batching import shortened
from src.training.task_scores import TaskScores

logger = logging.getLogger(__name__)


class LanguageModelTrainer(Trainer):
    """Hugging Face's Trainer for `Blocks`, whose labels are already shifted.

    Args:
        arguments: all arguments of the run, which are not changed. `args` of the Trainer are
            those of `training` with the decisions.
        setup: the decisions about the run.
        model: the model on its device.
        data: the text that the model is trained and evaluated on.
        tasks: the tasks on which the model is scored.
        callbacks: further callbacks, which come last.
        clock: the clock of the whole job.

    Attributes:
        plan: the blocks of every step; None for a run that only evaluates.
    """

    def __init__(
        self,
        arguments: Arguments,
        setup: Setup,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Data,
        tasks: TaskScores,
        callbacks: Sequence[TrainerCallback],
        clock: Clock,
    ):
        training = arguments.training
        self.arguments, self.setup, self.plan = arguments, setup, setup.plan
        self.tokenizer, self.data = tokenizer, data
        self.tasks, self.clock = tasks, clock
        self.run_dir = Path(training.output_dir)
        self.stop, self.bars = StopOnSignal(), ProgressBars()
        vocab_size = model.config.get_text_config().vocab_size
        self.divergence = DivergenceCheck(uniform_loss=math.log(vocab_size))
        self.weight_average: Optional[WeightAverage] = None
        own: list[TrainerCallback] = [self.stop, TrainerHooks(self)]
        # Under FSDP, the model is sharded in place when training begins.
        self._copy = copy.deepcopy(model).cpu() if training.fsdp else None
        if self.plan is not None:
            model.forward = setup.forward
            if steps := setup.averaging_steps:
                kind, num_steps = training.averaging, self.plan.num_steps
                self.weight_average = WeightAverage(model, kind, steps, num_steps)
                own.append(self.weight_average)
            if training.weight_decay_schedule in WEIGHT_DECAYS:
                own.append(WeightDecaySchedule(training.weight_decay_schedule))
            if setup.milestones:
                words, save = self.plan.words, self._save_milestone
                own.append(Milestones(self.run_dir, setup.milestones, words, save))
            if training.process_index == 0:
                own.append(Ledger(self.run_dir, self.plan))
        super().__init__(
            model=model,
            args=setup.trainer_arguments(training),
            train_dataset=None if self.plan is None else self.plan.blocks,
            eval_dataset=data.validation if training.do_eval else None,
            data_collator=dict,  # `Blocks` returns whole batches
            compute_metrics=self._figures,
            callbacks=[*own, *callbacks],
        )
        if self.is_fsdp_enabled and self.args.bf16:
            # accelerate would also round the loss and the sums of gradients to bfloat16.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy
        # Make the Trainer count all targets of a batch, including the first one of each block.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self._flops_per_token = 6 * model.num_parameters()  # Kaplan et al. 2020
        dtype, tf32 = setup.precision.value, bool(self.args.tf32)
        self._peak_flops = peak_flops(self.args.device, dtype, tf32)
        self._began = self._last_log = (0, 0.0)  # step, seconds of training
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if shows_bars() and not self.args.disable_tqdm:
            self.add_callback(self.bars)

    # Training

    def fit(self) -> dict[str, int]:
        """Train from the newest complete checkpoint of the run, or from the beginning.

        If a signal stops training, it is in `stop.received`.

        Returns:
            What the final model is: its `best_step` and `best_words_seen`, or the
            `averaged_steps` of an average. Empty if it is the model of the last step.

        Raises:
            UserError: the loss diverges, or memory runs out.
        """
        checkpoint = by_main_process(lambda: newest_whole(self.run_dir))
        if self.args.should_save:
            prune(self.run_dir)  # what a killed process did not finish
        transformers.utils.logging.disable_progress_bar()  # one for each saved file
        # Suppress warnings about tied weights and about options that are shares of the run.
        transformers.utils.logging.set_verbosity_error()
        average, state = self.weight_average, None
        if checkpoint is not None:
            check_shared(checkpoint / MANIFEST)
            logger.info("Continuing from %s", checkpoint)
            state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
            if average is not None:
                average.load(checkpoint)
        if state is not None and state.global_step >= state.max_steps:
            self._load_finished(checkpoint, state)
        else:
            self._train_from(checkpoint)
        if self.stop.received is None and average is not None and self._keep_average():
            return {"averaged_steps": average.steps}
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        if best in (None, self.state.global_step):
            return {}
        return {"best_step": best, "best_words_seen": self.plan.words_seen(best)}

    def _load_finished(self, checkpoint: Path, state: TrainerState) -> None:
        """Load the final model of a run whose steps are all done.

        The Trainer would train one more step, since it checks for the end only after a step.
        """
        self.state = state
        self._find_best_checkpoint()
        if self.is_fsdp_enabled:  # shard the model, as training does
            self.create_optimizer()
            self.model = self.accelerator.prepare(self.model, self.optimizer)[0]
        self._load_from_checkpoint(str(checkpoint))
        if self.make_up_evaluation() and self.args.should_save:
            state.save_to_json(str(checkpoint / "trainer_state.json"))  # for reports
            seal(checkpoint)
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_from_checkpoint(state.best_model_checkpoint)
        self.log({"total_flos": state.total_flos})  # in place of the lost summary

    def _train_from(self, checkpoint: Optional[Path]) -> None:
        """Train until the end or a signal. If memory runs out, record a smaller micro-batch."""
        try:
            with self.clock.phase("training"):
                suites = self.tasks.sample, self.tasks.suite
                # The table at the end of the run shows the evaluations after training.
                self.add_callback(Console([suite.num_items for suite in suites]))
                with contextlib.suppress(EvaluationStopped):
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
        average, args, state = self.weight_average, self.args, self.state
        name = f"The average of the weights ({average.kind} of {average.steps} steps)"
        if not args.do_eval:
            average.swap()
            logger.info("%s is the final model", name)
            return True
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        before = state.best_metric if args.load_best_model_at_end else None
        if before is None:
            before = self.evaluate()[metric]  # of the last step
        average.swap()
        after = self.evaluate()[metric]
        is_better = after > before if args.greater_is_better else after < before
        if not is_better:
            average.swap()
        logger.info(
            f"{name} has {metric} {after:.5g}, without it {before:.5g}:"
            f" it is {'the final model' if is_better else 'not kept'}"
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
        """Return the FLOPs of a forward and a backward pass."""
        return self._flops_per_token * inputs["input_ids"].numel()

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """Create the library's optimizer, or Muon with AdamW, and split its groups by kind."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(*args)
            if self.args.optimizer == "muon":
                optimizer = muon_with_adamw(optimizer, self.model, self.args)
            split_by_kind(optimizer, self.model, self.args)
            for group in optimizer.param_groups:
                group["initial_weight_decay"] = group["weight_decay"]
            self.optimizer = optimizer
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Optional[Blocks] = None) -> Plan:
        return self.plan

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        masks = self.setup.masks_documents.value
        return add_mask(inputs, self.model) if masks else inputs

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
            step = self.state.global_step
            if "loss" in logs:
                self._refuse_diverged_loss(logs["loss"])
                logs = {**logs, **self._rates_since(*self._last_log)}
                self._last_log = (step, self.clock.seconds()["training"])
            logs = {**logs, "words": self.plan.words_seen(step)}
        super().log(logs, start_time)

    @property
    def rates(self) -> dict[str, float]:
        """Tokens and words per second, and MFU, over all steps of this process."""
        return {} if self.plan is None else self._rates_since(*self._began)

    def _rates_since(self, step: int, seconds: float) -> dict[str, float]:
        """Return the rates since a step."""
        plan, now = self.plan, self.state.global_step
        blocks = plan.blocks_seen(now) - plan.blocks_seen(step)
        tokens = blocks * plan.blocks.block_size
        words = plan.words_seen(now) - plan.words_seen(step)
        seconds = self.clock.seconds()["training"] - seconds
        peak = self._peak_flops and self._peak_flops * self.args.world_size
        return rates(tokens, words, seconds, self._flops_per_token * tokens, peak)

    # Divergence

    def _refuse_diverged_loss(self, mean: Optional[float] = None) -> None:
        """Raise `UserError` if a step's loss is not finite, or the mean loss diverges.

        Args:
            mean: the mean loss since the last log; None: it is not checked.
        """
        if (bad := self.divergence.first_not_finite()) is not None:
            step, loss = bad
            every, blocks = self.plan.blocks, self.plan.blocks_of(step)
            names = sorted({every.stream.names[i] for i in every.owners_of(blocks)})
            self._refuse(
                f"the loss is {loss:.3g} at step {step + 1}, on blocks {blocks[:8]}… from"
                f" {', '.join(names)}"
            )
        if mean is not None and self.divergence.diverges(mean):
            logged = [row["step"] for row in self.state.log_history if "loss" in row]
            first, last = max(logged, default=0) + 1, self.state.global_step
            self._refuse(f"the mean loss of steps {first}–{last} is {mean:.3g}")

    def _refuse_diverged_weights(self) -> None:
        """Raise `UserError` if a loss or a weight is not finite.

        The loss of the last step was computed before its update, so it does not show whether
        the update was finite.
        """
        self._refuse_diverged_loss()
        weights = [p.detach() for p in self.model.parameters()]
        # Under FSDP, each process has a part of a weight, and all of them must agree.
        weights = [w.to_local() if isinstance(w, DTensor) else w for w in weights]
        finite = torch.stack([w.isfinite().all() for w in weights]).all()
        if not all(gathered(bool(finite))):
            self._refuse(f"weights are not finite after step {self.state.global_step}")

    def _refuse(self, fault: str) -> NoReturn:
        """Raise `UserError` with a fault, and name the checkpoints that are on disk."""
        newest = by_main_process(lambda: newest_whole(self.run_dir))
        best = self.state.best_model_checkpoint
        raise TrainingStopped(
            f"{fault}: training stops. The newest checkpoint: {newest or 'none yet'}"
            + (f"; the best by evaluation: {best}" if best else "")
            + ". A smaller training.learning_rate or a longer training.warmup_steps may"
            " help"
        )

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save and seal a checkpoint, and delete old ones beyond the limit."""
        self._refuse_diverged_weights()
        # The sums since the last log, which the Trainer does not save. With them, a continued run
        # logs the same losses as a run that did not stop, and detects divergence at the same step.
        # `stateful_callbacks` is the only part of the state that takes values of any name.
        self.state.stateful_callbacks["loss_window"] = {
            "losses": gathered(float(self._tr_loss)),  # of all processes
            "last_logged_step": self._globalstep_last_logged,
            "first_mean": self.divergence.first_mean,
        }
        with self.clock.phase("saving"):
            super()._save_checkpoint(model, trial)
            if not self.args.should_save:
                return
            checkpoint = self.run_dir / f"checkpoint-{self.state.global_step}"
            if self.weight_average is not None:
                self.weight_average.save(checkpoint)
            seal(checkpoint)
            limit = self.arguments.training.save_total_limit
            prune(self.run_dir, limit, self.state.best_model_checkpoint)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do what is due after a step. If a signal ends the evaluation, save without it."""
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:
            # `control.should_evaluate` is saved, too.
            self._save_checkpoint(self.model_wrapped, trial=None)
            raise

    def make_up_evaluation(self) -> bool:
        """Evaluate if a signal ended the checkpoint's evaluation, and return whether it did."""
        control = self.state.stateful_callbacks["TrainerControl"]["args"]
        if is_due := control["should_evaluate"]:
            control["should_evaluate"] = False
            if self._determine_best_metric(self.evaluate(), trial=None):
                self._find_best_checkpoint()
        return is_due

    def _save_milestone(self, directory: str) -> None:
        """Save the model and the tokenizer of a milestone. All processes call it."""
        self._refuse_diverged_weights()
        with self.clock.phase("saving"):
            self.save_model(directory)

    def restore_logs(self) -> None:
        """Start the measurement of rates, and restore the sums since the last log."""
        self._began = self._last_log = (self.state.global_step, 0.0)
        if window := self.state.stateful_callbacks.get("loss_window"):
            losses, processes = window["losses"], self.args.world_size
            if len(losses) != processes:  # the Trainer logs the mean over the processes
                losses = [sum(losses) / len(losses)] * processes
            self._tr_loss += losses[self.args.process_index]
            self._globalstep_last_logged = window["last_logged_step"]
            self.divergence.first_mean = window["first_mean"]
        self._find_best_checkpoint()

    def _find_best_checkpoint(self) -> None:
        """Find the best checkpoint in the run's directory, which may have been moved.

        If the checkpoint was lost, forget it, so that the best one from here on is found.
        """
        state = self.state
        best = self.run_dir / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None
        if not best.is_dir():
            state.best_metric = state.best_global_step = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            is_new_best = super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            # A correlation is undefined if the model gives all items the same score.
            raise UserError(
                f"training.metric_for_best_model={self.args.metric_for_best_model} has no"
                f" defined value in this evaluation, which has {', '.join(metrics)}"
            ) from error
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # even between two regular saves
        return is_new_best

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        if not self.run_dir.is_dir():
            raise TrainingStopped(
                f"{self.run_dir} was moved or deleted while the run was training. If you"
                " move it back, the same command continues from its newest checkpoint"
            )
        if state_dict and self._copy is not None:
            # The gathered weights are separate tensors, and tied ones would be saved twice.
            names = dict([*self._copy.named_parameters(), *self._copy.named_buffers()])
            state_dict = {n: w for n, w in state_dict.items() if n in names}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            save_config(self.model, directory)
            save_tokenizer(self.tokenizer, directory)

    # Evaluation

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[PreTrainedModel]:
        """Yield the model with all of its weights. All processes call it.

        Under FSDP this is a copy that is on the device only within the block. So it gives the
        same scores as any model, and no process waits for another one's forward pass.
        """
        if self._copy is None:
            yield self.model
            return
        whole = dcp.StateDictOptions(full_state_dict=True)
        self._copy.load_state_dict(dcp.get_model_state_dict(self.model, options=whole))
        try:
            yield self._copy.to(self.args.device)
        finally:
            self._copy.cpu()

    @torch.no_grad()
    def prediction_step(
        self, model, inputs, prediction_loss_only, ignore_keys=None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return None for the loss, and the `block_statistics` as both logits and labels."""
        if self.is_in_train and self.stop.check() is not None:
            # The data loader has begun, so it has taken its random number, as in a whole evaluation.
            raise EvaluationStopped
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
        with self.clock.phase("evaluation"):
            with self.clock.phase("scoring"), self.whole_model() as model:
                scores = self._score_tasks(model, all_items)
            self._scores = {f"eval_{name}": score for name, score in scores.items()}
            if self.eval_dataset is not None:
                return super().evaluate()
            if self._scores:
                self.log(self._scores)
            return self._scores

    def _score_tasks(self, model: PreTrainedModel, all_items: bool) -> dict[str, float]:
        """Return the scores of the tasks; {} if a signal ends the evaluation."""
        if self.stop.received is not None:
            return {}
        # Every forward pass of a scorer calls the embeddings.
        embeddings = model.get_input_embeddings()
        hook = embeddings.register_forward_pre_hook(self.stop.end_forward)
        try:
            return self.tasks.score(model, self.tokenizer, all_items)
        except EvaluationStopped:
            self.stop.check()
            return {}
        finally:
            hook.remove()

    def _figures(self, output: EvalPrediction) -> dict[str, float]:
        """Return the scores of the tasks, and the metrics of the text from its statistics."""
        blocks = self.eval_dataset
        sizes, files = (blocks.words, blocks.bytes), blocks.owners_of(
            range(len(blocks))
        )
        names = blocks.stream.names
        figures = summarize(output.predictions, *sizes, files, names)
        return {**self._scores, **figures}


class TrainerHooks(TrainerCallback):
    """Callback that restores the trainer's logs, sets the epoch of its plan, and logs the end.

    The Trainer resets its logs just before `on_train_begin`. It calls `on_epoch_begin` also if
    a run continues within an epoch.
    """

    def __init__(self, trainer: LanguageModelTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restore_logs()
        # The random state is loaded later, after which an evaluation would change it.
        self.trainer.make_up_evaluation()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.plan.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        # The last steps get a row, even if they do not fill a logging interval.
        if args.logging_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_log = True
