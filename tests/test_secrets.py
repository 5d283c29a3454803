"""Tokens, given in every way in which they can be, are in no file and in no output."""

import os
import sys
import traceback
from pathlib import Path

import pytest

SECRET = "hf_PLANTEDplantedPLANTED"
GROUP = f"""\
# @package _global_
model: {{token: {SECRET}}}
training:
  hub_token: '{SECRET}'
"""
WAYS = {
    "flags": [f"model.token={SECRET}", f"training.hub_token={SECRET}"],
    "plus": [f"+model.token={SECRET}", f"++training.hub_token='{SECRET}'"],
    "dict": [f"training={{hub_token: {SECRET}, seed: 2}}"],
    "nested dict": [f'++training={{seed: 3, hub_token: "{SECRET}"}}'],
    "group file": ["--config-dir=conf", "+recipe=mine"],
    "sweep": ["--multirun", f"model.token={SECRET}", "training.seed=1,2"],
    "Hydra's log": [f"model.token={SECRET}", "hydra/job_logging=default"],
    "Hydra's record": [f"training.hub_token={SECRET}", "hydra.output_subdir=.hydra"],
    "group file and Hydra's record": [
        "--config-dir=conf", "+recipe=mine", "hydra.output_subdir=.hydra",
        "hydra/job_logging=default", "hydra/hydra_logging=default",
    ],
    "sweep and Hydra's record": [
        "-m", f"model.token={SECRET}", "training.seed=1,2",
        "hydra.output_subdir=.hydra", "hydra/hydra_logging=default",
    ],
    "refused value": [f"model.token={SECRET}", "data.block_size=1"],
    "refused late": [f"model.token={SECRET}", "training.max_words=7"],
    "refused key": [f"model.tokn={SECRET}"],
    "refused section": [f"modell.token={SECRET}"],
    "refused as token of another": [f"tokenizer.token={SECRET}"],
    "unreadable": [f"model.token=[{SECRET}"],
    "unreadable neighbour": [f"model.token={SECRET}", "data.block_size=[1"],
    "dict and refused": [f"training={{hub_token: {SECRET}, learning_rate: x}}"],
    "refused type": [f"training.hub_token={SECRET}", "training.seed=x"],
    "config": [f"model.token={SECRET}", "--cfg=job"],
    "resolved config": [f"training.hub_token={SECRET}", "--cfg=job", "--resolve"],
    "config of a group file": ["--config-dir=conf", "+recipe=mine", "--cfg=all"],
    "help": [f"model.token={SECRET}", "--help"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment():
    """The environment as it was, since secrets may move there."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def leaks(capfd, caplog) -> list[str]:
    """Return the lines and files in which the secret is."""
    shown = capfd.readouterr()
    lines = f"{shown.out}\n{shown.err}\n{caplog.text}".splitlines()
    files = [
        path
        for path in Path().rglob("*")
        if path.is_file() and path.parts[0] != "conf"
        if SECRET.encode() in path.read_bytes()
    ]
    return [line[:300] for line in lines if SECRET in line] + [*map(str, files)]


def start(main, name, overrides, monkeypatch) -> str:
    """Run a command as Python would. Returns the text that it would end with."""
    monkeypatch.setattr(sys, "argv", [name, *overrides])
    try:
        main()
    except BaseException as error:
        if not isinstance(error, SystemExit):
            return traceback.format_exc()
        return str(error.code or "")
    return ""


@pytest.mark.parametrize("way", WAYS)
def test_no_token_of_a_run_is_in_a_file_or_an_output(
    tiny, way, monkeypatch, capfd, caplog
):
    from src.run_clm import main

    Path("conf/recipe").mkdir(parents=True)
    Path("conf/recipe/mine.yaml").write_text(GROUP)
    logged = [o for o in tiny if o != "wandb.log=false" and "max_steps" not in o]
    end = start(
        main, "run_clm", [*logged, "training.max_steps=2", *WAYS[way]], monkeypatch
    )
    trained = bool(list(Path().rglob("results.json")))
    refused = any(x in way for x in ("refused", "unreadable", "config", "info", "help"))
    assert trained != refused, end
    assert SECRET not in end, end
    assert not leaks(capfd, caplog)


@pytest.mark.parametrize(
    "secret", [f"model.token={SECRET}", f"training={{hub_token: {SECRET}}}"]
)
def test_no_token_is_in_a_traceback(tiny, secret, monkeypatch, capfd, caplog):
    from src.run_clm import main

    def bug(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("src.training.run.build_model", bug)
    end = start(main, "run_clm", [*tiny, secret], monkeypatch)
    assert "ZeroDivisionError" in end and SECRET not in end
    assert not leaks(capfd, caplog)


@pytest.mark.parametrize(
    "overrides",
    [
        ["checkpoint=exp/gone", "tasks=[blimp]"],
        ["checkpoint=exp/gone", "hydra.output_subdir=.hydra", "tasks=[blimp]"],
        ["tasks=[blimp"],
        ["tokn=x"],
        ["seed=x"],
        ["--cfg=job"],
    ],
)
def test_no_token_of_an_evaluation_is_in_a_file_or_an_output(
    tmp_path, overrides, monkeypatch, capfd, caplog
):
    from src.run_eval import main

    monkeypatch.chdir(tmp_path)
    end = start(main, "run_eval", [*overrides, f"token={SECRET}"], monkeypatch)
    assert SECRET not in end, end
    assert not leaks(capfd, caplog)


def test_a_token_cannot_be_swept_over(tiny, monkeypatch, capfd, caplog):
    from src.run_clm import main

    tokens = f"training.hub_token={SECRET}1,{SECRET}2"
    end = start(main, "run_clm", ["-m", *tiny, tokens], monkeypatch)
    assert "training.hub_token must be one token" in end
    assert not leaks(capfd, caplog)
