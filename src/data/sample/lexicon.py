"""The words of the sample: nouns by kind, verbs by frame, and what is held out.

A kind is one letter: p person, a animal, t thing, s thing to put things on,
f food one can count, m food one cannot, l place. A frame `verb:subjects:objects`
names the kinds that the verb goes with, `-` being no object.
"""

SINGULAR, PLURAL, FIRST = 0, 1, 2  # FIRST: the person of "I am"

MALE = "boy man/men king prince father uncle brother"
FEMALE = "girl woman/women queen princess mother aunt sister"
NEUTRAL = (
    "teacher doctor farmer baker driver nurse sailor friend student child/children"
)
MALE_NAMES = "Tom Sam Peter John"
FEMALE_NAMES = "Anna Mary Emma Kate"
OTHERS = {
    "a": """dog cat horse cow bird duck rabbit mouse/mice goose/geese bear lion
        monkey""",
    "t": """cup book ball hat coat shoe key toy bag lamp plate bottle picture letter
        basket bell clock knife/knives""",
    "s": "table chair shelf/shelves bed box",
    "f": "apple cake egg carrot pear cookie banana potato",
    "m": "bread milk soup cheese rice",
    "l": """garden kitchen park forest village castle field house church shop market
        school""",
}

VERBS = """sleep:pa:- run:pa:- jump:pa:- play:pa:- swim:pa:- wait:pa:- rest:pa:-
sit:pa:- stand:pa:- walk:pa:- smile:p:- laugh:p:- cry:p:- sing:p:- dance:p:- work:p:-
whisper:p:- eat:pa:fm want:p:tfm like:pa:pafm love:pa:pa find:pa:patf see:pa:patf
watch:pa:pa follow:pa:pa chase:pa:pa hear:pa:pa remember:p:pt know:p:p meet:p:p
help:p:pa call:p:pa feed:p:a teach:p:p trust:pa:p praise:p:pa blame:p:p hurt:p:pa
wash:p:patf hide:p:tf save:p:pa draw:p:patf carry:p:tfa clean:p:t buy:p:tfm sell:p:tfm
drop:p:tf break:p:t hold:p:tfa paint:p:t bring:p:tfm lose:p:t need:p:tfm take:p:tf
throw:p:t move:p:t steal:pa:f cook:p:fm share:p:fm cut:p:f touch:p:pat"""
REFLEXIVE = """wash hurt praise blame teach help see watch trust save draw
hide touch follow love hear remember""".split()
STATIVE = "like love want need know trust hear see remember".split()
# past and participle; a verb that is not here is regular
IRREGULAR = """sleep slept slept, run ran run, swim swam swum, sit sat sat, stand stood
stood, sing sang sung, eat ate eaten, find found found, see saw seen, hear heard heard,
know knew known, meet met met, feed fed fed, teach taught taught, hurt hurt hurt, hide
hid hidden, draw drew drawn, buy bought bought, sell sold sold, break broke broken, hold
held held, bring brought brought, lose lost lost, take took taken, throw threw thrown,
steal stole stolen, cut cut cut, drop dropped dropped"""
DOUBLED = "run swim sit cut drop".split()  # running, not runing

ADJECTIVES = {
    "p": "tired hungry happy sad angry kind young old tall brave clever busy".split(),
    "a": "hungry tired small big young old wild brave gentle thirsty".split(),
    "t": "small big old new heavy dirty red blue green wet cheap empty".split(),
    "f": "fresh sweet warm cold small big expensive good".split(),
    "l": "old small big quiet dark empty".split(),
}
ADJECTIVES["s"], ADJECTIVES["m"] = ADJECTIVES["t"], ADJECTIVES["f"][:4]

DETERMINERS = (
    "the the the the a a this that every each my your one".split(),
    "the the the the these those many several two three some some".split(),
)
# each of these is withheld from some nouns; "these" stands for "this" too
WITHHELD_DETERMINERS = "these those many several each two".split()
PRONOUNS = {  # number, reflexive, possessive
    "he": (SINGULAR, "himself", "his"),
    "she": (SINGULAR, "herself", "her"),
    "it": (SINGULAR, "itself", "its"),
    "they": (PLURAL, "themselves", "their"),
    "we": (PLURAL, "ourselves", "our"),
    "you": (PLURAL, "yourself", "your"),
    "I": (FIRST, "myself", "my"),
}
PREPOSITIONS = {  # what may stand beside what, to the head's kind
    "p": "near:pal behind:pas with:pat beside:pas",
    "a": "near:pal behind:pas with:pa beside:pas",
    "t": "on:s under:s near:sp beside:ts with:t",
    "f": "on:s under:s near:sp beside:tf with:f",
    "s": "near:ps behind:ps beside:ps in:l",
}
PLACED = ("in", "in", "in", "near")


def add_s(word):
    """The plural of a noun, or the third person of a verb."""
    if word.endswith(("s", "sh", "ch", "x", "tato", "mato")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeou":
        return word[:-1] + "ies"
    return word + "s"


def conjugate(verb):
    """Base, third person, past, participle and -ing form of a verb."""
    ing = verb[:-1] if verb.endswith("e") and verb != "see" else verb
    ing += verb[-1] * (verb in DOUBLED) + "ing"
    past = verb + ("d" if verb.endswith("e") else "ed")
    if verb.endswith("y") and verb[-2] not in "aeou":
        past = verb[:-1] + "ied"
    entries = (entry.split() for entry in IRREGULAR.split(","))
    irregular = {entry[0]: entry[1:] for entry in entries}
    return (verb, add_s(verb), *irregular.get(verb, (past, past)), ing)


FORMS, KIND, GENDER = {}, {}, {}  # all keyed by lemma; names have one form


def enter(words, kind, gender, named=False):
    """Put the nouns of one table into FORMS, KIND and GENDER."""
    for word in words.split():
        noun, _, plural = word.partition("/")
        FORMS[noun] = (noun,) if named else (noun, plural or add_s(noun))
        KIND[noun], GENDER[noun] = kind, gender


enter(MALE, "p", "he")
enter(FEMALE, "p", "she")
enter(NEUTRAL, "p", None)
enter(MALE_NAMES, "p", "he", named=True)
enter(FEMALE_NAMES, "p", "she", named=True)
for letter, table in OTHERS.items():
    enter(table, letter, "it")
NAMES = (MALE_NAMES + " " + FEMALE_NAMES).split()
NOUNS = [noun for noun in KIND if noun not in NAMES]
FRAMES = {row.split(":")[0]: tuple(row.split(":")[1:]) for row in VERBS.split()}
FORMS.update((verb, conjugate(verb)) for verb in FRAMES)
FORMS.update((word, (word,)) for words in ADJECTIVES.values() for word in words)
FORMS.update((word, (word,)) for word in WITHHELD_DETERMINERS)
FORMS["these"] = ("these", "this")
LEMMA = {form.lower(): lemma for lemma, forms in FORMS.items() for form in forms}


def hold_out():
    """The (noun, word) combinations that the pairs use and that no text does.

    The rule is arithmetic on places in the tables, so every noun keeps most of its
    verbs, adjectives and determiners, and every one of those keeps most nouns.
    """
    words = [*FRAMES, *(w for w in FORMS if w not in FRAMES and w not in KIND)]
    held_out = []
    for i, noun in enumerate(KIND):
        for j, word in enumerate(words):
            if word in WITHHELD_DETERMINERS:
                place = WITHHELD_DETERMINERS.index(word)
                chosen = (i + place) % 3 == 0 and noun not in NAMES
            else:
                chosen = (3 * i + j) % 7 == 0
            if chosen:
                held_out.append((noun, word))
    return tuple(held_out)


HELD_OUT = hold_out()
