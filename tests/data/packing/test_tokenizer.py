"""The tokenizer: trained, cached, saved, loaded."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from src.arguments import ModelArguments, TokenizerArguments
from src.data.cache import Cache
from src.data.packing.encoding import plain_json
from src.data.packing.tokenizer import (
    boundary_tokens,
    load,
    load_or_train,
    save,
    train,
)
from src.data.text import documents
from src.data.text.corpus import Source, read_corpus
from src.foundation import UserError
from tests.conftest import sentences
from tests.data.packing.test_encoding import encoder_of

TEXTS = ["\n".join(sentences(300, seed)) for seed in range(3)]
UNSEEN = "Zoë’s 🐈 sat  on\ta naïve\u3000mat.\n\n\x00 </s>"


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train(TEXTS, 320)


@pytest.fixture
def sources(corpus: Path, tmp_path: Path) -> list[Source]:
    return read_corpus(f"{corpus}/*.train", tmp_path / "cache")


# Training


def test_two_trainings_give_the_same_bytes(tmp_path: Path):
    for name in "ab":
        save(train(TEXTS, 400), tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()


def test_the_vocabulary_has_the_size_and_the_special_tokens_come_first(trained):
    assert len(trained) == 320
    assert trained.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
    assert boundary_tokens(trained) == (1, 2)
    # A text that has less to merge gives a smaller one.
    assert len(train(["a b"], 320)) == 260  # " b"


def test_the_smallest_vocabulary_holds_all_bytes_and_the_special_tokens():
    (minimum,) = [
        field.metadata["bounds"]["minimum"]
        for field in dataclasses.fields(TokenizerArguments)
        if field.name == "vocab_size"
    ]
    assert len(train(TEXTS, minimum)) == len(train([], minimum)) == minimum == 259


def test_tokens_are_not_learnt_across_lines(sources, tmp_path: Path):
    """None are packed so: a line is tokenized by itself."""
    found = load_or_train(sources, 320, Cache(tmp_path / "cache"))
    line_end = "Ċ"
    assert not [e for e in found.get_vocab() if line_end in e.rstrip(line_end)]
    assert encoder_of(found)._tiktoken is not None


def test_the_tokenizer_does_not_depend_on_the_length_of_pieces(
    sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for length in (100, 1000, 32_768):
        monkeypatch.setattr(documents, "PIECE_LENGTH", length)
        trained = load_or_train(sources, 320, Cache(tmp_path / f"{length}"))
        found.append(plain_json(trained))
    assert found[0] == found[1] == found[2]


# Use


def test_a_text_gets_bos_and_a_leading_space_and_no_eos(trained):
    tokens = trained.convert_ids_to_tokens(trained("dog")["input_ids"])
    assert tokens[0] == "<s>"
    assert "".join(tokens[1:]) == "Ġdog"
    assert trained("dog")["input_ids"] == trained(" dog")["input_ids"]
    assert trained("dog", add_special_tokens=False)["input_ids"][0] != 1


def test_every_text_can_be_written_and_read_back(trained):
    for text in (TEXTS[0], UNSEEN):
        ids = encoder_of(trained).encode([text]).ids.tolist()
        assert trained.decode(ids) == text
        called = trained(" " + text.removesuffix("</s>"))["input_ids"]
        assert trained.decode(called) == "<s> " + text.removesuffix("</s>")


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"bos_token": "a", "eos_token": "b"}, (0, 1)),
        ({"eos_token": "b"}, (1, 1)),
        ({"bos_token": "a"}, (0, 0)),
        ({"cls_token": "c", "sep_token": "d"}, (2, 3)),
        ({"bos_token": "a", "cls_token": "c", "sep_token": "d"}, (0, 3)),
        ({}, (None, None)),
    ],
)
def test_bos_and_eos_stand_in_for_each_other(given: dict, expected: tuple):
    backend = tokenizers.Tokenizer(models.WordLevel(dict(a=0, b=1, c=2, d=3)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **given)
    assert boundary_tokens(tokenizer) == expected


# Files


def test_a_saved_tokenizer_loads_as_it_was(trained, tmp_path: Path):
    save(trained, tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("dog", "The cat sees a dog.\n", UNSEEN):
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
        assert plain_json(loaded) == plain_json(trained)
        ids = trained(text)["input_ids"]
        assert loaded.decode(ids) == trained.decode(ids)
    assert loaded.pad_token_id == 0 and boundary_tokens(loaded) == (1, 2)


def test_a_saved_tokenizer_has_nothing_in_it_that_transformers_4_cannot_read(
    trained, tmp_path: Path
):
    trained = train(TEXTS, 320)
    trained.add_special_tokens({"additional_special_tokens": ["<x>"]})
    save(trained, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<x>"]
    assert not {"backend", "is_local", "extra_special_tokens"} & config.keys()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("<x>")["input_ids"] == trained("<x>")["input_ids"]
    # What is loaded can be saved once more.
    save(loaded, tmp_path / "again")
    again = json.loads((tmp_path / "again/tokenizer_config.json").read_text())
    assert again["additional_special_tokens"] == ["<x>"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "there is no tokenizer.json"),
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b'{"version": "1.0"', "EOF while parsing an object at line 1 column 17"),
        (b"\xff", "stream did not contain valid UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_tokenizer_that_is_missing_or_damaged_is_one_line(
    name: str, content: bytes | None, reason: str, tmp_path: Path
):
    file = tmp_path / "folder" / "tokenizer.json"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    elif name:
        pytest.skip("a file that does not exist")
    with pytest.raises(UserError) as error:
        load(str(file.parent / name))
    message = f"{file.parent / name}: cannot read the tokenizer: {reason}"
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["gpt2", "my/tokenizer.json", "/no/such/folder"])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(name: str, tmp_path):
    with pytest.raises(UserError) as error:
        load(name, model=ModelArguments(cache_dir=str(tmp_path)))
    assert str(error.value).startswith(
        f"there is no folder or file {name}, and it cannot be fetched from the hub: "
    )
    assert "\n" not in str(error.value)


def test_a_tokenizer_may_be_one_json_file_or_a_folder_with_nothing_else(
    trained, tmp_path: Path
):
    file = tmp_path / "tokenizer.json"
    trained.backend_tokenizer.save(str(file))
    for path in (file, tmp_path):
        loaded = load(str(path))
        assert boundary_tokens(loaded) == (1, 2)
        assert (loaded.pad_token, len(loaded)) == ("<pad>", len(trained))
        assert loaded("The dog")["input_ids"] == trained("The dog")["input_ids"]
        assert plain_json(loaded) == plain_json(trained)


def test_the_roles_of_special_tokens_are_known_by_their_usual_names(tmp_path: Path):
    vocabulary = {"<|endoftext|>": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.save(str(tmp_path / "my.json"))
    loaded = load(str(tmp_path / "my.json"))
    assert (loaded.eos_token, loaded.bos_token) == ("<|endoftext|>", None)
    assert boundary_tokens(loaded) == (1, 0)


def test_a_tokenizer_without_a_token_between_documents_is_refused(tmp_path: Path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.decoder = decoders.WordPiece()
    save(PreTrainedTokenizerFast(tokenizer_object=backend), tmp_path)
    with pytest.raises(UserError, match="the tokenizer has no EOS token"):
        load(str(tmp_path))


# Cache


def cached_files(cache: Path) -> dict[Path, int]:
    files = cache.glob("tokenizers/*/*")
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_second_call_takes_the_tokenizer_from_the_cache(sources, tmp_path: Path):
    first = load_or_train(sources, 300, Cache(tmp_path / "cache"))
    files = cached_files(tmp_path / "cache")
    assert {path.name for path in files} >= {"tokenizer.json", "tokenizer_config.json"}
    second = load_or_train(sources, 300, Cache(tmp_path / "cache"))
    assert cached_files(tmp_path / "cache") == files
    assert first.get_vocab() == second.get_vocab()
    load_or_train(sources, 300, Cache(tmp_path / "cache", overwrite=True))
    assert cached_files(tmp_path / "cache").keys() == files.keys()
    assert cached_files(tmp_path / "cache") != files


def test_another_text_or_another_size_is_another_tokenizer(sources, tmp_path: Path):
    cache = tmp_path / "cache"
    assert len(load_or_train(sources, 300, Cache(cache))) == 300
    assert len(load_or_train(sources, 301, Cache(cache))) == 301
    load_or_train(sources[:1], 300, Cache(cache))
    changed = replace(sources[0], reading="csv:title")
    load_or_train([changed], 300, Cache(cache))
    assert len(list(cache.glob("tokenizers/*/tokenizer.json"))) == 4


def test_a_string_between_documents_is_not_learnt(tmp_path: Path):
    (tmp_path / "a.train").write_text("The dog.###" * 200)
    sources = read_corpus(f"{tmp_path}/*.train", tmp_path)
    learnt = {
        boundary: load_or_train(sources, 300, Cache(tmp_path), boundary).get_vocab()
        for boundary in ("auto", "###")
    }
    assert "##" in learnt["auto"] and "##" not in learnt["###"]


def test_a_cached_tokenizer_without_its_file_is_trained_anew(sources, tmp_path: Path):
    load_or_train(sources, 300, Cache(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").glob("tokenizers/*/tokenizer.json")
    content = file.read_bytes()
    file.unlink()
    load_or_train(sources, 300, Cache(tmp_path / "cache"))
    assert file.read_bytes() == content


def test_the_cache_may_be_a_symlink(sources, tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    load_or_train(sources, 300, Cache(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    files = cached_files(tmp_path / "scratch")
    assert files
    load_or_train(sources, 300, Cache(tmp_path / "link"))
    assert cached_files(tmp_path / "scratch") == files


def test_a_tokenizer_with_code_of_its_own_is_not_run_unasked(tmp_path):
    (tmp_path / "own.py").write_text("raise ValueError('theirs')\n")
    config = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as raised:
        load(str(tmp_path))
    assert str(raised.value) == (
        f"{tmp_path}: cannot read the tokenizer: it comes with Python code, which runs"
        " only with model.trust_remote_code=true"
    )
    with pytest.raises(UserError, match="theirs"):
        load(str(tmp_path), model=ModelArguments(trust_remote_code=True))
