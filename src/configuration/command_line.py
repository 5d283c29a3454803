"""Logging and error handling of all commands: users see messages without a traceback."""

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Callable, Iterator, NoReturn, Optional

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from src.arguments import Arguments
from src.configuration.errors import explain, readable
from src.configuration.run_configuration import hide_secrets
from src.foundation import UserError, write_fault
from src.processes import is_of_peers

QUIET = "httpx httpx2 evaluate hydra hydra_plugins submitit accelerate".split()
UNBROKEN = dict(break_long_words=False, break_on_hyphens=False)


class Screen(logging.StreamHandler):
    """Handler that writes messages above the progress bars.

    On a terminal, it wraps them between words. Commands stay whole, so that they can be copied.
    A record may have a shorter text, `short`, for a terminal that is too narrow. No line is
    wrapped at no-break spaces.

    Attributes:
        prefix: the beginning of each line, which tells parallel jobs apart.
    """

    prefix = ""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        width = shutil.get_terminal_size().columns  # of now: a window can be resized
        width -= len(self.prefix)
        if self.stream.isatty() and len(message) > width:
            lines = getattr(record, "short", message).split("\n")
            for i, line in enumerate(lines):
                if not re.search("python -m|wandb sync", line):
                    lines[i] = textwrap.fill(
                        line, width, subsequent_indent="    ", **UNBROKEN
                    )
            message = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        return textwrap.indent(message, self.prefix)

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def set_up_logging() -> None:
    """Send the log messages of the first process to the screen.

    Every job calls this function, because launchers call `run` and not `main`.
    """
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.ERROR
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[Screen(sys.stdout)]
    )
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("datasets", "huggingface_hub"):  # they also raise what they log
        logging.getLogger(library).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def job(config: DictConfig, key: str) -> Iterator[None]:
    """Log a job's messages. If a user can correct its error, end it with one message.

    In a sweep, the other jobs continue.

    Args:
        key: the option that names the folder into which the job writes.
    """
    set_up_logging()
    try:
        yield
    except Exception as error:
        message = explain(error) or unwritten(error, key, OmegaConf.select(config, key))
        if message is None:
            raise
        if HydraConfig.get().mode == RunMode.RUN:
            refuse(message, error)
        logging.error("error: %s", message)
        raise UserError(message) from error


def command_line(
    run: Callable[[], object], interrupted: str, root: type = Arguments
) -> None:
    """Run a Hydra application. If a user can correct an error, end with one message.

    Args:
        interrupted: the message after Ctrl-C.
        root: the dataclass of the command's keys.
    """
    # With this variable, Hydra raises errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = sys.argv[1:]
    try:
        sys.argv[1:], only_shows = readable(arguments, root)
        show(run) if only_shows else run()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = explain(error, root, arguments)
        message = message or unwritten(error, "training.output_dir", "exp")
        if message is None:
            raise
        refuse(hide_secrets(message), error)


def refuse(message: str, error: Exception) -> NoReturn:
    """Show the message of an error and exit, also from torchrun if only a user can correct it.

    No exit status stops `torchrun --max-restarts` from starting the command again, so SIGTERM
    ends torchrun, the parent process.
    """
    may_restart = is_of_peers(error)
    if not may_restart and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
    sys.exit(f"error: {message}")


def show(run: Callable[[], object]) -> None:
    """Print what Hydra shows for `--help` or `--cfg`, without secrets."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            run()
    finally:
        print(hide_secrets(output.getvalue()), end="", flush=True)


def unwritten(error: Exception, key: str, folder: str) -> Optional[str]:
    """Return a line about a file that could not be written; None for any other error.

    Args:
        key: the option that names `folder`, which is to blame if the error names no file.
    """
    if (reason := write_fault(error)) is None:
        return None
    file = Path(str(getattr(error, "filename", None) or folder))
    is_inside = file.is_relative_to(folder) or Path(folder).is_relative_to(file)
    return f"{f'{key}: ' * is_inside}{file} cannot be written: {reason}"
