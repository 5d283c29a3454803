"""The tokenizer: trained on the training text or loaded, and saved so that others can load it.

The default is a byte-level BPE (Radford et al. 2019). Called on a text, it puts BOS before
the text and nothing behind it, and a space before a first word without one, as the
challenge's pipeline expects. Packing puts BOS and EOS around documents itself and adds no
spaces.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.data.cache import Cache
from src.data.packing.progress import ReadingBar
from src.data.text.corpus import Source
from src.data.text.documents import LINE
from src.data.text.words import count_words
from src.foundation import UserError, first_line, naming

logger = logging.getLogger(__name__)

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MIN_VOCAB_SIZE = len(pre_tokenizers.ByteLevel.alphabet()) + 3
VERSION = 2  # of the training; another value makes every cached tokenizer stale


def train(
    texts: Iterable[str] | Iterable[list[str]], vocab_size: int, progress: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocab_size` entries.

    Entries 0, 1 and 2 are padding, BOS and EOS. All 256 bytes are entries, so that every text
    can be encoded and decoded again.
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
        # Sorted, because the order of the alphabet decides the ids.
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
    """Load a pretrained tokenizer from a directory or the hub.

    Raises:
        UserError: There is none, or it has no fast implementation or no EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", token=token, cache_dir=cache_dir
        )
    except (OSError, ValueError, KeyError) as error:
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
        logger.info("Training a tokenizer of %s entries …", f"{vocab_size:,}")
        lines = _lines(sources, cache.progress)
        save(train(lines, vocab_size, cache.progress), directory)

    identity = [VERSION, vocab_size, [source.identity for source in sources]]
    return cache.get("tokenizers", identity, _load_complete, build)


def _load_complete(directory: Path) -> Optional[PreTrainedTokenizerBase]:
    """Load the tokenizer if both of its files are complete."""
    try:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (directory / name).read_text(encoding="utf-8")
            if not text.rstrip().endswith("}"):
                return None
    except (OSError, ValueError):
        return None
    with naming("model.cache_dir"):
        return load(str(directory))


def _lines(sources: list[Source], progress: bool) -> Iterator[list[str]]:
    """Yield lists of lines: no token is learnt across lines, since none is packed across."""
    with ReadingBar("Training the tokenizer: reading", sources, progress) as bar:
        for source in sources:
            for piece in source.pieces("file"):
                yield [line for text in piece.texts for line in LINE.findall(text)]
                bar.advance(len(piece.text.encode()), count_words(piece.text))
    logger.info("The tokenizer is trained on %s words", f"{bar.num_words:,}")


def save(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` loads the same one here and under 4.51.3.

    The challenge's pipeline pins transformers 4.51.3. That version cannot read the class name
    and the list of extra special tokens that transformers 5 writes. It also turns off a
    prefix space that the configuration does not ask for, and it returns token types, which
    GPT-2 would add to its embeddings, unless the configuration names the model's inputs.
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
    """Return the ids (BOS, EOS) put around a document.

    Without BOS it is the CLS token and without EOS the SEP token. If one of the two is still
    missing, it is the other; if both are, both are None.
    """
    special = (
        (tokenizer.bos_token_id, tokenizer.cls_token_id),
        (tokenizer.eos_token_id, tokenizer.sep_token_id),
    )
    bos, eos = (first if first is not None else second for first, second in special)
    return (eos if bos is None else bos), (bos if eos is None else eos)
