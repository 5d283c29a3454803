"""The tokenizer: its training, loading, and saving for the challenge's pipeline.

The default is a byte-level BPE (Radford et al. 2019). When it is called on a text, it adds BOS
before the text but nothing after it, and a space before the first word if there is none, as the
challenge's pipeline expects. Packing does not use this: it adds BOS and EOS around documents
itself, and no spaces.
"""

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.data.cache import Cache
from src.data.text.corpus import Source, reading_bar
from src.data.text.documents import LINE
from src.foundation import UserError, first_line

logger = logging.getLogger(__name__)

FILES = ("tokenizer.json", "tokenizer_config.json")
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VERSION = 2  # of the training; with another value every tokenizer is trained again


def train(
    texts: Iterable[str] | Iterable[list[str]], vocab_size: int, progress: bool = False
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
) -> PreTrainedTokenizerBase:
    """Return a pretrained tokenizer from a directory or the hub.

    Raises:
        UserError: It is missing or damaged, or has no fast implementation or no EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", token=token, cache_dir=cache_dir
        )
    except Exception as error:
        # `tokenizers` raises a plain `Exception` for a damaged file.
        expected = (OSError, ValueError, KeyError, ImportError)
        if not isinstance(error, expected) and type(error) is not Exception:
            raise
        raise UserError(
            f"{name_or_path} has no tokenizer: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{name_or_path}: the tokenizer must be a fast one")
    if boundary_tokens(tokenizer)[1] is None:
        raise UserError(f"{name_or_path}: the tokenizer has no EOS token")
    return tokenizer


def load_or_train(
    sources: list[Source], vocab_size: int, cache: Cache
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `vocab_size` entries trained on `sources`, cached."""

    def build(directory: Path) -> None:
        logger.info("Training a tokenizer of up to %s entries …", f"{vocab_size:,}")
        lines = _lines(sources, cache.progress)
        tokenizer = train(lines, vocab_size, cache.progress)
        logger.info("The tokenizer has %s entries", f"{len(tokenizer):,}")
        save(tokenizer, directory)

    identity = [VERSION, vocab_size, [source.identity for source in sources]]
    return cache.get("tokenizers", identity, _load_cached, build)


def _load_cached(directory: Path) -> Optional[PreTrainedTokenizerBase]:
    """Return the tokenizer of a folder of the cache; None if it is missing or damaged."""
    # Without its file, transformers would look for the tokenizer on the hub.
    if not all((directory / name).is_file() for name in FILES):
        return None
    with contextlib.suppress(UserError):
        return load(str(directory))


def _lines(sources: list[Source], progress: bool) -> Iterator[list[str]]:
    """Yield lists of lines.

    Since packing tokenizes line by line, no token may be learnt across lines.
    """
    with reading_bar("Training the tokenizer: reading", sources, progress) as bar:
        for source in sources:
            for piece in source.pieces("file"):
                yield [line for text in piece.texts for line in LINE.findall(text)]
                bar.update(len(piece.text.encode()))


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
