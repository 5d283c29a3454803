"""The stream on disk: its tokens, its words and bytes, its cache."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from src.arguments import DataTrainingArguments, UserError
from src.data import packing
from src.data.corpus import Source, read_corpus
from src.data.documents import PIECE_LENGTH
from src.data.packing import pack
from src.data.stream import Stream
from src.data.tokenizer import train
from tests.conftest import sentences

# Letters of one to four bytes, white space of every kind, special tokens as text.
HARD = (
    "Zoë’s 🐈🐈 sat  on\ta naïve\u3000mat.\u2003Yes\x85no\n"
    "</s> <s> [UNK] \n\n日本語 中文\n \n  indented\x1cfile ﬁn \u200b e\u0301\n"
)


def read(folder: Path, pattern: str = "*.train") -> list[Source]:
    data = DataTrainingArguments()
    return read_corpus(f"{folder}/{pattern}", "data.train_file", data, folder / "cache")


def write(folder: Path, **texts: str) -> list[Source]:
    for name, text in texts.items():
        (folder / f"{name}.train").write_bytes(text.encode())
    return read(folder)


def byte_level(size: int = 300) -> PreTrainedTokenizerFast:
    return train(["\n".join(sentences(100, 0))], size)


def incomplete_byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE that was trained without the whole alphabet."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(sentences(50, 0), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )


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
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's: characters it lacks are written as bytes, several tokens each."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = "▁" + "".join(sorted(set("".join(sentences(50, 0)))))
    entries = ["<unk>", "<s>", "</s>", *bytes_, *letters]
    entries = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    backend = tokenizers.Tokenizer(
        models.BPE(entries, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text_of(stream: Stream, tokenizer: PreTrainedTokenizerFast, file: dict) -> str:
    """What is in the tokens of a file, without those at its documents' ends."""
    starts = np.asarray(stream.documents).astype(int)
    starts = starts[(starts >= file["start"]) & (starts < file["end"])]
    ends = [*starts[1:], file["end"]]
    texts = [stream.tokens[a + 1 : b - 1] for a, b in zip(starts, ends)]
    return "".join(tokenizer.decode(text.tolist()) for text in texts)


# Tokens


def test_a_stream_is_bos_text_eos_for_every_document(tmp_path: Path):
    """With a vocabulary of bytes; Ġ is a space, Ċ a line end."""
    tokenizer = train(["a b a b a b"], 259)
    sources = write(tmp_path, first="ab\n\nc\n", second="é d")
    stream = pack(sources, tokenizer, "auto", tmp_path)
    tokens = tokenizer.convert_ids_to_tokens(stream.tokens.tolist())
    assert tokens == (
        ["<s>", "a", "b", "Ċ", "Ċ", "</s>"]
        + ["<s>", "c", "Ċ", "</s>"]
        + ["<s>", "Ã", "©", "Ġ", "d", "</s>"]
    )
    assert stream.documents.tolist() == [0, 6, 10]
    assert stream.words.tolist() == [
        *[0, 0, 1, 1, 1, 1, 1],
        *[1, 2, 2, 2],
        *[2, 3, 3, 3, 4, 4],
    ]
    assert stream.bytes.tolist() == [
        *[0, 0, 1, 2, 3, 4, 4],
        *[4, 5, 6, 6],
        *[6, 7, 8, 9, 10, 10],
    ]
    rows = [
        {key: value for key, value in row.items() if key != "checksum"}
        for row in stream.files
    ]
    assert rows == [
        dict(
            name="first", boundary="blank_line", start=0, end=10, documents=2,
            words=2, bytes=6,
        ),
        dict(
            name="second", boundary="file", start=10, end=16, documents=1, words=2,
            bytes=4,
        ),
    ]  # fmt: skip
    assert stream.num_words(1, 8) == 2
    assert stream.num_words(2, 7) == 0
    assert stream.num_bytes(11, 13) == 2


@pytest.mark.parametrize("boundary", ["file", "line", "blank_line", "auto"])
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_tokens_decode_to_the_text(make, boundary: str, tmp_path: Path):
    tokenizer = make()
    texts = dict(hard=HARD, long=HARD * 300, word="é" * 2 * PIECE_LENGTH + " dog")
    sources = write(tmp_path, **texts)
    stream = pack(sources, tokenizer, boundary, tmp_path)
    for source, file in zip(sources, stream.files):
        assert text_of(stream, tokenizer, file) == texts[source.name]


@pytest.mark.parametrize("boundary", ["file", "line"])
@pytest.mark.parametrize(
    "make", [byte_level, incomplete_byte_level, word_piece, sentence_piece]
)
def test_the_words_and_bytes_of_every_file_are_counted(make, boundary, tmp_path: Path):
    texts = dict(hard=HARD, long=HARD * 300, word="é" * 2 * PIECE_LENGTH + " dog")
    # Pieces without a token, at the beginning, inside and at the end.
    texts["white"] = " " * PIECE_LENGTH + "A" + " " * 3 * PIECE_LENGTH + "dog\n \n"
    texts["dropped"] = "\u200b" * PIECE_LENGTH + "\n\x7f dog \x7f\n"
    sources = write(tmp_path, **texts)
    stream = pack(sources, make(), boundary, tmp_path)
    for source, file in zip(sources, stream.files):
        text, span = texts[source.name], (file["start"], file["end"])
        assert file["words"] == stream.num_words(*span) == len(text.split())
        assert file["bytes"] == stream.num_bytes(*span) == len(text.encode())
    for sums in (stream.words, stream.bytes):
        assert len(sums) == len(stream) + 1
        assert (np.diff(sums.astype(np.int64)) >= 0).all()


@pytest.mark.parametrize(
    "make, expected",
    [
        # Two bytes of é: the word begins in the first, each has a byte.
        (
            byte_level,
            [("<s>", 0, 0), ("Ã", 1, 1), ("©", 0, 1), ("ĠQ", 1, 2), ("</s>", 0, 0)],
        ),
        # Offsets are of characters: the first of é's tokens has both bytes.
        (
            sentence_piece,
            [
                ("<s>", 0, 0),
                ("<0xC3>", 1, 2),
                ("<0xA9>", 0, 0),
                ("▁", 0, 1),
                ("<0x51>", 1, 1),
                ("</s>", 0, 0),
            ],
        ),
        # é is no entry: it counts to the token behind it, as if a part of it.
        (
            incomplete_byte_level,
            [("<s>", 0, 0), (".", 1, 3), ("Ġa", 1, 2), ("</s>", 0, 0)],
        ),
        # White space that no token has counts to the token behind it.
        (
            word_piece,
            [("[CLS]", 0, 0), ("e", 1, 2), ("[UNK]", 1, 2), ("[SEP]", 0, 0)],
        ),
    ],
)
def test_a_word_begins_in_the_token_that_has_its_first_byte(make, expected, tmp_path):
    if make is byte_level:
        tokenizer = train([" Q Q Q"], 260)
    else:
        tokenizer = make()
    text = "é. a" if make is incomplete_byte_level else "é Q"
    stream = pack(write(tmp_path, a=text), tokenizer, "file", tmp_path)
    tokens = tokenizer.convert_ids_to_tokens(stream.tokens.tolist())
    words = np.diff(stream.words.astype(int)).tolist()
    sizes = np.diff(stream.bytes.astype(int)).tolist()
    assert list(zip(tokens, words, sizes)) == expected


@pytest.mark.parametrize("make", [byte_level, word_piece, sentence_piece])
def test_the_words_of_every_span_are_those_that_begin_in_it(make, tmp_path: Path):
    """Against the slow way: decide for every word which token has its first byte."""
    stream = pack(write(tmp_path, a=HARD), make(), "file", tmp_path)
    place, begins = 0, []
    for word in HARD.split():
        place = HARD.index(word, place)
        begins.append(len(HARD[:place].encode()))
        place += len(word)
    ends = stream.bytes[1:].astype(int).tolist()
    holders = [next(i for i, end in enumerate(ends) if end > at) for at in begins]
    for start in range(len(stream)):
        for end in (start, start + 1, (start + len(stream)) // 2, len(stream)):
            inside = sum(start <= holder < end for holder in holders)
            assert stream.num_words(start, end) == inside


def test_more_than_65536_entries_are_four_bytes_each(tmp_path: Path):
    entries = {"</s>": 0, "?": 1, "dog": 65_536}  # with a gap
    for last, kind in ((65_535, "uint16"), (65_536, "uint32")):
        backend = tokenizers.Tokenizer(
            models.WordLevel({**entries, "dog": last}, unk_token="?")
        )
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        stream = pack(write(tmp_path, a="a dog"), tokenizer, "file", tmp_path)
        assert stream.tokens.dtype == kind
        assert stream.tokens.tolist() == [0, 1, last, 0]


@pytest.mark.parametrize("text", ["\ufeff", " \n\n\t"])
def test_a_file_without_a_word_is_refused(text: str, tmp_path: Path):
    sources = write(tmp_path, a="The dog.\n", b=text)
    with pytest.raises(UserError, match="^b .* has no text"):
        pack(sources, byte_level(), "file", tmp_path)


# Cache


def contents(stream: Stream) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stream.directory.iterdir()}


def test_the_bytes_do_not_depend_on_what_is_tokenized_together(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer, sources = byte_level(), read(corpus)
    sources += write(tmp_path, hard=HARD * 200)
    found = []
    for batch in (1, 7, 256):
        monkeypatch.setattr(packing, "BATCH", batch)
        found.append(contents(pack(sources, tokenizer, "line", tmp_path / f"{batch}")))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5


def test_a_warm_start_reads_no_text(corpus: Path, tmp_path: Path):
    def gone():
        raise AssertionError("the text was read")

    tokenizer, sources = byte_level(), read(corpus)
    first = pack(sources, tokenizer, "auto", tmp_path)
    unreadable = [replace(source, texts=gone) for source in sources]
    second = pack(unreadable, tokenizer, "auto", tmp_path)
    assert contents(first) == contents(second)
    with pytest.raises(AssertionError, match="the text was read"):
        pack(unreadable, tokenizer, "auto", tmp_path, overwrite=True)


def test_what_changes_the_stream_changes_its_folder(corpus: Path, tmp_path: Path):
    tokenizer, sources = byte_level(), read(corpus)
    folders = {
        pack(sources, tokenizer, "auto", tmp_path).directory,
        pack(sources, tokenizer, "line", tmp_path).directory,
        pack(sources[::-1], tokenizer, "auto", tmp_path).directory,
        pack(sources[:1], tokenizer, "auto", tmp_path).directory,
        pack(sources, byte_level(301), "auto", tmp_path).directory,
    }
    other = [replace(source, reading="csv:title") for source in sources]
    folders.add(pack(other, tokenizer, "auto", tmp_path).directory)
    assert len(folders) == 6
    assert pack(sources, tokenizer, "auto", tmp_path).directory in folders


DAMAGES = {
    "tokens cut off": lambda at: (at / "tokens.bin").write_bytes(b"\0\0"),
    "no words": lambda at: (at / "words.bin").unlink(),
    "no table of contents": lambda at: (at / "stream.json").unlink(),
    "half a table of contents": lambda at: (at / "stream.json").write_text('{"ver'),
    "another table of contents": lambda at: (at / "stream.json").write_text("[]"),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_anew(damage: str, corpus: Path, tmp_path: Path):
    tokenizer, sources = byte_level(), read(corpus)
    stream = pack(sources, tokenizer, "auto", tmp_path)
    whole = contents(stream)
    DAMAGES[damage](stream.directory)
    again = pack(sources, tokenizer, "auto", tmp_path)
    assert again.directory == stream.directory
    assert contents(again) == whole


def test_what_a_killed_run_left_is_no_stream(corpus: Path, tmp_path: Path):
    tokenizer, sources = byte_level(), read(corpus)
    stream = pack(sources, tokenizer, "auto", tmp_path)
    whole, directory = contents(stream), stream.directory
    directory.rename(directory.with_suffix(".tmp"))
    (directory.with_suffix(".tmp") / "rubbish.bin").touch()
    assert contents(pack(sources, tokenizer, "auto", tmp_path)) == whole
    assert [path.name for path in directory.parent.iterdir() if path.is_dir()] == [
        directory.name
    ]


def test_a_file_that_fails_leaves_no_stream(corpus: Path, tmp_path: Path):
    (corpus / "z.train").write_bytes(b"The dog\xff.\n")
    for _ in range(2):
        with pytest.raises(UserError, match="z.train is not UTF-8: byte 7 is 0xff"):
            pack(read(corpus), byte_level(), "auto", tmp_path)


def test_runs_that_start_together_pack_once(corpus: Path, tmp_path: Path):
    tokenizer, (source, *_) = byte_level(), read(corpus)
    reads, streams, together = [], [], threading.Barrier(3)

    def texts():
        reads.append(1)
        return source.texts()

    def run():
        together.wait()
        counted = replace(source, texts=texts)
        streams.append(pack([counted], tokenizer, "file", tmp_path))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len({tuple(stream.tokens.tolist()) for stream in streams}) == 1
    assert len(streams) == 3


def test_the_totals_are_beside_the_stream(corpus: Path, tmp_path: Path):
    stream = pack(read(corpus), byte_level(), "auto", tmp_path)
    info = json.loads((stream.directory / "stream.json").read_text())
    # 240 lines of five words; 160 in documents of eight lines.
    assert [row["documents"] for row in info["files"]] == [1, 20]
    assert [row["words"] for row in info["files"]] == [1200, 800]
    assert (info["documents"], info["words"]) == (21, 2000)
    assert info["tokens"] == len(stream) == stream.files[-1]["end"]
    assert info["bytes"] == sum(p.stat().st_size for p in corpus.glob("*.train"))
