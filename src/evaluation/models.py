"""Which models are asked for, and loading them: runs, directories, globs, hub names.

A model is a directory in the hub's format. Its results are filed under the name of the model
and a revision: `main`, or what a checkpoint is called (`checkpoint-500`, `chck_1M`).
"""

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.evaluation.results import model_folder
from src.evaluation.scoring.texts import Backend
from src.evaluation.tasks.rows import checksum
from src.foundation import UserError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
# What decides the tokens of a text.
TOKEN_FILES = (
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "*.py", *TOKENIZER_FILES,
)  # fmt: skip
# What decides a model's scores; a checkpoint holds more, such as the optimizer's state.
MODEL_FILES = (
    "config.json", "model*.safetensors*", "pytorch_model*.bin*", *TOKEN_FILES
)  # fmt: skip
CHECKPOINT = re.compile(r"checkpoint-\d+|chck_\w+")
# Ends of the names of architectures.
MASKED, CAUSAL = "MaskedLM", ("CausalLM", "LMHeadModel", "ModelWithLMHead")
# What the libraries raise for files that are missing, damaged, or of another architecture.
UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    `model` and `revision` name the folder of its results; `origin` is what was asked for.
    """

    directory: Path
    model: str
    revision: str
    origin: str
    options: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def backend(self, asked: str = "auto") -> Backend:
        """How to ask it: as `asked`, or by its architecture.

        Raises `UserError` where a model of its kind cannot be asked so: a masked one would
        see the tokens that it is to predict.
        """
        config = _read_json(self.directory / "config.json")
        architecture = (config.get("architectures") or [""])[0]
        if asked == "auto":
            return backend_of(architecture)
        family = "AutoModelForCausalLM" if asked == "causal" else "AutoModelForMaskedLM"
        if family not in (
            config.get("auto_map") or {}
        ):  # it brings no class of its own
            is_masked = architecture.endswith(MASKED)
            if is_masked if asked == "causal" else architecture.endswith(CAUSAL):
                raise UserError(
                    f"backend={asked} is not for a {architecture}: say"
                    f" backend={backend_of(architecture)}, or auto"
                )
        return asked

    @cached_property
    def checksum(self) -> str:
        """Of everything that its scores depend on."""
        return self._checksum_of(MODEL_FILES)

    @cached_property
    def tokenizer_checksum(self) -> str:
        """Of everything that its tokens depend on."""
        return self._checksum_of(TOKEN_FILES)

    def _checksum_of(self, patterns: Sequence[str]) -> str:
        return checksum(list({p for x in patterns for p in self.directory.glob(x)}))

    @property
    def seed(self) -> Optional[int]:
        """The seed it was trained with, where a record of our runs says so."""
        for directory in (self.directory, self.directory.parent):
            record = directory / "run.json"
            if record.is_file():
                return _read_json(record).get("identity", {}).get("training.seed")
        return None

    @property
    def words_seen(self) -> Optional[int]:
        """Words of its training until here: its name says it (chck_10M), or the Trainer's log."""
        if named := re.fullmatch(r"chck_(\d+)M", self.revision):
            return int(named[1]) * 1_000_000
        file = self.directory / "trainer_state.json"
        if not file.is_file():
            return None
        state = _read_json(file)
        logs = state.get("log_history", [])
        words = {log["step"]: log["words"] for log in logs if "words" in log}
        last = max(words, default=0)
        if not last:
            return None
        # Saved between two logs: as many words a step as until the last one.
        return round(words[last] * state["global_step"] / last)

    def checkpoints(self) -> list["Checkpoint"]:
        """The whole checkpoints that lie in a run's directory; none for other models."""
        found = self.directory.glob("checkpoint-*")
        return [
            _local(p, self.options) for p in sorted(found, key=_number) if _is_model(p)
        ]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of its UTF-8
        raise UserError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must be a JSON object, got {type(content).__name__}")
    return content


def find_checkpoints(
    wanted: Union[str, Sequence[str]],
    revisions: Union[str, Sequence[str], None] = None,
    cache_dir: Path = Path(".cache"),
    token: Optional[str] = None,
    trust_remote_code: bool = False,
) -> list[Checkpoint]:
    """Every model asked for, once, in the order asked for (of a glob: by name and number).

    Raises:
        UserError: nothing there, with what there is; two whose results would be one folder.
    """
    options = {"trust_remote_code": trust_remote_code}
    # Two branches of the hub may be one commit, and so one directory.
    found: dict[tuple[Path, str], Checkpoint] = {}
    for text in [wanted] if isinstance(wanted, str) else wanted:
        if _is_hub_name(text):
            branches = (
                [revisions or "main"] if not isinstance(revisions, list) else revisions
            )
            new = [_download(text, str(r), cache_dir, token, options) for r in branches]
        elif revisions is not None:
            raise UserError(f"revision={revisions} is for hub names, not for {text}")
        else:
            new = [_local(path, options) for path in _directories(text)]
        found.update(((own.directory.resolve(), own.revision), own) for own in new)
    folders: dict[tuple[str, str], Checkpoint] = {}
    for own in found.values():
        other = folders.setdefault((model_folder(own.model), own.revision), own)
        if other is not own:
            raise UserError(
                f"{other.origin} and {own.origin} would share the results of {own.model},"
                f" {own.revision}: score them one by one, each with a results_dir="
            )
    return list(found.values())


def _is_hub_name(text: str) -> bool:
    """`name` or `owner/name`, where nothing here begins like that."""
    first = text.split("/")[0]
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text)) and not (
        Path(first).exists() or first == "exp"
    )


def _directories(text: str) -> list[Path]:
    if not glob.has_magic(text):
        if _is_model(Path(text)):
            return [Path(text)]
    elif found := [Path(p) for p in glob.glob(text) if _is_model(Path(p))]:
        return sorted(found, key=_number)
    fault = "is no model" if Path(text).is_dir() else "is not there"
    raise UserError(f"checkpoint={text} {fault}; {_what_is_there(Path(text))}")


def _what_is_there(path: Path) -> str:
    """The models at, below or beside a path that is none."""
    while path != path.parent and (glob.has_magic(str(path)) or not path.is_dir()):
        path = path.parent
    path = Path("exp") if path == Path() else path
    depths = ("*", "*/*", "*/*/*")
    below = [p for depth in depths for p in path.glob(depth) if _is_model(p)]
    if not below:
        return f"there is no model (a folder with a config.json) in {path}"
    shown = [str(p) for p in sorted(below, key=_number)]
    more = [f"… ({len(shown) - 12} more)"] if len(shown) > 12 else []
    return "there is:\n  " + "\n  ".join(shown[:12] + more)


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _number(path: Path) -> list[tuple[int, str]]:
    """Sorts checkpoint-50 before checkpoint-100."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def _local(path: Path, options: dict[str, Any]) -> Checkpoint:
    """Runs of all groups are called by their seed: their group is part of the name."""
    whole = path.resolve()
    is_checkpoint = CHECKPOINT.fullmatch(whole.name) is not None
    owner = whole.parent if is_checkpoint else whole
    is_run = (owner / "run.json").is_file()
    model = f"{owner.parent.name}_{owner.name}" if is_run else owner.name
    revision = whole.name if is_checkpoint else "main"
    return Checkpoint(path, model, revision, str(path), options)


def _download(
    name: str,
    revision: str,
    cache_dir: Path,
    token: Optional[str],
    options: dict[str, Any],
) -> Checkpoint:
    """A snapshot of the hub; PyTorch's old format only where there is no other."""
    safe = [p for p in MODEL_FILES if ".bin" not in p]
    try:
        for patterns in (safe, MODEL_FILES):
            directory = Path(
                snapshot_download(
                    name, revision=revision, token=token, cache_dir=cache_dir / "hub",
                    allow_patterns=list(patterns),
                )  # fmt: skip
            )
            if any(directory.glob("*.safetensors")):
                break
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"checkpoint={name} is neither here nor on the hub (revision {revision}):"
            f" {first}; {_what_is_there(Path(name))}"
        ) from error
    return Checkpoint(directory, name, revision, f"{name} ({revision})", options)


def backend_of(architecture: str) -> Backend:
    """How a model of this class (`GPT2LMHeadModel`) is to be asked."""
    if architecture.endswith(MASKED):
        return "mlm"
    if architecture.endswith(CAUSAL):
        return "causal"
    raise UserError(
        f"backend=auto knows causal and masked language models, not {architecture or 'this'}:"
        " say backend=causal, mlm or mntp"
    )


def load(
    checkpoint: Checkpoint, backend: Backend
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, on the GPU where there is one, and its tokenizer.

    Raises:
        UserError: no tokenizer; files that cannot be read; weights that are missing, or of
            another size. It does not name the checkpoint.
    """
    where, options = str(checkpoint.directory), checkpoint.options
    if not any(any(checkpoint.directory.glob(name)) for name in TOKENIZER_FILES):
        raise UserError(
            f"has no tokenizer ({', '.join(TOKENIZER_FILES)}): save it there with"
            " tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        family = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = family.from_pretrained(
            where, dtype=torch.float32, **told, **options
        )
    except UNUSABLE as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"cannot be loaded: {first}") from error
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0][:3]
        raise UserError(
            f"its weights are not those of its config.json: {name} is {list(found)}, by"
            f" config.json (vocab_size {model.config.vocab_size:,}) {list(wanted)}; the"
            f" tokenizer has {len(tokenizer):,} entries"
        )
    if info["missing_keys"]:
        raise UserError(
            f"{type(model).__name__} finds no weights for"
            f" {', '.join(sorted(info['missing_keys'])[:3])}"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
