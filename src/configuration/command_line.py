"""What all commands share: messages on the screen, and errors without a traceback."""

import errno
import logging
import os
import signal
import sys
from typing import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.arguments import Arguments
from src.configuration.errors import explain
from src.foundation import UserError


def set_up_logging() -> None:
    """Show messages on the screen, in the first process only.

    Every job calls this, since launchers call only `run`, not the command line.
    """
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    for library in ("httpx", "httpx2", "evaluate", "submitit"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("datasets", "huggingface_hub"):  # they raise the errors they log
        logging.getLogger(library).setLevel(logging.CRITICAL)


def command_line(
    run: Callable[[], object], interrupted: str, root: type = Arguments
) -> None:
    """Run a Hydra application. An error that the user can mend ends it with one message.

    Args:
        interrupted: the message after Ctrl-C.
        root: the dataclass of the command's keys.
    """
    # Hydra then raises errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        sys.exit(f"error: {explain(error, root)}")
    except OSError as error:  # Hydra could not make the job's directory
        if not from_machine(error):
            raise
        sys.exit(f"error: {error}")


def from_machine(error: Exception) -> bool:
    """Return whether a full disk or a missing permission is the cause, not a bug."""
    if isinstance(error, OSError):
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
        return error.errno in numbers
    # The messages of safetensors and torch.save when they cannot write.
    return any(
        text in str(error) for text in ("No space left", "PytorchStreamWriter failed")
    )
