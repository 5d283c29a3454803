"""The record of a run: begun, compared, refused, moved aside, finished."""

import contextlib
import json
import logging
import re

import pytest
import yaml

from src import foundation
from src.arguments import Arguments, RunConfiguration, TrainingArguments
from src.configuration.run_configuration import run_configuration
from src.foundation import UserError
from src.training.record import run_record
from src.training.record.run_record import (
    RunRecord,
    TrainingStopped,
    differences,
)

TEXT = {"train/childes": "abc"}


@pytest.fixture
def record(tmp_path):
    return of_run(tmp_path / "group" / "seed-1")


def begin(record, overwrite=False, checksums=TEXT, configuration=None, **identity):
    identity = identity or {"training.learning_rate": 0.001}
    configuration = configuration or {"training": {"learning_rate": 0.001}}
    overrides = ["training.learning_rate=1e-3", "wandb.tag=two words"]
    identity = {**identity, "data": checksums}
    directory = record.directory
    with of_run(directory, identity, configuration, overrides, overwrite).open():
        assert (record.directory / "run.json").exists()


def of_run(directory, identity={}, configuration={}, overrides=[], overwrite=False):
    """The record of a run in a directory."""
    training = TrainingArguments(
        output_dir=str(directory), use_cpu=True, overwrite_output_dir=overwrite
    )
    started = RunConfiguration(
        args=Arguments(training=training), reasons={}, recorded=configuration,
        identity={}, overrides=overrides,
    )  # fmt: skip
    return RunRecord(started, identity)


def test_a_run_begins_with_its_record(record):
    begin(record)
    kept = json.loads((record.directory / "run.json").read_text())
    assert record.command == (
        "python -m src.run_clm training.learning_rate=1e-3 'wandb.tag=two words'"
    )
    assert kept["identity"] == {"training.learning_rate": 0.001, "data": TEXT}
    assert kept["versions"]["torch"] and kept["machine"]["python"]
    configuration = yaml.safe_load((record.directory / "config.yaml").read_text())
    assert configuration == {"training": {"learning_rate": 0.001}}
    assert record.results is None


def test_the_same_settings_continue_and_write_nothing(record):
    begin(record)
    before = (record.directory / "config.yaml").read_text()
    begin(record, configuration={"logging": "other"})
    assert (record.directory / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    "changed, told",
    [
        (
            {"training.learning_rate": 0.003},
            "training.learning_rate: 0.001 -> 0.003",
        ),
        (
            {"training.learning_rate": 0.001, "data.block_size": 64},
            "data.block_size: 512 -> 64",
        ),
        (
            {"checksums": {"train/childes": "xyz"}},
            "text: train/childes differs",
        ),
    ],
)
def test_other_settings_are_refused_with_what_differs(record, changed, told):
    begin(record)
    (record.directory / "checkpoint-1").mkdir()
    kept = (record.directory / "run.json").read_text()
    with pytest.raises(UserError) as raised:
        begin(record, **changed)
    message = str(raised.value)
    assert told in message and "wandb.tag=" in message
    assert "training.overwrite_output_dir=true" in message
    assert (record.directory / "run.json").read_text() == kept


def test_a_full_disk_costs_the_log_one_warning(record, capfd, caplog, monkeypatch):
    # Without handlers of earlier tests, whose streams are closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    begin(record)
    log = record.directory / "train.log"
    log.unlink()
    log.symlink_to("/dev/full")
    logging.getLogger().setLevel(logging.INFO)
    with contextlib.suppress(OSError):  # when it is closed
        identity = {"training.learning_rate": 0.001, "data": TEXT}
        with of_run(record.directory, identity).open():
            logging.getLogger().info("one")
            logging.getLogger().info("two")
    assert capfd.readouterr().err.count("Logging error") == 0
    assert caplog.text.count("train.log cannot be written: ") == 1


def test_tuples_and_lists_are_the_same_setting(record):
    begin(record, **{"training.report_to": ("tensorboard",)})
    begin(record, **{"training.report_to": ["tensorboard"]})


def test_differences_are_one_sorted_line_a_setting():
    recorded = {"b": 1, "a": None, "same": [1], "gone": True}
    present = {"b": 2, "a": "x", "same": [1], "new": {"n_layer": 2}}
    assert differences(recorded, present) == [
        'a: null -> "x"',
        "b: 1 -> 2",
        "gone: true -> null",
        'new: null -> {"n_layer": 2}',
    ]
    assert differences(recorded, recorded) == []


def test_runs_moved_aside_are_numbered_and_nothing_is_lost(record):
    for rate in (1, 2, 3):
        begin(record, overwrite=True, **{"training.learning_rate": rate})
        (record.directory / "weights.bin").write_text(f"weights {rate}")
    old = record.directory.parent / ".old"
    assert sorted(p.name for p in old.iterdir()) == ["seed-1-1", "seed-1-2"]
    kept = [old / "seed-1-1", old / "seed-1-2", record.directory]
    for rate, directory in zip((1, 2, 3), kept):
        assert (directory / "weights.bin").read_text() == f"weights {rate}"
        identity = json.loads((directory / "run.json").read_text())["identity"]
        assert identity["training.learning_rate"] == rate


def test_the_id_at_wandb_is_that_of_the_run(record):
    begin(record)
    first = record.wandb_id
    assert re.fullmatch("[0-9a-f]{8}", first)
    begin(record)
    assert record.wandb_id == first
    begin(record, overwrite=True)
    assert record.wandb_id != first


def test_an_empty_directory_is_not_moved_aside(record):
    record.directory.mkdir(parents=True)
    begin(record, overwrite=True)
    assert not (record.directory.parent / ".old").exists()


def try_to_hold(directory, told):
    """A start of the run, as the front door makes it."""
    try:
        with of_run(directory).open():
            told.put("held")
    except UserError as error:
        told.put(str(error))


def test_a_second_process_is_refused_while_the_first_is_at_work(record, processes):
    told = processes.SimpleQueue()

    def second():
        process = processes.Process(target=try_to_hold, args=(record.directory, told))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        return told.get()

    with record.open():
        refused = second()
    assert "seed-1: another process is working on this run" in refused
    assert second() == "held"


def test_a_refused_start_leaves_the_empty_directory_of_the_one_at_work(
    record, processes
):
    told = processes.SimpleQueue()
    with run_record.locked(record.directory):
        record.directory.mkdir()  # the winner has written nothing yet
        process = processes.Process(target=try_to_hold, args=(record.directory, told))
        process.start()
        process.join(60)
        assert "another process" in told.get()
        assert record.directory.is_dir()
    assert not record.directory.parent.exists()


def refuse(record, error, **options):
    with pytest.raises(type(error)):
        with of_run(record.directory, {"data": {}}, **options).open():
            (record.directory / "wandb").mkdir()
            raise error


def test_a_start_that_is_refused_late_takes_away_what_it_made(record):
    refuse(record, UserError("no such optimizer"))
    assert not record.directory.parent.exists()


def test_a_start_that_is_refused_late_brings_back_the_run_that_it_moved_aside(record):
    begin(record)
    before = (record.directory / "run.json").read_text()
    refuse(record, UserError("no such optimizer"), overwrite=True)
    assert (record.directory / "run.json").read_text() == before
    assert not (record.directory / "wandb").exists()


@pytest.mark.parametrize("kept", [TrainingStopped("diverged"), RuntimeError("a bug")])
def test_a_run_that_fails_in_training_is_kept(record, kept):
    refuse(record, kept)
    assert (record.directory / "train.log").is_file()


def test_a_run_with_a_checkpoint_is_never_taken_away(record):
    with pytest.raises(UserError):
        with record.open():
            (record.directory / "checkpoint-1").mkdir()
            raise UserError("no such metric")
    assert (record.directory / "checkpoint-1").is_dir()


@pytest.mark.parametrize(
    "name", [".DS_Store", ".nfs00a1", "Thumbs.db", "run_clm.log", "config.yaml"]
)
def test_litter_and_what_a_killed_start_wrote_do_not_block_a_run(record, name):
    record.directory.mkdir(parents=True)
    (record.directory / name).write_text("x")
    refuse(record, UserError("no such optimizer"))
    assert [path.name for path in record.directory.iterdir()] == [name]
    begin(record)


def test_the_files_of_other_people_do(record):
    record.directory.mkdir(parents=True)
    (record.directory / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"not a run .*holds notes.txt"):
        begin(record)


def test_a_damaged_record_gets_a_message(record):
    begin(record)
    file = record.directory / "run.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match="run.json is damaged"):
        begin(record)


def test_a_record_with_a_flipped_bit_in_a_key_gets_a_message(record):
    begin(record)
    file = record.directory / "run.json"
    file.write_text(file.read_text().replace('"identity"', '"identitx"'))
    with pytest.raises(UserError, match="run.json is damaged"):
        begin(record)


def test_a_damaged_record_can_be_moved_aside(record):
    begin(record)
    (record.directory / "run.json").write_text("{")
    begin(record, overwrite=True)
    assert record.command.startswith("python -m src.run_clm")
    old = record.directory.parent / ".old" / "seed-1-1"
    assert (old / "run.json").read_text() == "{"


def test_a_run_that_ended_between_its_two_files_begins_again(record):
    begin(record)
    (record.directory / "run.json").unlink()
    begin(record, **{"training.learning_rate": 2})
    identity = json.loads((record.directory / "run.json").read_text())["identity"]
    assert identity["training.learning_rate"] == 2


def test_results_mark_the_run_finished(record):
    begin(record)
    record.finish({"eval_loss": 3.5, "eval_perplexity": float("inf")})
    assert record.results == {"eval_loss": 3.5, "eval_perplexity": float("inf")}
    assert not list(record.directory.glob(".*.tmp"))


def test_results_with_a_flipped_bit_are_not_shown(record):
    begin(record)
    record.finish({"eval_loss": 3.5})
    file = record.directory / "results.json"
    file.write_text(file.read_text().replace("3.5", "3.4"))
    with pytest.raises(
        UserError, match=r"is damaged \(results.json\): delete that file"
    ):
        record.results
    file.unlink()
    assert record.results is None
    record.finish({"eval_loss": 3.5})
    assert record.results == {"eval_loss": 3.5}


def test_secrets_are_not_recorded(record, composed):
    config = composed(
        "model.model_type=gpt2", "data.train_file=x", "model.token=hf_secret",
        "training.hub_token=hf_other",
    )  # fmt: skip
    begin(record, configuration=run_configuration(config).recorded)
    text = "".join(p.read_text() for p in record.directory.iterdir())
    assert "hf_" not in text and "<not recorded>" in text


def test_a_field_added_since_counts_with_its_default(record):
    begin(record)
    (record.directory / "checkpoint-1").mkdir()
    identity = json.loads((record.directory / "run.json").read_text())["identity"]
    with of_run(record.directory, {"training.z_loss": 0.0, **identity}).open():
        pass
    with pytest.raises(UserError, match="training.z_loss"):
        with of_run(record.directory, {"training.z_loss": 1e-4, **identity}).open():
            pass


def test_the_lock_is_released_with_the_block(record, monkeypatch):
    """Not only when the garbage collector finds it."""
    locks = []

    class Kept(foundation.FileLock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            locks.append(self)

    monkeypatch.setattr(foundation, "FileLock", Kept)
    with record.open():
        assert locks[0].is_locked
    assert not locks[0].is_locked
