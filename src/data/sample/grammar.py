"""The grammar of the sample: phrases, clauses and plain sentences."""

import re
from collections import namedtuple
from functools import lru_cache

from src.data.sample.lexicon import (
    ADJECTIVES,
    DETERMINERS,
    FORMS,
    FRAMES,
    GENDER,
    HELD_OUT,
    KIND,
    LEMMA,
    NAMES,
    PLACED,
    PLURAL,
    PREPOSITIONS,
    PRONOUNS,
    SINGULAR,
    STATIVE,
)

Phrase = namedtuple("Phrase", "words number noun gender")
# auxiliary by number (he, they, I) and the index of the verb form that follows it
AUXILIARIES = {
    "do": ("does", "do", "do", 0),
    "did": ("did", "did", "did", 0),
    "can": ("can", "can", "can", 0),
    "will": ("will", "will", "will", 0),
    "have": ("has", "have", "have", 3),
    "be": ("is", "are", "am", 4),
    "was": ("was", "were", "was", 4),
}
TENSES = "present present present past past can will have be be was was".split()
WHEN = {
    "present": ("on Sundays", "at night", "in the morning"),
    "past": ("yesterday", "last night", "last week"),
    "be": ("now", "today"),
    "will": ("tomorrow", "soon"),
}
BY_KIND = {
    kind: [noun for noun in KIND if KIND[noun] == kind] for kind in KIND.values()
}
UNCOUNTED = NAMES + [noun for noun in KIND if KIND[noun] == "m"]
FORBIDDEN = frozenset(HELD_OUT)  # asked for membership only: it has no order


def lemmas(sentence):
    """The lemmas of the words of a sentence that the lexicon knows."""
    words = re.findall(r"[a-z]+", sentence.lower())
    return [LEMMA[word] for word in words if word in LEMMA]


def held_out_in(sentence):
    """The held-out combinations whose two words both occur in a sentence."""
    found = lemmas(sentence)
    return [(a, b) for a in found for b in found if (a, b) in FORBIDDEN]


def repeats_a_noun(sentence):
    """Return whether a noun occurs twice, as in "a dog near the dogs".

    Such a noun is a poor attractor: both forms have the same lemma.
    """
    nouns = [lemma for lemma in lemmas(sentence) if lemma in KIND]
    return len(nouns) > len(set(nouns))


@lru_cache
def verbs_for(kind, transitive, object_kind):
    """The verbs that go with a kind of subject and, if asked, with an object."""
    return [
        verb
        for verb, (subjects, objects) in FRAMES.items()
        if kind in subjects
        and transitive in (None, objects != "-")
        and object_kind in objects
    ]


def finish(words):
    """Choose a or an, close up the spaces and capitalise the first letter."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(words.split()))
    text = re.sub(r" (?=[.,?!])", "", text)
    start = re.search(r"\w", text).start()
    return text[:start] + text[start].upper() + text[start + 1 :]


class Grammar:
    """Draws phrases and sentences; a cast of nouns gives a document its topics."""

    def __init__(self, rng):
        self.rng = rng
        self.recast()

    def recast(self, topic=None):
        """Draw the nouns that the next document prefers."""
        nouns = list(KIND)
        self.rng.shuffle(nouns)
        self.cast, self.topic, self.last = nouns[:60], topic, None

    def chance(self, probability):
        return self.rng.random() < probability

    def noun(self, kinds):
        """A noun of one of the kinds, most often one of the document's."""
        if self.topic and KIND[self.topic] in kinds and self.chance(0.5):
            return self.topic
        from_cast = self.chance(0.5)
        kind = self.rng.choice(kinds)  # kinds first: their tables differ in length
        nouns = BY_KIND[kind]
        if from_cast:
            nouns = [noun for noun in self.cast if KIND[noun] == kind]
        return self.rng.choice(nouns or [self.noun(kinds)])

    def noun_phrase(self, kinds, number=None, det=None, noun=None, adjective=0.2):
        """A determiner, perhaps an adjective, and a noun; or a name."""
        if number is None:
            number = self.rng.choice((SINGULAR, PLURAL))
        if noun in UNCOUNTED:
            number = SINGULAR
        while noun is None or (number == PLURAL and noun in UNCOUNTED):
            noun = self.noun(kinds)
        gender = GENDER[noun] or self.rng.choice(("he", "she"))
        if noun in NAMES:
            return Phrase(noun, SINGULAR, noun, gender)
        if noun in UNCOUNTED:
            det = det if det in ("some", "any") else "the"
        adjectives = [self.rng.choice(ADJECTIVES[KIND[noun]])] * self.chance(adjective)
        det = det or self.rng.choice(DETERMINERS[number])
        words = " ".join([det, *adjectives, FORMS[noun][number]])
        return Phrase(words, number, noun, gender if number == SINGULAR else "they")

    def the(self, kinds, number=None, **options):
        return self.noun_phrase(kinds, number, "the", **options).words

    def pronoun(self, words=None):
        words = words or self.rng.choice("he she they we you I".split())
        return Phrase(words, PRONOUNS[words][0], None, words)

    def subject(self, kinds="pa"):
        """A noun phrase, or a pronoun that takes up the last subject."""
        if self.last and self.chance(0.3):
            return self.pronoun(self.last.gender)
        if "p" in kinds and self.chance(0.1):
            return self.pronoun()
        self.last = self.noun_phrase(kinds)
        return self.last

    def prepositional(self, head, number=None):
        """A place for a noun phrase; its noun is of the number asked for."""
        choices = PREPOSITIONS[KIND[head.noun]].split()
        preposition, kinds = self.rng.choice(choices).split(":")
        other = self.noun_phrase(kinds, number, "the", adjective=0.1)
        return f"{preposition} {other.words}"

    def verb(self, kind, transitive=None, object_kind=""):
        """A verb whose subject may be of this kind."""
        return self.rng.choice(verbs_for(kind, transitive, object_kind))

    def tense(self, verb, tenses=TENSES):
        """A tense that the verb goes with: nobody is knowing anything."""
        barred = ("be", "was", "can") if verb in STATIVE else ()
        return self.rng.choice([tense for tense in tenses if tense not in barred])

    def finite(self, verb, tense, number):
        """The inflected verb and the auxiliaries before it."""
        if tense in AUXILIARIES:
            return f"{AUXILIARIES[tense][number]} {FORMS[verb][AUXILIARIES[tense][-1]]}"
        return FORMS[verb][2 if tense == "past" else number == SINGULAR]

    def object(self, verb, det=None, number=None):
        return self.noun_phrase(FRAMES[verb][1], number, det).words

    def place(self):
        number = PLURAL if self.chance(0.2) else SINGULAR
        return f"{self.rng.choice(PLACED)} {self.the('l', number, adjective=0.1)}"

    def rest(self, verb, tense=None, det=None):
        """Return the words after the verb: its object or a place, and sometimes a time."""
        words = self.object(verb, det) if FRAMES[verb][1] != "-" else ""
        if not words and self.chance(0.5):
            words = self.place()
        if tense in WHEN and self.chance(0.2):
            words += " " + self.rng.choice(WHEN[tense])
        return words

    def relative(self, head, number=None):
        """A relative clause with a noun of the number asked for in it."""
        kind, tense = KIND[head.noun], self.rng.choice(("present", "past"))
        who = self.rng.choice(("who", "that")) if kind == "p" else "that"
        if kind in "pa" and self.chance(0.6):
            verb = self.verb(kind, transitive=True)
            other = self.object(verb, "the", number)
            return f"{who} {self.finite(verb, tense, head.number)} {other}"
        other = self.noun_phrase("p", number, "the", adjective=0.1)
        verb = self.verb("p", object_kind=kind)
        return f"that {other.words} {self.finite(verb, tense, other.number)}"

    def plain(self):
        """Subject, verb and the rest; a possessive may take up the subject."""
        head = self.subject()
        verb = self.verb(KIND[head.noun] if head.noun else "p")
        tense = self.tense(verb)
        rest = self.rest(verb, tense)
        if self.chance(0.15):
            rest = rest.replace("the ", PRONOUNS[head.gender][2] + " ", 1)
        return f"{head.words} {self.finite(verb, tense, head.number)} {rest}."

    def joined(self):
        """Two plain sentences in one."""
        joint = self.rng.choice((", and", ", but", " because", " when"))
        return f"{self.plain()[:-1].rstrip()}{joint} {self.plain()}"
