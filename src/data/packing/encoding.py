"""The encoding of text as token ids, with the byte where each token ends.

This is the hot part of packing. Each line is tokenized by itself, as in the example scripts
of `transformers`, so the ids do not depend on where a text is cut. A byte-level BPE with
GPT-2's pattern is run by `tiktoken`, which gives the same ids as `tokenizers` in a third of the
time.
"""

import json
from typing import Any, NamedTuple, Optional

import numpy as np
import tiktoken
import tokenizers
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from src.data.text.documents import LINE

# The pattern of GPT-2 (Radford et al. 2019), applied to each line by itself.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|[^\S\n]*+\n|[^\S\n]+(?!\S)|[^\S\n]+"
)

# An equivalent pattern for text whose only white space is line ends and single spaces. It has no
# look-ahead, which would take a fifth of the time.
SIMPLE_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+| ?\n| "
NOT_SIMPLE = ["  "] + [
    chr(code)
    for code in range(0x3001)
    if chr(code).isspace() and chr(code) not in " \n"
]


# A line that encoding and decoding change, as {"text": …, "decoded": …}.
Loss = dict[str, str]


class Encoded(NamedTuple):
    """The tokens of a text."""

    ids: np.ndarray  # [n]
    ends: np.ndarray  # [n] the byte of the text where each token ends
    loss: Optional[Loss]  # the first one in the text


class Encoder:
    """An encoder of text alone.

    It adds no special tokens, and treats those in the text (such as `</s>`) as plain text. It
    puts no space before the text, does not truncate and does not pad.

    Args:
        description: The tokenizer as `plain_json` describes it.
    """

    def __init__(self, description: str):
        self.backend = tokenizers.Tokenizer.from_str(description)
        self.backend.encode_special_tokens = True
        self.max_id = max(self.backend.get_vocab().values())
        parts = json.loads(description)
        self._lengths = byte_lengths(self.backend, parts)
        self._tiktoken = self._simple = None
        ranks = tiktoken_ranks(self.backend, parts)
        if self._lengths is not None and ranks is not None:
            self._tiktoken = as_tiktoken(ranks, PATTERN)
            self._simple = as_tiktoken(ranks, SIMPLE_PATTERN)

    def encode(self, texts: list[str]) -> Encoded:
        """Return the tokens of all texts in order. `ends` are offsets in the joined texts."""
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
            # Otherwise the vocabulary lacks some bytes, and a part of the text has no tokens.
        return self._encode_by_offsets(lines)

    def _encode_with_tiktoken(self, text: str) -> np.ndarray:
        simple = not any(space in text for space in NOT_SIMPLE)
        encoding = self._simple if simple else self._tiktoken
        return encoding.encode_to_numpy(text, disallowed_special=frozenset())

    def _encode_by_offsets(self, lines: list[str]) -> Encoded:
        """Return the tokens of lines with any tokenizer. This is slow.

        The ends come from the tokenizer's offsets of characters, and every line is decoded to
        find a loss.
        """
        encodings = self.backend.encode_batch(lines, add_special_tokens=False)
        ids, ends, before = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        loss = None
        for line, encoding in zip(lines, encodings):
            offsets = np.concatenate([[0], np.cumsum([len(c.encode()) for c in line])])
            last = np.array([end for _, end in encoding.offsets], np.int64)
            # A token ends where its last character ends.
            ends.append(before + offsets[np.maximum.accumulate(last)])
            ids.append(np.array(encoding.ids, np.int64))
            before += offsets[-1]
            if loss is None:
                decoded = self.backend.decode(encoding.ids, skip_special_tokens=False)
                loss = dict(text=line, decoded=decoded) if decoded != line else None
        return Encoded(np.concatenate(ids), np.concatenate(ends), loss)


def plain_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the JSON of a `tokenizers` tokenizer that only turns text into ids and back.

    It has no special tokens around a text, no space before it, no truncation and no padding.
    Without dropout, the same text always gets the same tokens.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description.update(truncation=None, padding=None, post_processor=None)
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        serialized = json.dumps(description[part])
        description[part] = json.loads(serialized, object_hook=_without_added_space)
    return json.dumps(description)


def _without_added_space(component: dict[str, Any]) -> Optional[dict[str, Any]]:
    """Return a component that adds no space before a text; None if it has no other use."""
    # The normalizer `Prepend` adds the space. The decoder `Strip` removes it again; the
    # normalizer of that name has no `content`.
    kind = component.get("type")
    if kind == "Prepend" or (kind == "Strip" and "content" in component):
        return None
    off = {"add_prefix_space": False, "prepend_scheme": "never"}
    component |= {key: off[key] for key in off if key in component}
    for parts in {"normalizers", "decoders"} & set(component):
        component[parts] = [part for part in component[parts] if part is not None]
    return component


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
    """
    model, splitting = description["model"], description["pre_tokenizer"] or {}
    special = {added["content"] for added in description["added_tokens"]}
    if (
        model["type"] != "BPE"
        or splitting.get("type") != "ByteLevel"
        or not splitting.get("use_regex", True)
        or description["normalizer"]
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or model.get("ignore_merges")
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
