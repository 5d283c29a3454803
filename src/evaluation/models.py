"""The models that a user names (runs, directories, globs, hub names), and their loading.

A model is a directory in the hub's format. Its results are stored under the model's name and a
revision: `main`, or the name of a checkpoint (`checkpoint-500`, `chck_1M`).
"""

import contextlib
import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging as transformers_logging

from src.evaluation.scoring.scorer import Backend
from src.foundation import (
    UserError,
    checksum_of_files,
    fault_by_manifest,
    fault_in_loading,
    first_line,
    parse_words,
    read_json,
)
from src.hardware import best_device

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
# Stored weights that a language model does not need: heads for other purposes, and constants
# that older versions of transformers stored.
UNUSED = (
    r"(^|\.)(pooler|seq_relationship|sop_classifier|v_head|score|classifier|qa_outputs)\."
    r"|(attn|attention)\.(masked_)?bias$|(^|\.)(inv_freq|position_ids)$"
)
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
        config = read_json(self.directory / "config.json")
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
        folders = (self.directory, self.directory.parent)
        own, of_run = (read_json(folder / "run.json") for folder in folders)
        return (own or of_run).get("identity", {}).get("training.seed")

    @property
    def words_seen(self) -> Optional[int]:
        """The number of words it was trained on, by its name (chck_10M) or the Trainer's log."""
        if words := parse_words(self.revision.partition("chck_")[2]):
            return words
        state = read_json(self.directory / "trainer_state.json")
        logs = [log for log in state.get("log_history", []) if "words" in log]
        if not logs or not logs[-1]["step"]:
            return None
        # The last log may be older than the checkpoint. Extrapolate by the words per step.
        return round(logs[-1]["words"] * state["global_step"] / logs[-1]["step"])

    def checkpoints(self) -> list["Checkpoint"]:
        """Return the milestones in a run's directory, or else its complete checkpoints."""
        milestones = list(self.directory.glob("chck_*"))
        paths = milestones or self.directory.glob("checkpoint-*")
        paths = sorted(paths, key=natural_order)
        return [local_checkpoint(path) for path in paths if _is_model(path)]


def model_folder(model: str) -> str:
    """Return the name of a model's folder, for `collate_preds --model_path_or_name`.

    The official scripts cut a name at its last dot, so `lr-0.001` and `lr-0.002` would become
    the same name. Therefore the folder's name has no dots.
    """
    return Path(model).name.replace(".", "_")


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
            new = [local_checkpoint(path) for path in _directories(name)]
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
    found = matching(name)
    if models := list(filter(_is_model, found)):
        return models
    fault = "is not a model" if found else "does not exist"
    raise UserError(f"{name} {fault}; {_list_models(Path(name).expanduser())}")


def matching(pattern: str) -> list[Path]:
    """Return what a path or a glob names, sorted by name and number.

    Names may hold brackets, so a pattern without matches is tried again with plain brackets.
    """
    path = Path(pattern).expanduser()
    found = [str(path)] if path.exists() else glob.glob(str(path))
    found = found or glob.glob(str(path).replace("[", "[[]"))
    return sorted(map(Path, found), key=natural_order)


def _list_models(path: Path) -> str:
    """Return a list of the models below a path, or below its first existing parent, as text."""
    return list_below(path, _is_model, "model (a folder with a config.json)")


def list_below(path: Path, is_wanted: Callable[[Path], bool], noun: str) -> str:
    """Return the folders below a path, or below its first existing parent, as text.

    Args:
        is_wanted: whether a folder is listed.
        noun: what such a folder is, as in "model (a folder with a config.json)".
    """
    while path != path.parent and not path.is_dir():
        path = path.parent
    path = Path("exp") if path == Path() else path
    below = [p for depth in ("*", "*/*", "*/*/*") for p in path.glob(depth)]
    lines = [str(p) for p in sorted(filter(is_wanted, below), key=natural_order)]
    if not lines:
        return f"there is no {noun} in {path}"
    if (more := len(lines) - MAX_MODELS_LISTED) > 0:
        lines[MAX_MODELS_LISTED:] = [f"… ({more} more)"]
    return "\n  ".join([f"{noun.split(' ')[0]}s in {path}:", *lines])


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def natural_order(path: Path) -> list[Union[int, str]]:
    """Return a key by which checkpoint-50 comes before checkpoint-100."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdecimal() else part for part in parts]


def local_checkpoint(path: Path) -> Checkpoint:
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
                allow_patterns=[*MODEL_FILES, "generation_config.json"],
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
    checkpoint: Checkpoint,
    backend: Backend,
    trust_remote_code: bool = False,
    use_cpu: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model in float32 on the best device, and its tokenizer.

    Raises:
        UserError: there is no tokenizer, files are damaged, or the stored weights are not those
            of the architecture. The caller adds the checkpoint's name.
    """
    directory = checkpoint.directory
    if not any(any(directory.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise UserError(
            f"has no tokenizer ({', '.join(TOKENIZER_FILES)}): save it there with"
            " tokenizer.save_pretrained"
        )
    auto_class = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    trust = {"trust_remote_code": trust_remote_code}
    with loading("trust_remote_code"):
        config = load_config(directory, **trust)
        model = load_model(auto_class, directory, config, **trust)
        tokenizer = AutoTokenizer.from_pretrained(directory, config=config, **trust)
    return model.to(best_device(use_cpu)), tokenizer


@contextlib.contextmanager
def loading(trust_key: str) -> Iterator[None]:
    """Turn every error in the block into a `UserError`.

    It may be of any type, since a model may come with Python code.

    Args:
        trust_key: the option that allows such code.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fault = fault_in_loading(error, trust_key)
        raise UserError(f"cannot be loaded: {fault}") from error


def load_config(directory: Path, trust_remote_code: bool) -> PretrainedConfig:
    """Return the configuration of a model in a directory.

    Args:
        trust_remote_code: whether Python code that comes with the model is run.
    """
    # GPT-BERT's configuration cannot be printed, as the library does, if it has a dtype.
    return AutoConfig.from_pretrained(
        directory, trust_remote_code=trust_remote_code, dtype=None
    )


def load_model(
    auto_class: Any,
    directory: Path,
    config: PretrainedConfig,
    trust_remote_code: bool,
    **options: Any,
) -> PreTrainedModel:
    """Return the model in a directory in float32 and in evaluation mode.

    Args:
        auto_class: `AutoModelForCausalLM` or `AutoModelForMaskedLM`.
        config: the configuration, which may differ from that in the directory.
        trust_remote_code: whether Python code that comes with the model is run.
        options: further options of `from_pretrained`.

    Raises:
        UserError: a file is not as `manifest.json` says, or the stored weights are not exactly
            those of the architecture with this configuration.
    """
    if fault := fault_by_manifest(directory, MODEL_FILES):
        raise UserError(
            f"{fault}: it is not as it was saved. If you changed it on purpose, copy the"
            " model without manifest.json"
        )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # `_refuse_misfit` reports the weights
    own_code = getattr(config, "auto_map", None) or {}
    if trust_remote_code and auto_class.__name__ in own_code:
        model, info = _load_with_own_code(auto_class.__name__, directory, config)
    else:
        options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)
        options |= dict(dtype=torch.float32, trust_remote_code=trust_remote_code)
        model, info = auto_class.from_pretrained(directory, config=config, **options)
    _refuse_misfit(model, info)
    return model.eval()


def _load_with_own_code(
    auto_class: str, directory: Path, config: PretrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model whose code comes with it, and how its stored weights differ.

    `from_pretrained` runs the code's `__init__` on the meta device, so buffers that are not
    stored and tensors that are plain attributes get no values (transformers 5.24: logits of NaN,
    or an error). It also needs attributes that code for older versions does not set. Here
    `__init__` computes everything, and the stored weights replace its random ones.
    """
    model_class = get_class_from_dynamic_module(config.auto_map[auto_class], directory)
    model_class.register_for_auto_class(auto_class)
    if not isinstance(model_class._tied_weights_keys, dict):
        model_class._tied_weights_keys = None  # a list, as in transformers 4
    model = model_class(config)
    files = sorted(directory.glob("model*.safetensors"))
    files = files or sorted(directory.glob("pytorch_model*.bin"))
    stored = {name: x for file in files for name, x in load_state_dict(file).items()}
    output = model.get_output_embeddings()
    names = {f"{name}.weight" for name, x in model.named_modules() if x is output}
    is_tied = getattr(config, "tie_word_embeddings", True)
    if is_tied and names and not names & stored.keys():  # as transformers 4 does
        output.weight = model.get_input_embeddings().weight
    weights = model.state_dict(keep_vars=True)
    missing, both = weights.keys() - stored.keys(), weights.keys() & stored.keys()
    shapes = [(name, stored[name].shape, weights[name].shape) for name in both]
    mismatched = [x for x in shapes if x[1] != x[2]]
    if not mismatched:
        model.load_state_dict(stored, strict=False)
    # A tied weight is stored under one of its names.
    sources = {id(weights[name]): name for name in sorted(both)}
    tied = {x: sources[id(weights[x])] for x in missing if id(weights[x]) in sources}
    model.all_tied_weights_keys = model._tied_weights_keys = tied  # to save the model
    return model, {
        "missing_keys": missing - tied.keys(),
        "unexpected_keys": stored.keys() - both - dict(model.named_buffers()).keys(),
        "mismatched_keys": mismatched,
    }


def _refuse_misfit(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raise `UserError` if the stored weights are not exactly those of the model.

    Args:
        info: the names of the weights that differ, as `from_pretrained` returns them.
    """
    architecture, faults = type(model).__name__, []
    for name, stored, configured in sorted(info["mismatched_keys"])[:1]:
        size = getattr(model.config.get_text_config(), "vocab_size", None)
        faults.append(
            f"{name} is {list(stored)}, but by its configuration (vocab_size {size})"
            f" {list(configured)}"
        )
    ignored = model._keys_to_ignore_on_load_missing or []
    if names := _some_names(info["missing_keys"], ignored):
        faults.append(f"{architecture} has no weights for {names}")
    ignored = model._keys_to_ignore_on_load_unexpected or []
    if names := _some_names(info["unexpected_keys"], [*ignored, UNUSED]):
        faults.append(f"{architecture} has no use for {names}")
    if faults:
        raise UserError(f"its weights do not fit: {'; '.join(faults)}")


def _some_names(names: Iterable[str], ignored: Iterable[str]) -> str:
    """Return three names that match no regular expression, and the number of others, as text."""
    found = sorted(x for x in names if not any(re.search(p, x) for p in ignored))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
