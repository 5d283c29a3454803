"""Logging and error handling of all commands: users see messages without a traceback."""

import logging
import os
import re
import signal
import sys
from typing import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.arguments import Arguments
from src.configuration.errors import explain
from src.foundation import CANNOT_WRITE, UserError


def set_up_logging() -> None:
    """Send the log messages of the first process to the screen.

    Every job calls this function, because launchers call `run` and not `main`.
    """
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    for library in ("httpx", "httpx2", "evaluate", "submitit"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("datasets", "huggingface_hub"):  # they also raise what they log
        logging.getLogger(library).setLevel(logging.CRITICAL)


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
    try:
        run()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        sys.exit(f"error: {explain(error, root)}")
    except OSError as error:  # from Hydra, which creates the job's directory
        if not from_machine(error):
            raise
        sys.exit(f"error: {error}")


def from_machine(error: Exception) -> bool:
    """Return whether a full disk or a missing permission is the cause, and not a bug."""
    if isinstance(error, OSError):
        return error.errno in CANNOT_WRITE
    # The messages of safetensors and of torch.save if they cannot write.
    return re.search("No space left|PytorchStreamWriter failed", str(error)) is not None
