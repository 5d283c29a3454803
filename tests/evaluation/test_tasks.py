"""Zero-shot tasks: files that are read, texts that are scored, what their scores amount to."""

import json

import numpy as np
import pytest

from src.arguments import RunEvalArguments
from src.evaluation.scoring.scorer import Item, Scored
from src.evaluation.tasks.catalogue import (
    TASKS,
    expand,
    find_data,
    load_pairs_folders,
    load_tasks,
)
from src.evaluation.tasks.task import Answer
from src.foundation import UserError


def write(folder, name, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def scored(values, num_tokens=None):
    return Scored(np.array(values, float), np.array(num_tokens or [1] * len(values)))


def read(task, folder, protocol=2026):
    source = TASKS[task]
    official = source.official or task
    return source.kind.load(folder, name=task, folder=official, protocol=protocol)


def result_of(task, values, **numbers):
    return task.result([Answer(scored(values, **numbers))])


def select(tasks, data_dir, protocol=2026):
    """Names of the tasks that have data, and of those that have none."""
    found, missing = find_data(expand(tasks, protocol), data_dir)
    return list(found), missing


def pair(good, bad, **more):
    return {"sentence_good": good, "sentence_bad": bad, **more}


@pytest.fixture
def blimp(tmp_path):
    syntax = {"field": "syntax", "linguistics_term": "islands"}
    other = {"field": "syntax_semantics", "linguistics_term": "npi"}
    folder = tmp_path / "full_eval" / "blimp_filtered"
    write(
        folder, "island", *[pair(f"a{i}", f"b{i}", UID="i", **syntax) for i in (0, 1)]
    )
    return write(folder, "npi", pair("c", "d", UID="n", **other))


def test_a_score_is_the_mean_over_paradigms_not_over_pairs(blimp):
    task = read("blimp", blimp)
    assert task.items == [Item(text) for text in "a0 b0 a1 b1 c d".split()]
    result = result_of(task, [-1, -2, -3, -2, -1, -2])
    assert result.score == (50 + 100) / 2
    assert result.subscores == {
        "UID": {"i": 50, "n": 100},
        "field": {"syntax": 50, "syntax/semantics": 100},
        "linguistics_term": {"islands": 50, "npi": 100},
    }
    assert (result.num_items, result.num_ties, result.too_long) == (3, 0, ())
    assert result.folder == "blimp/blimp_filtered"
    assert result.files["predictions.json"] == {
        "i": {
            "predictions": [{"id": "i_0", "pred": "a0"}, {"id": "i_1", "pred": "b1"}]
        },
        "n": {"predictions": [{"id": "n_0", "pred": "c"}]},
    }
    report = result.files["best_temperature_report.txt"]
    assert report.startswith("TEMPERATURE: 1.00\n\n### UID ACCURACY\ni: 50.00\n")
    assert report.endswith("### AVERAGE ACCURACY\n75.00\n\n")


@pytest.mark.parametrize(
    "protocol, score, chosen", [(2025, 100, "a0"), (2026, 75, "b0")]
)
def test_a_tie_is_right_in_2025_wrong_in_2026_and_counted(
    blimp, protocol, score, chosen
):
    result = result_of(read("blimp", blimp, protocol), [-1, -1, -1, -2, -1, -2])
    assert (result.score, result.num_ties) == (score, 1)
    assert result.files["predictions.json"]["i"]["predictions"][0]["pred"] == chosen


def test_a_pair_with_the_same_text_twice_is_right(tmp_path):
    """As on the server, which compares the prediction with the right text."""
    folder = write(tmp_path / "twins", "same", pair("a", "a"), pair("b", "b "))
    result = result_of(read("supplement", folder), [-1.0000001, -1.0000002, -2, -1])
    assert (result.score, result.num_ties) == (100, 0)


@pytest.mark.parametrize("protocol", [2025, 2026])
def test_who_collates_the_predictions_finds_our_score(tmp_path, protocol):
    """The official scripts compare texts, and a pair may have the same text twice."""
    texts = [("a", "b"), ("c", "d"), ("e", "e"), ("f", "f ")]
    folder = write(tmp_path / "ties", "ties", *[pair(*both) for both in texts])
    result = result_of(read("supplement", folder, protocol), [-1, -2, *[-1] * 5, -2])
    predictions = result.files["predictions.json"]["ties"]["predictions"]
    collated = [p["pred"].strip() == good for p, (good, _) in zip(predictions, texts)]
    assert collated == [True, protocol == 2025, True, True]
    assert result.score == 25 * sum(collated) and result.num_ties == 1


@pytest.mark.parametrize(
    "protocol, right, wrong, is_right",
    [
        (2026, np.nan, -1, False),
        (2026, -1, np.nan, True),
        (2026, np.nan, np.nan, False),
        (2025, -1, np.nan, False),
    ],
)
def test_a_text_that_is_too_long_counts_as_the_least_probable(
    tmp_path, protocol, right, wrong, is_right
):
    folder = write(tmp_path / "long", "i", pair("a", "b"))
    result = result_of(read("supplement", folder, protocol), [right, wrong])
    assert (result.score, result.too_long) == (100 * is_right, ("i_0",))


def test_rows_without_a_paradigm_belong_to_their_file(tmp_path):
    folder = write(tmp_path / "s", "hypernym", pair("a", "b"))
    result = result_of(read("supplement", folder), [-1, -2])
    assert result.subscores == {"UID": {"hypernym": 100}}


EWOK = {
    "Context1": "It is hot.", "Context2": "It is cold.", "Target1": "I sweat.",
    "Target2": "I freeze.", "Domain": "weather", "ContextType": "direct",
    "ContextDiff": "antonym", "TargetDiff": "swap",
}  # fmt: skip


def test_ewok_compares_targets_in_2025_and_contexts_in_2026(tmp_path):
    folder = write(tmp_path / "ewok_filtered", "weather", EWOK)
    old, new = read("ewok", folder, 2025), read("ewok", folder, 2026)
    right = Item("It is hot. I sweat.", len("It is hot."))
    assert old.items == [right, Item("It is hot. I freeze.", len("It is hot."))]
    assert new.items == [right, Item("It is cold. I sweat.", len("It is cold."))]

    def answer(task):
        predictions = result_of(task, [-2, -1]).files["predictions.json"]
        return predictions["weather"]["predictions"][0]["pred"]

    assert answer(old) == " I freeze."
    assert answer(new) == "It is cold. I sweat."


def entity(numops, *options):
    return {"input_prefix": "Box 0 contains ", "options": options, "numops": numops}


def test_entity_tracking_is_a_mean_of_operations_then_of_splits(tmp_path):
    folder = tmp_path / "entity_tracking"
    write(folder, "regular", entity(0, "a.", "b."), entity(1, "a.", "b."))
    write(folder, "move_contents", entity(0, "a.", "b.", "c."))
    task = read("entity_tracking", folder)
    assert task.items[0] == Item("Box 0 contains a.", len("Box 0 contains "))
    # Files in order of their names: move_contents with three options, then regular.
    result = result_of(task, [-1, -2, -3, -1, -2, -2, -1])
    assert result.subscores["UID"] == {
        "move_contents_0_ops": 100, "regular_0_ops": 100, "regular_1_ops": 0
    }  # fmt: skip
    assert result.subscores["split"] == {"move_contents": 100, "regular": 50}
    assert result.score == 75


def test_only_2026_leaves_out_boxes_with_nothing(tmp_path):
    rows = entity(0, "a.", "nothing."), entity(0, "a.", "b.")
    folder = write(tmp_path / "entity_tracking", "regular", *rows)
    numbers = [len(read("entity_tracking", folder, p).choices) for p in (2025, 2026)]
    assert numbers == [2, 1]


def test_comps_scores_the_property_behind_either_concept(tmp_path):
    row = {
        "prefix_acceptable": "A wolf", "prefix_unacceptable": "A bird",
        "property_phrase": "can howl.",
    }  # fmt: skip
    task = read("comps", write(tmp_path / "comps", "comps_wugs_dist-before", row))
    assert task.items == [Item("A wolf can howl.", 7), Item("A bird can howl.", 7)]
    assert result_of(task, [-1, -2]).subscores["UID"] == {"wugs_dist_before": 100}


def test_global_piqa_compares_means_over_tokens_and_has_its_own_label(tmp_path):
    row = {
        "prompt": "To open it,", "solution0": "push", "solution1": "pull hard",
        "label": 1, "example_id": "e7",
    }  # fmt: skip
    folder = write(tmp_path / "global_piqa_nonparallel", "eng_latn", row)
    task = read("global_piqa_nonparallel", folder)
    assert task.items[1] == Item("To open it, pull hard", len("To open it,"))
    result = result_of(task, [-2, -3], num_tokens=[1, 2])
    assert result.score == 100
    pred = result.files["predictions.json"]["e7"]["predictions"][0]
    assert pred == {"id": "e7_0", "pred": " pull hard"}
    more = {
        **row,
        "solution2": None,
        "solution3": None,
    }  # as tables of JSON fill up rows
    folder = write(tmp_path / "more" / "global_piqa_nonparallel", "eng_latn", more)
    assert read("global_piqa_nonparallel", folder).items == task.items


def test_wug_is_the_rank_correlation_with_people(tmp_path):
    rows = [
        {"sentences": f"a{i}\tb{i}", "ratio": r} for i, r in enumerate((0.1, 0.5, 1))
    ]
    folder = write(tmp_path / "wug_past_tense", "wug_past_tense", *rows)
    result = result_of(read("wug_past", folder), [-3, -1, -1, -1, -1, -2])
    assert result.score == pytest.approx(100)
    probability = result.files["predictions.json"]["wug_past"]["predictions"][1]["prob"]
    assert probability == pytest.approx(0.5)
    assert "### AVERAGE SPEARMAN'S RHO\n1.00\n" in result.files[
        "best_temperature_report.txt"
    ]  # fmt: skip


def test_equal_values_share_their_rank(tmp_path):
    """Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    rows = [{"sentences": "a\tb", "ratio": ratio} for ratio in (0, 0.1, 0.2, 0.3)]
    task = read("wug_past", write(tmp_path / "wug_past_tense", "wug", *rows))
    found = result_of(task, [-2, -1, -1, -1, -1, -1, -1, -2]).score
    assert found == pytest.approx(100 * 4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(result_of(task, [-1] * 8).score)
    assert np.isnan(result_of(task, [np.nan] * 8).score)


@pytest.mark.parametrize(
    "line, told",
    [
        ("{not json", "not JSON"),
        ("", "not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"sentence_good": "a"}', "lacks the field sentence_bad"),
        ('{"sentence_good": "a", "sentence_bad": 3}', "sentence_bad is a int: 3"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_number(tmp_path, line, told):
    folder = write(tmp_path / "p", "order", pair("a", "b"), line, pair("a", "b"))
    with pytest.raises(UserError) as raised:
        read("blimp", folder)
    assert "order.jsonl, line 2: " in str(raised.value) and told in str(raised.value)


@pytest.mark.parametrize(
    "task, row, told",
    [
        ("entity_tracking", entity(0, "a."), "options must be at least two texts"),
        ("wug_adj", {"sentences": "a b", "ratio": 1}, "sentences must hold a tab"),
        (
            "global_piqa_parallel",
            {"prompt": "p", "solution0": "a", "solution1": "b", "label": 2,
             "example_id": 1},
            "label must be one of the 2 solutions, got 2",
        ),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_choice_is_refused_likewise(tmp_path, task, row, told):
    with pytest.raises(UserError, match=f"x.jsonl, line 1: {told}"):
        read(task, write(tmp_path / "t", "x", row))


def test_only_a_line_feed_ends_a_line(tmp_path):
    odd = pair("A\u2028b\x85c.", "A b.")
    folder = write(tmp_path / "odd", "odd", json.dumps(odd, ensure_ascii=False))
    assert read("blimp", folder).items[0] == Item("A\u2028b\x85c.")


def test_fast_and_full_run_what_has_its_data_and_name_what_has_not(tmp_path):
    write(tmp_path / "fast_eval" / "blimp_fast", "x", pair("a", "b"))
    write(tmp_path / "full_eval" / "supplement_filtered", "x", pair("a", "b"))
    wug = {"sentences": "a\tb", "ratio": 1}
    write(tmp_path / "full_eval" / "wug_past_tense", "x", wug)
    found, missing = select("fast", tmp_path)
    assert found == ["blimp_fast"]  # in 2026, WUG is no longer asked for
    # WUG has no fast subset of its own: either copy will do.
    assert select("fast", tmp_path, 2025)[0] == ["blimp_fast", "wug_past"]
    assert "supplement_fast" in missing and not {"comps", "aoa"} & set(missing)
    found, missing = select("full", tmp_path)
    assert found == ["supplement"]
    assert select(["full", "wug_past"], tmp_path)[0] == ["supplement", "wug_past"]
    assert {"blimp", "comps", "reading", "aoa"} <= set(missing)


def test_a_named_task_must_have_its_data(tmp_path):
    write(tmp_path / "fast_eval" / "blimp_fast", "x", pair("a", "b"))
    found, missing = select(["blimp_fast", "blimp_fast"], tmp_path)
    assert found == ["blimp_fast"] and not missing
    with pytest.raises(UserError, match="comps needs the folder comps in .*full_eval"):
        select(["blimp_fast", "comps"], tmp_path)
    with pytest.raises(UserError, match="no task is named blmp; did you mean blimp"):
        select("blmp", tmp_path)
    assert select(["fast"], tmp_path) == select("fast", tmp_path)
    with pytest.raises(UserError, match="no task is named comps_fast"):
        select(["comps_fast"], tmp_path)
    with pytest.raises(UserError, match="no data of any task in"):
        select("full", tmp_path / "gone")


def test_a_group_is_its_tasks(tmp_path):
    wug = {"sentences": "a\tb", "ratio": 1}
    for name in ("wug_past_tense", "wug_adj_nominalization"):
        write(tmp_path / "full_eval" / name, name, wug)
    found, _ = select(["wug"], tmp_path)
    assert found == ["wug_adj", "wug_past"]


def test_an_empty_task_folder_is_refused(tmp_path):
    folder = tmp_path / "full_eval" / "comps"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="no .*jsonl file in .*comps"):
        read("comps", folder)
    (folder / "comps_base.jsonl").write_text("\n")
    with pytest.raises(UserError, match="comps_base.jsonl is empty"):
        read("comps", folder)


def test_two_folders_of_one_name_are_refused(tmp_path):
    inner = tmp_path / "full_eval" / "comps" / "comps"
    write(inner, "comps_base", {})
    with pytest.raises(UserError, match="only one folder may be called comps, found"):
        select(["comps"], tmp_path)
    folders = [write(tmp_path / place / "own", "x", pair("a", "b")) for place in "ab"]
    with pytest.raises(UserError, match="may not have the same name.*a/own.*b/own"):
        load_pairs_folders(folders)
    (task,) = load_pairs_folders(folders[:1])
    assert (task.name, task.folder) == ("pairs/own", "pairs/own")


def test_the_checksum_is_that_of_the_data(blimp):
    first = read("blimp", blimp).data_checksum
    assert first == read("blimp", blimp, 2025).data_checksum and len(first) == 64
    write(blimp, "npi", pair("c", "e", UID="n", field="x", linguistics_term="y"))
    assert read("blimp", blimp).data_checksum != first


def test_names_may_be_added_to_full_and_fast(tmp_path):
    """What is named must have its data; what only a set includes need not."""
    write(tmp_path / "fast_eval" / "blimp_fast", "x", pair("a", "b"))
    write(tmp_path / "full_eval" / "comps", "x", {})
    assert select(["fast", "comps"], tmp_path)[0] == ["blimp_fast", "comps"]
    with pytest.raises(UserError, match="ewok_fast needs the folder ewok_fast in"):
        select(["fast", "ewok_fast"], tmp_path)
    named = expand(["full", "aoa"])
    assert list(expand(["wug_fast"])) == ["wug_adj", "wug_past"]  # the same data
    assert named["aoa"] and not named["blimp"] and "rte" not in named


def test_tasks_that_take_long_come_last(tmp_path):
    write(tmp_path / "fast_eval" / "blimp_fast", "x", pair("a", "b"))
    row = {"sentence1": "A", "sentence2": "B", "label": 1}
    for split in ("train", "valid"):
        write(tmp_path / "full_eval" / "glue_filtered", f"rte.{split}", row)
    pairs = write(tmp_path / "mine", "x", pair("a", "b"))
    args = RunEvalArguments(
        tasks=["rte", "fast"], pairs=str(pairs), data=str(tmp_path), bf16=True
    )
    tasks, missing = load_tasks(args, seed=3)
    described = [(t.name, t.takes, t.folder, t.bf16, t.seed) for t in tasks]
    assert described == [
        ("blimp_fast", "model", "blimp/blimp_fast", True, None),
        ("pairs/mine", "model", "pairs/mine", True, None),
        ("rte", "training", "finetune/rte", True, 3),
    ]
    assert "ewok_fast" in missing and {"rte", "aoa"} < set(TASKS)
