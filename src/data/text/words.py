"""The counting of words as the challenge does: a word is a part that `str.split()` returns."""

import re

import numpy as np

# A translation table that maps each byte to 1 if it is ASCII white space, else to 0.
IS_SPACE = bytes(code < 128 and chr(code).isspace() for code in range(256))
# The other white space of Unicode, encoded as UTF-8.
OTHER_SPACE = re.compile(
    "|".join(chr(c) for c in range(128, 0x3001) if chr(c).isspace()).encode()
)


def word_starts(
    data: bytes, continues_word: bool = False, breaks: np.ndarray = np.zeros(0, int)
) -> np.ndarray:
    """Return a boolean array [num_bytes] that is true where a word begins.

    A word is a run of characters for which `str.isspace()` is false.

    Args:
        data: Text in UTF-8.
        continues_word: True if the text before `data` ends inside a word.
        breaks: Offsets [n] at which no word continues, such as the start of a document.
    """
    if not data.isascii():
        data = OTHER_SPACE.sub(lambda space: b" " * len(space.group()), data)
    white = np.frombuffer(data.translate(IS_SPACE), bool)
    before = np.empty_like(white)
    before[1:] = white[:-1]
    before[:1] = not continues_word
    before[breaks] = True
    return before & ~white
