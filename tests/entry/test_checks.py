"""The rules of the server: an entry that fits has no fault, and each slip is named."""

import copy
import json

import pytest

from src.entry.checks import Run, check_milestones, check_name, check_predictions
from src.entry.rules import FAST_PARTS, FULL_PARTS, SIZES, TRACKS
from src.foundation import UserError, sha256, write_manifest

SMALL = TRACKS["strict-small"]


def rows(number, value="a text"):
    return {"predictions": [{"id": f"x_{i}", "pred": value} for i in range(number)]}


def subsets(part):
    sizes = SIZES["fast"][part]
    return SIZES["full"][part] if isinstance(sizes, int) else sizes


@pytest.fixture(scope="module")
def whole():
    """An entry of the right sizes."""
    content = {
        part: {name: rows(size) for name, size in SIZES["full"][part].items()}
        for part in FULL_PARTS
        if part in SIZES["full"] and part != "reading"
    }
    for part, size in SIZES["global_piqa"].items():
        content[part] = {f"example_{i}": rows(1) for i in range(size)}
    content["reading"] = {"reading": rows(SIZES["full"]["reading"]["reading"], 1.5)}
    content["glue"] = {n: rows(size, 1) for n, size in SIZES["full"]["glue"].items()}
    surprisals = [
        {"step": name} for name in SMALL.milestones for _ in range(SIZES["aoa_pairs"])
    ]
    content["aoa_surprisals"] = {"results": surprisals}
    content["aoa"] = {"aoa": 0.31}
    fast = {
        part: (
            {"spr": 0.01, "rt": 0.02}
            if part == "reading"
            else (
                {part: 0.3}
                if part.startswith("global")
                else dict.fromkeys(subsets(part), 0.5)
            )
        )
        for part in FAST_PARTS
    }
    number = len(SMALL.milestones)
    content["fast_eval_results"] = {p: [s] * number for p, s in fast.items()}
    return content


def test_a_whole_entry_has_no_fault(whole):
    assert check_predictions(whole, SMALL, SMALL.milestones) == []


def test_a_run_that_ended_early_needs_the_checkpoints_up_to_there(whole):
    content, milestones = copy.deepcopy(whole), SMALL.milestones[:3]
    for scores in content["fast_eval_results"].values():
        scores[3:] = [None] * 16
    rows_of = content["aoa_surprisals"]["results"]
    content["aoa_surprisals"]["results"] = [
        r for r in rows_of if r["step"] in milestones
    ]
    assert check_predictions(content, SMALL, milestones) == []
    assert len(check_predictions(content, SMALL, SMALL.milestones)) == 7


def test_the_tracks_have_the_checkpoints_of_the_challenge():
    assert len(SMALL.milestones) == 19 and len(TRACKS["strict"].milestones) == 28
    assert SMALL.milestones[8:11] == ("chck_9M", "chck_10M", "chck_20M")
    assert TRACKS["strict"].milestones[-1] == "chck_1000M"


def lose(content, *keys):
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]


SLIPS = {
    "last month's key": (
        lambda c: c.update(entity_tracking=c.pop("entity_tracking_filtered")),
        "entity_tracking counts as 0: the server reads entity_tracking_filtered",
    ),
    "a percentage": (
        lambda c: c.update(aoa={"aoa": 31.0}),
        "aoa is 31, but the server multiplies it by 100",
    ),
    "no surprisals": (
        lambda c: c.update(aoa_surprisals=None),
        "aoa counts as 0: aoa_surprisals is missing",
    ),
    "raw surprisals as the score": (
        lambda c: c.update(aoa=c["aoa_surprisals"]),
        'aoa counts as 0: it must be {"aoa": <correlation>}',
    ),
    "the last name": (
        lambda c: c["aoa_surprisals"]["results"][-1].update(step="chck_1B"),
        "aoa_surprisals: chck_1B is no checkpoint of strict-small",
    ),
    "too few words": (
        lambda c: c["aoa_surprisals"]["results"].pop(),
        "aoa_surprisals is refused: 8004 rows of chck_100M instead of 8005",
    ),
    "a missing phenomenon": (
        lambda c: lose(c, "blimp", "causative"),
        "blimp/causative counts as 0: it is missing",
    ),
    "a missing item": (
        lambda c: c["ewok"]["agent-properties"]["predictions"].pop(),
        "ewok/agent-properties is refused: 2209 predictions instead of 2210",
    ),
    "numbers instead of texts": (
        lambda c: c["comps"]["base"]["predictions"][0].update(pred=1),
        "comps/base is refused: a prediction must be str, got 1",
    ),
    "texts instead of labels": (
        lambda c: c["glue"]["rte"]["predictions"][0].update(pred="1"),
        "glue/rte is refused: a prediction must be int, got '1'",
    ),
    "NaN": (
        lambda c: c["reading"]["reading"]["predictions"][0].update(pred=float("nan")),
        "the file holds NaN",
    ),
    "no fast scores of a checkpoint": (
        lambda c: c["fast_eval_results"]["blimp"].__setitem__(3, None),
        "fast_eval_results/blimp counts as 0 for 1 checkpoint: chck_4M",
    ),
    "fast scores that collate to 0": (
        lambda c: c["fast_eval_results"].update(
            ewok=[dict.fromkeys(SIZES["full"]["ewok"], 0.0)] * 19
        ),
        "fast_eval_results/ewok is 0 for every checkpoint",
    ),
    "the other track": (
        lambda c: c["fast_eval_results"].update(blimp=[{}] * 28),
        "fast_eval_results/blimp is refused: 28 checkpoints instead of 19",
    ),
    "a task is missing": (
        lambda c: c.update(comps=None),
        "comps counts as 0: it has no results, or a wrong number of them",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_is_named(whole, slip):
    content = copy.deepcopy(whole)
    plant, message = SLIPS[slip]
    plant(content)
    faults = check_predictions(content, SMALL, SMALL.milestones)
    assert any(message in fault for fault in faults), faults


@pytest.fixture
def run(tmp_path):
    """`run(…)`: a finished run with milestones of these words; None: without a record."""

    def call(seen=3_500_000, **words):
        (tmp_path / "run.json").write_text('{"identity": {}}')
        for name, number in words.items():
            folder = tmp_path / name
            folder.mkdir()
            record = {"words": number, "step": 1, "run": sha256(tmp_path / "run.json")}
            if number is not None:
                (folder / "words_seen.json").write_text(json.dumps(record))
            (folder / "config.json").write_text("{}")
            write_manifest(folder)
        return Run(tmp_path, {}, {"words_seen": seen}, {})

    return call


GOOD = dict(chck_1M=1_000_100, chck_2M=2_000_000, chck_3M=3_010_000)


def test_milestones_up_to_the_end_of_a_run_are_enough(run):
    check = check_milestones(run(**GOOD), SMALL)
    assert check.passed and check.detail == "3 of 19; the run ended before the others"


@pytest.mark.parametrize(
    "words, message",
    [
        ({**GOOD, "chck_3M": None}, "chck_3M has no words_seen.json"),
        ({**GOOD, "chck_2M": 1_000_100}, "chck_2M has seen 1,000,100 words"),
        ({**GOOD, "chck_1B": 10**9}, "chck_1B is no checkpoint of strict-small"),
        ({"chck_1M": 1_000_100, "chck_3M": 3_010_000}, "chck_2M missing"),
        ({}, "none; train with +milestones=strict_small"),
    ],
)
def test_milestones_that_do_not_count_are_named(run, words, message):
    check = check_milestones(run(**words), SMALL)
    assert check.passed is False and message in check.detail


def test_milestones_of_another_run_and_damaged_ones_are_named(run):
    finished = run(**GOOD)
    config = finished.directory / "chck_2M/config.json"
    config.write_text("[]")
    assert "chck_2M is damaged" in check_milestones(finished, SMALL).detail
    config.write_text("{}")
    (finished.directory / "run.json").write_text('{"identity": {"training.seed": 1}}')
    assert "belongs to another run" in check_milestones(finished, SMALL).detail


@pytest.mark.parametrize("name", [None, "model", "me/my model", "me/x--y", "a/b/c"])
def test_a_name_that_the_hub_refuses_is_refused(name):
    with pytest.raises(UserError, match="name"):
        check_name(name)
    check_name("me/my-model.v2")
