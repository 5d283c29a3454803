"""The encoding of text as token ids, with the byte where each token ends.

This is the hot part of packing.

A byte-level BPE with GPT-2's pattern is run by `tiktoken`, which gives the same ids as
`tokenizers` in a third of the time.
"""

import json
import logging
import os
from typing import Any, NamedTuple, Optional

import numpy as np
import tiktoken
import tokenizers
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

logger = logging.getLogger(__name__)

# The pattern of GPT-2 (Radford et al. 2019).
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)
# An equivalent pattern for text without the white space in NOT_SIMPLE. It has no look-ahead,
# which would take a fifth of the time, and it splits each line by itself.
SIMPLE_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\n| "
BLANKS = "".join(chr(c) for c in range(0x3001) if chr(c).isspace() and c != ord("\n"))
NOT_SIMPLE = ["  ", " \n", *BLANKS.replace(" ", "")]

# A place where encoding and decoding change the text, as {"text": …, "decoded": …}.
Loss = dict[str, str]


class Encoded(NamedTuple):
    """The tokens of consecutive texts."""

    ids: np.ndarray  # [n]
    ends: np.ndarray  # [n] the byte of the joined texts where each token ends
    starts: np.ndarray  # [num_texts] the index of the first token of each text
    offsets: np.ndarray  # [num_texts] the byte where each text starts
    loss: Optional[Loss] = None  # the first one in the texts


class Encoder:
    """An encoder of texts.

    It adds no special tokens, and treats those in the text (such as `</s>`) as plain text. It
    does not truncate and does not pad.

    Args:
        description: The tokenizer as `plain_json` describes it.
        fast: Use `tiktoken` and the lengths of entries where they fit the tokenizer.
    """

    def __init__(self, description: str, fast: bool = True):
        self.backend = tokenizers.Tokenizer.from_str(description)
        self.backend.encode_special_tokens = True
        self.max_id = max(self.backend.get_vocab().values())
        parts = json.loads(description)
        self._lengths = byte_lengths(self.backend, parts) if fast else None
        is_known = self._lengths is not None
        ranks = tiktoken_ranks(self.backend, parts) if is_known else None
        self._tiktoken = ranks and as_tiktoken(ranks, PATTERN)
        self._simple = ranks and as_tiktoken(ranks, SIMPLE_PATTERN)
        # GPT-2 itself has an entry of two line ends, which are then not split.
        self._joins_lines = any(b"\n" in entry[:-1] for entry in ranks or ())
        self._not_simple = NOT_SIMPLE + ["\n\n", "\n "] * self._joins_lines

    def encode(self, texts: list[str]) -> Encoded:
        """Return the tokens of texts. No token belongs to two of them."""
        edges = np.cumsum([0, *(len(text.encode()) for text in texts)])
        offsets = edges[:-1]
        if self._lengths is not None:
            ids = self._encode_without_offsets(texts)
            ends = np.cumsum(self._lengths[ids])
            if ends[-1:].sum() == edges[-1]:
                starts = np.searchsorted(ends, offsets, side="right")
                return Encoded(ids, ends, starts, offsets)
            # Otherwise the vocabulary lacks some bytes, and a part of the text has no tokens.
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        ends, losses = zip(*map(self._ends_and_loss, texts, encodings))
        ids = np.array([id for encoding in encodings for id in encoding.ids], np.int64)
        ends = np.concatenate([end + offset for end, offset in zip(ends, offsets)])
        starts = np.cumsum([0, *map(len, encodings[:-1])])
        return Encoded(ids, ends, starts, offsets, next(filter(None, losses), None))

    def checked(self, documents: list[str]) -> "Encoder":
        """Return this encoder if it agrees with `tokenizers` on documents, else a slow one."""
        whole = self.backend.encode_batch(documents, add_special_tokens=False)
        ids = [id for encoding in whole for id in encoding.ids]
        if self.encode(documents).ids.tolist() == ids:
            return self
        logger.warning("tiktoken gives other ids here; `tokenizers` packs the text")
        return Encoder(self.backend.to_str(), fast=False)

    def _encode_without_offsets(self, texts: list[str]) -> np.ndarray:
        """Return the ids of all texts [n], of a byte-level tokenizer."""
        if self._tiktoken is None:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            return np.array([id for e in encodings for id in e.ids], np.int64)
        joined = "".join(texts)
        is_simple = not any(space in joined for space in self._not_simple)
        encoding = self._simple if is_simple else self._tiktoken
        # The tokens of a line depend on the next line only if white space ends the line.
        independent = (t[-1:] == "\n" and t[-2:-1] not in BLANKS for t in texts[:-1])
        if not self._joins_lines and all(independent):
            texts = [joined]  # one call is faster than many
        nothing = frozenset()
        ids = [encoding.encode_to_numpy(t, disallowed_special=nothing) for t in texts]
        return np.concatenate(ids)

    def _ends_and_loss(
        self, text: str, encoding: tokenizers.Encoding
    ) -> tuple[np.ndarray, Optional[Loss]]:
        """Return the ends of a text's tokens and a loss, with any tokenizer. This is slow.

        The ends come from the tokenizer's offsets of characters, and the text is decoded to
        find a loss.
        """
        offsets = np.cumsum([0, *(len(character.encode()) for character in text)])
        last = np.array([end for _, end in encoding.offsets], np.int64)
        decoded = self.backend.decode(encoding.ids, skip_special_tokens=False)
        # A token ends where its last character ends.
        return offsets[np.maximum.accumulate(last)], _difference(text, decoded)


def _difference(text: str, decoded: str) -> Optional[Loss]:
    """Return the surroundings of the first place where two texts differ; None if there is none.

    A tokenizer may put one space before a text, and decoding may take one away.
    """
    if decoded in (text, f" {text}") or text == f" {decoded}":
        return None
    start = max(0, len(os.path.commonprefix([text, decoded])) - 30)
    return dict(text=text[start : start + 60], decoded=decoded[start : start + 60])


def plain_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the JSON of a `tokenizers` tokenizer that only turns text into ids and back.

    It has no special tokens around a text, no truncation and no padding. Without dropout, the
    same text always gets the same tokens. A byte-level tokenizer, such as our own, puts no space
    before a text; any other one does as it always does.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description.update(truncation=None, padding=None, post_processor=None)
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None
    splitting = description["pre_tokenizer"] or {}
    if splitting.get("type") == "ByteLevel":
        splitting["add_prefix_space"] = False
    return json.dumps(description)


def as_tiktoken(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    """Return the encoding that splits text by a pattern and merges by `ranks`."""
    return tiktoken.Encoding(
        "packing", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )


def byte_lengths(
    backend: tokenizers.Tokenizer, description: dict[str, Any]
) -> Optional[np.ndarray]:
    """Return the number of bytes of each id [num_ids]; None if they are not byte-level.

    A byte-level vocabulary writes each byte as one character (Radford et al. 2019).
    """
    kinds = [json.dumps(description[part]) for part in ("pre_tokenizer", "decoder")]
    if description["normalizer"] or not all('"ByteLevel"' in k for k in kinds):
        return None
    vocabulary = backend.get_vocab()
    complete = set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
    if description["model"].get("unk_token") and not complete:
        return None  # an unknown token can stand for any number of bytes
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    for added in description["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def tiktoken_ranks(
    backend: tokenizers.Tokenizer, description: dict[str, Any]
) -> Optional[dict[bytes, int]]:
    """Return the entries for a `tiktoken.Encoding`; None if it would give other ids.

    `tokenizers` merges the pairs of a list, in the order of the list. `tiktoken` merges any
    two parts that form an entry, in the order of ids. They agree under two conditions. First,
    the merges form different entries, in the order of their ids. Second, each entry, split
    into bytes, is merged back to itself. Then two parts that form an entry are always the last
    merge of that entry.

    Args:
        description: That of a tokenizer which `byte_lengths` says is byte-level.
    """
    model, splitting = description["model"], description["pre_tokenizer"]
    others = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    special = {added["content"] for added in description["added_tokens"]}
    if (
        model["type"] != "BPE"
        or splitting["type"] != "ByteLevel"
        or not splitting.get("use_regex", True)
        or any(model.get(option) for option in others)
        or not all(added["special"] for added in description["added_tokens"])
    ):
        return None
    entries = {e: id for e, id in model["vocab"].items() if e not in special}
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    merged = [entries.get("".join(pair), -1) for pair in pairs]
    characters = {character: byte for byte, character in bytes_to_unicode().items()}
    if (
        any(set(entry) - set(characters) for entry in entries)
        or not set(characters) <= set(entries)
        or merged != sorted(set(merged))
        or len(entries) != len(characters) + len(merged)
        or any(len(backend.model.tokenize(entry)) != 1 for entry in entries)
    ):
        return None
    return {bytes(characters[c] for c in entry): id for entry, id in entries.items()}
