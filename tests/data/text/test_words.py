"""Words are the parts that `str.split()` returns."""

import random
import sys

import numpy as np

from src.data.text.words import word_starts

SPACES = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).isspace()]
OTHERS = [*"aZ0.", "é", "\u200b", "\ufeff", "\0", "日", "🐈", "\u2007a", "\u0085"]


def count_words(text: str) -> int:
    return int(word_starts(text.encode()).sum())


def test_a_word_begins_where_white_space_ends():
    assert word_starts(b" The  dog\n").tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert word_starts("é\u3000é".encode()).tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert word_starts(b"").tolist() == []


def test_a_word_that_goes_on_is_not_counted_twice():
    assert word_starts(b"og sees", continues_word=True).tolist() == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    assert word_starts(b" a", continues_word=True).tolist() == [0, 1]


def test_a_break_begins_a_word_unless_white_space_is_there():
    assert word_starts(b"dogcat x", breaks=np.array([3, 6])).tolist() == [
        *[1, 0, 0, 1, 0, 0, 0, 1]
    ]
    assert word_starts(b"og", True, np.array([0])).tolist() == [1, 0]


def test_all_white_space_of_unicode_ends_a_word():
    assert len(SPACES) == 29
    for space in SPACES:
        assert count_words(f"a{space}b") == 2, hex(ord(space))
        assert count_words(space) == 0
    for other in ("\u200b", "\ufeff", "\u180e", "\0", "\u2060"):  # no white space
        assert count_words(f"a{other}b") == 1


def test_words_are_those_of_split_in_random_texts():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(SPACES + 3 * OTHERS, k=rng.randrange(60)))
        assert count_words(text) == len(text.split())
        cut = rng.randrange(len(text) + 1)
        first, second = text[:cut], text[cut:]
        inside = bool(first) and not first[-1].isspace()
        counts = word_starts(first.encode()), word_starts(second.encode(), inside)
        assert sum(int(count.sum()) for count in counts) == len(text.split())


def test_every_character_is_white_space_or_not_as_python_says():
    """Half of a long text each: letters in one word, white space between letters."""
    letters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    text = "x".join(letters)
    assert count_words(text) == len(text.split()) == len(SPACES) + 1
