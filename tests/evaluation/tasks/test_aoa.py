"""Age of acquisition: curves with known ages, and the order of words in time."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.data.packing.tokenizer import train
from src.evaluation.models import Checkpoint
from src.evaluation.protocol import PROTOCOLS
from src.evaluation.scoring.scorer import Item
from src.evaluation.tasks import aoa
from src.evaluation.tasks.task import Answer
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


MODELS = [Checkpoint(Path("gone"), "tiny", step, step) for step in STEPS]


def load(folder):
    return aoa.AgeOfAcquisition.load(folder, name="aoa", folder="AoA_word")


@pytest.fixture
def data(tmp_path):
    return load(write(tmp_path, {word: ["a", "the "] for word in AGES}, AGES))


def result_of(data, table, protocol=2026):
    """The result of checkpoints with these surprisals [num_steps, num_pairs]."""
    chance = dict.fromkeys(data.words, CHANCE)
    answers = [
        Answer(aoa.Surprisals(nats, chance), model, seconds=1.0)
        for nats, model in zip(table, MODELS)
    ]
    return replace(data, protocol=protocol).result(answers)


def test_the_word_behind_its_context_is_scored(tmp_path):
    contexts = {"dog": [" See the", ""], "I": ["and"]}
    data = load(write(tmp_path, contexts, AGES))
    # A word of one letter is left out.
    assert data.items == [Item("See the dog", 8), Item(" dog", 1)]
    assert data.pairs == [("dog", " See the", 0), ("dog", "", 1)]


def test_ages_are_where_the_curves_are_halfway():
    shares = 1 / (1 + np.exp(-0.5 * (aoa.AGES - 23.5)))
    assert aoa.child_age(shares) == pytest.approx(23.5, abs=1e-3)
    found = aoa.model_age(SEEN, curve(7.0), CHANCE, PROTOCOLS[2026])
    assert found == pytest.approx(7.0, abs=0.01)


def test_a_word_that_is_never_learned_has_no_age():
    assert aoa.child_age(np.full(15, 0.01)) is None
    assert aoa.child_age(np.full(15, np.nan)) is None
    assert aoa.model_age(SEEN, np.full(19, CHANCE), CHANCE, PROTOCOLS[2026]) is None
    assert aoa.model_age(SEEN, np.full(19, np.nan), CHANCE, PROTOCOLS[2026]) is None
    assert aoa.model_age(SEEN[:2], curve(7.0)[:2], CHANCE, PROTOCOLS[2026]) is None
    # Learned before the first checkpoint.
    assert aoa.model_age(SEEN, curve(5.0), CHANCE, PROTOCOLS[2026]) is None


def score(data, model_ages, protocol=2026):
    """The result of a model that learns the words at these ages."""
    curves = [curve(model_ages[word]) for word, _, _ in data.pairs]
    return result_of(data, np.stack(curves, axis=1), protocol)


def test_a_series_is_a_runs_checkpoints_in_order_of_the_words_they_have_seen(data):
    other = [Checkpoint(Path("x"), "other", step, step) for step in STEPS[:2]]
    found = replace(data, is_named=False).series([*other, *reversed(MODELS)])
    assert found == {MODELS[-1]: MODELS}  # the other run has too few
    with pytest.raises(UserError, match="needs 3 checkpoints of a run, other has 2"):
        data.series([*MODELS, *other])
    unknown = Checkpoint(Path("gone"), "tiny", "checkpoint-3", "the third")
    with pytest.raises(UserError, match="words seen is unknown for the third"):
        data.series([*MODELS, unknown])
    final = Checkpoint(Path("gone"), "tiny", "main", "tiny")
    assert data.series([final, *MODELS]) == {final: MODELS}


def test_other_checkpoints_are_another_checksum(data):
    assert data.checksum(MODELS) != data.checksum(MODELS[1:])
    assert len(data.checksum(MODELS)) == 64


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
    assert result.seconds == 19 and result.data_checksum == data.checksum(MODELS)
    assert result.folder == "AoA_word" and set(result.files) == {
        "surprisal.json", "aoa_score.json"
    }  # fmt: skip


def test_a_pair_that_is_too_long_is_named(data):
    table = np.ones((len(STEPS), 8))
    table[0, 1] = np.nan
    result = result_of(data, table)
    assert result.too_long == ("dog_1",)
    # A word that lacks a context has no point there, also for who skips what is null.
    points = result.files["surprisal.json"]["results"]
    lost = [(p["step"], p["target_word"]) for p in points if np.isnan(p["surprisal"])]
    assert lost == [("chck_1M", "dog")] * 2
    result = result_of(data, table, 2025)
    points = result.files["surprisal.json"]["results"]
    assert sum(np.isnan(point["surprisal"]) for point in points) == 1


def test_chance_is_that_of_a_words_tokens(data):
    tokenizer = train(["a"], 259)  # bytes
    found = aoa.chance_surprisals(data.words, tokenizer, PROTOCOLS[2026])
    assert found["ball"] == pytest.approx(5 * math.log(tokenizer.vocab_size))
    assert aoa.chance_surprisals(data.words, tokenizer, PROTOCOLS[2025])[
        "ball"
    ] == math.log2(300_000)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("cdi_childes.json", None, "no cdi_childes.json in"),
        ("cdi_childes.json", "{", "cdi_childes.json must map words"),
        ("cdi_childes.json", '{"dog": [{}]}', "must map words .*KeyError"),
        ("cdi_childes.json", '{"dog": [{"context": null}]}', "None is no text"),
        ("cdi_childes.json", "{}", "has no word in a context"),
        (
            "cdi_human.csv",
            "word,16\ndog,0.5\n",
            "cdi_human.csv lacks the columns .*'17'",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, told):
    write(tmp_path, {"dog": ["a"]}, AGES)
    file = tmp_path / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=told):
        load(tmp_path)
