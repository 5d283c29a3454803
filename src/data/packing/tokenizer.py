"""The tokenizer: trained on the training text, or loaded; saved so that others can load it.

The default is a byte-level BPE (Radford et al. 2019). Called on a text it puts BOS before
it and nothing behind it, and gives a bare word its leading space: what the challenge's
pipeline expects. Packing puts BOS and EOS around documents itself, and no spaces.
"""

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.data.packing.cache import build_once
from src.data.text.corpus import Source
from src.data.text.documents import LINE
from src.data.text.words import count_words
from src.foundation import UserError

logger = logging.getLogger(__name__)

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MIN_VOCAB_SIZE = len(pre_tokenizers.ByteLevel.alphabet()) + 3
VERSION = 2  # of the trained tokenizer: another value makes every cached one stale


def train(
    texts: Iterable[str] | Iterable[list[str]], vocab_size: int, progress: bool = False
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
        logger.info("Training a tokenizer of %s entries …", f"{vocab_size:,}")
        save(train(_lines(sources, progress), vocab_size, progress), temporary)

    return build_once(directory, _load_whole, build, overwrite)


def _load_whole(directory: Path) -> Optional[PreTrainedTokenizerBase]:
    """The tokenizer, if both files are there to their end."""
    try:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (directory / name).read_text(encoding="utf-8")
            if not text.rstrip().endswith("}"):
                return None
    except (OSError, ValueError):
        return None
    return load(str(directory), key="model.cache_dir")


def _lines(sources: list[Source], progress: bool) -> Iterator[list[str]]:
    """Lists of lines: tokens are not learnt across lines, since none are packed so."""
    total = sum(source.size for source in sources)
    began, words = time.perf_counter(), 0
    with tqdm(
        desc="Training the tokenizer: reading", total=total, unit="B", unit_scale=True,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        for source in sources:
            for piece in source.pieces("file"):
                yield [line for text in piece.texts for line in LINE.findall(text)]
                bar.update(len(piece.text.encode()))
                words += count_words(piece.text)
                speed = words / (time.perf_counter() - began)
                bar.set_postfix_str(f"{speed:,.0f} words/s", refresh=False)
    logger.info("The tokenizer is trained on %s words", f"{words:,}")


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
