"""Runs on disk with a few files, as training and evaluation write them."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from src.evaluation.results import entry_checksum
from src.foundation import checksum_of_files

PARTS = {"island": 4, "agreement": 6}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with evaluation data: ten pairs of two phenomena."""
    monkeypatch.chdir(tmp_path)
    folder = Path("evals/full_eval/blimp_filtered")
    folder.mkdir(parents=True)
    for part, number in PARTS.items():
        rows = [
            {"sentence_good": f"good {part} {i}", "sentence_bad": f"bad {part} {i}"}
            | {"field": "syntax", "linguistics_term": f"{part}s", "UID": part}
            for i in range(number)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text)
    return tmp_path


def write_run(group, name, seed=1, lr=0.1, loss=3.0, finished=True):
    """Write the record of a run and the logs of two steps."""
    directory = Path("exp", group, name)
    (directory / "checkpoint-20").mkdir(parents=True)
    identity = {
        "training.seed": seed,
        "training.learning_rate": lr,
        "data": {"validation/a": "1"},
    }
    config = {"training": {"seed": seed, "learning_rate": lr}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "run.json").write_text(
        json.dumps({"identity": identity, "command": "x"})
    )
    logs = [
        {"step": 10, "loss": 5.0, "words": 500},
        {"step": 20, "eval_loss": loss, "words": 1000},
    ]
    state = json.dumps({"log_history": logs})
    (directory / "checkpoint-20/trainer_state.json").write_text(state)
    ledger = [{"step": step, "words": 50 * step, "loss": 5.0} for step in (10, 20)]
    (directory / "words.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in ledger)
    )
    if finished:
        text = json.dumps({"eval_loss": loss, "words_seen": 1000})
        (directory / "results.json").write_text(text)
        sums = {"results.json": hashlib.sha256(text.encode()).hexdigest()}
        (directory / "manifest.json").write_text(json.dumps(sums))
    return directory


def write_scores(directory, right, revision="main", **changed):
    """Write a model's results on BLiMP.

    Args:
        right: part -> digit 1 or 0 for each item.
    """
    folder = Path("results", f"{directory.parent.name}_{directory.name}", revision)
    file = folder / "zero_shot/causal/blimp/blimp_filtered/predictions.json"
    file.parent.mkdir(parents=True)
    predictions = {
        part: {
            "predictions": [
                {
                    "id": f"{part}_{i}",
                    "pred": f"{'bad good'.split()[int(x)]} {part} {i}",
                }
                for i, x in enumerate(digits)
            ]
        }
        for part, digits in right.items()
    }
    file.write_text(json.dumps(predictions))
    uids = {
        part: 100 * digits.count("1") / len(digits) for part, digits in right.items()
    }
    data = Path("evals/full_eval/blimp_filtered").glob("*.jsonl")
    entry = {
        "score": sum(uids.values()) / len(uids),
        "protocol": 2026,
        "dtype": "float32",
        "positions": None,
        "seed": None,
        "items": 10,
        "ties": 0,
        "too_long": [],
        "seconds": 1.0,
        "data_checksum": checksum_of_files(data),
        "subscores": {"UID": uids},
        "files": [str(file.relative_to(folder))],
        **changed,
    }
    entry["checksum"] = entry_checksum(entry, folder)
    scores = {"model": {"seed": 1}, "scores": {"causal": {"blimp": entry}}}
    (folder / "scores.json").write_text(json.dumps(scores))
