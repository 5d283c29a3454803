"""From the data section to blocks: what the front door calls of this room."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
from transformers import PreTrainedTokenizerBase

from src.arguments import DataTrainingArguments, ModelArguments, TokenizerArguments
from src.data.blocks import IGNORE_INDEX, Blocks, file_spans, split
from src.data.order import check_names
from src.data.packing.pack import pack
from src.data.packing.stream import Stream
from src.data.packing.tokenizer import load, load_or_train
from src.data.text.corpus import Source, read_corpus, read_hub
from src.foundation import UserError

logger = logging.getLogger(__name__)


@dataclass
class Corpora:
    """The sources of the training text and of the validation text (either may be empty)."""

    train: list[Source]
    validation: list[Source]

    @property
    def checksums(self) -> dict[str, str]:
        """`train/<name>` and `validation/<name>` → SHA-256."""
        return {
            f"{split}/{source.name}": source.checksum
            for split, sources in (
                ("train", self.train),
                ("validation", self.validation),
            )
            for source in sources
        }


@dataclass
class Data:
    """What is trained and evaluated on."""

    train_stream: Optional[Stream]
    train: Optional[Blocks]
    validation: Optional[Blocks]
    validation_names: list[str]  # of the files, as in `validation.owners`


def find_corpora(data: DataTrainingArguments, model: ModelArguments) -> Corpora:
    """Find the text and check that it can be read. Raises `UserError` where it cannot."""
    cache_dir = Path(model.cache_dir)
    if data.dataset_name:
        train = read_hub(data, "train", cache_dir, model.token)
        validation = read_hub(data, "validation", cache_dir, model.token)
        if train is None:
            raise UserError(
                f"data.dataset_name={data.dataset_name} has no split `train`"
            )
        check_names(data, [train.name])
        return Corpora([train], [validation] if validation else [])
    found = {}
    for key in ("train_file", "validation_file"):
        patterns = getattr(data, key)
        found[key] = (
            read_corpus(patterns, f"data.{key}", data, cache_dir) if patterns else []
        )
    check_names(data, [source.name for source in found["train_file"]])
    if not any(found.values()):
        raise UserError("no text: give data.train_file or data.validation_file")
    _warn_of_copies([*found["train_file"], *found["validation_file"]])
    return Corpora(found["train_file"], found["validation_file"])


def _warn_of_copies(sources: list[Source]) -> None:
    """The same text twice counts twice; trained and evaluated on, it is no evaluation."""
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
    """The tokenizer, and both corpora packed with it and cut into blocks.

    What was trained or packed before is taken from `model.cache_dir`. Existing weights bring
    their own tokenizer along.
    """
    cache_dir = Path(model.cache_dir)
    overwrite = data.overwrite_cache and main_process
    if data.preprocessing_num_workers:  # read once, when tokenizing begins
        os.environ["RAYON_NUM_THREADS"] = str(data.preprocessing_num_workers)
    name, revision = tokenizer_args.name_or_path, tokenizer_args.revision
    if not name and model.model_name_or_path:
        name, revision = model.model_name_or_path, model.revision
    if name:
        tokenizer = load(name, revision, model.token, cache_dir / "hub")
    else:
        tokenizer = load_or_train(
            corpora.train or corpora.validation,
            tokenizer_args.vocab_size,
            cache_dir,
            overwrite,
            progress=main_process,
        )
    streams = {}
    for part in ("train", "validation"):
        if sources := getattr(corpora, part):
            streams[part] = pack(
                sources,
                tokenizer,
                data.document_boundary,
                cache_dir,
                tokenizer_args.lossy,
                data.preprocessing_num_workers,
                overwrite,
                progress=main_process,
                description=f"{part} text",
            )
    return tokenizer, _cut(streams.get("train"), streams.get("validation"), data)


def _cut(
    train_stream: Optional[Stream],
    validation_stream: Optional[Stream],
    data: DataTrainingArguments,
) -> Data:
    """Blocks of both streams; without a validation stream, a part of the training one's."""
    train_spans = [(0, len(train_stream))] if train_stream else []
    restart_positions = not data.attend_across_documents
    if validation_stream:
        validation_spans = file_spans(validation_stream)
    else:
        validation_stream = train_stream
        train_spans, validation_spans = split(
            train_stream, data.validation_split_percentage
        )
    train = None
    if train_stream:
        train = Blocks(
            train_stream,
            train_spans,
            data.block_size,
            False,
            data.max_train_samples,
            restart_positions,
        )
        if not len(train):
            longest = max(end - start for start, end in train_spans)
            raise UserError(
                f"data.block_size={data.block_size}: the training text has only"
                f" {longest:,} tokens on end, less than one block and the next token"
            )
    validation = Blocks(
        validation_stream,
        validation_spans,
        data.block_size,
        True,
        data.max_eval_samples,
        restart_positions,
    )
    names = [file["name"] for file in validation_stream.files]
    return Data(train_stream, train, validation, names)


def unigram_perplexity(train: Stream, validation: Blocks, vocab_size: int) -> float:
    """Perplexity of the training text's token frequencies, with add-one smoothing.

    Over the same targets as a model's: BOS is none, so its frequency does not count either.
    """
    counts = np.ones(vocab_size)
    for start in range(0, len(train), 1 << 20):  # memory stays bounded
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
