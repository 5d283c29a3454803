"""The models that a user names (runs, directories, globs, hub names), and their loading.

A model is a directory in the hub's format. Its results are stored under the model's name and a
revision: `main`, or the name of a checkpoint (`checkpoint-500`, `chck_1M`).
"""

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.evaluation.results import model_folder
from src.evaluation.scoring.scorer import Backend
from src.foundation import UserError, checksum_of_files, first_line

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
# The files that determine a model's scores. A checkpoint holds more, such as the optimizer's
# state.
MODEL_FILES = (
    "config.json", "model*.safetensors*", "pytorch_model*.bin*", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.py",
    *TOKENIZER_FILES,
)  # fmt: skip
CHECKPOINT = re.compile(r"checkpoint-\d+|chck_\w+")
# Suffixes of the names of architectures.
MASKED, CAUSAL = "MaskedLM", ("CausalLM", "LMHeadModel", "ModelWithLMHead")
# Errors that the libraries raise for files that are missing, damaged or of another architecture.
UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
MAX_MODELS_LISTED = 12


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Args:
        model, revision: the two names in the path of its results.
        origin: the path or hub name by which the user requested it.
    """

    directory: Path
    model: str
    revision: str
    origin: str

    def backend(self, requested: str = "auto") -> Backend:
        """Return the requested backend, or for `auto` the backend of the architecture.

        Raises:
            UserError: the backend does not suit the architecture. For example, a masked model
                that is scored as a causal one would see the tokens that it has to predict.
        """
        config = _read_json(self.directory / "config.json")
        architecture = (config.get("architectures") or [""])[0]
        if requested == "auto":
            return backend_of(architecture)
        causal = requested == "causal"
        auto_class = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
        has_own_class = auto_class in (config.get("auto_map") or {})
        if architecture.endswith(MASKED if causal else CAUSAL) and not has_own_class:
            raise UserError(
                f"backend={requested} does not suit a {architecture}: use"
                f" backend={backend_of(architecture)}, or auto"
            )
        return requested

    @cached_property
    def checksum(self) -> str:
        """The checksum of all files that its scores depend on."""
        directory = self.directory
        return checksum_of_files({p for x in MODEL_FILES for p in directory.glob(x)})

    @property
    def seed(self) -> Optional[int]:
        """The seed of its training, if it is one of our runs."""
        files = [self.directory / "run.json", self.directory.parent / "run.json"]
        records = (_read_json(file) for file in files if file.is_file())
        return next(records, {}).get("identity", {}).get("training.seed")

    @property
    def words_seen(self) -> Optional[int]:
        """The number of words it was trained on, by its name (chck_10M) or the Trainer's log."""
        if match := re.fullmatch(r"chck_(\d+)M", self.revision):
            return int(match[1]) * 1_000_000
        file = self.directory / "trainer_state.json"
        state = _read_json(file) if file.is_file() else {}
        logs = [log for log in state.get("log_history", []) if "words" in log]
        if not logs or not logs[-1]["step"]:
            return None
        # The last log may be older than the checkpoint. Extrapolate by the words per step.
        return round(logs[-1]["words"] * state["global_step"] / logs[-1]["step"])

    def checkpoints(self) -> list["Checkpoint"]:
        """Return the complete checkpoints in a run's directory; none for other models."""
        paths = sorted(self.directory.glob("checkpoint-*"), key=_natural_order)
        return [_local(path) for path in paths if _is_model(path)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise UserError(f"{file} is not JSON: {error}") from error


def find_checkpoints(
    names: Union[str, Sequence[str]],
    revisions: Union[str, Sequence[str], None] = None,
    cache_dir: Path = Path(".cache"),
    token: Optional[str] = None,
) -> list[Checkpoint]:
    """Return the models with these names, each once and in this order.

    Args:
        names: directories, globs (whose models are sorted by name and number) and hub names
            (`owner/name`).
        revisions: branches on the hub; None: `main`.
        cache_dir: folder for downloads.
        token: access token of the hub.

    Raises:
        UserError: there is no model with a name (the message lists models that exist), a
            download failed, or two models would share one folder of results.
    """
    models: dict[tuple[str, str], Checkpoint] = {}
    for name in [names] if isinstance(names, str) else names:
        if _is_hub_name(name):
            branches = revisions if isinstance(revisions, list) else [revisions]
            branches = [str(branch or "main") for branch in branches]
            new = [_download(name, branch, cache_dir, token) for branch in branches]
        elif revisions is not None:
            raise UserError(f"revision={revisions} is for hub names, not for {name}")
        else:
            new = [_local(path) for path in _directories(name)]
        for model in new:
            key = (model_folder(model.model), model.revision)
            other = models.setdefault(key, model)
            if other.directory.resolve() != model.directory.resolve():
                both = f"{other.origin} and {model.origin}"
                raise UserError(f"{both} would share one folder in results_dir")
    return list(models.values())


def _is_hub_name(name: str) -> bool:
    """Return whether `name` looks like `name` or `owner/name` and is not a local path."""
    first = name.split("/")[0]
    is_local = Path(first).exists() or first == "exp"
    return not is_local and bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name))


def _directories(name: str) -> list[Path]:
    """Return the models of a path or a glob, sorted by name and number."""
    paths = map(Path, glob.glob(name) if glob.has_magic(name) else [name])
    if models := sorted(filter(_is_model, paths), key=_natural_order):
        return models
    fault = "is not a model" if Path(name).is_dir() else "does not exist"
    raise UserError(f"{name} {fault}; {_list_models(Path(name))}")


def _list_models(path: Path) -> str:
    """Return a list of the models below a path, or below its first existing parent, as text."""
    while path != path.parent and (glob.has_magic(str(path)) or not path.is_dir()):
        path = path.parent
    path = Path("exp") if path == Path() else path
    below = [p for depth in ("*", "*/*", "*/*/*") for p in path.glob(depth)]
    lines = [str(p) for p in sorted(filter(_is_model, below), key=_natural_order)]
    if not lines:
        return f"there is no model (a folder with a config.json) in {path}"
    if (more := len(lines) - MAX_MODELS_LISTED) > 0:
        lines[MAX_MODELS_LISTED:] = [f"… ({more} more)"]
    return "\n  ".join([f"models in {path}:", *lines])


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _natural_order(path: Path) -> list[Union[int, str]]:
    """Return a key by which checkpoint-50 comes before checkpoint-100."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdecimal() else part for part in parts]


def _local(path: Path) -> Checkpoint:
    """Return the model in a directory.

    The model name of a run contains its group, because runs of different groups have the same
    names, such as `seed-42`.
    """
    whole = path.resolve()
    is_checkpoint = CHECKPOINT.fullmatch(whole.name) is not None
    owner = whole.parent if is_checkpoint else whole
    is_run = (owner / "run.json").is_file()
    model = f"{owner.parent.name}_{owner.name}" if is_run else owner.name
    return Checkpoint(path, model, whole.name if is_checkpoint else "main", str(path))


def _download(
    name: str, revision: str, cache_dir: Path, token: Optional[str]
) -> Checkpoint:
    """Return a model of the hub.

    PyTorch's old format is downloaded only if there are no safetensors.
    """
    try:
        for ignored in ("pytorch_model*.bin*", None):
            snapshot = snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir / "hub",
                allow_patterns=list(MODEL_FILES),
                ignore_patterns=ignored,
            )
            if any(Path(snapshot).glob("*.safetensors")):
                break
    except (OSError, ValueError) as error:  # the hub's errors are subclasses of these
        raise UserError(
            f"{name} is neither a local path nor on the hub (revision {revision}):"
            f" {first_line(error)}; {_list_models(Path(name))}"
        ) from error
    return Checkpoint(Path(snapshot), name, revision, f"{name} ({revision})")


def backend_of(architecture: str) -> Backend:
    """Return the backend for models of a class, such as `GPT2LMHeadModel`."""
    if architecture.endswith(MASKED):
        return "mlm"
    if architecture.endswith(CAUSAL):
        return "causal"
    raise UserError(
        "backend=auto supports causal and masked language models, not"
        f" {architecture or 'this model'}: set backend=causal, mlm or mntp"
    )


def load(
    checkpoint: Checkpoint, backend: Backend, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model in float32, on the GPU if there is one, and its tokenizer.

    Raises:
        UserError: there is no tokenizer, files are damaged, or weights are missing or have
            another size than config.json says. The caller adds the checkpoint's name.
    """
    directory = str(checkpoint.directory)
    if not any(any(checkpoint.directory.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise UserError(
            f"has no tokenizer ({', '.join(TOKENIZER_FILES)}): save it there with"
            " tokenizer.save_pretrained"
        )
    options = {"trust_remote_code": trust_remote_code}
    auto_class = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = auto_class.from_pretrained(
            directory, dtype=torch.float32, **options
        )
    except UNUSABLE as error:
        raise UserError(f"cannot be loaded: {first_line(error)}") from error
    if info["mismatched_keys"]:
        name, stored, configured = sorted(info["mismatched_keys"])[0][:3]
        raise UserError(
            f"its weights do not fit its config.json: {name} is {list(stored)}, but by"
            f" config.json (vocab_size {model.config.vocab_size:,}) {list(configured)};"
            f" the tokenizer has {len(tokenizer):,} entries"
        )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{type(model).__name__} has no weights for {names}")
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
