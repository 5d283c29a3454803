"""What happens around the steps: the epoch's order, stopping, checkpoints, the console."""

import json
import logging
import signal
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import ProgressCallback, Trainer, TrainerCallback

from src.data.order import Plan
from src.evaluation.suite import of_whole_tasks
from src.training.record.checkpoints import prune, seal

logger = logging.getLogger(__name__)


class OrderEpochs(TrainerCallback):
    """Tells the plan which epoch it is, also after a resume in mid-epoch."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.plan.set_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """SIGTERM, SIGUSR1 and Ctrl-C: save at the end of the step, then stop.

    Where an evaluation is due at that step, it comes first: what it finds is part of what is
    saved. A second signal ends the process at once, as it would without this.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.received: Optional[int] = None  # by any process: all know it at one step
        self._own: Optional[int] = None  # by this one
        self._before: dict[int, Any] = {}
        self._group: Optional[Any] = None

    def _receive(self, number: int, frame: Any) -> None:
        self._own = number
        self.restore()
        logger.warning(
            "%s: saving after this step, then stopping (once more: stop at once)",
            signal.Signals(number).name,
        )

    def restore(self) -> None:
        """Signals do again what they did before training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {n: signal.signal(n, self._receive) for n in self.SIGNALS}
        if args.world_size > 1:
            # Not the devices' own: to ask them would be to wait for them at every step.
            self._group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args, state, control, **kwargs):
        self.received = self._of_any_process()
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # The Trainer ends the epoch wherever it stops; it is only over at its real end.
        if self.received and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False

    def _of_any_process(self) -> Optional[int]:
        """The signal that a process received: they must all stop at the same step."""
        if self._group is None:
            return self._own
        flag = torch.tensor(self._own or 0)
        most = torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(flag, most, group=self._group)
        return int(flag) or None


class KeepCheckpoints(TrainerCallback):
    """Seals what was saved, deletes what is over the limit.

    It also saves the loss summed up since the last log and the first that was logged, which
    the Trainer forgets, so that a continued run logs the losses of one that did not stop, and
    refuses the same ones.
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
            self.trainer.watch.first_mean = window.get("first_mean")
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
            if not best.is_dir():  # lost: the best of what follows is the best there is
                state.best_metric = state.best_global_step = None

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
            "first_mean": self.trainer.watch.first_mean,
        }
        (checkpoint / "loss_window.json").write_text(json.dumps(window))
        seal(checkpoint)
        prune(Path(args.output_dir), self.limit, state.best_model_checkpoint)


class ProgressBars(ProgressCallback):
    """The library's bars, without what it writes of every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class Console(TrainerCallback):
    """One short line for each log and evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
            shown = {key.replace("_per_second", "/s"): logs.get(key) for key in keys}
        elif "eval_loss" in logs:
            keys = "loss perplexity accuracy bits_per_byte word_perplexity".split()
            shown = {f"eval {key}": logs[f"eval_{key}"] for key in keys}
            names = of_whole_tasks(key.removeprefix("eval_") for key in logs)
            shown |= {f"eval {name}": 100 * logs[f"eval_{name}"] for name in names}
        else:
            return
        line = "  ".join(
            f"{key} {_figure(key, value)}"
            for key, value in shown.items()
            if value is not None
        )
        words = f"  {logs['words']:,} words" if "words" in logs else ""
        logger.info("step %d/%d%s  %s", state.global_step, state.max_steps, words, line)


def _figure(key: str, value: float) -> str:
    """Rates in full; of a perplexity that no model worth its name has, the size."""
    has_digits = value >= 10_000 and not ("perplexity" in key and value >= 1e6)
    return f"{value:,.0f}" if has_digits else f"{value:.4g}"
