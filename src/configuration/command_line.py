"""Logging and error handling of all commands: users see messages without a traceback."""

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from src.arguments import Arguments
from src.configuration.errors import explain, new_key, unknown_override
from src.configuration.run_configuration import SECRETS, hide_secrets
from src.configuration.schema import group_choices, options
from src.foundation import UserError, write_fault

UNBROKEN = dict(break_long_words=False, break_on_hyphens=False)


class Screen(logging.StreamHandler):
    """Handler that writes messages above the progress bars.

    On a terminal, it wraps them between words. Commands stay whole, so that they can be copied.
    A record may have a shorter text, `short`, for a terminal that is too narrow. No line is
    wrapped at no-break spaces.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        width = shutil.get_terminal_size().columns  # of now: a window can be resized
        if not self.stream.isatty() or len(message) <= width:
            return message
        lines = getattr(record, "short", message).split("\n")
        for i, line in enumerate(lines):
            if not re.search("python -m|wandb sync", line):
                lines[i] = textwrap.fill(
                    line, width, subsequent_indent="    ", **UNBROKEN
                )
        return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")

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
    for library in ("httpx", "httpx2", "evaluate", "hydra", "submitit"):
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
            sys.exit(f"error: {message}")
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
        sys.exit(f"error: {hide_secrets(message)}")


def show(run: Callable[[], object]) -> None:
    """Print what Hydra shows for `--help` or `--cfg`, without secrets."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            run()
    finally:
        print(hide_secrets(output.getvalue()), end="", flush=True)


def readable(arguments: Sequence[str], root: type) -> tuple[list[str], bool]:
    """Return the arguments in a form that Hydra reads, and whether they only ask for a text.

    Flags come first, since Hydra reads no override behind a flag that follows another one.

    Raises:
        UserError: arguments are no overrides, or their keys are unknown; all at once.
    """
    # Hydra has no public parser of its flags.
    flags, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    others = [*flags.overrides, *unknown]
    read = [argument for argument in arguments if argument not in others]
    read += ["--resolve"] * (flags.cfg == "job")
    problems: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        is_value = problems and not re.search("=|^-", argument)  # of a refused key
        if argument in others and not is_value:
            try:
                read.append(_readable(argument, following, root))
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    shows = flags.help or flags.hydra_help or flags.cfg or flags.info
    return read, bool(shows)


def _readable(argument: str, following: str, root: type) -> str:
    """Return an override that Hydra can read.

    A value that Hydra's grammar cannot read is text, and gets quotes, unless it looks like a
    list, a dictionary or several values.

    Args:
        following: the next argument, which may be the value in `training.seed 1`.
    """
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not key.strip("+") or not (equals or "~" in key):
        intended = _intended(argument, following, root)
        raise UserError(f"`{argument}` is not of the form key=value{intended}")
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        if re.match(r"[\[{'\"]|.*,", value) or re.search(r"[\s:]", key):
            quoted = shlex.quote(f'{key.strip()}="{value.strip()}"')
            raise UserError(
                f"cannot read `{argument}`: a list is written [a,b], a dictionary"
                f" '{{a: 1}}', and text with special characters gets quotes: {quoted}"
            ) from None
        return "{}='{}'".format(key, value.replace("'", r"\'"))
    name = override.key_or_group
    if message := unknown_override(name, root):
        raise UserError(message)
    if override.is_sweep_override() and name in SECRETS:
        raise UserError(
            f"{name} must be one token, since Hydra records the values of a sweep"
        )
    groups = group_choices() if root is Arguments else {}
    if name not in groups:
        if override.is_delete() or not value:
            raise UserError(f"`{argument}` gives no value; for none, write {name}=null")
        # An option that takes any keys may get new ones.
        takes_keys = name.count(".") > 1 or isinstance(override.value(), dict)
        return f"++{argument.lstrip('+')}" if takes_keys else argument
    names = str if name in ("model", "dataset") else (str, list)
    is_checked_by_hydra = override.is_delete() or override.is_sweep_override()
    if not (is_checked_by_hydra or isinstance(override.value(), names)):
        choices = ", ".join(groups[name])
        raise UserError(f"`{argument}` must name one of these: {choices}")
    return argument


def _intended(argument: str, following: str, root: type) -> str:
    """Return what to write instead of `--training.seed=1`, `training.seed 1` and the like."""
    name, value = re.match(r"[-+]*([^\s:=]*)[\s:=]*(.*)", argument).groups()
    groups = group_choices() if root is Arguments else {}
    key = name if name in options(root) or name in groups else new_key(name)
    if not key:
        return ", with quotes around values that have spaces; --help lists the keys"
    value = value or ("…" if re.search("=|^-|^$", following) else following)
    return f": write {'+' * (key in groups)}{key}={value}"


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
