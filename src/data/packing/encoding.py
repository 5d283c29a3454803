"""Text into token ids, and the bytes at which each token ends: the hot part of packing.

A line is tokenized by itself, as the example scripts of `transformers` do, so that ids do
not depend on where a text is cut. Where the tokenizer is a byte-level BPE with GPT-2's
pattern, `tiktoken` does the work: three times as fast as `tokenizers` for the same ids.
"""

import functools
import json
from typing import Any, NamedTuple, Optional

import numpy as np
import tiktoken
import tokenizers
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from src.data.text.documents import LINE

# What the pattern of GPT-2 (Radford et al. 2019) finds in each line by itself.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|[^\S\n]*+\n|[^\S\n]+(?!\S)|[^\S\n]+"
)

# The same for text whose white space is line ends and single spaces; without a look-ahead,
# which costs a fifth of the time.
SIMPLE_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+| ?\n| "
NOT_SIMPLE = ["  "] + [
    chr(code)
    for code in range(0x3001)
    if chr(code).isspace() and chr(code) not in " \n"
]


class Loss(NamedTuple):
    """A text that a tokenizer does not give back."""

    text: str
    decoded: str


class Encoded(NamedTuple):
    """Tokens of a text: ids [n], the byte of the text at which each ends [n], what is lost."""

    ids: np.ndarray
    ends: np.ndarray
    loss: Optional[Loss]


class Encoder:
    """Turns text into tokens and adds nothing.

    No special tokens, none read from the text either (a text may contain `</s>`), no prefix
    space, no truncation, no padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        serialized = tokenizer.backend_tokenizer.to_str()
        # What determines the ids; the second as JSON of `tokenizers`.
        self._description, self.description = plain(serialized)

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of `tokenizers`. Made when used: a warm start needs none."""
        backend = tokenizers.Tokenizer.from_str(self.description)
        backend.encode_special_tokens = True
        return backend

    @functools.cached_property
    def _lengths(self) -> Optional[np.ndarray]:
        return byte_lengths(self.backend, self._description)

    @functools.cached_property
    def _tiktoken(self) -> Optional[tiktoken.Encoding]:
        if self._lengths is None:
            return None
        return as_tiktoken(self.backend, self._description)

    @functools.cached_property
    def _simple(self) -> Optional[tiktoken.Encoding]:
        if self._tiktoken is None:
            return None
        ranks = self._tiktoken._mergeable_ranks
        return tiktoken.Encoding(
            "simple", pat_str=SIMPLE_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def prepare(self) -> None:
        """Make what is made when first used."""
        self._lengths, self._tiktoken, self._simple

    @property
    def max_id(self) -> int:
        """The largest id it gives."""
        return max(self.backend.get_vocab().values())

    def encode(self, texts: list[str]) -> Encoded:
        """The texts' tokens, one text after the other; ends count in the joined texts."""
        if self._tiktoken is not None:
            arrays = [self._encode_with_tiktoken(text) for text in texts]
            ids = np.concatenate([np.zeros(0, np.uint32), *arrays])
            return Encoded(ids, np.cumsum(self._lengths[ids]), None)
        lines = [line for text in texts for line in LINE.findall(text)]
        if self._lengths is not None:
            encodings = self.backend.encode_batch_fast(lines, add_special_tokens=False)
            ids = np.array([id for e in encodings for id in e.ids], np.int64)
            ends = np.cumsum(self._lengths[ids])
            num_bytes = sum(len(line.encode()) for line in lines)
            if len(ids) and ends[-1] == num_bytes:
                return Encoded(ids, ends, None)
            # A byte-level vocabulary that lacks some bytes: not all text became tokens.
        return self._encode_by_offsets(lines)

    def _encode_with_tiktoken(self, text: str) -> np.ndarray:
        simple = not any(space in text for space in NOT_SIMPLE)
        encoding = self._simple if simple else self._tiktoken
        return encoding.encode_to_numpy(text, disallowed_special=frozenset())

    def _encode_by_offsets(self, lines: list[str]) -> Encoded:
        """Slower, for any tokenizer: places from its character offsets, text decoded."""
        encodings = self.backend.encode_batch(lines, add_special_tokens=False)
        ids, ends, before = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        loss = None
        for line, encoding in zip(lines, encodings):
            places = np.concatenate([[0], np.cumsum([len(c.encode()) for c in line])])
            last = np.array([end for _, end in encoding.offsets], np.int64)
            # A token ends where its last character does.
            ends.append(before + places[np.maximum.accumulate(last)])
            ids.append(np.array(encoding.ids, np.int64))
            before += places[-1]
            if loss is None:
                decoded = self.backend.decode(encoding.ids, skip_special_tokens=False)
                loss = Loss(line, decoded) if decoded != line else None
        return Encoded(np.concatenate(ids), np.concatenate(ends), loss)


@functools.lru_cache(maxsize=1)  # both texts of a run have one tokenizer
def plain(serialized: str) -> tuple[dict[str, Any], str]:
    """What turns text into tokens, and back, and nothing else; also as JSON."""
    description = json.loads(serialized)
    for part in ("pre_tokenizer", "decoder"):
        _set_everywhere(description.get(part), "add_prefix_space", False)
        _set_everywhere(description.get(part), "prepend_scheme", "never")
    description.update(truncation=None, padding=None, post_processor=None)
    if "dropout" in description["model"]:  # the same text has the same tokens
        description["model"]["dropout"] = None
    # What puts a space before the text, and what takes it away again.
    _drop(description, "normalizer", "normalizers", "Prepend")
    _drop(description, "decoder", "decoders", "Strip")
    return description, json.dumps(description)


def _drop(description: dict[str, Any], part: str, parts: str, kind: str) -> None:
    """Without the `part`s of a kind, alone or in a sequence."""
    node = description.get(part) or {}
    if node.get("type") == kind:
        description[part] = None
    elif node.get("type") == "Sequence":
        node[parts] = [child for child in node[parts] if child["type"] != kind]


def _set_everywhere(node: Any, key: str, value: Any) -> None:
    if isinstance(node, dict):
        if key in node:
            node[key] = value
        for child in node.values():
            _set_everywhere(child, key, value)
    elif isinstance(node, list):
        for child in node:
            _set_everywhere(child, key, value)


def byte_lengths(
    backend: tokenizers.Tokenizer, description: dict[str, Any]
) -> Optional[np.ndarray]:
    """Bytes of text each id stands for [num_ids]; None where it is not byte-level.

    A byte-level vocabulary writes each byte as one character (Radford et al. 2019).
    """
    kinds = [json.dumps(description.get(p)) for p in ("pre_tokenizer", "decoder")]
    if description.get("normalizer") or not all('"ByteLevel"' in k for k in kinds):
        return None
    vocabulary = backend.get_vocab()
    complete = set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
    if description["model"].get("unk_token") and not complete:
        return None  # an unknown token is as long as what it stands for
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    for added in description["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def byte_characters() -> dict[str, int]:
    """The character with which a byte-level vocabulary writes each byte → the byte."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    own = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = sorted(alphabet - set(own))
    return {**own, **dict(zip(others, sorted(set(range(256)) - set(own.values()))))}


def as_tiktoken(
    backend: tokenizers.Tokenizer, description: dict[str, Any]
) -> Optional[tiktoken.Encoding]:
    """The same tokenizer as a `tiktoken.Encoding`; None where it would not be the same.

    `tokenizers` merges the pairs of a list, in its order; `tiktoken` any pair that makes an
    entry, in the order of ids. They agree where every merge makes an entry of its own, in
    the order of ids, and every entry, written in bytes, is merged to itself: then a pair
    that makes an entry is never met but as the last merge of that entry.
    """
    model, splitting = description["model"], description.get("pre_tokenizer") or {}
    special = {added["content"] for added in description["added_tokens"]}
    if (
        model["type"] != "BPE"
        or splitting.get("type") != "ByteLevel"
        or not splitting.get("use_regex", True)
        or description.get("normalizer")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or model.get("ignore_merges")
        or not all(added["special"] for added in description["added_tokens"])
    ):
        return None
    entries = {e: id for e, id in model["vocab"].items() if e not in special}
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    merged = [entries.get("".join(pair), -1) for pair in pairs]
    characters = byte_characters()
    if (
        any(set(entry) - set(characters) for entry in entries)
        or not set(characters) <= set(entries)
        or merged != sorted(set(merged))
        or len(entries) != len(characters) + len(merged)
        or any(len(backend.model.tokenize(entry)) != 1 for entry in entries)
    ):
        return None
    ranks = {bytes(characters[c] for c in entry): id for entry, id in entries.items()}
    return tiktoken.Encoding(
        "packing", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
