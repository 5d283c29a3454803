"""Weights & Biases: the only module that imports `wandb`, and only when it is used."""

import contextlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any, Iterator, Optional

from transformers import TrainerCallback
from transformers.integrations import rewrite_logs

from src.arguments import RunConfiguration, WandbArguments
from src.foundation import UserError, first_line, write_atomically
from src.training.record.run_record import RunRecord

# Seconds until a dead network is given up; wandb itself takes 16 to 20 more to return.
INIT_TIMEOUT = 10
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logging_run(
    args: Optional[WandbArguments], configuration: dict[str, Any], run_dir: Path
) -> Iterator[Optional[Any]]:
    """Open a W&B run for the time of the block; None with `log=false`.

    It never asks for a key, and waits for a network only `INIT_TIMEOUT` seconds. Its id is kept
    in the run's directory, so that the same W&B run continues where W&B is online. It ends with
    the block, so that the jobs of a sweep are separate runs.

    Raises:
        UserError: `wandb.mode=online` without a key or a network.
    """
    if args is None or not args.log:
        yield None
        return
    import wandb

    mode = _mode(args, wandb)
    run = None
    if mode == "online":
        try:
            run = _init(wandb, args, "online", configuration, run_dir)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            if args.mode == "online":
                raise UserError(f"wandb.mode=online: {error}") from error
            wandb.teardown()
            reason = first_line(error)
            logger.info("W&B cannot be reached (%s): logging offline", reason)
            mode = "offline"
    if run is None:
        run = _init(wandb, args, mode, configuration, run_dir)
        if mode == "offline":
            logger.info(
                "W&B is offline; to upload the run later: wandb sync %s", _folder(run)
            )
    exit_code = 1
    try:
        yield run
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


@contextlib.contextmanager
def wandb_callbacks(
    configuration: RunConfiguration, record: RunRecord
) -> Iterator[list[TrainerCallback]]:
    """Open the W&B run of the main process; yield the callback that logs to it, if any."""
    args = configuration.args
    wandb_args = args.wandb if record.main_process else None
    with logging_run(wandb_args, configuration.recorded, record.directory) as run:
        yield [] if run is None else [WandbLogging(run, args.training.do_train)]


def _mode(args: WandbArguments, wandb: Any) -> str:
    """Return the mode; `auto` is WANDB_MODE, else online if there is a key."""
    if args.mode == "offline":
        return "offline"
    chosen = os.environ.get("WANDB_MODE")
    if args.mode == "auto" and chosen in ("offline", "disabled", "shared"):
        return chosen
    # Neither asks nor uses the network; finds WANDB_API_KEY, settings files and .netrc.
    if wandb.login(prompt=False, verify=False):
        return "online"
    if args.mode == "online":
        raise UserError(
            "wandb.mode=online needs an API key: `wandb login` or WANDB_API_KEY"
        )
    logger.info("W&B has no API key (`wandb login` sets one): logging offline")
    return "offline"


def _init(
    wandb: Any, args: WandbArguments, mode: str, configuration: dict, run_dir: Path
) -> Any:
    return wandb.init(
        project=args.project,
        entity=args.entity,
        group=args.group,
        name=args.name,
        id=_run_id(run_dir),
        resume="allow" if mode == "online" else None,
        dir=str(run_dir),
        config=configuration,
        mode=mode,
        settings=wandb.Settings(init_timeout=INIT_TIMEOUT, silent=mode != "online"),
    )


def _folder(run: Any) -> Path:
    return Path(run.dir).parent


def _run_id(run_dir: Path) -> str:
    """Return the W&B id of the run, which is drawn once and kept in its directory."""
    file = run_dir / "wandb_run_id.txt"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex[:8] + "\n")
    return file.read_text(encoding="utf-8").strip()


class WandbLogging(TrainerCallback):
    """Callback that sends the Trainer's logs to a W&B run; the axis is the words seen, if any."""

    def __init__(self, run: Any, has_words: bool = True):
        self.run = run
        axis = "words" if has_words else "train/global_step"
        run.define_metric("words")
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric=axis, step_sync=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        row = {"train/global_step": state.global_step}
        if "words" in logs:
            row["words"] = logs["words"]
        logs = {key: value for key, value in logs.items() if key != "words"}
        self.run.log({**rewrite_logs(logs), **row})
