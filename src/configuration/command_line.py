"""What all front doors share: messages on the screen, errors without a traceback."""

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
from src.configuration.schema import explain
from src.foundation import UserError


def set_up_logging() -> None:
    """Messages on the screen, from the first process only. Launchers call `run` alone."""
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    for library in ("httpx", "httpx2", "evaluate", "submitit"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("datasets", "huggingface_hub"):  # their errors come to us
        logging.getLogger(library).setLevel(logging.CRITICAL)


def command_line(
    run: Callable[[], object], interrupted: str, root: type = Arguments
) -> None:
    """Calls a Hydra application: errors that the user can mend are shown in short.

    Args:
        interrupted: what to say at Ctrl-C.
        root: the dataclass of its keys.
    """
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # Hydra hands errors on instead of printing them
    )
    try:
        run()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        sys.exit(f"error: {explain(error, root)}")
    except OSError as error:  # before there is a job: no right to make its directory
        if not from_machine(error):
            raise
        sys.exit(f"error: {error}")


def from_machine(error: Exception) -> bool:
    """Whether a full disk or a missing permission raised it: nothing to mend in the code."""
    if isinstance(error, OSError):
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
        return error.errno in numbers
    # What safetensors and torch.save say when they cannot write.
    return any(
        text in str(error) for text in ("No space left", "PytorchStreamWriter failed")
    )
