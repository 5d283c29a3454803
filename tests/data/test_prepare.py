"""Preparation: from the data section of a configuration to blocks."""

import logging
from pathlib import Path

import pytest

from src.arguments import DataTrainingArguments, ModelArguments, TokenizerArguments
from src.data.blocks import Blocks, file_spans
from src.data.packing.tokenizer import load
from src.data.prepare import (
    Data,
    find_corpora,
    load_data,
    unigram_perplexity,
)
from src.foundation import UserError, sha256


def prepare(
    folder: Path, vocab_size: int = 259, tokenizer: str | None = None, **options
) -> Data:
    """Return the data of a run with these values of the data section."""
    model = ModelArguments(cache_dir=str(folder / "cache"))
    data = DataTrainingArguments(**options)
    corpora = find_corpora(data, model)
    arguments = TokenizerArguments(vocab_size=vocab_size, name_or_path=tokenizer)
    return load_data(corpora, arguments, data, model)[1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two files, every byte a token: < a _ b | | > < c | >  and  < d e _ f >"""
    (tmp_path / "first.train").write_text("a b\n\nc\n")
    (tmp_path / "second.train").write_text("de f")
    return tmp_path


def test_validation_text_is_evaluated_file_by_file(corpus: Path, tmp_path: Path):
    data = prepare(
        tmp_path,
        train_file=f"{corpus}/*.train",
        validation_file=f"{corpus}/*.dev",
        block_size=16,
    )
    assert data.validation.stream.names == ["childes", "gutenberg"]
    assert set(data.validation.owners_of(range(len(data.validation)))) == {0, 1}
    # All of both: 40 sentences of five words in each file, 240 and 160 for training.
    assert data.validation.words.sum() == 400
    assert data.train_stream.num_words(0, len(data.train_stream)) == 2000
    assert data.train.remainder < 16


def test_without_validation_text_the_end_of_every_file_is_held_out(
    corpus, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    data = prepare(tmp_path, train_file=f"{corpus}/*.train", block_size=16)
    assert data.validation.stream.names == ["childes", "gutenberg"]
    assert data.validation.stream is data.train_stream
    seen = {
        i
        for a, b in zip(*data.train.bounds(range(len(data.train))))
        for i in range(a, b)
    }
    held_out = {
        i
        for a, b in zip(*data.validation.bounds(range(len(data.validation))))
        for i in range(a, b)
    }
    assert not seen & held_out
    first, second = file_spans(data.train_stream)
    # gutenberg's 20 documents are alike: 5 % is the last one, of 40 words.
    words = data.validation.words[
        data.validation.owners_of(range(len(data.validation))) == 1
    ].sum()
    assert words == 40
    assert (
        data.validation.bounds([len(data.validation) - 1])[0][0]
        > data.train_stream.documents[-1]
    )
    assert len(held_out) / len(data.train_stream) == pytest.approx(0.05, abs=0.005)
    words = data.validation.words.sum()
    assert (
        "Without validation text, the last 5 % of each training file are held out:"
        f" {words} words" in caplog.text
    )


def test_the_share_that_is_held_out_can_be_chosen(corpus: Path, tmp_path: Path):
    data = prepare(
        tmp_path,
        train_file=f"{corpus}/gutenberg.train",
        validation_split_percentage=25,
        block_size=16,
    )
    assert data.validation.words.sum() == 200  # five of 20 documents


def test_validation_text_alone_can_be_evaluated(corpus: Path, tmp_path: Path):
    data = prepare(tmp_path, validation_file=f"{corpus}/*.dev", block_size=16)
    assert data.train is None and data.train_stream is None
    assert data.validation.words.sum() == 400


@pytest.mark.parametrize("key", ["train_file", "validation_file"])
def test_a_missing_file_is_refused_with_the_key_that_names_it(key, tmp_path: Path):
    with pytest.raises(UserError, match=f"^data.{key}: no file matches '/no/a.txt'"):
        prepare(tmp_path, **{key: "/no/a.txt"})


@pytest.mark.parametrize(
    "key, names",
    [
        ("tokenizer.name_or_path", {"name_or_path": "/no"}),
        ("model.model_name_or_path", {}),
    ],
)
def test_a_missing_tokenizer_is_refused_with_the_key_that_names_it(key, names, small):
    model = ModelArguments(cache_dir=str(small / "cache"), model_name_or_path="/no")
    data = DataTrainingArguments(train_file=f"{small}/*.train")
    corpora = find_corpora(data, model)
    with pytest.raises(UserError, match=f"^{key}: there is no folder or file /no, "):
        load_data(corpora, TokenizerArguments(**names), data, model)


def test_a_cache_that_is_a_link_to_nothing_is_refused_before_other_work(small: Path):
    (small / "cache").symlink_to("/no/cache")
    with pytest.raises(UserError) as error:
        prepare(small, train_file=f"{small}/*.train", block_size=4)
    assert str(error.value) == (
        f"model.cache_dir: {small}/cache is a link to /no/cache, which does not exist"
    )


def test_the_splits_of_a_hub_dataset_are_text(tmp_path: Path):
    """From a folder, which `datasets` reads like a dataset of the hub."""
    (tmp_path / "dogs").mkdir()
    rows = '{"text": "The dog."}\n{"text": "A."}\n'
    (tmp_path / "dogs/train.jsonl").write_text(rows)
    (tmp_path / "dogs/validation.jsonl").write_text('{"text": "A dog sees."}\n')
    data = prepare(tmp_path, dataset_name=str(tmp_path / "dogs"), block_size=4)
    (row,) = data.train_stream.files
    assert (row["name"], row["documents"], row["words"]) == ("dogs", 2, 3)
    assert data.validation.words.sum() == 3 and data.validation.stream.names == ["dogs"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "data.dataset_name: .*/dogs has no split `train`"),
        ({"name": "/no/dogs"}, "data.dataset_name: /no/dogs: "),
        ({"split": "train"}, "data.dataset_name: .*/dogs .train. has no column 'text'"),
    ],
)
def test_a_hub_dataset_that_cannot_be_used_is_refused(options, message, tmp_path):
    (tmp_path / "dogs").mkdir()
    split = options.get("split", "validation")
    (tmp_path / f"dogs/{split}.jsonl").write_text('{"words": "A dog sees."}\n')
    with pytest.raises(UserError, match=f"^{message}"):
        find_corpora(
            DataTrainingArguments(
                dataset_name=options.get("name", str(tmp_path / "dogs"))
            ),
            ModelArguments(cache_dir=str(tmp_path / "cache")),
        )


def test_text_shorter_than_a_block_is_refused_with_its_length(small: Path):
    files = dict(train_file=f"{small}/*.train", validation_file=f"{small}/s*.train")
    # 17 tokens: 16 inputs and the last one's target.
    assert len(prepare(small, block_size=16, **files).train) == 1
    with pytest.raises(UserError, match="block_size=17: .* only 17 consecutive tokens"):
        prepare(small, block_size=17, **files)
    # Without validation text each file is a span: the longer one has 10 of 11 tokens.
    with pytest.raises(UserError, match="block_size=10: .* only 10 consecutive tokens"):
        prepare(small, block_size=10, train_file=f"{small}/*.train")


def test_the_number_of_blocks_can_be_bounded(corpus: Path, tmp_path: Path):
    files = dict(train_file=f"{corpus}/*.train", validation_file=f"{corpus}/*.dev")
    limits = dict(max_train_samples=7, max_eval_samples=5)
    data = prepare(tmp_path, block_size=16, **files, **limits)
    assert (len(data.train), len(data.validation)) == (7, 5)


def test_the_checksums_tell_training_and_validation_text_apart(small: Path):
    data = DataTrainingArguments(
        train_file=f"{small}/*.train", validation_file=f"{small}/first.train"
    )
    corpora = find_corpora(data, ModelArguments(cache_dir=str(small / "cache")))
    assert corpora.checksums == {
        "train/first": sha256(small / "first.train"),
        "train/second": sha256(small / "second.train"),
        "validation/first": sha256(small / "first.train"),
    }


def test_another_block_size_packs_nothing_again(small: Path):
    files = dict(train_file=f"{small}/*.train")
    first = prepare(small, block_size=4, **files).train_stream
    built = (first.directory / "tokens.bin").stat().st_mtime_ns
    options = dict(block_size=8, block_size_schedule={4: 1.0}, order="sequential")
    again = prepare(small, **options, **files).train_stream
    assert again.directory == first.directory
    assert (again.directory / "tokens.bin").stat().st_mtime_ns == built


def test_a_pretrained_tokenizer_is_taken_instead_of_training_one(small: Path):
    prepare(small, train_file=f"{small}/*.train", block_size=4)
    (trained,) = filter(Path.is_dir, (small / "cache/tokenizers").iterdir())
    moved = trained.rename(small / "pretrained")
    files = dict(train_file=f"{small}/first.train", block_size=4)
    data = prepare(small, tokenizer=str(moved), **files)
    assert load(str(moved)).decode(data.train_stream.tokens) == (
        "<s>a b\n\n</s><s>c\n</s>"
    )
    assert not any(map(Path.is_dir, (small / "cache/tokenizers").iterdir()))


def test_another_column_of_the_same_file_is_other_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The dog.", "title": "Dogs and a cat."}\n')
    options = dict(train_file=str(path), validation_file=str(path), block_size=4)
    found = [
        prepare(tmp_path, text_column=column, **options).train_stream.info["words"]
        for column in ("text", "title")
    ]
    assert found == [2, 4]


def test_the_unigram_perplexity_by_hand(tmp_path: Path):
    """Targets `a a b EOS`; of 4 + 259 counts, `a` has 3, EOS has 2."""
    (tmp_path / "a.train").write_text("aab")
    (tmp_path / "a.dev").write_text("a")
    data = prepare(
        tmp_path,
        train_file=f"{tmp_path}/*.train",
        validation_file=f"{tmp_path}/*.dev",
        block_size=4,
    )
    found = unigram_perplexity(data.train_stream, data.validation, 259)
    assert found == pytest.approx(263 / (3 * 2) ** 0.5)


def test_the_unigram_perplexity_is_of_the_model_s_targets(small: Path):
    """Two documents in a span: the BOS between them is no target."""
    data = prepare(small, train_file=f"{small}/*.train", block_size=4)
    stream = data.train_stream
    blocks = Blocks(stream, [(0, 11)], 4, True)
    # 14 targets in the training text (of 17 tokens), and 259 for the smoothing.
    counts = {"a": 1, " ": 2, "b": 1, "\n": 3, "</s>": 3, "c": 1}
    product = 1.0
    for target in ["a", " ", "b", "\n", "\n", "</s>", "c", "\n", "</s>"]:
        product *= 273 / (counts[target] + 1)
    found = unigram_perplexity(stream, blocks, 259)
    assert found == pytest.approx(product ** (1 / 9))


def test_the_same_text_twice_is_warned_of(small: Path, caplog):
    (small / "copy.train").write_text((small / "first.train").read_text())
    files = dict(train_file=f"{small}/*.train", validation_file=f"{small}/s*.train")
    prepare(small, block_size=4, **files)
    lines = [record.getMessage() for record in caplog.records]
    assert f"{small}/first.train has the same text as {small}/copy.train" in lines
    assert f"{small}/second.train has the same text as {small}/second.train" in lines
    assert len([line for line in lines if "same text" in line]) == 2
