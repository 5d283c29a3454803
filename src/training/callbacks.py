"""Callbacks around the steps: the epoch's order, stopping on a signal, the console."""

import logging
import signal
from typing import Any, Optional

import torch
from transformers import ProgressCallback, TrainerCallback

from src.data.order import Plan
from src.evaluation.suite import of_whole_tasks

logger = logging.getLogger(__name__)


class OrderEpochs(TrainerCallback):
    """Callback that tells the plan the epoch, also after a resume within one."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.plan.set_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """Callback that saves at the end of the step after SIGTERM, SIGUSR1 or Ctrl-C, and stops.

    An evaluation that is due at that step comes first: its result is part of what is saved. A
    second signal ends the process at once, as it would without this.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.received: Optional[int] = None  # by any process
        self._received_here: Optional[int] = None
        self._before: dict[int, Any] = {}
        self._group: Optional[Any] = None

    def _receive(self, number: int, frame: Any) -> None:
        self._received_here = number
        self.restore()
        logger.warning(
            "%s: saving after this step, then stopping (once more: stop at once)",
            signal.Signals(number).name,
        )

    def restore(self) -> None:
        """Give the signals the handlers that they had before training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {n: signal.signal(n, self._receive) for n in self.SIGNALS}
        if args.world_size > 1:
            # Not the devices' own: to ask them would be to wait for them at every step.
            self._group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args, state, control, **kwargs):
        self.received = self._signal_of_any_process()
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # The Trainer ends the epoch wherever it stops; it is only over at its real end.
        if self.received and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False

    def _signal_of_any_process(self) -> Optional[int]:
        """Return the signal that any process received: all must stop at the same step."""
        if self._group is None:
            return self._received_here
        flag = torch.tensor(self._received_here or 0)
        largest = torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(flag, largest, group=self._group)
        return int(flag) or None


class ProgressBars(ProgressCallback):
    """The library's progress bars, without its line for every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class Console(TrainerCallback):
    """Callback that prints one short line for each log and evaluation."""

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
    """Format large rates with separators and huge perplexities in scientific notation."""
    has_digits = value >= 10_000 and not ("perplexity" in key and value >= 1e6)
    return f"{value:,.0f}" if has_digits else f"{value:.4g}"
