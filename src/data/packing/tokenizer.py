"""The tokenizer: its training, loading, and saving for the challenge's pipeline.

The default is a byte-level BPE (Radford et al. 2019). When it is called on a text, it adds BOS
before the text but nothing after it, and a space before the first word if there is none, as the
challenge's pipeline expects. Packing does not use this: it adds BOS and EOS around documents
itself, and no spaces.
"""

import json
import logging
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import tokenizers
from huggingface_hub import snapshot_download
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.arguments import ModelArguments
from src.data.cache import Cache
from src.data.text.corpus import Source, reading_bar
from src.data.text.documents import BOUNDARIES, LINE
from src.foundation import UserError, fault_in_loading, first_line

logger = logging.getLogger(__name__)

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
# The special tokens of a tokenizer.json, which does not say their roles. First names win.
USUAL_NAMES = {
    "bos": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("<mask>", "[MASK]"),
}
VERSION = 2  # of the training; with another value every tokenizer is trained again


def train(
    texts: Iterable[str] | Iterable[list[str]], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocab_size` entries.

    Entries 0, 1 and 2 are padding, BOS and EOS. All 256 bytes are entries, so that every text
    can be encoded and decoded again.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        # Sorted, because the ids follow the order of the alphabet.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,  # its bars would overwrite ours
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def load(
    name_or_path: str,
    revision: Optional[str] = None,
    model: ModelArguments = ModelArguments(),
) -> PreTrainedTokenizerBase:
    """Return a pretrained tokenizer from a directory, a tokenizer.json or the hub.

    Args:
        model: The section that says how to use the hub, and whether to trust Python code.

    Raises:
        UserError: It is missing or damaged, or has no fast implementation or no EOS token, or
            it needs Python code that is not trusted.
    """
    path, trusted = Path(name_or_path).expanduser(), model.trust_remote_code
    if not path.exists():
        path = _download(name_or_path, revision, model)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        backend = tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else None
        if path.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    except Exception as error:
        # `tokenizers` raises a plain `Exception` for a damaged file.
        expected = (OSError, ValueError, KeyError, TypeError, ImportError)
        if not isinstance(error, expected) and type(error) is not Exception:
            raise
        fault = fault_in_loading(error, "model.trust_remote_code")
        if not (file.is_file() or trusted or "trust_remote_code" in fault):
            fault = "there is no tokenizer.json"
        raise UserError(
            f"{name_or_path}: cannot read the tokenizer: {fault}"
        ) from error
    if backend is not None and boundary_tokens(tokenizer)[1] is None:
        tokenizer.add_special_tokens(_special_tokens(backend))
    if not tokenizer.is_fast:
        raise UserError(f"{name_or_path}: the tokenizer must be a fast one")
    if boundary_tokens(tokenizer)[1] is None:
        raise UserError(f"{name_or_path}: the tokenizer has no EOS token")
    return tokenizer


def _download(name: str, revision: Optional[str], model: ModelArguments) -> Path:
    """Return the folder of a tokenizer of the hub. Offline, this fails at once."""
    hub = dict(token=model.token, cache_dir=Path(model.cache_dir) / "hub")
    files = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.py"]
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=files, **hub)
        )
    except (OSError, ValueError) as error:  # the hub's errors are subclasses of these
        raise UserError(
            f"there is no folder or file {name}, and it cannot be fetched from the hub:"
            f" {first_line(error)}"
        ) from error


def _special_tokens(backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Return the special tokens that a vocabulary has under their usual names, by their role."""
    vocabulary = backend.get_vocab()
    return {
        f"{role}_token": name
        for role, names in USUAL_NAMES.items()
        for name in reversed(names)
        if name in vocabulary
    }


def load_or_train(
    sources: list[Source], vocab_size: int, cache: Cache, boundary: str = "file"
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `vocab_size` entries trained on `sources`, cached.

    If the document boundary is a string, it is no text to learn from.
    """
    separator = [] if boundary in BOUNDARIES else [boundary]

    def build(directory: Path) -> None:
        logger.info("Training a tokenizer of up to %s entries …", f"{vocab_size:,}")
        lines = _lines(sources, *(separator or ["file"]), cache.progress)
        tokenizer = train(lines, vocab_size)
        logger.info("The tokenizer has %s entries", f"{len(tokenizer):,}")
        save(tokenizer, directory)

    texts = [source.identity for source in sources]
    identity = [VERSION, vocab_size, texts, *separator]
    return cache.get("tokenizers", identity, lambda path: load(str(path)), build)


def _lines(sources: list[Source], boundary: str, progress: bool) -> Iterator[list[str]]:
    """Yield lists of lines.

    No token is learnt across lines, so that packing can tokenize most texts line by line.
    """
    with reading_bar("Counting words for the tokenizer", sources, progress) as bar:
        for source in sources:
            for piece in source.pieces(boundary):
                yield [line for text in piece.split() for line in LINE.findall(text)]
                bar.update(len(piece.text.encode()))
    logger.info("The text is read; learning the merges …")


def save(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` loads the same one here and under 4.51.3.

    The challenge's pipeline pins transformers 4.51.3. That version cannot read the class name
    and the list of extra special tokens that transformers 5 writes. It adds no prefix space
    unless the configuration asks for it. Unless the configuration lists the model's inputs,
    it also returns token types, which GPT-2 would add to its embeddings.
    """
    tokenizer.save_pretrained(str(directory))
    file = Path(directory) / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only"):
        config.pop(name, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if '"add_prefix_space": true' in json.dumps(description.get("pre_tokenizer")):
        config["add_prefix_space"] = True
    extra = config.pop("extra_special_tokens", None)
    if isinstance(extra, list) and extra:
        config["additional_special_tokens"] = extra
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    """Return the ids (BOS, EOS) that packing adds around a document.

    CLS replaces a missing BOS, and SEP a missing EOS. If one of the two is still missing, the
    other is used for both. If both are missing, both are None.
    """
    special = (
        (tokenizer.bos_token_id, tokenizer.cls_token_id),
        (tokenizer.eos_token_id, tokenizer.sep_token_id),
    )
    bos, eos = (first if first is not None else second for first, second in special)
    return (eos if bos is None else bos), (bos if eos is None else eos)
