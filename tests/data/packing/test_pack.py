"""The stream on disk: its tokens, its words and bytes, its cache."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from src.data.cache import Cache
from src.data.packing.pack import Packer
from src.data.packing.stream import (
    VERSION,
    PackedPiece,
    Stream,
    StreamWriter,
)
from src.data.packing.tokenizer import save, train
from src.data.text import documents
from src.data.text.corpus import Source, read_corpus
from src.data.text.documents import PIECE_LENGTH
from src.foundation import UserError
from tests.conftest import sentences
from tests.data.packing.test_encoding import (
    byte_level,
    incomplete_byte_level,
    sentence_piece,
    word_piece,
)
from tests.data.test_cache import damage_bit
from tests.data.text import test_corpus

# Letters of one to four bytes, white space of every kind, special tokens as text.
HARD = (
    "Zoë’s 🐈🐈 sat  on\ta naïve\u3000mat.\u2003Yes\x85no\n"
    "</s> <s> [UNK] \n\n日本語 中文\n \n  indented\x1cfile ﬁn \u200b e\u0301\n"
)


def read(folder: Path, pattern: str = "*.train") -> list[Source]:
    return read_corpus(f"{folder}/{pattern}", folder / "cache")


def pack(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerFast,
    boundary: str,
    cache_dir: Path,
    overwrite: bool = False,
    **options: Any,
) -> Stream:
    cache = Cache(cache_dir, overwrite)
    return Packer(tokenizer, boundary, cache, **options).pack(sources)


def write(folder: Path, **texts: str) -> list[Source]:
    for name, text in texts.items():
        (folder / f"{name}.train").write_bytes(text.encode())
    return read(folder)


def text_of(stream: Stream, tokenizer: PreTrainedTokenizerFast, file: dict) -> str:
    """Return the decoded text of a file, without BOS and EOS."""
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
    assert stream.files == [
        dict(
            name="first", boundary="blank_line", start=0, end=10, documents=2,
            words=2, bytes=6, separators=1, empty_texts=0, loss=None, special_tokens={},
        ),
        dict(
            name="second", boundary="file", start=10, end=16, documents=1, words=2,
            bytes=4, separators=0, empty_texts=0, loss=None, special_tokens={},
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
    stream = pack(sources, make(), boundary, tmp_path, lossy=True)
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
    stream = pack(write(tmp_path, a=text), tokenizer, "file", tmp_path, lossy=True)
    tokens = tokenizer.convert_ids_to_tokens(stream.tokens.tolist())
    words = np.diff(stream.words.astype(int)).tolist()
    sizes = np.diff(stream.bytes.astype(int)).tolist()
    assert list(zip(tokens, words, sizes)) == expected


@pytest.mark.parametrize("make", [byte_level, word_piece, sentence_piece])
def test_the_words_of_every_span_are_those_that_begin_in_it(make, tmp_path: Path):
    """Compared with the slow way: find the token with the first byte of every word."""
    stream = pack(write(tmp_path, a=HARD), make(), "file", tmp_path, lossy=True)
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
        sources = write(tmp_path, a="a dog")
        stream = pack(sources, tokenizer, "file", tmp_path, lossy=True)
        assert stream.tokens.dtype == kind
        assert stream.tokens.tolist() == [0, 1, last, 0]


def test_a_dataset_without_a_word_is_refused(tmp_path: Path):
    (source,) = write(tmp_path, a="The dog.\n")
    empty = replace(source, texts=lambda: iter([iter([" \n\n\t"])]))
    with pytest.raises(UserError, match=r"a\.train has no text"):
        pack([empty], byte_level(), "file", tmp_path)


# Where the text is cut

TEXTS = dict(
    hard="".join(f"{n} {HARD}" for n in range(40)),
    blank="\n \n\nThe dog.\n\n" + "\n".join(sentences(60, 1)) + "\n\n \n",
    heading="= = = A = = =\nThe cat\n= = = B = = =\n" + "\n\n".join(sentences(30, 2)),
    windows="\ufeff" + "\r\n".join(sentences(30, 3)) + "\0\r\nno line end \r\n\t",
)


def normal(text: str) -> str:
    """Without a byte order mark, with one kind of line end."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


@pytest.mark.parametrize("boundary", ["file", "line", "blank_line", "heading", "auto"])
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_stream_does_not_depend_on_where_pieces_end(
    make, boundary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer, sources, found = make(), write(tmp_path, **TEXTS), []
    for length in (PIECE_LENGTH, 200, 337, 2000):
        monkeypatch.setattr(documents, "PIECE_LENGTH", length)
        stream = pack(sources, tokenizer, boundary, tmp_path / f"{length}")
        found.append(contents(stream))
        assert found[-1] == found[0], length
    for source, file in zip(sources, stream.files):
        text = normal(TEXTS[source.name])
        assert text_of(stream, tokenizer, file) == text
        assert file["words"] == len(text.split())
        assert file["bytes"] == len(text.encode())


def test_a_short_line_before_a_very_long_word_is_tokenized_by_itself(tmp_path: Path):
    sources = write(tmp_path, a="a   \n" + "x" * 3 * PIECE_LENGTH)
    tokenizer = train(["a   \n" * 9], 261)
    stream = pack(sources, tokenizer, "file", tmp_path)
    expected = tokenizer.backend_tokenizer.encode("a   \n", add_special_tokens=False)
    assert stream.tokens[1:4].tolist() == expected.ids[-3:]


def test_lines_longer_than_pieces_are_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_LENGTH", 50)
    texts = dict(
        spaces="The dog sees a cat. " * 30 + "\n" + "A king. " * 90,
        word="é" * 777 + "\n" + "日本語" * 99 + " x",
        white=" " * 333 + "a" + "\t" * 200 + "\n" + "\u3000" * 99 + "b\n",
    )
    sources, tokenizer = write(tmp_path, **texts), byte_level()
    for boundary in ("file", "line", "blank_line", "heading"):
        stream = pack(sources, tokenizer, boundary, tmp_path)
        for source, file in zip(sources, stream.files):
            text = texts[source.name]
            assert text_of(stream, tokenizer, file) == text
            assert file["words"] == len(text.split())
            assert file["bytes"] == len(text.encode())


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("length", [6, PIECE_LENGTH])
def test_no_token_and_no_word_crosses_rows(
    ending: str, length: int, tmp_path: Path, monkeypatch, caplog
):
    """`dogs` in one row is a token and a word; `dog`, `s` in two are two of each."""
    monkeypatch.setattr(documents, "PIECE_LENGTH", length)
    tokenizer = train(["dogs dogs dog dog s"] * 9, 300)
    rows = ["dogs", "dog", "s", " \n", "s dogs", ""]
    source = test_corpus.read(test_corpus.write(tmp_path / f"a{ending}", rows))
    stream = pack([source], tokenizer, "file", tmp_path)
    tokens = tokenizer.convert_ids_to_tokens(stream.tokens.tolist())
    assert tokens == (
        ["<s>", "dogs", "</s>", "<s>", "dog", "</s>", "<s>", "s", "</s>"]
        + ["<s>", "s", "Ġdogs", "</s>"]
    )
    assert np.diff(stream.words.astype(int)).tolist() == [
        *[0, 1, 0, 0, 1, 0, 0, 1, 0], *[0, 1, 1, 0]
    ]  # fmt: skip
    assert stream.documents.tolist() == [0, 3, 6, 9]
    assert "a: skipped 2 rows without text" in caplog.text


@pytest.mark.parametrize(
    "boundary, text, warned",
    [
        ("blank_line", "A\nB\n", True),
        ("blank_line", "A\n\nB\n", False),
        ("blank_line", "A\nB\n\n", True),
        ("blank_line", "\nA\nB\n", True),
        ("heading", "A\n\nB\n", True),
        ("heading", "= = = A = = =\nB\n", False),
        ("line", "A", False),
        ("file", "A\nB", False),
        ("auto", "A\nB", False),
    ],
)
def test_a_boundary_that_is_not_found_is_warned_of(
    boundary, text, warned, tmp_path: Path, caplog
):
    sources = write(tmp_path, childes="The\n\n= = = Dog = = =\nsees.\n", b=text)
    expected = f"data.document_boundary={boundary}: b has none; it is one document"
    for _ in range(2):  # also when it comes from the cache
        caplog.clear()
        pack(sources, byte_level(), boundary, tmp_path)
        assert (expected in caplog.text) == warned
        assert "childes has none" not in caplog.text


def test_special_tokens_in_the_text_are_warned_of_and_may_separate_documents(
    tmp_path: Path, caplog
):
    story = "The dog.\n<|endoftext|>\n"
    sources = write(tmp_path, a=story * 3, b="A [cat] <3 </s>")
    for _ in range(2):  # also when it comes from the cache
        caplog.clear()
        pack(sources, byte_level(), "auto", tmp_path)
        assert (
            "a: the special token <|endoftext|> is written 3 times in the text; it is"
            " packed as characters and counted as a word. If it separates documents, set"
            " \"data.document_boundary='<|endoftext|>'\""
        ) in caplog.text
        assert "b: the special token </s> is written 1 time" in caplog.text
        assert caplog.text.count("special token") == 2
    caplog.clear()
    stream = pack(sources[:1], byte_level(), "<|endoftext|>", tmp_path)
    (row,) = stream.files
    assert "special token" not in caplog.text
    assert (row["documents"], row["words"], row["bytes"]) == (3, 6, 27)
    assert row["boundary"] == "<|endoftext|>"
    assert text_of(stream, byte_level(), row) == "The dog.\n" * 3


# Loss


def test_a_tokenizer_that_loses_text_is_refused_unless_that_is_meant(tmp_path: Path):
    sources = write(tmp_path, a="the dog\n", b="A cat.\n")
    tokenizer = word_piece()
    message = r"^tokenizer: its tokens do not decode to the text of a: 'the dog\\n' becomes 'th"
    stream = pack(sources, tokenizer, "file", tmp_path, lossy=True)
    assert stream.files[1]["loss"] == {"text": "A cat.\n", "decoded": "a cat ."}
    with pytest.raises(UserError, match=message) as error:  # from the cache
        pack(sources, tokenizer, "file", tmp_path)
    assert str(error.value).endswith("; to allow it: tokenizer.lossy=true")


def test_a_loss_in_the_first_piece_is_a_loss(tmp_path: Path):
    with pytest.raises(UserError, match="the text of a: 'The dog.\\\\n' becomes"):
        pack(write(tmp_path, a="The dog.\n"), word_piece(), "file", tmp_path)
    assert not list(tmp_path.glob("packed/*/stream.json"))


def test_a_loss_far_into_a_file_is_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_LENGTH", 500)
    text = "\n".join(sentences(300, 0)) + "\nan éa é\né\n"
    message = r"of b: '.*\\nan éa é\\né\\n' becomes '.*\\nan a \\n\\n'"
    with pytest.raises(UserError, match=message):
        sources = write(tmp_path, a="The dog.\n", b=text)
        pack(sources, incomplete_byte_level(), "file", tmp_path)


# Numbers


def written(directory: Path, words: int, num_bytes: int) -> Stream:
    """`a é` in three tokens, behind so many words and bytes."""
    writer = StreamWriter(directory, 300, 1, 2)
    writer.totals.update(words=words, bytes=num_bytes)
    beginning = np.array([[0, 0, 0]])
    values = np.array([7, 8, 9]), np.array([1, 1, 2]), np.array([1, 2, 4])
    writer.append(PackedPiece(*values, beginning, dict(words=2, bytes=4)))
    writer.end_document()
    writer.close([])
    return Stream(directory, [])


def test_sums_beyond_32_bits_have_the_right_differences(tmp_path: Path):
    stream = written(tmp_path, 2**32 - 1, 2**32 - 2)
    assert stream.tokens.tolist() == [1, 7, 8, 9, 2]
    assert stream.words.tolist()[1:] == [2**32 - 1, 0, 0, 1, 1]
    assert stream.bytes.tolist()[1:] == [2**32 - 2, 2**32 - 1, 0, 2, 2]
    starts, ends = np.array([1, 1, 2]), np.array([2, 5, 4])
    assert stream.num_words(starts, ends).tolist() == [1, 2, 1]
    assert stream.num_bytes(starts, ends).tolist() == [1, 4, 3]
    assert stream.info["words"] == 2**32 + 1


def test_the_difference_of_two_such_sums_is_no_warning(tmp_path: Path):
    stream = written(tmp_path, 2**32 - 1, 2**32 - 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (stream.num_words(1, 5), stream.num_bytes(1, 5)) == (2, 4)
    assert not caught


@pytest.mark.parametrize(
    "max_id, kind", [(65_535, "uint16"), (65_536, "uint32"), (2**32 - 1, "uint32")]
)
def test_the_largest_id_decides_the_type(max_id: int, kind: str, tmp_path: Path):
    assert StreamWriter(tmp_path, max_id, 1, 2).token_type == kind


# Cache


def contents(stream: Stream) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stream.directory.iterdir()}


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
    **{
        f"another bit in {name}": lambda at, name=name: damage_bit(at / name)
        for name in (
            *("tokens.bin", "words.bin", "bytes.bin", "documents.bin"),
            *("stream.json", "manifest.json"),
        )
    },
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


@pytest.mark.parametrize("ending", [".train", ".txt.gz", ".jsonl"])
def test_text_that_changes_before_its_packing_is_not_cached(ending, tmp_path: Path):
    """Neither as the text that it was, nor as the text that it is when it changes back."""
    path = test_corpus.write(tmp_path / f"a{ending}", ["The dog.\n"])
    old, tokenizer = test_corpus.read(path), byte_level()
    test_corpus.write(path, ["The cat.\n"])
    with pytest.raises(UserError, match=f"{path} has changed since the start"):
        pack([old], tokenizer, "file", tmp_path)
    test_corpus.write(path, ["The dog.\n"])
    stream = pack([test_corpus.read(path)], tokenizer, "file", tmp_path)
    assert "dog" in text_of(stream, tokenizer, stream.files[0])


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


def test_the_number_of_workers_makes_no_difference(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_LENGTH", 100)
    tokenizer, sources = byte_level(), write(tmp_path, **TEXTS)
    found = [
        contents(pack(sources, tokenizer, "auto", tmp_path / f"{n}", num_workers=n))
        for n in (1, 2, 5)
    ]
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == sorted(
        [f"{name}.bin" for name in ("tokens", "words", "bytes", "documents")]
        + ["manifest.json", "stream.json"]
    )


def unread(sources: list[Source]) -> list[Source]:
    """The same sources, without a text to read."""

    def texts():
        raise AssertionError("the text was read")

    return [replace(source, texts=texts) for source in sources]


def test_files_under_other_names_are_the_same_text(corpus: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    for file in corpus.glob("*.train"):
        shutil.copy(file, tmp_path / "elsewhere" / f"my-{file.name}")
    tokenizer, copies = byte_level(), read(tmp_path / "elsewhere")
    first = pack(read(corpus), tokenizer, "auto", tmp_path)
    second = pack(unread(copies), tokenizer, "auto", tmp_path)
    assert second.directory == first.directory
    assert [row["name"] for row in first.files] == ["childes", "gutenberg"]
    assert [row["name"] for row in second.files] == ["my-childes", "my-gutenberg"]
    assert b"childes" not in (first.directory / "stream.json").read_bytes()


def test_a_touched_file_is_not_packed_again_and_a_changed_byte_is(corpus, tmp_path):
    tokenizer, file = byte_level(), corpus / "childes.train"
    first = pack(read(corpus), tokenizer, "auto", tmp_path)
    os.utime(file, ns=(1, 1))
    touched = unread(read(corpus))
    assert pack(touched, tokenizer, "auto", tmp_path).directory == first.directory
    file.write_bytes(file.read_bytes().replace(b".", b"!", 1))
    second = pack(read(corpus), tokenizer, "auto", tmp_path)
    assert second.directory != first.directory
    assert (second.tokens != first.tokens).sum() == 1


# Other processes. They are forked from one that has done the imports.


def pack_elsewhere(
    folder: Path, tokenizer: Path, log: Path, waits: float, user: int, limit: int
) -> None:
    """Pack in another process, which may not write files of more than `limit` bytes.

    It notes in `log` what happens.
    """
    from src.data.packing.tokenizer import load

    def note(text: str) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def slowly(source: Source) -> Any:
        def texts():
            note("reads")
            for parts in source.texts():
                yield parts
                time.sleep(waits)

        return texts

    loaded = load(str(tokenizer))
    if user:
        os.setuid(user)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        sources = [replace(s, texts=slowly(s)) for s in read(folder)]
        note(str(len(pack(sources, loaded, "file", folder / "cache"))))
    except UserError as error:
        note(str(error))


@pytest.fixture
def elsewhere(processes, corpus: Path, tmp_path: Path):
    """A function that starts a process which packs the corpus, and its log file."""
    log = tmp_path / "log"
    log.touch()
    save(byte_level(), tmp_path / "tokenizer")

    def start(waits: float = 0, user: int = 0, limit: int = resource.RLIM_INFINITY):
        arguments = (corpus, tmp_path / "tokenizer", log, waits, user, limit)
        process = processes.Process(target=pack_elsewhere, args=arguments)
        process.start()
        return process

    return start, log


def test_processes_that_start_together_pack_once(elsewhere, corpus: Path):
    start, log = elsewhere
    running = [start(waits=0.2) for _ in range(3)]
    for process in running:
        process.join(60)
    stream = pack(read(corpus), byte_level(), "file", corpus / "cache")
    assert log.read_text().split() == 2 * ["reads"] + 3 * [str(len(stream))]


def test_after_a_kill_the_next_run_starts_clean(elsewhere, corpus: Path):
    start, log = elsewhere
    process, before = start(waits=60), time.time()
    while "reads" not in log.read_text() and time.time() < before + 60:
        time.sleep(0.02)
    process.kill()
    process.join()
    packed = corpus / "cache" / "packed"
    assert [path.suffix for path in packed.iterdir() if path.is_dir()] == [".tmp"]
    stream = pack(read(corpus), byte_level(), "file", corpus / "cache")
    assert text_of(stream, byte_level(), stream.files[0]) == (
        (corpus / "childes.train").read_text()
    )
    assert [path for path in packed.iterdir() if path.is_dir()] == [stream.directory]


def test_a_disk_that_is_full_at_any_time_spoils_nothing(elsewhere, corpus: Path):
    """A limit on the size of a file, as a quota or a file system has, stops the writing."""
    start, log = elsewhere
    stream = pack(read(corpus), byte_level(), "file", corpus / "whole")
    whole, packed = contents(stream), corpus / "cache" / "packed"
    for limit in (1000, 5000, stream.size_on_disk // 3):
        log.write_text("")
        start(limit=limit).join(60)
        assert log.read_text().splitlines()[-1] == (
            f"model.cache_dir: {packed} cannot be written: File too large; make room or"
            " choose another directory with model.cache_dir="
        )
        assert not list(packed.glob("*.tmp")) and not list(packed.glob("*/*"))
    start().join(60)
    assert contents(pack(read(corpus), byte_level(), "file", corpus / "cache")) == whole


def test_a_read_only_cache_is_used_if_it_is_complete(elsewhere, corpus: Path):
    """As a user who is not root, whom no permission stops."""
    start, log = elsewhere
    user = 65_534 if os.geteuid() == 0 else 0
    for parent in corpus.parents:  # opened up as far as a folder of another user's
        if user and parent.owner() == "root" and "pytest" in str(parent):
            parent.chmod(0o755)
    log.chmod(0o666)
    stream = pack(read(corpus), byte_level(), "file", corpus / "cache")
    folders = [corpus / "cache", stream.directory.parent, stream.directory]
    for folder in folders:
        folder.chmod(0o555)
    try:
        start(user=user).join(60)
        assert log.read_text() == f"{len(stream)}\n"
        log.write_text("")
        folders[-1].chmod(0o755)
        (stream.directory / "words.bin").unlink()
        start(user=user).join(60)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert log.read_text() == (
        f"model.cache_dir: {folders[1]} cannot be written: Permission denied; make"
        " room or choose another directory with model.cache_dir=\n"
    )


def test_the_packed_bytes_are_those_of_this_version(tmp_path: Path):
    """A change of the packing needs a new `stream.VERSION`, or old streams would be used."""
    text = " a b\n= = = T = = =\nfoo  bar\n\n x\n"
    stream = pack(write(tmp_path, a=text), train(["a"], 259), "auto", tmp_path)
    digest = hashlib.sha256()
    for name in ("tokens", "words", "bytes", "documents"):
        digest.update((stream.directory / f"{name}.bin").read_bytes())
    assert (VERSION, digest.hexdigest()[:12]) == (4, "949696f8d4d5")


def test_a_stream_is_handed_to_another_process_without_its_arrays(tmp_path: Path):
    sources = write(tmp_path, a="The dog sees a cat.\n" * 5000)
    stream = pack(sources, byte_level(), "auto", tmp_path)
    pickled = pickle.dumps(stream)
    assert len(pickled) < 2000 < stream.size_on_disk
    again = pickle.loads(pickled)
    assert again.files == stream.files and (again.tokens == stream.tokens).all()
