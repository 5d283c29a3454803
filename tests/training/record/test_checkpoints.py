"""Checkpoints: which count, which are passed over, which may go."""

import json
from pathlib import Path

import pytest

from src.training.record.checkpoints import (
    checkpoints,
    newest_whole,
    prune,
    seal,
)


def checkpoint(run: Path, steps: int, best: str | None = None) -> Path:
    """A checkpoint with a file in a folder, as the Trainer leaves it: not sealed."""
    directory = run / f"checkpoint-{steps}"
    (directory / "shards").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(b"weights")
    (directory / "shards" / "1.bin").write_bytes(b"more")
    state = {"best_model_checkpoint": best}
    (directory / "trainer_state.json").write_text(json.dumps(state))
    return directory


def sealed(run: Path, *steps: int, best: str | None = None) -> list[Path]:
    found = [checkpoint(run, number, best) for number in steps]
    for directory in found:
        seal(directory)
    return found


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_checkpoints_are_listed_newest_first_by_number(tmp_path):
    sealed(tmp_path, 9, 100, 20)
    (tmp_path / "checkpoint-old").mkdir()
    found = [path.name for path in checkpoints(tmp_path)]
    assert found == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]


def test_a_sealed_checkpoint_is_whole_and_stays_so_when_sealed_again(tmp_path):
    (whole,) = sealed(tmp_path, 5)
    assert newest_whole(tmp_path) == whole
    assert set(json.loads((whole / "manifest.json").read_text())) == {
        "weights.bin", "shards/1.bin", "trainer_state.json"
    }  # fmt: skip
    seal(whole)
    assert newest_whole(tmp_path) == whole


def flip(file: Path):
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda c: flip(c / "weights.bin"), "is damaged (weights.bin)"),
        (
            lambda c: (c / "weights.bin").write_bytes(b"weig"),
            "is damaged (weights.bin)",
        ),
        (lambda c: (c / "shards/1.bin").unlink(), "is damaged (shards/1.bin)"),
        (lambda c: flip(c / "manifest.json"), "is damaged (manifest.json)"),
        (lambda c: (c / "manifest.json").unlink(), "was not finished"),
    ],
    ids=["flipped byte", "truncated", "missing", "manifest damaged", "no manifest"],
)
def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path, damage, told, caplog):
    older, newer = sealed(tmp_path, 5, 10)
    damage(newer)
    assert newest_whole(tmp_path) == older
    assert "checkpoint-10 " + told in caplog.text


def test_a_damaged_checkpoint_is_set_aside_and_an_unfinished_one_is_left(tmp_path):
    first, second, third = sealed(tmp_path, 1, 2, 3)
    flip(second / "weights.bin")
    (third / "manifest.json").unlink()
    assert newest_whole(tmp_path) == first
    assert names(tmp_path) == [
        "checkpoint-1", "checkpoint-3", "damaged-checkpoint-2"
    ]  # fmt: skip
    assert (tmp_path / "damaged-checkpoint-2" / "weights.bin").is_file()


def test_there_may_be_no_whole_checkpoint(tmp_path):
    assert newest_whole(tmp_path) is None
    checkpoint(tmp_path, 1)
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "gone") is None


def test_a_damaged_best_checkpoint_is_set_aside_too(tmp_path, caplog):
    best, newest = sealed(tmp_path, 5, 10, best="exp/elsewhere/checkpoint-5")
    flip(best / "weights.bin")
    assert newest_whole(tmp_path) == newest
    assert names(tmp_path) == ["checkpoint-10", "damaged-checkpoint-5"]
    assert "checkpoint-5 is damaged (weights.bin)" in caplog.text


def test_pruning_keeps_the_newest(tmp_path):
    sealed(tmp_path, 5, 10, 15, 100)
    prune(tmp_path, 2, best=None)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-15"]


def test_pruning_keeps_the_best_and_the_newest(tmp_path):
    sealed(tmp_path, 5, 10, 15)
    prune(tmp_path, 2, best="exp/a/b/checkpoint-5")
    assert names(tmp_path) == ["checkpoint-15", "checkpoint-5"]


def test_pruning_does_not_count_a_best_one_that_is_gone(tmp_path):
    sealed(tmp_path, 5, 10, 15)
    prune(tmp_path, 2, best="exp/a/b/checkpoint-1")
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]


def test_pruning_deletes_what_was_never_finished_and_leaves_what_was_set_aside(
    tmp_path,
):
    sealed(tmp_path, 5, 10, 15)
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 20)  # of a kill before the run went back to an older one
    (tmp_path / "damaged-checkpoint-2").mkdir()
    prune(tmp_path, 2, best=None)
    assert names(tmp_path) == [
        "checkpoint-10", "checkpoint-15", "damaged-checkpoint-2"
    ]  # fmt: skip


def test_a_kill_during_a_deletion_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    sealed(tmp_path, 5, 10, 15)

    def killed(path, **options):
        next(Path(path).glob("*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 2)
    shown = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert shown == ["checkpoint-10", "checkpoint-15"]
    prune(tmp_path)
    assert not list(tmp_path.glob(".deleted-*"))


def test_without_a_limit_everything_is_kept(tmp_path):
    sealed(tmp_path, 5, 10, 15)
    prune(tmp_path, None, best=None)
    assert len(names(tmp_path)) == 3
