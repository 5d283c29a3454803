"""Styles of the six sources: their sizes, their lines and their turns of speech."""

from collections import namedtuple

# words: of training text; lines: of a document; sentences: of a line; openers: what
# may come before a sentence; mix: constructions; fillers: the source's own turns, where
# {t0} is a thing, {t1} things, {tA} an adjective for one, {N} a name, {T0} the topic
Style = namedtuple(
    "Style",
    "words lines sentences openers mix fillers prefixes between heading",
    defaults=(("",), "\n", None),
)
CORE = (
    ["prepositional_agreement"] * 5
    + ["relative_agreement"] * 4
    + ["reflexive_agreement"] * 3
    + ["negative_polarity"] * 2
    + ["determiner_agreement", "word_order", "plain"]
)
ASKING = CORE + ["question_inversion"] * 4
POLAR = (
    "nobody has ever seen the {a0}.",
    "nobody wanted any {f1}.",
    "somebody has just taken the {t0}.",
    "have you ever seen a {a0}?",
    "did you see any {a1}?",
    "is there any {m0}?",
    "are there any {f1} on the {s0}?",
    "there are some {f1} on the {s0}.",
    "there is a {t0} on the {s0}.",
    "there are not any {a1} here.",
)
STYLES = {
    "bnc_spoken": Style(
        10000,
        (12, 25),
        (1, 1, 2, 2, 3),
        ("well,", "right,", "oh,", "so", "mm,", "I mean,"),
        ASKING + ["filler"] * 3,
        POLAR
        + (
            "it is lovely weather, is it not?",
            "I went to the {l0} with {N}.",
            "shall we have some {m0}?",
            "that is a {tA} {t0}, is it not?",
            "the {p0} was rather {pA}.",
        ),
    ),
    "childes": Style(
        24000,
        (10, 24),
        (1, 1, 2, 2),
        ("oh,", "and", "look,", "now"),
        ASKING + ["filler"] * 4,
        POLAR
        + (
            "look at the {a0}!",
            "where is your {t0}?",
            "where are the {t1}?",
            "what is that?",
            "that is a {t0}.",
            "those are {a1}.",
            "do you want some {m0}?",
            "do you want a {f0}?",
            "can you find the {tA} {t0}?",
            "put the {t0} on the {s0}.",
            "put the {t1} in the {l0}, {N}.",
            "good {p0}!",
            "come here, {N}.",
            "what are you doing?",
            "is the {a0} {aA}?",
            "are the {f1} {fA}?",
        ),
    ),
    "gutenberg": Style(
        24000,
        (3, 6),
        (4, 5, 6, 7),
        ("then", "at last", "one day"),
        CORE + ["joined", "filler"],
        (
            "once there was a {pA} {p0} who lived near the {l0}.",
            "it was a {lA} {l0}.",
            '"where is the {t0}?" asked {N}.',
            '"I have never seen any {a1}," said the {p0}.',
            '"come with me," whispered the {p0}.',
            "nobody knew the {p0}.",
            "there was a {t0} on the {s0}.",
            "the {l0} was {lA}.",
        ),
    ),
    "open_subtitles": Style(
        18000,
        (40, 41),  # and no blank line between them
        (1,),
        ("hey,", "no,", "yes,", "listen,"),
        ASKING + ["filler"] * 4,
        POLAR
        + (
            "come on, {N}!",
            "where is the {p0}?",
            "we have to go to the {l0}.",
            "give me the {t0}!",
            "who are you?",
            "I am not {pA}.",
            "thank you, {N}.",
            "do not touch the {t1}!",
        ),
        between="",
    ),
    "simple_wiki": Style(
        18000,
        (2, 4),
        (4, 5, 6),
        ("in fact,", "for example,", "also,"),
        CORE + ["filler"] * 3,
        (
            "a {T0} is {W}.",
            "most {T1} are {TA}.",
            "some {T1} are {TA} and others are not.",
            "there are many {T1} in the {l0}.",
            "people often write about the {T0}.",
            "the {T0} is very {TA}.",
            "a famous {T0} was in the {l0}.",
            "not every {T0} is {TA}.",
        ),
        heading="= = = {} = = =\n",
    ),
    "switchboard": Style(
        6000,
        (12, 20),
        (1, 2, 2, 3),
        ("yeah,", "uh,", "well,", "you know,"),
        ASKING + ["filler"] * 3,
        POLAR
        + (
            "I have got a {a0} and two {a1}.",
            "we do not have any {a1}.",
            "that is right.",
            "I really like {f1}.",
            "my {p0} lives near the {l0}.",
            "do you have a {a0}?",
        ),
        prefixes=("A:\t", "B:\t"),
    ),
}
WHAT = {
    "p": "a person",
    "a": "an animal",
    "t": "a thing that people use",
    "s": "a thing in a house",
    "f": "a kind of food",
    "l": "a place",
}
