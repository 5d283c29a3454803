"""Logging to Weights & Biases. Only this module imports `wandb`, and only if a run logs to it."""

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import rewrite_logs

from src.arguments import WandbArguments
from src.foundation import UserError, first_line
from src.training.record.run_record import RunRecord

# Timeout of the connection in seconds. After it, wandb needs 16 to 20 more to return.
INIT_TIMEOUT = 10
# Time in seconds to upload the rest at the end of a run. Without it, wandb still tried after 100 s.
FINISH_TIMEOUT = 120
logger = logging.getLogger(__name__)


class WandbLogging(TrainerCallback):
    """Callback that sends the Trainer's logs to a W&B run.

    The W&B step of a log is its position in the Trainer's history, which checkpoints contain.
    So a continued run first sends the logs that W&B lacks: an offline one all of them, since
    W&B cannot continue an offline file, and an online one those that were lost in a kill. It
    sends no log twice.

    Args:
        run: an open W&B run.
        has_words: use the words seen as the horizontal axis, not the steps.
    """

    def __init__(self, run: Any, has_words: bool = True):
        self.run = run
        self.num_sent = run.starting_step
        axis = "words" if has_words else "train/global_step"
        run.define_metric("words")
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric=axis, step_sync=True)

    def on_log(self, args, state, control, **kwargs):
        for position in range(self.num_sent, len(state.log_history)):
            logs = dict(state.log_history[position])
            self.num_sent = position + 1
            row = {"train/global_step": logs.pop("step")}
            if "words" in logs:
                row["words"] = logs.pop("words")
            self.run.log({**rewrite_logs(logs), **row}, step=position, commit=True)


@contextlib.contextmanager
def wandb_callbacks(record: RunRecord) -> Iterator[list[WandbLogging]]:
    """Open a W&B run within the block, and yield the callback that logs to it.

    The list is empty with `wandb.log=false`, and in all processes but the main one. Nobody
    is asked for a key, and the connection times out after `INIT_TIMEOUT`. The id of the W&B
    run is that of the record, so a continued run continues its W&B run if that is online. The
    W&B run ends with the block, so the jobs of a sweep are separate runs.

    Raises:
        UserError: `wandb.mode=online` without a key or a network.
    """
    args = record.configuration.args.wandb
    if not (args.log and record.main_process):
        yield []
        return
    import wandb

    mode = _mode(args, wandb)
    try:
        run = _init(wandb, mode, record)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
        if args.mode == "online":
            raise UserError(f"wandb.mode=online: {error}") from error
        wandb.teardown()
        reason, mode = first_line(error), "offline"
        logger.info("W&B cannot be reached (%s): logging offline", reason)
        run = _init(wandb, mode, record)
    if mode == "offline":
        folders = sorted(Path(run.dir).parents[1].glob(f"offline-run-*-{run.id}"))
        command = shlex.join(["wandb", "sync", *map(str, folders)])
        logger.info("W&B is offline; to upload the run later: %s", command)
    exit_code = 1
    try:
        yield [WandbLogging(run, record.configuration.args.training.do_train)]
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def send_results(record: RunRecord) -> None:
    """Send the final scores of a finished run to W&B, for a sweep's trial that repeats it."""
    scores = {k: v for k, v in record.results.items() if k.startswith("eval_")}
    with wandb_callbacks(record) as callbacks:
        for callback in callbacks:
            callback.run.log(rewrite_logs(scores))


def _mode(args: WandbArguments, wandb: Any) -> str:
    """Return the mode of W&B. `auto` means WANDB_MODE, or online if there is a key."""
    chosen = os.environ.get("WANDB_MODE") if args.mode == "auto" else args.mode
    if chosen in ("offline", "disabled", "shared"):
        return chosen
    # This looks for WANDB_API_KEY, settings files and .netrc. It needs no input or network.
    if wandb.login(prompt=False, verify=False):
        return "online"
    if args.mode == "online":
        raise UserError(
            "wandb.mode=online needs an API key: `wandb login` or WANDB_API_KEY"
        )
    logger.info("W&B has no API key (`wandb login` sets one): logging offline")
    return "offline"


def _init(wandb: Any, mode: str, record: RunRecord) -> Any:
    """Start the W&B run, or continue it."""
    args = record.configuration.args.wandb
    return wandb.init(
        project=args.project,
        entity=args.entity,
        group=args.group,
        name=args.name,
        id=record.wandb_id,
        resume="allow" if mode == "online" else None,
        dir=str(record.directory),
        config=record.configuration.recorded,
        mode=mode,
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            silent=mode != "online",
        ),
    )
