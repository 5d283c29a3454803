"""Results on disk in the challenge's layout, one model a folder; the table on the screen."""

import dataclasses
import json
import math
from typing import NamedTuple

import pytest

from src.evaluation.results import Result, ResultKey, ResultsFolder
from src.evaluation.table import PUBLISHED, overall, overview, table
from src.foundation import UserError


class Model(NamedTuple):
    """What is recorded of a `Checkpoint`."""

    model: str = "exp/seed-42_lr-0.001"
    revision: str = "chck_1M"
    checksum: str = "c0ffee"
    seed: int | None = 42


KEY = ResultKey(Model(), "causal")
RECORD = "seed-42_lr-0_001/chck_1M/scores.json"
HALF = dataclasses.replace(KEY, dtype="bfloat16")
FILES = {
    "predictions.json": {"x": {"predictions": [{"id": "x_0", "pred": "a"}]}},
    "best_temperature_report.txt": "TEMPERATURE: 1.00\n",
}


def result(task="blimp", score=75.0, **more):
    folder = {"blimp": "blimp/blimp_filtered"}.get(task, task)
    more = {"files": FILES, "data_checksum": "d", **more}
    return Result(task, folder, 2026, score, 3, **more)


def test_files_lie_where_the_official_scripts_look(tmp_path):
    ResultsFolder(tmp_path).write(KEY, result())
    # The official scripts cut a name at its last dot: it has none.
    folder = tmp_path / "seed-42_lr-0_001" / "chck_1M"
    assert (folder / "scores.json").is_file()
    task = folder / "zero_shot" / "causal" / "blimp" / "blimp_filtered"
    assert (
        json.loads((task / "predictions.json").read_text()) == FILES["predictions.json"]
    )
    assert (task / "best_temperature_report.txt").read_text() == "TEMPERATURE: 1.00\n"
    assert sorted(path.name for path in task.iterdir()) == sorted(FILES)


def test_the_record_says_whose_scores_and_how_they_were_made(tmp_path):
    more = {
        "num_ties": 1, "too_long": ("x_0",), "seconds": 1.5,
        "subscores": {"UID": {"x": 75.0}},
    }  # fmt: skip
    entry = ResultsFolder(tmp_path).write(KEY, result(**more))
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["model"] == {
        "name": KEY.checkpoint.model, "revision": "chck_1M", "checksum": "c0ffee", "seed": 42
    }  # fmt: skip
    assert record["scores"]["causal"]["blimp"] == entry
    assert len(entry.pop("checksum")) == 64
    folder = "zero_shot/causal/blimp/blimp_filtered/"
    assert entry.pop("files") == [folder + name for name in FILES]
    assert entry == {
        "score": 75.0, "protocol": 2026, "items": 3, "ties": 1, "too_long": ["x_0"],
        "seconds": 1.5, "seed": None, "dtype": "float32", "positions": None,
        "data_checksum": "d", "subscores": {"UID": {"x": 75.0}}, "choices_changed": None,
    }  # fmt: skip


def test_a_score_that_is_none_is_null(tmp_path):
    entry = ResultsFolder(tmp_path).write(KEY, result(score=math.nan))
    assert entry["score"] is None and entry["seconds"] is None


def test_files_are_strict_json(tmp_path):
    values = [{"pred": math.nan, "id": "x"}, {"pred": 1.5, "id": "y"}]
    ResultsFolder(tmp_path).write(
        KEY, result("reading", files={"predictions.json": values})
    )
    file = (tmp_path / RECORD).parent / "zero_shot/causal/reading/predictions.json"
    assert file.read_text() == ('[{"pred": null, "id": "x"}, {"pred": 1.5, "id": "y"}]')


def test_later_tasks_and_backends_are_added(tmp_path):
    ResultsFolder(tmp_path).write(KEY, result())
    masked = ResultKey(Model(), "mlm")
    ResultsFolder(tmp_path).write(masked, result())
    ResultsFolder(tmp_path).write(KEY, result("reading"))
    ResultsFolder(tmp_path).write(KEY, result(score=80.0))
    scores = ResultsFolder(tmp_path).read(KEY)["scores"]
    assert {b: sorted(tasks) for b, tasks in scores.items()} == {
        "causal": ["blimp", "reading"], "mlm": ["blimp"]
    }  # fmt: skip
    assert scores["causal"]["blimp"]["score"] == 80


def test_what_was_scored_in_the_same_way_is_found(tmp_path):
    folder = ResultsFolder(tmp_path)
    entry = folder.write(KEY, result())
    assert folder.find(KEY, "blimp", "d") == folder.find(KEY, "blimp") == entry
    assert folder.find(KEY, "comps", "d") is None
    assert folder.find(KEY, "blimp", "other data") is None
    assert folder.find(HALF, "blimp", "d") is None
    # Even if an entry of another protocol lay in this folder.
    folder.write(KEY, dataclasses.replace(result(), protocol=2025))
    assert folder.find(KEY, "blimp", "d") is None


def test_fine_tuning_with_another_seed_is_another_score(tmp_path):
    first = ResultsFolder(tmp_path, seed=42)
    first.write(KEY, result(seed=42))
    for data in ("d", None):
        assert first.find(KEY, "blimp", data)["seed"] == 42
    assert ResultsFolder(tmp_path, seed=2).find(KEY, "blimp", "d") is None
    assert ResultsFolder(tmp_path).find(KEY, "blimp", "d") is None
    first.write(KEY, result(seed=1))
    assert first.find(KEY, "blimp", "d") is None


def test_choices_that_the_precision_changes_are_counted(tmp_path):
    def predicted(*answers, **more):
        chosen = [{"id": f"x_{n}", "pred": pred} for n, pred in enumerate(answers)]
        files = {"predictions.json": {"x": {"predictions": chosen}}}
        return dataclasses.replace(result(**more), files=files)

    def changed(new):
        folder = ResultsFolder(tmp_path, is_bf16=True)
        return folder.write(HALF, new)["choices_changed"]

    assert changed(predicted("a", "b", "c")) is None  # nothing is there
    ResultsFolder(tmp_path).write(KEY, predicted("a", "c", "b"))
    assert changed(predicted("a", "b", "c")) == 2
    assert changed(predicted("a", "c", "c")) == 1
    assert changed(predicted("b", "b", "b", data_checksum="other")) is None
    assert changed(predicted(1.5, 2.5, 3.5)) is None  # no choices
    foreign = ResultKey(Model(checksum="another"), "causal")
    (tmp_path / RECORD).unlink()
    (tmp_path / RECORD).parent.joinpath("zero_shot").rename(tmp_path / "moved")
    ResultsFolder(tmp_path).write(foreign, predicted("a", "b", "c"))
    assert changed(predicted("a", "b", "c")) is None


@pytest.mark.parametrize(
    "rules, name",
    [
        ((2026, False), ""),
        ((2026, False, 42), ""),
        ((2025, False), "2025"),
        ((2025, True, 1), "2025_bf16_seed-1"),
        ((2026, False, 42, True), "exact_positions"),
        ((2026, False, None, True), ""),  # only fine-tuning pads texts on the left
        ((2025, False, 42, True), "2025"),  # whose positions are exact anyway
    ],
)
def test_other_rules_have_folders_of_their_own(tmp_path, rules, name):
    assert ResultsFolder(tmp_path, *rules).path == tmp_path / name


def test_fine_tuning_of_a_version_with_exact_positions_is_not_the_protocols(tmp_path):
    folder = ResultsFolder(tmp_path, seed=42)
    folder.write(KEY, result(seed=42))
    record = folder.read(KEY)
    of_task = record["scores"]["causal"]["blimp"]
    for name in ("checksum", "files", "positions"):
        del of_task[name]
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert folder.find(KEY, "blimp", "d") is None


def official(tmp_path, name):
    folder = (tmp_path / RECORD).parent / "zero_shot/causal/blimp/blimp_filtered"
    return folder / name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, "", "TEMPERATURE: 2.00\n"])
def test_a_score_whose_files_are_damaged_is_not_used(tmp_path, caplog, name, content):
    folder = ResultsFolder(tmp_path)
    folder.write(KEY, result("reading"))
    folder.write(KEY, result())
    if content is None:
        official(tmp_path, name).unlink()
    else:
        official(tmp_path, name).write_text(content)
    assert folder.find(KEY, "blimp", "d") is None
    assert "the score of blimp or its files have changed since" in caplog.text
    assert folder.find(KEY, "reading", "d")["score"] == 75
    folder.write(KEY, result())
    assert folder.find(KEY, "blimp", "d")["score"] == 75


def test_no_flipped_bit_of_the_record_shows_another_figure(tmp_path):
    folder, file = ResultsFolder(tmp_path), tmp_path / RECORD
    entry = folder.write(KEY, result(subscores={"UID": {"x": 75.0}}))
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        )
        try:
            found = folder.find(KEY, "blimp", "d")
        except UserError:
            continue
        names = [name for name in entry if name != "checksum"]
        assert found is None or all(found[name] == entry[name] for name in names)


def test_scores_of_a_version_without_checksums_are_kept(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(KEY, result())
    record = folder.read(KEY)
    of_task = record["scores"]["causal"]["blimp"]
    for name in ("checksum", "files", "positions"):
        del of_task[name]
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert folder.find(KEY, "blimp", "d")["score"] == 75


def a_file(path):
    path.write_text("")


def a_dangling_link(path):
    path.symlink_to("gone")


@pytest.mark.parametrize(
    "make, reason",
    [
        (a_file, "is a file"),
        (a_dangling_link, "is a link to gone, which does not exist"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, make, reason):
    make(tmp_path / "results")
    folder = ResultsFolder(tmp_path / "results")
    with pytest.raises(UserError, match=f"results_dir: .*/results {reason}"):
        folder.check_writable(KEY)
    ResultsFolder(tmp_path / "other").check_writable(KEY)
    assert not (tmp_path / "other").exists()


def test_what_the_precision_changed_is_said():
    half = entry(50.0, dtype="bfloat16", choices_changed=7)
    told = "blimp: 7 of 1,000 choices differ from those in float32"
    assert told in table({"blimp": half})
    assert "differ" not in table({"blimp": entry(50.0)})


def test_a_folder_of_another_model_is_refused_and_stays_as_it_is(tmp_path):
    ResultsFolder(tmp_path).write(KEY, result())
    file = tmp_path / RECORD
    before = file.read_text()
    model = Model("other/seed-42_lr-0.001", checksum="decaf", seed=None)
    other = ResultKey(model, "causal")
    with pytest.raises(UserError, match="holds the scores of another model, .*c0ffee"):
        ResultsFolder(tmp_path).write(other, result(score=1.0))
    assert file.read_text() == before


def test_scores_of_unknown_origin_are_not_overwritten(tmp_path):
    (tmp_path / "seed-42_lr-0_001" / "chck_1M" / "zero_shot" / "causal").mkdir(
        parents=True
    )
    with pytest.raises(UserError, match="holds scores, but scores.json is missing"):
        ResultsFolder(tmp_path).write(KEY, result())


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_record_is_refused(tmp_path, content):
    ResultsFolder(tmp_path).write(KEY, result())
    file = tmp_path / RECORD
    file.write_text(content)
    with pytest.raises(UserError, match="scores.json is missing or damaged"):
        ResultsFolder(tmp_path).read(KEY)


def entry(score, **more):
    default = {
        "items": 1000,
        "seconds": 2.5,
        "ties": 0,
        "too_long": [],
        "subscores": {},
        "dtype": "float32",
        "choices_changed": None,
    }
    return {"score": score, "protocol": 2026, **default, **more}


def test_the_table_has_published_scores_beside_ours():
    lines = table({"blimp_fast": entry(66.666), "own": entry(None)}).split("\n")
    assert lines[0].split()[:2] == ["GPT-2", "GPT-BERT"]  # two lines, for 80 columns
    assert lines[1].split()[:6] == ["task", "score", "items", "time", "10M", "10M"]
    assert lines[2].split()[:5] == ["blimp_fast", "66.67", "1,000", "2.5", "s"]
    assert "65.20" in lines[2] and "80.50" in lines[2]
    assert lines[3].split() == ["own", "1,000", "2.5", "s"]
    told = "Published scores are those of the full sets. GPT-2 10M: baselines of the"
    assert lines[-1].startswith(told)


def test_columns_without_a_value_are_left_out():
    lines = table({"pairs/mine": entry(75.0)}).split("\n")
    assert lines[0].split() == ["task", "score", "items", "time"]
    assert "Published" not in lines[-1]
    lines = overview({"a": {"pairs/mine": entry(75.0)}, "b": {}}).split("\n")
    assert [line.split()[0] for line in lines[:3]] == ["pairs/mine", "a", "b"]
    assert not any("GPT-BERT" in line for line in lines)


def test_phenomena_are_shown_on_request():
    entries = {"blimp": entry(50.0, subscores={"linguistics_term": {"npi": 50.0}})}
    assert "npi" not in table(entries)
    assert "  npi" in table(entries, by_phenomenon=True)


def test_ties_and_what_was_too_long_are_said():
    long = ["a_0", "a_1", "a_2", "a_3"]
    many = entry(50.0, ties=7, too_long=long, subscores={"UID": {}})
    one = entry(50.0, ties=1, subscores={"UID": {}})
    text = table(
        {"blimp": many, "ewok": one, "wug_adj": entry(5.0, ties=1, too_long=["a_0"])}
    )
    assert "blimp: 7 ties, counted as wrong\n" in text
    assert (
        "blimp: 4 items longer than the model's context, counted as the least probable: a_0, a_1, a_2,"
        " …\n"
    ) in text
    assert "ewok: 1 tie, counted as wrong\n" in text and "wug_adj: 1 tie" not in text
    assert "wug_adj: 1 item longer than the model's context, left out: a_0\n" in text


def test_a_zero_of_aoa_that_was_not_measured_is_explained():
    def shown(score, r, p, number):
        words = {"with_both_ages": float(number), "all": 40.0}  # as they are stored
        parts = {"words": words, "correlation": {"r": r, "p": p}}
        return table({"aoa": entry(score, subscores=parts)})

    assert (
        "aoa: 0 means no score: the correlation of 12.30 over 37 words may be chance"
        " (p = 0.47)"
    ) in shown(0.0, 12.3, 0.4711, 37)
    assert ("aoa: 0 means no score: 1 of 40 words with both ages are too few") in shown(
        0.0, None, None, 1
    )
    assert "no score" not in shown(41.0, 41.0, 0.01, 37)


def test_the_table_says_by_what_rules_it_is():
    assert "\nProtocol 2026, float32.\n" in table({"blimp": entry(1.0)})
    mixed = {"blimp": entry(1.0), "rte": entry(1.0, dtype="bfloat16")}
    told = "\nblimp: protocol 2026, float32; rte: protocol 2026, bfloat16.\n"
    assert told in table(mixed)


def test_the_overall_score_needs_all_nine():
    scores = dict.fromkeys(PUBLISHED, 50.0)
    scores.update(aoa=20.0, global_piqa_parallel=30.0, global_piqa_nonparallel=50.0)
    assert overall(scores) == pytest.approx((7 * 50 + 20 + 40) / 9)
    del scores["glue"]
    assert overall(scores) is None
