"""Text into ids: with `tiktoken` the same as with `tokenizers`."""

import json
import random
import sys
from typing import Optional

import numpy as np
import pytest
import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from src.data.packing import encoding
from src.data.packing.encoding import Encoder, plain_json
from src.data.packing.tokenizer import train
from tests.conftest import sentences

UNSEEN = "Zoë’s 🐈 sat  on\ta naïve\u3000mat.\n\n\x00 </s>"


def byte_level(size: int = 300) -> PreTrainedTokenizerFast:
    return train(["\n".join(sentences(100, 0))], size)


def fast(backend: tokenizers.Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    special = special or dict(bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def incomplete_byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE that was trained without the whole alphabet."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([s + "\n" for s in sentences(50, 0)], trainer)
    return fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: drops white space and control characters, lowers letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(sentences(50, 0), trainer)
    return fast(backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def sentence_piece(strip: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2's: characters it lacks are written as bytes, several tokens each."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = "▁" + "".join(sorted(set("".join(sentences(50, 0)))))
    entries = ["<unk>", "<s>", "</s>", *bytes_, *letters]
    entries = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    backend = tokenizers.Tokenizer(
        models.BPE(entries, [], unk_token="<unk>", byte_fallback=True)
    )
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            split=False, prepend_scheme="never"
        )
    backend.decoder = decoders.Sequence(decoding)
    return fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    letters = sorted(set("12".join(sentences(50, 0))) - {" "})
    entries = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -1.0) for letter in "▁\n")]
    entries += [(letter, -2.0) for letter in letters] + [("▁dog", -1.0)]
    backend = tokenizers.Tokenizer(models.Unigram(entries, 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        split=False, prepend_scheme="never"
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return fast(backend, eos_token="</s>")


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(plain_json(tokenizer))


def as_tiktoken(backend: tokenizers.Tokenizer) -> Optional[tiktoken.Encoding]:
    return Encoder(backend.to_str())._tiktoken


def byte_lengths(backend: tokenizers.Tokenizer) -> Optional[np.ndarray]:
    return encoding.byte_lengths(backend, json.loads(backend.to_str()))


def whole(encoder: Encoder, text: str) -> list[int]:
    """Return the ids that `tokenizers` gives for the whole text."""
    return encoder.backend.encode(text, add_special_tokens=False).ids


# tiktoken


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    encoder = encoder_of(byte_level(400))
    assert as_tiktoken(encoder.backend) is not None
    return encoder


def test_ids_are_those_of_tokenizers_in_english(encoder: Encoder):
    text = "\n".join(sentences(500, 5)) + "\n\nI'll  say: it's 3,000.5!? \n"
    assert encoder.encode([text]).ids.tolist() == whole(encoder, text)


CHARACTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]


@pytest.mark.parametrize("around", ["{}", "a{}b ", " {} "])
def test_ids_are_those_of_tokenizers_for_every_character(encoder: Encoder, around: str):
    """In runs, in words, between spaces: do both libraries see the same letters?"""
    # Not the planes without any character, 4 to 13, and those of private use.
    known = [c for c in CHARACTERS if ord(c) < 0x40000 or 0xE0000 <= ord(c) < 0xE1000]
    random.Random(around).shuffle(known)
    rows = [known[i : i + 100] for i in range(0, len(known), 100)]
    text = "".join("".join(map(around.format, row)) + "\n" for row in rows)
    assert encoder.encode([text]).ids.tolist() == whole(encoder, text)


def test_ids_are_those_of_tokenizers_in_random_text(encoder: Encoder):
    rng = random.Random(0)
    usual = [*" \n\t\r'", "  ", "\x1c", "\x85", "\u3000", "'s", "'ll", "dog", "9", "²"]
    for _ in range(300):
        pool = usual + rng.choices(CHARACTERS, k=12)
        text = "".join(rng.choices(pool, k=rng.randrange(80)))
        assert encoder.encode([text]).ids.tolist() == whole(encoder, text)


def bpe(merges: list[tuple[str, str]], **options) -> tokenizers.Tokenizer:
    """A byte-level BPE with all bytes and these merges."""
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {entry: id for id, entry in enumerate(dict.fromkeys(entries))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def test_random_merges_give_the_ids_of_tokenizers_or_none():
    rng = random.Random(0)
    same = 0
    for _ in range(300):
        parts, merges = ["a", "b", "c"], []
        for _ in range(rng.randrange(1, 8)):
            pair = (rng.choice(parts), rng.choice(parts))
            if "".join(pair) not in parts:
                parts.append("".join(pair))
                merges.append(pair)
        rng.shuffle(merges)
        backend = bpe(merges)
        if fast_one := as_tiktoken(backend):
            same += 1
            for _ in range(20):
                text = "".join(rng.choices("abc", k=rng.randrange(1, 14)))
                assert fast_one.encode(text) == backend.encode(text).ids, merges
    assert 50 < same < 290


def changed(**parts) -> tokenizers.Tokenizer:
    backend = bpe([("d", "o"), ("do", "g")])
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def out_of_order() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {entry: id for id, entry in enumerate([*alphabet, "og", "do"])}
    backend = tokenizers.Tokenizer(models.BPE(ids, [("d", "o"), ("o", "g")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def with_added_token() -> tokenizers.Tokenizer:
    backend = changed()
    backend.add_tokens(["dog sees"])
    return backend


def two_ways_to_one_entry() -> tokenizers.Tokenizer:
    return bpe([("d", "o"), ("o", "g"), ("do", "g"), ("d", "og")])


OTHERS = {
    "bytes that are missing": lambda: incomplete_byte_level().backend_tokenizer,
    "ignore_merges": lambda: bpe([("d", "o")], ignore_merges=True),
    "a normalizer": lambda: changed(normalizer=normalizers.NFC()),
    "no pre-tokenizer": lambda: changed(pre_tokenizer=None),
    "white space": lambda: changed(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "no pattern": lambda: changed(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ),
    "another pattern": lambda: changed(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "ids out of order": out_of_order,
    "an added token": with_added_token,
    "two merges of one entry": two_ways_to_one_entry,
    "wordpiece": lambda: word_piece().backend_tokenizer,
    "unigram": lambda: unigram().backend_tokenizer,
    "byte fallback": lambda: sentence_piece().backend_tokenizer,
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_tokenizer_that_would_differ_is_not_given_to_tiktoken(what: str):
    assert as_tiktoken(OTHERS[what]()) is None


def test_dropout_is_for_training_not_for_packing():
    encoder = encoder_of(
        fast(bpe([("d", "o"), ("do", "g")], dropout=0.5), eos_token="</s>")
    )
    ids = {tuple(encoder.encode(["dogdogdogdog"]).ids) for _ in range(5)}
    assert len(ids) == 1 and len(ids.pop()) == 4


LOSSLESS = [
    "ignore_merges", "a normalizer", "no pattern", "another pattern",
    "ids out of order", "an added token", "two merges of one entry", "unigram",
    "byte fallback",
]  # fmt: skip


@pytest.mark.parametrize("what", LOSSLESS)
def test_what_is_not_given_to_tiktoken_has_the_right_ids_and_ends(what: str):
    backend = OTHERS[what]()
    encoder = encoder_of(fast(backend, eos_token="</s>"))
    texts = ["The dog sees 12 dogs\n A", "dog.\n"]
    encoded = encoder.encode(texts)
    each = [encoder.backend.encode(text).ids for text in texts]
    assert encoded.ids.tolist() == sum(each, [])
    assert encoded.loss is None
    assert encoded.ends[-1] == len("".join(texts))
    assert (np.diff(encoded.ends) > 0).all()
    assert encoded.starts.tolist() == [0, len(each[0])]
    assert encoded.ends[[len(each[0]) - 1, -1]].tolist() == [23, 28]


def test_out_of_order_ids_show_why():
    """`tiktoken` would merge the smaller id first: d|og, not do|g."""
    assert out_of_order().encode("dog").tokens == ["do", "g"]


# Ends


@pytest.mark.parametrize("make", [byte_level, incomplete_byte_level, sentence_piece])
def test_no_text_is_no_token(make):
    for texts in ([""], ["", ""]):
        encoded = encoder_of(make()).encode(texts)
        assert (len(encoded.ids), len(encoded.ends), encoded.loss) == (0, 0, None)


def test_a_token_ends_behind_its_last_byte():
    """A text is never joined with the previous one."""
    encoded = encoder_of(train(["a b a b"], 260)).encode(["é b", "b"])
    assert np.diff(encoded.ends, prepend=0).tolist() == [1, 1, 2, 1]
    encoded = encoder_of(sentence_piece()).encode(["é b", "b"])
    assert encoded.ends.tolist() == [2, 2, 3, 4, 5]


def test_the_bytes_of_every_entry_are_known():
    encoder = encoder_of(byte_level())
    lengths = byte_lengths(encoder.backend)
    ids = encoder.backend.encode(UNSEEN).ids
    assert sum(lengths[i] for i in ids) == len(UNSEEN.encode())
    assert [lengths[i] for i in encoder.backend.encode("🐈").ids] == [1, 1, 1, 1]
    assert byte_lengths(word_piece().backend_tokenizer) is None
    assert byte_lengths(changed(normalizer=normalizers.NFC())) is None


# Loss


def test_the_place_where_decoding_differs_is_reported():
    loss = encoder_of(word_piece()).encode(["the\n", "The dog.\n"]).loss
    assert loss == dict(text="the\n", decoded="the")
    text = "the dog sees the cat . " * 9 + "\x00 yes"
    loss = encoder_of(incomplete_byte_level()).encode([text]).loss
    assert loss["text"].endswith("the cat . \x00 yes")
    assert loss["decoded"].endswith("the cat .  yes")
    loss = encoder_of(incomplete_byte_level()).encode(["The dog.", "an éa é"]).loss
    assert loss == dict(text="an éa é", decoded="an a ")


@pytest.mark.parametrize("strip", [False, True])
def test_a_sentencepiece_tokenizer_gives_leading_spaces_back(strip: bool):
    texts = [" The dog.\n", "  A\n", "\n", UNSEEN, " "]
    assert encoder_of(sentence_piece(strip)).encode(texts).loss is None


def test_the_first_character_of_a_line_belongs_to_its_token():
    """The tokenizer says that the space that it puts before a text has its first byte."""
    encoded = encoder_of(sentence_piece(strip=True)).encode(["Tc\n", " "])
    assert encoded.ends.tolist() == [1, 1, 2, 3, 4, 4]
    assert encoded.starts.tolist() == [0, 4]


def test_a_byte_level_tokenizer_with_an_unknown_token_is_lossy():
    entries = {entry: id for id, entry in enumerate(["?", "</s>", *"abĠĊ"])}
    backend = tokenizers.Tokenizer(models.BPE(entries, [], unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    assert encoder_of(fast(backend, eos_token="</s>")).encode(["a z"]).loss is not None


# The copy that packs


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return byte_level(320)


def test_the_plain_copy_reads_no_special_tokens_and_adds_no_space(trained):
    assert trained("</s>")["input_ids"][-1] == 2
    ids = encoder_of(trained).encode(["</s><s>dog<pad>"]).ids.tolist()
    assert not {0, 1, 2} & set(ids)
    assert trained.decode(ids) == "</s><s>dog<pad>"
    assert ids == whole(encoder_of(trained), "</s><s>dog<pad>")
    first = trained.convert_ids_to_tokens(
        int(encoder_of(trained).encode(["dog"]).ids[0])
    )
    assert not first.startswith("Ġ")
    # The tokenizer itself is left as it was.
    assert trained("</s>")["input_ids"][-1] == 2
    assert trained.decode(trained("dog")["input_ids"][1:]) == " dog"


def test_the_plain_copy_neither_cuts_nor_pads():
    tokenizer, text = byte_level(), "\n".join(sentences(20, 3))
    before = plain_json(tokenizer)
    tokenizer("The dog sees", truncation=True, max_length=2, padding="max_length")
    assert plain_json(tokenizer) == before
    assert tokenizer.decode(encoder_of(tokenizer).encode([text]).ids.tolist()) == text


@pytest.mark.parametrize("kind", ["metaspace", "llama 2"])
def test_the_plain_copy_of_a_sentencepiece_tokenizer_adds_its_space(kind: str):
    vocabulary = {c: i for i, c in enumerate(["<unk>", "</s>", *"▁dog"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer = fast(backend, eos_token="</s>")
    assert tokenizer.tokenize("dog do") == ["▁", *"dog", "▁", *"do"]
    plain_copy = encoder_of(tokenizer).backend
    assert plain_copy.encode("dog do").tokens == ["▁", *"dog", "▁", *"do"]
