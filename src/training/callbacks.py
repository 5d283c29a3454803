"""Callbacks around the steps: stopping on a signal, progress bars and the console."""

import logging
import os
import signal
from typing import Any, Optional

import torch
from transformers import ProgressCallback, TrainerCallback

from src.arguments import FIGURES
from src.evaluation.suite import of_whole_tasks

# Figures that the short line leaves out. Those of the text follow from its loss.
LEFT_OUT = ("grad_norm", "perplexity", "bits_per_byte")
# The signal whose handler of submitit puts a job back into the queue.
PREEMPTION = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
logger = logging.getLogger(__name__)


class EvaluationStopped(Exception):
    """A signal ended an evaluation in training."""


class StopOnSignal(TrainerCallback):
    """Callback that saves a checkpoint and stops after Ctrl-C, SIGTERM, SIGUSR1 or `PREEMPTION`.

    The current step ends first. An evaluation that is due or running ends early, since torchrun
    and clusters kill soon after the signal; the continued run makes up for it. A second signal
    ends the process at once, as it would without this callback.

    Attributes:
        received: number of the signal that any process received; None: no signal.
    """

    SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, PREEMPTION}

    def __init__(self):
        self.received: Optional[int] = None
        self._received_here: Optional[int] = None
        self._handlers_before: dict[int, Any] = {}
        self._group: Optional[Any] = None

    def _receive(self, number: int, frame: Any) -> None:
        self._received_here = number
        self.restore()
        logger.warning(
            "%s: saving after this step, then stopping (a second signal stops at once)",
            signal.Signals(number).name,
        )

    def restore(self) -> None:
        """Restore the signal handlers from before training."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def on_train_begin(self, args, state, control, **kwargs):
        self._handlers_before = {
            number: signal.signal(number, self._receive) for number in self.SIGNALS
        }
        if args.world_size > 1:
            # On the CPU: with NCCL, reading the result would wait for the GPUs at every step.
            self._group = torch.distributed.new_group(backend="gloo")

    def check(self) -> Optional[int]:
        """Return the signal that any process received; None: no signal. All processes call it."""
        self.received = self._received_here
        if self._group is not None:  # all processes must stop at the same step
            number = torch.tensor(self._received_here or 0)
            largest = torch.distributed.ReduceOp.MAX
            torch.distributed.all_reduce(number, largest, group=self._group)
            self.received = int(number) or None
        return self.received

    def end_forward(self, *args: Any) -> None:
        """Raise `EvaluationStopped` if this process received a signal. It is a module's hook."""
        if self._received_here is not None:
            raise EvaluationStopped

    def on_step_end(self, args, state, control, **kwargs):
        if self.check() is not None:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)  # take no other step after a signal

    def on_epoch_end(self, args, state, control, **kwargs):
        # The Trainer calls this also when it stops in the middle of an epoch.
        if self.received and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False


class ProgressBars(ProgressCallback):
    """The library's progress bars, without its line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def on_evaluate(self, args, state, control, **kwargs):
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False
        super().on_evaluate(args, state, control, **kwargs)

    def close(self) -> None:
        """Remove the bars from the screen."""
        for bar in filter(None, (self.prediction_bar, self.training_bar)):
            bar.close()


class Console(TrainerCallback):
    """Callback that logs one line for each log and each evaluation.

    A terminal that is too narrow shows fewer figures.

    Args:
        items: number of the tasks' items that are scored during training, and in all.
    """

    def __init__(self, items: tuple[int, int] = (0, 0)):
        self.items = ["({:,} of {:,} items)".format(*items)] if items[0] else []

    def on_log(self, args, state, control, logs, **kwargs):
        items = []
        if "loss" in logs:
            keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
            shown = {k.replace("_per_second", "/s"): logs[k] for k in keys if k in logs}
        elif "eval_loss" in logs:
            names = of_whole_tasks(key.removeprefix("eval_") for key in logs)
            shown = {f"eval {name}": logs[f"eval_{name}"] for name in FIGURES}
            shown |= {f"eval {name}": 100 * logs[f"eval_{name}"] for name in names}
            items = self.items
        else:
            return
        step = f"step {state.global_step}/{state.max_steps}"
        words = [f"{logs['words']:,} words"] if "words" in logs else []
        figures = [f"{key} {_format(key, value)}" for key, value in shown.items()]
        short = [
            text for key, text in zip(shown, figures) if not key.endswith(LEFT_OUT)
        ]
        short[1:] = [text.removeprefix("eval ") for text in short[1:]]
        # A narrow terminal wraps the line between figures, not within them.
        parts = [t.replace(" ", "\N{NO-BREAK SPACE}") for t in [step, *short, *items]]
        line = "  ".join([step, *words, *figures, *items])
        logger.info(line, extra={"short": "  ".join(parts)})


def _format(key: str, value: float) -> str:
    """Format large rates with separators and huge perplexities in scientific notation."""
    has_digits = value >= 10_000 and not ("perplexity" in key and value >= 1e6)
    return f"{value:,.0f}" if has_digits else f"{value:.4g}"
