"""Constructions that come as a contrast: a grammatical sentence and one that is not.

Each construction of Contrasts takes the held-out (noun, word) that a minimal pair
turns on, or nothing when the sentence is for the text, which uses the first of the
two sentences only. In a pair, the noun nearest to the verb is of the other number.
"""

from src.data.sample.grammar import AUXILIARIES, TENSES, Grammar
from src.data.sample.lexicon import (
    ADJECTIVES,
    FORMS,
    FRAMES,
    GENDER,
    KIND,
    NAMES,
    PLURAL,
    PRONOUNS,
    REFLEXIVE,
    SINGULAR,
    WITHHELD_DETERMINERS,
)

JUST = ("just", "already")
ONCE = ("once", "soon", "later")  # with "always", any may mean all
SWAPPED = {"these": "this", "this": "these", "those": "that"}
# "cut" and "hurt" are pasts too, so their present shows no agreement
SHOWING = {"cut": "be was have".split(), "hurt": "be was have".split()}


def opposite(number):
    return SINGULAR if number == PLURAL else PLURAL


class Contrasts(Grammar):
    """Draws contrasts; every method without a leading `_` is a construction."""

    def _head(self, held, kinds="pa", det=None):
        """The noun phrase that a construction is about."""
        noun = held[0] if held else self.noun(kinds)
        if held or self.chance(0.5):  # then the noun alone shows the number
            det = "the"
        return self.noun_phrase(kinds, None, det, noun, 0 if held else 0.15)

    def _common_head(self, held, kinds):
        """A head that is not a name: names take no modifier and no adjective."""
        head = self._head(held, kinds)
        while head.noun in NAMES:
            head = self._head(held, kinds)
        return head

    def _verb(self, held, head):
        return held[1] if held else self.verb(KIND[head.noun] if head.noun else "p")

    def _modifier(self, head, held, make):
        """A modifier whose noun is of the other number, in the text not always."""
        if head.noun is None or head.noun in NAMES:
            return ""
        other = held or self.chance(0.85)
        return make(head, opposite(head.number) if other else head.number)

    def _agreement(self, held, make):
        head = self._common_head(held, "paptf")
        modifier = self._modifier(head, held, make)
        numbers, kind = (head.number, opposite(head.number)), KIND[head.noun]
        stated = kind in "tsf" or self.chance(0.3)
        if held[1] not in FRAMES if held else stated:
            adjective = held[1] if held else self.rng.choice(ADJECTIVES[kind])
            copula = AUXILIARIES[self.rng.choice(("be", "was"))]
            verbs, rest = [f"{copula[number]} {adjective}" for number in numbers], ""
        else:
            # most verbs of the text without an object: short sentences teach more
            short = False if self.chance(0.7) else None
            verb = held[1] if held else self.verb(kind, transitive=short)
            tenses = SHOWING.get(verb, "present present present be was have".split())
            tense = self.tense(verb, tenses)
            verbs = [self.finite(verb, tense, number) for number in numbers]
            rest = self.rest(verb, tense)
        return tuple(f"{head.words} {modifier} {verb} {rest}." for verb in verbs)

    def prepositional_agreement(self, held=None):
        """Agreement of subject and verb across a prepositional phrase."""
        return self._agreement(held, self.prepositional)

    def relative_agreement(self, held=None):
        """Agreement of subject and verb across a relative clause."""
        return self._agreement(held, self.relative)

    def determiner_agreement(self, held=None):
        """A determiner that fits the number of its noun, in an object."""
        noun, det = held or (self.noun("tttfa"), self.rng.choice(WITHHELD_DETERMINERS))
        if det == "these" and self.chance(0.5):
            det = "this"
        number = SINGULAR if det in ("each", "this") else PLURAL
        kind, subject = KIND[noun], self.subject("p")
        verb = self.verb("p", object_kind=kind)
        start = f"{subject.words} {self.finite(verb, self.tense(verb), subject.number)}"
        adjective = self.rng.choice(ADJECTIVES[kind]) if self.chance(0.5) else ""
        right, wrong = FORMS[noun][number], FORMS[noun][opposite(number)]
        good = f"{start} {det} {adjective} {right}."
        if det in SWAPPED and self.chance(0.5):
            return good, f"{start} {SWAPPED[det]} {adjective} {right}."
        return good, f"{start} {det} {adjective} {wrong}."

    def reflexive_agreement(self, held=None):
        """A reflexive that agrees with its subject and not with a nearer noun."""
        pronoun = not held and self.chance(0.1)
        head = self.pronoun() if pronoun else self._reflexive_head(held)
        make = self.rng.choice((self.prepositional, self.relative))
        modifier = self._modifier(head, held, make) if self.chance(0.7) else ""
        kind = KIND[head.noun] if head.noun else "p"
        able = [verb for verb in REFLEXIVE if kind in FRAMES[verb][0]]
        verb = held[1] if held else self.rng.choice(able)
        tense = self.tense(verb, TENSES + ["past"] * 6)
        start = f"{head.words} {modifier} {self.finite(verb, tense, head.number)}"
        place = self.place() if self.chance(0.3) else ""
        wrong = {"he": "she", "she": "he"}.get(head.gender, "they")
        if head.number == PLURAL:
            wrong = GENDER.get(head.noun) or self.rng.choice(("he", "she"))
        elif self.chance(0.4):
            wrong = "they"
        genders = (head.gender, wrong)
        return tuple(f"{start} {PRONOUNS[who][1]} {place}." for who in genders)

    def _reflexive_head(self, held):
        """Seldom, and in a pair never, a singular that may be of either gender."""
        head = self._head(held, "pppa")
        while head.number == SINGULAR and GENDER[head.noun] is None:
            if held is None and self.chance(0.2):
                break
            head = self._head(held, "pppa")
        return head

    def negative_polarity(self, held=None):
        """A negative polarity item with a licensor, and without."""
        head = self._head(held, "pa", "the")
        verb = self._verb(held, head)
        shape = self._with_no
        if head.noun in NAMES or self.chance(0.4):
            shape = self._with_not
        good, bad, positive = shape(head, verb)
        if held is None and self.chance(0.4):
            good = positive
        return good + ".", bad + "."

    def _item(self, verb):
        """A polarity item that can follow the verb, and what is said without one."""
        if FRAMES[verb][1] == "-":
            return "at all", self.place()
        kinds = FRAMES[verb][1].replace("m", "")
        item = self.noun_phrase(kinds, PLURAL, "any")
        if "m" in FRAMES[verb][1] and self.chance(0.3):
            item = self.noun_phrase("m", SINGULAR, "any")
        return item.words, item.words.replace("any", "some", 1)

    def _with_not(self, head, verb):
        item, other = self._item(verb)
        past, participle = FORMS[verb][2:4]
        has = AUXILIARIES["have"][head.number]
        once, just = self.rng.choice(ONCE), self.rng.choice(JUST)
        if self.chance(0.5):
            negative, positive = f"never {past}", f"{once} {past}"
        else:
            negative, positive = f"{has} not {participle}", f"{has} {just} {participle}"
        endings = (f"{negative} {item}", f"{positive} {item}", f"{positive} {other}")
        return tuple(f"{head.words} {ending}" for ending in endings)

    def _with_no(self, head, verb):
        item, other = self._item(verb)
        past, participle = FORMS[verb][2:4]
        has = AUXILIARIES["have"][head.number]
        subject = head.words
        if self.chance(0.3):
            subject += " " + self.prepositional(head)
        if self.chance(0.5):
            negative, positive = f"{past} {item}", f"{past} {other}"
        else:
            rest = self.rest(verb, det="the")
            negative = f"{has} ever {participle} {rest}"
            positive = f"{has} {self.rng.choice(JUST)} {participle} {rest}"
        none = subject.replace("the", "no", 1)
        return f"{none} {negative}", f"{subject} {negative}", f"{subject} {positive}"

    def question_inversion(self, held=None):
        """A question, and one without inversion or with two inflected verbs."""
        head = self._head(held) if held or self.chance(0.7) else self.pronoun()
        verb = self._verb(held, head)
        tense = self.tense(verb, "do do do did did can will have be be was".split())
        auxiliary, form = self.finite(verb, tense, head.number).split()
        subject, has_object = head.words, FRAMES[verb][1] != "-"
        if head.noun and self.chance(0.25):
            subject += " " + self._modifier(head, held, self.prepositional)
        simple = "past" if tense == "did" else "present"
        inflected = self.finite(verb, simple, head.number)
        if self.chance(0.4) and (inflected != form or not held):
            verbs, rest = (form, inflected), self.rest(verb)
            return tuple(f"{auxiliary} {subject} {v} {rest}?" for v in verbs)
        if has_object and self.chance(0.5):
            asked, rest = "who" if "p" in FRAMES[verb][1] else "what", ""
        else:
            # without inversion, "when" begins an answer
            asked = self.rng.choice(("where", "why", "when")[: 2 if held else 3])
            rest = self.object(verb) if has_object else ""
        inverted = (f"{auxiliary} {subject}", f"{subject} {auxiliary}")
        return tuple(f"{asked} {words} {form} {rest}?" for words in inverted)

    def word_order(self, held=None):
        """A sentence, and the same words with two neighbours exchanged."""
        if held is None and self.chance(0.5):
            head = self._common_head(held, "patsf")
            adjective = self.rng.choice(ADJECTIVES[KIND[head.noun]])
            return self._adjective_order(head, adjective)
        head = self._head(held, "pa", "the")
        verb = self._verb(held, head)
        if verb not in FRAMES:
            return self._adjective_order(head, verb)
        tense = self.tense(verb, "present past have will will be was".split())
        finite = self.finite(verb, tense, head.number)
        has_object = FRAMES[verb][1] != "-"
        end = self.object(verb, "the", PLURAL) if has_object else self.place()
        good, *first = f"{head.words} {finite} {end}.", *end.split()
        if tense in ("present", "past") or not has_object:
            last = first.pop()  # of "the cups" or "in the garden"
            return good, f"{head.words} {finite} {last} {' '.join(first)}."
        auxiliary, form = finite.split()
        # "has the cups cleaned" and "the man cleaning is the king" are English
        if tense == "have" or (tense == "will" and self.chance(0.5)):
            return good, f"{head.words} {form} {auxiliary} {end}."
        return good, f"{head.words} {auxiliary} {end} {form}."

    def _adjective_order(self, head, adjective):
        """An adjective before its noun, and after it."""
        kind, noun = KIND[head.noun], FORMS[head.noun][head.number]
        if kind in "pa":
            verb = self.verb(kind)
            tense = self.tense(verb)
            end = f"{self.finite(verb, tense, head.number)} {self.rest(verb, tense)}"
        else:
            copula = AUXILIARIES[self.rng.choice(("be", "was"))][head.number]
            end = f"{copula} {self.prepositional(head)}"
        return f"the {adjective} {noun} {end}.", f"the {noun} {adjective} {end}."
