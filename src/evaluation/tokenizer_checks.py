"""Warnings about a tokenizer that will cost scores, before anything is scored.

The challenge's pipelines call the tokenizer with its own defaults and correct nothing. Each of
these faults has cost participants points.
"""

import string

from transformers import PreTrainedTokenizerBase

# Words, every printable character, and some characters that only bytes can write.
SAMPLE = f"The dog sees the cats. {' '.join(string.printable)} ÿ é ☃ 𝄞"

NO_BOS = (
    "the tokenizer puts no BOS before a text: the first token of a sentence is not scored,"
    " which spoils BLiMP, the supplement and WUG where sentences differ there; give it a"
    " post-processor such as TemplateProcessing(single='<s> $A') and train with BOS before"
    " each document"
)
EOS = (
    "the tokenizer ends a text with a special token: in Reading the next word is then"
    " predicted behind an EOS (from about 7 down to 0.2); take it out of the post-processor,"
    " and put EOS behind documents when packing"
)
NO_LEADING_SPACE = (
    "the tokenizer gives a bare word no leading space: Reading then asks for a word glued to"
    " the one before it (from about 7 down to 0.2); use add_prefix_space=True in the"
    " pre-tokenizer"
)
PADDING = (
    "the pad token {!r} is one that texts hold: where a text is padded, GLUE takes the wrong"
    " token for its last one and training leaves this one out of the loss; use a token of its"
    " own, or EOS"
)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, backend: str = "causal"
) -> list[str]:
    """Return warnings, each with the scores that will suffer and the remedy."""
    has_bos, has_eos = _has_special_tokens(tokenizer)
    faults = {
        NO_BOS: backend != "mlm" and not has_bos,
        EOS: backend == "causal" and has_eos,
        NO_LEADING_SPACE: not _adds_leading_space(tokenizer),
        PADDING.format(tokenizer.pad_token): _pads_with_text(tokenizer),
    }
    return [warning for warning, applies in faults.items() if applies]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _has_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Return whether the tokenizer puts tokens before a text, and behind it."""
    plain, ids = _ids(tokenizer, "The dog"), tokenizer("The dog")["input_ids"]
    num_added = len(ids) - len(plain)
    for num_before in range(num_added + 1):
        if ids[num_before : num_before + len(plain)] == plain:
            return num_before > 0, num_before < num_added
    return False, False


def _adds_leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a word alone has the tokens that it has behind another word."""
    behind = _ids(tokenizer, "the dog")[len(_ids(tokenizer, "the")) :]
    return behind == _ids(tokenizer, "dog")


def _pads_with_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether texts may hold the pad token.

    EOS is no such token: the pipelines use it where there is no pad token.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        return False
    is_word = tokenizer.pad_token.lstrip("Ġ▁ ").isalnum()
    return is_word or pad in (*_ids(tokenizer, SAMPLE), tokenizer.unk_token_id)
