"""Whatever the tokenizer, the packed ids are those that it gives for whole documents."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import pre_tokenizers as split
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

from src.data.cache import Cache
from src.data.packing.encoding import Encoder, plain_json
from src.data.packing.pack import Packer
from src.data.packing.tokenizer import train
from src.data.text import documents
from src.data.text.corpus import read_corpus
from tests.conftest import sentences

SPECIAL = ["<unk>", "<s>", "</s>"]
GPT4 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text() -> str:
    """English in documents and indented, ragged lines, with every kind of white space."""
    rng = random.Random(0)
    lines = [f"{line} It's 1,234 ﬁsh; Zoë’s e\u0301!" for line in sentences(500, 1)]
    ends = ["\n", "\n", "\n", " \n", "  \n", "\t\n", "\n\n", "\n\n\n", "\n \n", "\n  "]
    ends += ["\n\t", "\u3000\n", " ", "  "]
    # Not one letter 900 times: a Unigram model splits that in many ways of equal probability,
    # and rounding decides between them.
    word = "".join(rng.choices("abcdefgh", k=900))
    return "".join(line + rng.choice(ends) for line in lines) + word + " end \n"


def made(
    model: models.Model,
    trainer: type,
    normalizer: normalizers.Normalizer | None = None,
    splitting: split.PreTokenizer | None = None,
    decoder: decoders.Decoder | None = None,
    added: AddedToken | None = None,
    **options: object,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on whole documents."""
    backend = tokenizers.Tokenizer(model)
    for name, part in dict(
        normalizer=normalizer, pre_tokenizer=splitting, decoder=decoder
    ).items():
        if part is not None:
            setattr(backend, name, part)
    options = {"vocab_size": 600, "special_tokens": SPECIAL} | options
    backend.train_from_iterator(
        text().split("\n\n"), trainer(show_progress=False, **options)
    )
    if added is not None:
        backend.add_tokens([added])
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_level(*parts, **options) -> PreTrainedTokenizerFast:
    splitting = split.ByteLevel(**options)
    alphabet = dict(initial_alphabet=split.ByteLevel.alphabet())
    if parts:
        splitting = split.Sequence([*parts, splitting])
    return made(
        models.BPE(), trainers.BpeTrainer, None, splitting, decoders.ByteLevel(),
        **alphabet,
    )  # fmt: skip


def gpt_bert() -> PreTrainedTokenizerFast:
    """As that of GPT-BERT: no line end without the space that begins the next line."""
    normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.NFKC(),
            normalizers.Replace("\n", "\n "),
            normalizers.Replace(Regex(" *\n"), "\n"),
        ]
    )
    splitting = split.Sequence(
        [
            split.Split(GPT4, "isolated"),
            split.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            decoders.Strip(" ", 1, 0),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return made(
        models.BPE(), trainers.BpeTrainer, normalizer, splitting, decoder,
        initial_alphabet=split.ByteLevel.alphabet(),
    )  # fmt: skip


def metaspace(scheme: str, whole: bool) -> PreTrainedTokenizerFast:
    return made(
        models.Unigram(),
        trainers.UnigramTrainer,
        splitting=split.Metaspace(prepend_scheme=scheme, split=not whole),
        decoder=decoders.Metaspace(prepend_scheme=scheme),
        unk_token="<unk>",
    )


def llama() -> PreTrainedTokenizerFast:
    normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = made(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainers.BpeTrainer,
        normalizer,
        split.Split("▁", "merged_with_next"),
        decoder,
        special_tokens=[*SPECIAL, *bytes_],
        limit_alphabet=30,
    )
    # Llama 2's does not split the text at all.
    tokenizer.backend_tokenizer.pre_tokenizer = split.Split("never occurs", "isolated")
    return tokenizer


def t5() -> PreTrainedTokenizerFast:
    return made(
        models.Unigram(),
        trainers.UnigramTrainer,
        normalizers.NFKC(),
        split.Sequence([split.WhitespaceSplit(), split.Metaspace()]),
        decoders.Metaspace(),
        unk_token="<unk>",
    )


def bert() -> PreTrainedTokenizerFast:
    return made(
        models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer,
        normalizers.BertNormalizer(), split.BertPreTokenizer(), decoders.WordPiece(),
    )  # fmt: skip


def stripping() -> PreTrainedTokenizerFast:
    """Added tokens that take the white space beside them, also across lines."""
    return made(
        models.BPE(),
        trainers.BpeTrainer,
        splitting=split.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        added=AddedToken("It's", lstrip=True, rstrip=True),
        initial_alphabet=split.ByteLevel.alphabet(),
    )


def words() -> PreTrainedTokenizerFast:
    return made(
        models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer,
        normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]),
        split.WhitespaceSplit(),
    )  # fmt: skip


def unsplit() -> PreTrainedTokenizerFast:
    """A BPE whose tokens hold several words and lines."""
    normalizer = normalizers.Replace(Regex(r"\s+"), "_")
    return made(models.BPE(), trainers.BpeTrainer, normalizer)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "our own": lambda: train([text()], 500),
    "our own, learnt line by line": lambda: train(text().splitlines(True), 500),
    "GPT-2": lambda: byte_level(add_prefix_space=False),
    "GPT-4": lambda: byte_level(
        split.Split(GPT4, "isolated"), add_prefix_space=False, use_regex=False
    ),
    "digits apart": lambda: byte_level(split.Digits(individual_digits=True)),
    "GPT-BERT": gpt_bert,
    "metaspace always": lambda: metaspace("always", False),
    "metaspace first": lambda: metaspace("first", False),
    "metaspace never": lambda: metaspace("never", False),
    "metaspace, not split": lambda: metaspace("always", True),
    "Llama 2": llama,
    "T5": t5,
    "BERT": bert,
    "added tokens that strip": stripping,
    "words, stripped and lowered": words,
    "BPE of whole texts": unsplit,
}


def document_texts(content: str, boundary: str) -> list[str]:
    edges = [0]
    if boundary != "file":
        separator = documents.SEPARATORS[boundary]
        edges += [match.end() for match in separator.finditer(content)]
    return [content[a:b] for a, b in zip(edges, [*edges[1:], len(content)])]


@pytest.mark.parametrize("boundary", ["file", "blank_line"])
@pytest.mark.parametrize("length", [700, 3000, 32_768])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_whole_documents(
    kind: str, length: int, boundary: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(documents, "PIECE_LENGTH", length)
    tokenizer, content = KINDS[kind](), text()
    (tmp_path / "a.train").write_text(content, encoding="utf-8")
    sources = read_corpus(f"{tmp_path}/a.train", tmp_path / "cache")
    packer = Packer(tokenizer, boundary, Cache(tmp_path / "cache"), lossy=True)
    stream = packer.pack(sources)
    expected = []
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    if kind.startswith("our own"):  # packing adds no space before a document
        backend.pre_tokenizer = split.ByteLevel(add_prefix_space=False)
    for document in document_texts(content, boundary):
        ids = backend.encode(document, add_special_tokens=False).ids
        expected.append([1, *ids, 2])
    starts = [*stream.documents.tolist(), len(stream)]
    packed = [stream.tokens[a:b].tolist() for a, b in zip(starts, starts[1:])]
    assert packed == expected
    # The words and bytes of every document
    for (start, end), document in zip(
        zip(starts, starts[1:]), document_texts(content, boundary)
    ):
        assert stream.num_words(start, end) == len(document.split())
        assert stream.num_bytes(start, end) == len(document.encode())
    assert (np.diff(stream.bytes.astype(int)) >= 0).all()


def test_a_word_that_no_window_can_hold_is_one_token(tmp_path: Path, monkeypatch):
    """Pieces are joined until their tokens meet: here, to the whole document."""
    monkeypatch.setattr(documents, "PIECE_LENGTH", 1000)
    (tmp_path / "a.train").write_text("The dog " + "x" * 50_000 + " sees a cat.\n")
    sources = read_corpus(f"{tmp_path}/a.train", tmp_path / "cache")
    tokenizer = bert()
    stream = Packer(tokenizer, "file", Cache(tmp_path / "cache"), lossy=True).pack(
        sources
    )
    tokens = tokenizer.convert_ids_to_tokens(stream.tokens.tolist())
    assert tokens[:4] == ["<s>", "the", "dog", "<unk>"] and tokens.count("<unk>") == 1
    assert stream.num_words(0, len(stream)) == 6
    assert stream.num_bytes(3, 4) == 50_001
