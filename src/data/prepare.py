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
from src.data.text.corpus import Source, check_boundary, read_corpus, read_hub
from src.foundation import UserError, check_folder, naming
from src.processes import rank_and_number

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpora:
    """The sources of the training text and of the validation text; either may be empty."""

    train: list[Source]
    validation: list[Source]

    @property
    def validation_names(self) -> list[str]:
        """The names of the sources that hold the validation text."""
        return [source.name for source in self.validation or self.train]

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
    """The blocks that a run trains on and is evaluated on."""

    train_stream: Optional[Stream]
    train: Optional[Blocks]
    validation: Blocks


def find_corpora(data: DataTrainingArguments, model: ModelArguments) -> Corpora:
    """Return the sources that the data section names, after a check that they can be read.

    Raises:
        UserError: A file cannot be read, or a name in the data section is wrong.
    """
    cache_dir = Path(model.cache_dir)
    with naming("model.cache_dir"):
        check_folder(cache_dir)
    if data.dataset_name:
        with naming("data.dataset_name"):
            splits = read_hub(data, model)
            if "train" not in splits:
                raise UserError(f"{data.dataset_name} has no split `train`")
            validation = [splits[name] for name in splits if name == "validation"]
            corpora = Corpora([splits["train"]], validation)
            for source in [*corpora.train, *validation]:
                next(source.texts(), None)  # raises if there is no such column
    else:
        with naming("data.train_file"):
            train = read_corpus(data.train_file or [], cache_dir, data.text_column)
        with naming("data.validation_file"):
            patterns = data.validation_file or []
            validation = read_corpus(patterns, cache_dir, data.text_column)
        corpora = Corpora(train, validation)
    check_names(data, [source.name for source in corpora.train])
    check_boundary(data.document_boundary, [*corpora.train, *corpora.validation])
    _warn_about_copies([*corpora.train, *corpora.validation])
    return corpora


def _warn_about_copies(sources: list[Source]) -> None:
    """Log a warning for each source with the same text as another, in either corpus."""
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
) -> tuple[PreTrainedTokenizerBase, Data]:
    """Return the tokenizer, and both corpora packed with it and cut into blocks.

    A tokenizer or packed corpus in `model.cache_dir` is reused. Only the main process shows
    progress, and obeys `data.overwrite_cache`.
    """
    if num_workers := data.preprocessing_num_workers:
        # `tokenizers` reads the variable when it starts its threads.
        os.environ["RAYON_NUM_THREADS"] = str(num_workers)
    main_process = rank_and_number()[0] == 0
    overwrite = data.overwrite_cache and main_process
    cache = Cache(Path(model.cache_dir), overwrite, progress=main_process)
    boundary, lossy = data.document_boundary, tokenizer_args.lossy
    tokenizer = named_tokenizer(tokenizer_args, model)
    if tokenizer is None:
        sources = corpora.train or corpora.validation
        size = tokenizer_args.vocab_size
        tokenizer = load_or_train(sources, size, cache, boundary)
    packer = Packer(tokenizer, boundary, cache, lossy, num_workers)
    train, validation = (
        packer.pack(sources, f"{name} text") if sources else None
        for name, sources in vars(corpora).items()
    )
    return tokenizer, _cut(train, validation, data)


def named_tokenizer(
    args: TokenizerArguments, model: ModelArguments
) -> Optional[PreTrainedTokenizerBase]:
    """Return the tokenizer that is named, or that of the initial weights; None: train one."""
    if args.name_or_path:
        with naming("tokenizer.name_or_path"):
            return load(args.name_or_path, args.revision, model)
    if model.model_name_or_path:
        with naming("model.model_name_or_path"):
            return load(model.model_name_or_path, model.revision, model)
    return None


def _cut(
    train_stream: Optional[Stream],
    validation_stream: Optional[Stream],
    data: DataTrainingArguments,
) -> Data:
    """Cut both streams into blocks. Without a validation stream, hold out training text."""
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
                f"data.block_size={size}: the training text has only {longest:,} consecutive"
                " tokens, fewer than one block and the token after it"
            )
        if validation_stream is train_stream:
            starts, ends = np.array(validation_spans).T
            words = train_stream.num_words(starts + 1, ends).sum()
            logger.info(
                f"Without validation text, the last {percentage:g} % of each training file"
                f" are held out: {words:,} words"
            )
    return Data(train_stream, train, validation)


def unigram_perplexity(train: Stream, validation: Blocks, vocab_size: int) -> float:
    """Return the perplexity of a unigram model of the training text, add-one smoothed.

    It is computed over the same targets as a model's perplexity. BOS is never a target, so
    its frequency is not counted.
    """
    counts = np.ones(vocab_size)
    for start in range(0, len(train), 1 << 20):  # in parts, to bound the memory
        part = train.tokens[start : start + (1 << 20)]
        counts += np.bincount(part, minlength=vocab_size)
    counts[train.tokens[0]] -= len(train.documents)
    log_probabilities = np.log(counts / counts.sum())
    labels = np.concatenate([validation[i]["labels"] for i in range(len(validation))])
    return float(np.exp(-log_probabilities[labels[labels != IGNORE_INDEX]].mean()))
