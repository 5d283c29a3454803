"""Age of acquisition: curves with known ages, and the order of words in time."""

import json
import math

import numpy as np
import pytest

from src.data.packing.tokenizer import train
from src.evaluation.scoring.texts import Item
from src.evaluation.tasks import aoa
from src.foundation import UserError

SEEN = np.array([i * 10**6 for i in [*range(1, 10), *range(10, 101, 10)]])
STEPS = [f"chck_{words // 10**6}M" for words in SEEN]
CHANCE = 10.0


def write(folder, contexts, ages):
    """Words → their contexts; words → the age at which half of the children say them."""
    data = {word: [{"context": c} for c in of] for word, of in contexts.items()}
    (folder / "cdi_childes.json").write_text(json.dumps(data))
    lines = [",".join(["", "word", *map(str, aoa.AGES)])]
    for index, (word, age) in enumerate(ages.items()):
        shares = 1 / (1 + np.exp(-0.5 * (aoa.AGES - age)))
        lines.append(",".join([str(index), word, *map(str, shares)]))
    (folder / "cdi_human.csv").write_text("\n".join(lines) + "\n")
    return folder


def curve(age):
    """Surprisal from CHANCE down to 0, halfway at log10(words + 1) == age."""
    return CHANCE / (1 + np.exp(8 * (np.log10(SEEN + 1) - age)))


AGES = {"dog": 20.0, "cat": 22.0, "ball": 24.0, "cup": 26.0}


@pytest.fixture
def data(tmp_path):
    return aoa.load(write(tmp_path, {word: ["a", "the "] for word in AGES}, AGES))


def test_the_word_behind_its_context_is_scored(tmp_path):
    contexts = {"dog": [" See the", ""], "I": ["and"]}
    data = aoa.load(write(tmp_path, contexts, AGES))
    # A word of one letter is left out.
    assert aoa.items(data) == [Item("See the dog", 8), Item(" dog", 1)]
    assert data.pairs == [("dog", " See the", 0), ("dog", "", 1)]


def test_ages_are_where_the_curves_are_halfway():
    shares = 1 / (1 + np.exp(-0.5 * (aoa.AGES - 23.5)))
    assert aoa.child_age(shares) == pytest.approx(23.5, abs=1e-3)
    found = aoa.model_age(SEEN, curve(7.0), CHANCE, 2026)
    assert found == pytest.approx(7.0, abs=0.01)


def test_a_word_that_is_never_learned_has_no_age():
    assert aoa.child_age(np.full(15, 0.01)) is None
    assert aoa.child_age(np.full(15, np.nan)) is None
    assert aoa.model_age(SEEN, np.full(19, CHANCE), CHANCE, 2026) is None
    assert aoa.model_age(SEEN, np.full(19, np.nan), CHANCE, 2026) is None
    assert aoa.model_age(SEEN[:2], curve(7.0)[:2], CHANCE, 2026) is None
    # Learned before the first checkpoint.
    assert aoa.model_age(SEEN, curve(5.0), CHANCE, 2026) is None


def score(data, model_ages, protocol=2026):
    """The result of a model that learns the words at these ages."""
    curves = [curve(model_ages[word]) for word, _, _ in data.pairs]
    table = np.stack(curves, axis=1)
    surprisals = dict(zip(STEPS, table))
    chance = dict.fromkeys(data.words, CHANCE)
    # In any order: the axis is the words seen.
    surprisals = dict(sorted(surprisals.items()))
    return aoa.result(
        data, chance, surprisals, dict(zip(STEPS, SEEN)), protocol, "tiny"
    )


@pytest.mark.parametrize("protocol", [2025, 2026])
def test_the_same_order_scores_100_and_the_reverse_minus_100(data, protocol):
    ages = dict(zip(AGES, (6.4, 6.8, 7.2, 7.6)))
    assert score(data, ages, protocol).score == pytest.approx(100, abs=0.1)
    reverse = dict(zip(AGES, (7.6, 7.2, 6.8, 6.4)))
    assert score(data, reverse, protocol).score == pytest.approx(-100, abs=0.1)


def test_a_correlation_that_chance_explains_is_zero_in_2026(data):
    ages = dict(zip(AGES, (6.4, 7.6, 6.5, 7.0)))
    assert score(data, ages, 2026).score == 0
    assert 0 < abs(score(data, ages, 2025).score) < 50
    found = score(data, ages, 2026).subscores["correlation"]
    assert found["p"] > 0.1 and found["r"] == pytest.approx(
        np.corrcoef([6.4, 7.6, 6.5, 7.0], [20, 22, 24, 26])[0, 1] * 100, abs=1
    )


def test_words_without_both_ages_do_not_count(data):
    ages = dict(zip(AGES, (6.4, 6.8, 5.0, 5.0)))
    result = score(data, ages)
    assert result.score == 0  # two words are no correlation
    assert result.subscores["words"] == {"with_both_ages": 2, "all": 4}


def test_the_official_file_has_an_entry_a_checkpoint_and_pair(data):
    result = score(data, dict(zip(AGES, (7.0, 7.1, 7.2, 7.3))))
    entries = result.files["surprisal.json"]["results"]
    assert len(entries) == result.num_items == 19 * 8
    assert entries[9] == {
        "step": "chck_2M", "word_count": 2_000_000, "target_word": "dog",
        "context_id": 1, "context": "the ", "surprisal": curve(7.0)[1],
    }  # fmt: skip
    assert result.folder == "AoA_word" and set(result.files) == {
        "surprisal.json", "aoa_score.json"
    }  # fmt: skip


def test_a_pair_that_is_too_long_is_named(data):
    surprisals = {step: np.ones(8) for step in STEPS}
    surprisals["chck_1M"] = np.array([1.0, np.nan, *[1.0] * 6])
    chance = dict.fromkeys(data.words, CHANCE)
    result = aoa.result(data, chance, surprisals, dict(zip(STEPS, SEEN)))
    assert result.too_long == ("dog_1",)
    # A word that lacks a context has no point there, also for who skips what is null.
    points = result.files["surprisal.json"]["results"]
    lost = [(p["step"], p["target_word"]) for p in points if np.isnan(p["surprisal"])]
    assert lost == [("chck_1M", "dog")] * 2
    result = aoa.result(data, chance, surprisals, dict(zip(STEPS, SEEN)), 2025)
    points = result.files["surprisal.json"]["results"]
    assert sum(np.isnan(point["surprisal"]) for point in points) == 1


def test_chance_is_that_of_a_words_tokens(data):
    tokenizer = train(["a"], 259)  # bytes
    found = aoa.chance_surprisals(data, tokenizer, 2026)
    assert found["ball"] == pytest.approx(5 * math.log(tokenizer.vocab_size))
    assert aoa.chance_surprisals(data, tokenizer, 2025)["ball"] == math.log2(300_000)


def test_a_curve_needs_checkpoints(data):
    one = {"chck_1M": np.ones(8)}
    with pytest.raises(UserError, match="aoa needs at least 3 checkpoints .* got 1"):
        aoa.result(data, dict.fromkeys(AGES, 1.0), one, {"chck_1M": 10**6})


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("cdi_childes.json", None, "no cdi_childes.json in"),
        ("cdi_childes.json", "{", "cdi_childes.json must map words"),
        ("cdi_childes.json", '{"dog": [{}]}', "must map words .*KeyError"),
        ("cdi_childes.json", "{}", "has no word in a context"),
        ("cdi_human.csv", "word,16\ndog,0.5\n", "cdi_human.csv, row 1: needs word"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, told):
    write(tmp_path, {"dog": ["a"]}, AGES)
    file = tmp_path / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=told):
        aoa.load(tmp_path)
