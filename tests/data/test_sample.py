"""The sample is what its generator makes, and its pairs are unseen in its text."""

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest

from src.data.sample import generate
from src.data.sample.grammar import finish, held_out_in
from src.data.sample.lexicon import FORMS, HELD_OUT, KIND, LEMMA

SAMPLE = Path(generate.__file__).parent
SOURCES = "bnc_spoken childes gutenberg open_subtitles simple_wiki switchboard".split()
PHENOMENA = sorted(generate.PHENOMENA)


@lru_cache
def read(name):
    return (SAMPLE / name).read_bytes().decode("utf-8")


@lru_cache
def text(split):
    return "".join(read(f"{source}.{split}") for source in SOURCES)


@lru_cache
def sentences(split):
    return [part.strip() for part in re.split(r"(?<=[.?!])\s|\n", text(split))]


@lru_cache
def sentences_with(word):
    """The places in the training text of the sentences in which a word occurs."""
    return frozenset(places().get(word, ()))


@lru_cache
def places():
    found = {}
    for place, sentence in enumerate(sentences("train")):
        for word in re.findall(r"[a-z]+", sentence.lower()):
            found.setdefault(word, []).append(place)
    return found


def pairs(phenomenon):
    return [json.loads(line) for line in read(f"pairs/{phenomenon}.jsonl").splitlines()]


def documents(name):
    blocks = read(name).split("\n\n")
    return [block.strip() for block in blocks if not block.startswith("= = =")]


def files(directory):
    paths = [path for path in directory.rglob("*") if path.is_file()]
    wanted = (".train", ".dev", ".jsonl")
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in paths
        if path.suffix in wanted
    }


def test_generator_writes_exactly_the_committed_bytes(tmp_path):
    generate.generate(tmp_path)
    made, committed = files(tmp_path), files(SAMPLE)
    assert sorted(made) == sorted(committed)
    assert [name for name in made if made[name] != committed[name]] == []


def test_sample_has_the_six_sources_and_seven_phenomena():
    assert sorted(generate.STYLES) == SOURCES
    names = [f"{source}.{split}" for source in SOURCES for split in ("dev", "train")]
    names += [f"pairs/{phenomenon}.jsonl" for phenomenon in PHENOMENA]
    assert sorted(files(SAMPLE)) == sorted(names)
    assert len(PHENOMENA) == 7


def test_about_a_hundred_thousand_words_to_train_and_ten_thousand_to_develop():
    assert 95_000 <= len(text("train").split()) <= 105_000
    assert 9_500 <= len(text("dev").split()) <= 10_500


@pytest.mark.parametrize("name", sorted(files(SAMPLE)))
def test_lines_end_in_a_newline_and_not_in_a_space(name):
    content = read(name)
    assert content.endswith("\n") and not content.endswith("\n\n")
    assert "\r" not in content and "  " not in content
    assert [line for line in content.split("\n") if line != line.rstrip()] == []


def test_no_development_document_is_copied_from_training():
    for source in SOURCES:
        copied = set(documents(f"{source}.train")) & set(documents(f"{source}.dev"))
        assert copied == set()


def test_sources_keep_their_own_form():
    assert "\n\n" not in read("open_subtitles.train")
    assert read("simple_wiki.train").startswith("= = = ")
    turns = [line for line in read("switchboard.train").split("\n") if line]
    assert {turn[:3] for turn in turns} == {"A:\t", "B:\t"}


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_phenomenon_has_seventy_different_pairs_with_every_field(phenomenon):
    rows = pairs(phenomenon)
    assert len(rows) == 70
    assert len({row["sentence_good"] for row in rows}) == 70
    assert [row["pair_id"] for row in rows] == [str(i) for i in range(70)]
    for row in rows:
        assert row["UID"] == phenomenon
        assert row["field"] in ("morphology", "semantics", "syntax")
        assert row["linguistics_term"]


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_sentences_of_a_pair_differ_and_have_as_many_words(phenomenon):
    for row in pairs(phenomenon):
        good, bad = row["sentence_good"], row["sentence_bad"]
        assert good != bad
        assert len(good.split()) == len(bad.split())
        assert re.fullmatch(r"[A-Z][A-Za-z ]+[.?]", good)
        assert re.fullmatch(r"[A-Z][A-Za-z ]+[.?]", bad)


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_no_grammatical_sentence_of_a_pair_is_in_the_text(phenomenon):
    for row in pairs(phenomenon):
        assert row["sentence_good"] not in text("train")
        assert row["sentence_good"] not in text("dev")


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_critical_combination_of_a_pair_is_in_no_training_sentence(phenomenon):
    for row in pairs(phenomenon):
        noun, word = row["held_out"]
        words = row["sentence_good"].lower().rstrip(".?").split()
        assert any(form.lower() in words for form in FORMS[noun])
        assert any(form in words for form in FORMS[word])
        for form in FORMS[noun]:
            for other in FORMS[word]:
                both = sentences_with(form.lower()) & sentences_with(other)
                assert both == frozenset(), (form, other)


def test_every_held_out_word_is_in_the_training_text_with_other_words():
    for noun, word in HELD_OUT:
        assert any(sentences_with(form.lower()) for form in FORMS[noun])
        assert any(sentences_with(form) for form in FORMS[word])


@pytest.mark.parametrize("split", ["train", "dev"])
def test_no_sentence_of_the_text_holds_a_held_out_combination(split):
    assert [s for s in sentences(split) if held_out_in(s)] == []


def test_combination_is_held_out_in_any_form_of_its_words():
    noun = next(noun for noun, word in HELD_OUT if word == "eat")
    for form in ("eat", "eats", "ate", "eaten", "eating"):
        sentence = f"The {FORMS[noun][-1]} near the door {form} the snow."
        assert held_out_in(sentence) == [(noun, "eat")]
    assert held_out_in(f"The {FORMS[noun][-1]} near the door.") == []


def test_every_form_belongs_to_one_lemma():
    forms = [form.lower() for forms in FORMS.values() for form in dict.fromkeys(forms)]
    assert sorted(forms) == sorted(set(forms))
    assert FORMS["child"] == ("child", "children")
    assert FORMS["carry"] == ("carry", "carries", "carried", "carried", "carrying")
    assert FORMS["drop"] == ("drop", "drops", "dropped", "dropped", "dropping")


@pytest.mark.parametrize(
    "phenomenon", ["prepositional_agreement", "relative_agreement"]
)
def test_noun_before_the_verb_is_not_of_the_number_of_the_subject(phenomenon):
    for row in pairs(phenomenon):
        good, bad = (row[f"sentence_{which}"].split() for which in ("good", "bad"))
        verb = next(i for i in range(len(good)) if good[i] != bad[i])
        numbers = [
            FORMS[LEMMA[word.lower()]].index(word)
            for word in good[:verb]
            if LEMMA.get(word.lower()) in KIND
        ]
        assert numbers == [numbers[0], 1 - numbers[0]]


def test_finished_sentence_has_its_capital_its_article_and_no_stray_space():
    assert finish("a uncle  saw a dog .") == "An uncle saw a dog."
    assert finish('"where is Tom?" asked Anna.') == '"Where is Tom?" asked Anna.'
