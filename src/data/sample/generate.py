"""Make the sample: six sources of text and the minimal pairs that go with them.

    python -m src.data.sample.generate [directory]

writes `<source>.train`, `<source>.dev` and `pairs/<phenomenon>.jsonl` into the
directory, by default the one of this file. The grammar is the project's own and so is
every sentence. Only the stable methods of random.Random are used, so that every Python
from 3.10 on makes the same bytes.
"""

import json
import re
import sys
from collections import namedtuple
from pathlib import Path
from random import Random

from src.data.sample.contrasts import Contrasts
from src.data.sample.grammar import finish, held_out_in, repeats_a_noun
from src.data.sample.lexicon import (
    ADJECTIVES,
    FORMS,
    FRAMES,
    HELD_OUT,
    KIND,
    NAMES,
    NOUNS,
    REFLEXIVE,
    WITHHELD_DETERMINERS,
)
from src.data.sample.styles import STYLES, WHAT

SEED = 20
DEV_SHARE = 0.095  # the last document is whole, so a tenth comes out
PAIRS = 70  # of each phenomenon
OPENED = 0.15  # the share of sentences with an opener
SPLITS = ("train", "dev")


class Phenomenon(namedtuple("Phenomenon", "field term kinds words")):
    """Labels of a phenomenon's pairs, and the kinds of nouns and the words they test."""

    def suits(self, noun, word):
        """Return whether a held-out combination can make a pair of this phenomenon."""
        kind = KIND[noun]
        if kind not in self.kinds or word not in self.words:
            return False
        # a name has no modifier, adjective or determiner to turn on
        if noun in NAMES and self.kinds != "pa":
            return False
        if word in FRAMES:
            return kind in FRAMES[word][0]
        return word in WITHHELD_DETERMINERS or word in ADJECTIVES[kind]


VERBS = list(FRAMES)
PREDICATES = VERBS + [word for words in ADJECTIVES.values() for word in words]
PHENOMENA = {
    "determiner_agreement": Phenomenon(
        "morphology", "determiner_noun_agreement", "patf", WITHHELD_DETERMINERS
    ),
    "negative_polarity": Phenomenon("semantics", "npi_licensing", "pa", VERBS),
    "prepositional_agreement": Phenomenon(
        "morphology", "subject_verb_agreement", "patf", PREDICATES
    ),
    "question_inversion": Phenomenon(
        "syntax", "subject_auxiliary_inversion", "pa", VERBS
    ),
    "reflexive_agreement": Phenomenon(
        "morphology", "anaphor_agreement", "pa", REFLEXIVE
    ),
    "relative_agreement": Phenomenon(
        "morphology", "subject_verb_agreement", "patf", PREDICATES
    ),
    "word_order": Phenomenon("syntax", "constituent_order", "patsf", PREDICATES),
}


class Writer(Contrasts):
    """Draws the sentences and the documents of one source."""

    def __init__(self, rng, style):
        self.style = style
        super().__init__(rng)

    def _slot(self, match):
        """The word for one slot of a filler."""
        kind, what = match.groups()
        if kind == "W":
            return WHAT[KIND[self.topic]]
        if kind == "N":
            return self.rng.choice(NAMES)
        noun = self.topic if kind == "T" else self.noun(kind)
        while noun in NAMES:
            noun = self.noun(kind)
        if what == "A":
            return self.rng.choice(ADJECTIVES[KIND[noun]])
        return FORMS[noun][int(what)]

    def filler(self):
        """One of the source's own turns, its slots filled."""
        template = self.rng.choice(self.style.fillers)
        return re.sub(r"\{(\w)(\w?)\}", self._slot, template)

    def sentence(self):
        """One sentence in which nothing is held out."""
        while True:
            name = self.rng.choice(self.style.mix)
            words = getattr(self, name)()
            words = words if isinstance(words, str) else words[0]
            if name != "filler" and self.chance(OPENED):
                words = f"{self.rng.choice(self.style.openers)} {words}"
            if not held_out_in(words) and not repeats_a_noun(words):
                return finish(words)

    def document(self):
        """Lines of one or more sentences, about the document's own nouns."""
        titled = self.style.heading is not None
        topics = [noun for noun in NOUNS if KIND[noun] != "m"]
        self.recast(self.rng.choice(topics) if titled else None)
        lines = []
        for i in range(self.rng.randrange(*self.style.lines)):
            count = self.rng.choice(self.style.sentences)
            line = " ".join(self.sentence() for _ in range(count))
            lines.append(self.style.prefixes[i % len(self.style.prefixes)] + line)
        if titled:
            lines.insert(0, self.style.heading.format(self.topic.capitalize()))
        return "\n".join(lines) + "\n"


def write_text(source, split):
    """The text of one source: documents until there are enough words."""
    style = STYLES[source]
    writer = Writer(Random(f"{SEED} {source} {split}"), style)
    wanted = style.words * (DEV_SHARE if split == "dev" else 1)
    documents, count = [], 0
    while count < wanted:
        documents.append(writer.document())
        count += len(documents[-1].split())
    return style.between.join(documents)


def write_pairs(phenomenon):
    """Minimal pairs on combinations that are held out, each combination once."""
    kind_of_pair = PHENOMENA[phenomenon]
    rng = Random(f"{SEED} {phenomenon}")
    grammar, rows = Contrasts(rng), []
    suitable = [held for held in HELD_OUT if kind_of_pair.suits(*held)]
    rng.shuffle(suitable)
    while len(rows) < PAIRS:
        held = suitable.pop(0)
        grammar.recast()
        good, bad = map(finish, getattr(grammar, phenomenon)(held))
        if good != bad and not repeats_a_noun(good):
            rows.append(
                {
                    "sentence_good": good,
                    "sentence_bad": bad,
                    "field": kind_of_pair.field,
                    "linguistics_term": kind_of_pair.term,
                    "UID": phenomenon,
                    "pair_id": str(len(rows)),
                    "held_out": held,
                }
            )
    return "".join(json.dumps(row) + "\n" for row in rows)


def generate(directory):
    """Write every file of the sample into a directory."""
    directory = Path(directory)
    (directory / "pairs").mkdir(parents=True, exist_ok=True)
    texts = {f"{s}.{split}": write_text(s, split) for s in STYLES for split in SPLITS}
    texts.update((f"pairs/{name}.jsonl", write_pairs(name)) for name in PHENOMENA)
    for name, text in texts.items():
        (directory / name).write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    generate(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
