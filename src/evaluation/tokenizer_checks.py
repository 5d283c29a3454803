"""Warnings about properties of a tokenizer that lower scores, given before scoring begins.

The challenge's pipelines call the tokenizer with its own defaults and correct nothing. Each of
these faults has lowered the scores of participants.
"""

import string

from transformers import PreTrainedTokenizerBase

# Words, every printable character, and some characters that only bytes can write.
SAMPLE = f"The dog sees the cats. {' '.join(string.printable)} ÿ é ☃ 𝄞"

NO_BOS = (
    "the tokenizer puts no BOS before a text, so first tokens are not scored, which lowers"
    " BLiMP, the supplement and WUG; add a post-processor such as"
    " TemplateProcessing(single='<s> $A') and train with BOS before each document"
)
EOS = (
    "the tokenizer puts a special token after a text, so in Reading the next word is"
    " predicted after an EOS (about 0.2 instead of 7); remove it from the post-processor,"
    " and put EOS after documents when packing"
)
NO_LEADING_SPACE = (
    "the tokenizer gives a bare word no leading space, so Reading asks for a word without a"
    " space before it (about 0.2 instead of 7); set add_prefix_space=True in the"
    " pre-tokenizer"
)
PADDING = (
    "the pad token {!r} also occurs in texts, so GLUE may read the wrong token of a padded"
    " text and the training loss leaves the token out; use a separate token, or EOS"
)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, backend: str = "causal"
) -> list[str]:
    """Return warnings, each with the affected scores and the remedy."""
    encoded = tokenizer("The dog", return_special_tokens_mask=True)
    mask = encoded["special_tokens_mask"]  # of one token, if two words are one
    first_is_special, last_is_special = 1 in mask[:1], 1 in mask[-1:]
    # A word alone should have the same tokens as after another word.
    following = _ids(tokenizer, "the dog")[len(_ids(tokenizer, "the")) :]
    faults = {
        NO_BOS: backend != "mlm" and not first_is_special,
        EOS: backend == "causal" and last_is_special,
        NO_LEADING_SPACE: following != _ids(tokenizer, "dog"),
        PADDING.format(tokenizer.pad_token): _pads_with_text(tokenizer),
    }
    return [warning for warning, applies in faults.items() if applies]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _pads_with_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether texts may contain the pad token.

    EOS is allowed, since the pipelines pad with it if there is no pad token.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        return False
    is_word = tokenizer.pad_token.lstrip("Ġ▁ ").isalnum()
    return is_word or pad in (*_ids(tokenizer, SAMPLE), tokenizer.unk_token_id)
