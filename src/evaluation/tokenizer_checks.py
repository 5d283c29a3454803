"""What a tokenizer will do to scores: the traps that cost participants points, told before.

The challenge's pipelines call the tokenizer with its own defaults and correct nothing.
"""

import string

from transformers import PreTrainedTokenizerBase

# Words, every printable character and a few that only bytes can write.
SAMPLE = f"The dog sees the cats. {' '.join(string.printable)} ÿ é ☃ 𝄞"


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, backend: str = "causal"
) -> list[str]:
    """Warnings, each with the scores that will be spoiled and how to mend it."""
    checks = [_leading_space, _padding]
    if backend != "mlm":
        checks.insert(0, _beginning)
    if backend == "causal":
        checks.insert(1, _end)
    return [warning for check in checks if (warning := check(tokenizer))]


def _added(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """How many tokens the tokenizer puts before a text and behind it."""
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text)["input_ids"]
    for before in range(len(ids) - len(plain) + 1):
        if ids[before : before + len(plain)] == plain:
            return before, len(ids) - len(plain) - before
    return 0, 0


def _beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    if _added(tokenizer, "The dog")[0] > 0:
        return ""
    return (
        "the tokenizer puts no BOS before a text: the first token of a sentence is not"
        " scored, which spoils BLiMP, the supplement and WUG where sentences differ there;"
        " give it a post-processor such as TemplateProcessing(single='<s> $A') and train"
        " with BOS before each document"
    )


def _end(tokenizer: PreTrainedTokenizerBase) -> str:
    if _added(tokenizer, "The dog")[1] == 0:
        return ""
    return (
        "the tokenizer ends a text with a special token: in Reading the next word is then"
        " predicted behind an EOS (from about 7 down to 0.2); take it out of the"
        " post-processor, and put EOS behind documents when packing"
    )


def _leading_space(tokenizer: PreTrainedTokenizerBase) -> str:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    inside = ids("the dog")[len(ids("the")) :]
    if inside == ids("dog"):
        return ""
    return (
        "the tokenizer gives a bare word no leading space: Reading then asks for a word"
        " glued to the one before it (from about 7 down to 0.2); use add_prefix_space=True"
        " in the pre-tokenizer"
    )


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Padding may be EOS, as the pipelines have it where there is none."""
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        return ""
    letters = tokenizer.pad_token.lstrip("Ġ▁ ")
    in_text = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if pad not in (*in_text, tokenizer.unk_token_id) and not letters.isalnum():
        return ""
    return (
        f"the pad token {tokenizer.pad_token!r} is one that texts hold: where a text is"
        " padded, GLUE takes the wrong token for its last one and training leaves this one"
        " out of the loss; use a token of its own, or EOS"
    )
