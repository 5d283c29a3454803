"""Reading of the arguments that users type, and messages for what is wrong with them."""

import difflib
import re
import shlex
from collections.abc import Sequence
from typing import Optional

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.arguments import Arguments
from src.configuration import schema
from src.configuration.run_configuration import SECRETS
from src.configuration.schema import group_choices, options, sections
from src.foundation import UserError, did_you_mean

# Old names of options, in Hugging Face's class and examples, and their new keys. A name is not
# listed if `difflib` finds the new one anyway.
RENAMED = {
    "no_cuda": "training.use_cpu",
    "warmup_ratio": "training.warmup_steps (a value below 1 is a share of the run)",
    "logging_dir": "training.report_to, with the directory in TENSORBOARD_LOGGING_DIR",
    "adafactor": "training.optim (training.optim=adafactor)",
    "push_to_hub_token": "training.hub_token",
    "torch_dtype": "training.bf16",
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "max_seq_length": "data.block_size",
    "tokenizer_name": "tokenizer.name_or_path",
    "use_auth_token": "model.token",
}
# Old options without a new name, and the reason.
REMOVED = {
    "group_by_length": "all blocks have the same length",
    "save_safetensors": "models are always saved as safetensors",
    "streaming": "the packed text is read from the disk anyway",
    "use_fast_tokenizer": "all tokenizers are fast",
    "keep_linebreaks": "the text keeps every byte",
}

# Hydra's plugins that are not in requirements.txt, by the names of their launchers and sweepers.
# The last two packages are what the storage of Optuna 2 can use, which the sweeper needs.
EXTRAS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "optuna": "hydra-optuna-sweeper 'sqlalchemy<2' 'alembic<1.14'",
}


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
    if message := _unknown_override(name, root):
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
    key = name if name in options(root) or name in groups else _new_key(name)
    if not key:
        return ", with quotes around values that have spaces; --help lists the keys"
    value = value or ("…" if re.search("=|^-|^$", following) else following)
    return f": write {'+' * (key in groups)}{key}={value}"


def explain(
    error: Exception, root: type = Arguments, arguments: Sequence[str] = ()
) -> Optional[str]:
    """Return a short message for an error that a user can correct: the key, value and rule.

    Args:
        root: the dataclass of the command's keys.
        arguments: the arguments of the command line.

    Returns:
        None for an error that a user cannot correct.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):  # Hydra does not name the file
        files = schema.CONF_DIR.rglob("*.yaml")
        names = [str(file) for file in files if error.object in file.read_bytes()]
        return f"{', '.join(names)} must be saved as UTF-8: {error}" if names else None
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        advice = " (indent with spaces)" if r"\t" in str(error.problem) else ""
        return f"{mark.name}, line {mark.line + 1}: {error.problem}{advice}"
    cause: Optional[BaseException] = error
    while isinstance(cause, HydraException):  # it wraps the error of OmegaConf
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        is_from_hydra = isinstance(error, HydraException)
        return _explain_hydra(str(error), arguments) if is_from_hydra else None
    match = re.match(r"In '([^']*)'", str(error))
    if match and root is Arguments and (advice := _advice_on_file(match.group(1))):
        return advice
    file = f"In {match.group(1)}: " if match else ""
    key = cause.full_key or ""
    reason = str(cause.msg or cause).split("\n")[0]
    if key and "not in" in reason:
        return file + _unknown(key, root)
    reason = re.sub(r"field '.*' is not Optional", "null is not allowed", reason)
    section = r"Merge error: \w+ is not a subclass of (\w+)ArgumentsSchema. value: (.*)"
    reason = re.sub(section, r"a section (\1) must hold options, got \2", reason)
    if "Invalid value 'False', expected one of [no," in reason:
        reason += " (YAML reads a bare no as false: write 'no' in quotes)"
    return file + (f"{key}: " if key else "") + reason


def _unknown_override(key: str, root: type = Arguments) -> Optional[str]:
    """Return advice on a typed key that is no option; None for any other key.

    Without this check, Hydra would report unknown keys one at a time, and would take those
    with a `+` for new ones.
    """
    section, *names = key.split(".")
    if root is not Arguments:  # `RunEvalArguments` has neither sections nor groups
        is_known = key in options(root) or key.startswith("hydra")
    elif section in sections():
        key = ".".join([section, *names[:1]])  # an option may hold any keys
        is_known = not names or key in options()
    else:  # perhaps a group of a folder that `--config-dir` names
        is_known = key in group_choices() or not _new_key(key)
    return None if is_known else _unknown(key, root)


def _new_key(name: str) -> str:
    """Return the key of an option that is named without a section; "" for no option."""
    if name in RENAMED:
        return re.split("[, ]", RENAMED[name])[0]
    return next((key for key in options() if key.endswith(f".{name}")), "")


def _advice_on_file(name: str) -> Optional[str]:
    """Return the YAML that a group's file should hold; None if its form is right.

    The form is wrong if the package line is missing, if options stand outside of their
    sections, or if a group is chosen by a plain key.

    Args:
        name: the file under `src/conf/` without its ending: model/mine.
    """
    file = schema.CONF_DIR / f"{name}.yaml"
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        return f"{file} must be saved as UTF-8 without a byte order mark (BOM)"
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        return f"{file} must hold keys with values, got {content!r}"
    is_right = bool(re.match(r"(\s*#.*\n)*\s*#\s*@package\s+_global_", text))
    includes, written, unknown = content.pop("defaults", []), {}, []
    for key, value in content.items():
        section, _, option = _new_key(str(key)).partition(".")
        if key in sections() and isinstance(value, dict):
            written.setdefault(key, {}).update(value)
        elif isinstance(value, str) and value in group_choices().get(key, ()):
            includes.append(value if key == file.parent.name else {f"/{key}": value})
            is_right = False
        elif section:
            written.setdefault(section, {})[option] = value
            is_right = False
        else:
            unknown.append(_unknown(str(key)))
    if is_right or not (includes or written):
        return None
    if includes:
        written = {"defaults": [*includes, "_self_"], **written}
    advice = f"{file}: options belong to sections. Write instead:"
    text = yaml.safe_dump(written, sort_keys=False)
    return "\n".join([advice, "", "# @package _global_", text, *unknown]).strip()


def _explain_hydra(message: str, arguments: Sequence[str]) -> str:
    """Return Hydra's message, with advice on common mistakes."""
    message, *_ = re.split(r"\s*(?:Config search path:|See https://)", message)
    missing = re.search(r"hydra/(?:launcher|sweeper)/(\w+)", message)
    if missing and missing[1] in EXTRAS:
        return f"Hydra's plugin for {missing[1]} is not installed: pip install {EXTRAS[missing[1]]}"
    if wrong := re.match(r"In '(.*)': Could not \w+ '([\w/]+?)/([^']*)'", message):
        file, group, choice = wrong.groups()
        choices = re.findall(r"\t(.*)", message) or group_choices().get(group, [])
        advice = did_you_mean(choice, choices) or "."
        origin = "" if file in ("config", "run_eval") else f"In {file}: "
        return (
            f"{origin}+{group}={choice}: there is no such {group}{advice}"
            f" Choices: {', '.join(choices)}"
        )
    if several := re.match(r"Ambiguous value for argument '(.*?)=(.*)'", message):
        key, values = several.groups()
        as_list = "" if key.startswith("+") else f"; for a list write {key}=[{values}]"
        return (
            f"{key}={values} has several values: add -m to run one after the other"
            + as_list
        )
    if plain := re.match(r"Could not override '(.*)'.*\n.* (\S+)$", message):
        return f"{plain[1]}: nothing has been chosen yet: write {plain[2]}"
    if twice := re.match(
        r"Multiple values for (\w+)|(\w+) appears more than once", message
    ):
        group = twice[1] or twice[2]
        typed = [x for x in arguments if x.startswith(f"+{group}=")]
        if len(typed) > 1:
            return f"{' and '.join(typed)} are both given: choose one"
        if typed:
            message = f"{typed[0]}: a {group} has already been chosen"
        if typed and group == "model":
            message += (
                ". A recipe brings the model for which its values were chosen: leave +model"
                f" out, or use its values for another: {typed[0][1:]}, without the +"
            )
    return message


def _unknown(key: str, root: type = Arguments) -> str:
    """Return advice on an unknown key: its new name, its section or the nearest key."""
    message, groups = f"unknown key `{key}`", group_choices()
    section, _, name = key.rpartition(".")
    if root is Arguments:  # `RunEvalArguments` has neither sections nor groups
        if key in groups or (section in groups and name in sections()):
            return f"`{key}`: does its file begin with the line `# @package _global_`?"
        if name in REMOVED:
            return f"{message}: leave it out; {REMOVED[name]}"
        if moved := RENAMED.get(name) or _new_key(name):
            return f"{message}: write {moved}"
        if section not in sections():
            message = (
                f"`{key}` is neither a section ({', '.join(sections())}) nor a group"
            )
            if close := difflib.get_close_matches(key, groups, n=1):
                choices = ", ".join(groups[close[0]])
                return f"{message}; did you mean +{close[0]}=… ({choices})?"
    known = options(root)
    siblings = [other for other in known if other.startswith(f"{section}.")] or known
    by_name = {other.rpartition(".")[2]: other for other in siblings}
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)
    return message + (f"; did you mean `{by_name[close[0]]}`?" if close else "")
