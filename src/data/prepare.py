"""Preparation of the data: from the sections `data` and `tokenizer` to blocks."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.arguments import DataTrainingArguments, ModelArguments, TokenizerArguments
from src.data.blocks import IGNORE_INDEX, Blocks, file_spans, split
from src.data.cache import Cache
from src.data.order import check_names
from src.data.packing.pack import Packer
from src.data.packing.stream import Stream
from src.data.packing.tokenizer import load, load_or_train
from src.data.text.corpus import Source, read_corpus, read_hub
from src.foundation import UserError, naming

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpora:
    """The sources of the training text and of the validation text; either may be empty."""

    train: list[Source]
    validation: list[Source]

    @property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every source under `train/<name>` or `validation/<name>`."""
        return {
            f"{split}/{source.name}": source.checksum
            for split, sources in vars(self).items()
            for source in sources
        }


@dataclass(frozen=True)
class Data:
    """The blocks that a run is trained and evaluated on."""

    train_stream: Optional[Stream]
    train: Optional[Blocks]
    validation: Optional[Blocks]
    validation_names: list[str]  # of the files, as numbered by `validation.owners`


def find_corpora(data: DataTrainingArguments, model: ModelArguments) -> Corpora:
    """Find the text and check that it can be read.

    Raises:
        UserError: There is no text, or a file or a name in the data section is wrong.
    """
    cache_dir = Path(model.cache_dir)
    if data.dataset_name:
        with naming("data.dataset_name"):
            splits = read_hub(data, cache_dir, model.token)
            if "train" not in splits:
                raise UserError(f"{data.dataset_name} has no split `train`")
        used = {name: [splits[name]] for name in splits}
    else:
        used = {}
        for name in ("train", "validation"):
            key = f"{name}_file"
            with naming(f"data.{key}"):
                patterns = getattr(data, key) or []
                used[name] = read_corpus(patterns, cache_dir, data.text_column)
    corpora = Corpora(used["train"], used.get("validation", []))
    sources = [*corpora.train, *corpora.validation]
    if not sources:
        raise UserError("no text: give data.train_file or data.validation_file")
    check_names(data, [source.name for source in corpora.train])
    _warn_about_copies(sources)
    return corpora


def _warn_about_copies(sources: list[Source]) -> None:
    """Warn about text that counts twice, or that is both trained and evaluated on."""
    seen: dict[tuple[str, str], Source] = {}
    for source in sources:
        first = seen.setdefault(source.identity, source)
        if first is not source:
            logger.warning("%s has the same text as %s", source.where, first.where)


def load_data(
    corpora: Corpora,
    tokenizer_args: TokenizerArguments,
    data: DataTrainingArguments,
    model: ModelArguments,
    main_process: bool = True,
) -> tuple[PreTrainedTokenizerBase, Data]:
    """Return the tokenizer, and both corpora packed with it and cut into blocks.

    What has been trained or packed before comes from `model.cache_dir`.

    Args:
        main_process: Show progress, and build again if `data.overwrite_cache` is true.
    """
    if data.preprocessing_num_workers:  # read once, when tokenizing begins
        os.environ["RAYON_NUM_THREADS"] = str(data.preprocessing_num_workers)
    overwrite = data.overwrite_cache and main_process
    cache = Cache(Path(model.cache_dir), overwrite, progress=main_process)
    tokenizer = _tokenizer(corpora, tokenizer_args, model, cache)
    packer = Packer(
        tokenizer,
        data.document_boundary,
        cache,
        tokenizer_args.lossy,
        data.preprocessing_num_workers,
    )
    streams = {
        name: packer.pack(sources, f"{name} text")
        for name, sources in vars(corpora).items()
        if sources
    }
    return tokenizer, _cut(streams.get("train"), streams.get("validation"), data)


def _tokenizer(
    corpora: Corpora, args: TokenizerArguments, model: ModelArguments, cache: Cache
) -> PreTrainedTokenizerBase:
    """Load the named tokenizer, or that of the initial weights, or train one."""
    for key, name, revision in (
        ("tokenizer.name_or_path", args.name_or_path, args.revision),
        ("model.model_name_or_path", model.model_name_or_path, model.revision),
    ):
        if name:
            with naming(key):
                return load(name, revision, model.token, cache.directory / "hub")
    return load_or_train(corpora.train or corpora.validation, args.vocab_size, cache)


def _cut(
    train_stream: Optional[Stream],
    validation_stream: Optional[Stream],
    data: DataTrainingArguments,
) -> Data:
    """Cut both streams into blocks; without a validation stream, hold out training text."""
    train_spans = [(0, len(train_stream))] if train_stream else []
    if validation_stream:
        validation_spans = file_spans(validation_stream)
    else:
        validation_stream = train_stream
        percentage = data.validation_split_percentage
        train_spans, validation_spans = split(train_stream, percentage)
    size, restart = data.block_size, not data.attend_across_documents
    limit = data.max_eval_samples
    validation = Blocks(validation_stream, validation_spans, size, True, limit, restart)
    train = None
    if train_stream:
        limit = data.max_train_samples
        train = Blocks(train_stream, train_spans, size, False, limit, restart)
        if not len(train):
            longest = max(end - start for start, end in train_spans)
            raise UserError(
                f"data.block_size={size}: the training text has only {longest:,} tokens"
                " in a row, less than one block and the token after it"
            )
    names = [file["name"] for file in validation_stream.files]
    return Data(train_stream, train, validation, names)


def unigram_perplexity(train: Stream, validation: Blocks, vocab_size: int) -> float:
    """Return the perplexity of the training text's token frequencies, add-one smoothed.

    It is computed over the same targets as a model's perplexity. BOS is never a target, so
    its frequency does not count either.
    """
    counts = np.ones(vocab_size)
    for start in range(0, len(train), 1 << 20):  # in parts, to bound the memory
        part = train.tokens[start : start + (1 << 20)]
        counts += np.bincount(part, minlength=vocab_size)
    counts[train.tokens[0]] -= len(train.documents)
    log_probabilities = np.log(counts / counts.sum())
    total = number = 0
    for block in range(len(validation)):
        labels = validation[block]["labels"].numpy()
        targets = labels[labels != IGNORE_INDEX]
        total += log_probabilities[targets].sum()
        number += len(targets)
    return float(np.exp(-total / number))
