"""The tokenizer: trained on the training text, or loaded; saved so that others can load it.

The default is a byte-level BPE (Radford et al. 2019). Called on a text it puts BOS before
it and nothing behind it, and gives a bare word its leading space: what the challenge's
pipeline expects. Packing puts BOS and EOS around documents itself, and no spaces.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.arguments import UserError
from src.data.cache import build_once
from src.data.corpus import Source

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MIN_VOCAB_SIZE = len(pre_tokenizers.ByteLevel.alphabet()) + 3
VERSION = 1  # of the trained tokenizer: another value makes every cached one stale


def train(
    texts: Iterable[str], vocab_size: int, progress: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` entries, trained on `texts`.

    Entries 0, 1, 2 are padding, BOS and EOS. All 256 bytes are entries, so that every text
    can be written and read back.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"tokenizer.vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes and 3"
            f" special tokens), got {vocab_size}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        # Sorted: the order of the alphabet decides the ids.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress and sys.stderr.isatty(),
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
    token: Optional[str] = None,
    cache_dir: Optional[Path] = None,
    key: str = "tokenizer.name_or_path",
) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer from a directory or the hub; needs a fast one with EOS."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", token=token, cache_dir=cache_dir
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{key}={name_or_path}: no tokenizer there: {first}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{key}={name_or_path}: the tokenizer must be a fast one")
    if boundary_tokens(tokenizer)[1] is None:
        raise UserError(f"{key}={name_or_path}: the tokenizer has no EOS token")
    return tokenizer


def load_or_train(
    sources: list[Source],
    vocab_size: int,
    cache_dir: Path,
    overwrite: bool = False,
    progress: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of `vocab_size` entries trained on `sources`; from the cache, or now."""
    key = json.dumps([VERSION, vocab_size, [source.identity for source in sources]])
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    directory = cache_dir / "tokenizers" / key

    def build(temporary: Path) -> None:
        save(train(_texts(sources, progress), vocab_size, progress), temporary)

    build_once(directory, _is_whole, build, overwrite)
    return load(str(directory), key="model.cache_dir")


def _is_whole(directory: Path) -> bool:
    """Whether both files are there and can be read to their end."""
    try:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _texts(sources: list[Source], progress: bool) -> Iterator[str]:
    total = sum(source.size for source in sources)
    with tqdm(
        desc="Training the tokenizer: reading", total=total, unit="B", unit_scale=True,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        for source in sources:
            for piece in source.pieces("file"):
                bar.update(len(piece.text.encode()))
                yield piece.text


def save(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save so that `AutoTokenizer` loads the same tokenizer here and under 4.51.3.

    That version, which the challenge's pipeline pins, cannot read the class name and the list
    of extra special tokens that transformers 5 writes; it turns a prefix space off where the
    configuration does not ask for it, and makes token types, which GPT-2 would add to its
    embeddings, where the configuration does not name the model's inputs.
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
    """(BOS, EOS) ids around a document; one stands in for the other where it is missing."""
    bos = (
        tokenizer.bos_token_id
        if tokenizer.bos_token_id is not None
        else tokenizer.cls_token_id
    )
    eos = (
        tokenizer.eos_token_id
        if tokenizer.eos_token_id is not None
        else tokenizer.sep_token_id
    )
    return (bos if bos is not None else eos), (eos if eos is not None else bos)


def plain(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    """A copy that turns text into tokens and adds nothing: for packing.

    No special tokens, none read from the text either (a text may contain `</s>`), no prefix
    space, no truncation, no padding.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    _set_everywhere(description.get("pre_tokenizer"), "add_prefix_space", False)
    _set_everywhere(description.get("pre_tokenizer"), "prepend_scheme", "never")
    _set_everywhere(description.get("normalizer"), "prepend", "")
    description.update(truncation=None, padding=None, post_processor=None)
    copy = tokenizers.Tokenizer.from_str(json.dumps(description))
    copy.encode_special_tokens = True
    return copy


def _set_everywhere(node: Any, key: str, value: Any) -> None:
    if isinstance(node, dict):
        if key in node:
            node[key] = value
        for child in node.values():
            _set_everywhere(child, key, value)
    elif isinstance(node, list):
        for child in node:
            _set_everywhere(child, key, value)


def byte_lengths(tokenizer: tokenizers.Tokenizer) -> Optional[list[int]]:
    """Bytes of text each id stands for; None where the tokenizer is not byte-level.

    A byte-level vocabulary writes each byte as one character (Radford et al. 2019).
    """
    description = json.loads(tokenizer.to_str())
    kinds = json.dumps(description.get("pre_tokenizer"))
    if '"ByteLevel"' not in kinds or description.get("normalizer"):
        return None
    vocabulary = tokenizer.get_vocab()
    lengths = [0] * (max(vocabulary.values()) + 1)
    for entry, index in vocabulary.items():
        lengths[index] = len(entry)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = len(added.content.encode())
    return lengths
