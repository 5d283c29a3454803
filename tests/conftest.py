"""What all tests share: a tiny corpus, a tiny model, a clean place to run in."""

import gc
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

# Before any library reads them: no network, no account, no GPU; one thread, since threads
# that wait for each other are slow where the machine is busy.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    CUDA_VISIBLE_DEVICES="",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="true",
)
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop(
    "COLUMNS", None
)  # pytest-xdist sets it; output that is no terminal has none

REPOSITORY = Path(__file__).parents[1]
# What the processes that tests start import.
ROOMS = ["src.run_clm", "src.training.run"]

NOUNS = "dog cat child teacher bird king mother horse boy girl".split()
VERBS = "sees likes finds calls helps hears follows knows".split()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What all libraries brought along is garbage never: each training run begins by
    looking for garbage, and would look through all of that."""
    gc.collect()
    gc.freeze()


def is_wanted(fixture: str, request: pytest.FixtureRequest) -> bool:
    """Whether a test of this session uses the fixture: only then is it worth an early start."""
    return any(fixture in item.fixturenames for item in request.session.items)


@pytest.fixture(scope="session", autouse=True)
def imports_are_done(request: pytest.FixtureRequest) -> None:
    """The process that `processes` are forked from, which imports while the first tests run."""
    if is_wanted("processes", request):
        multiprocessing.set_forkserver_preload(ROOMS)
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def processes():
    """Processes that start at once, since what they import is imported already."""
    return multiprocessing.get_context("forkserver")


def sentences(number: int, seed: int) -> list[str]:
    """English of a kind: `The dog sees a cat.`"""
    rng = random.Random(seed)
    pick = rng.choice
    return [
        f"{pick(['The', 'A', 'Every'])} {pick(NOUNS)} {pick(VERBS)}"
        f" {pick(['the', 'a'])} {pick(NOUNS)}."
        for _ in range(number)
    ]


def write_corpus(folder: Path) -> Path:
    """Two training files (one with blank lines) and two dev files."""
    folder.mkdir()
    first, second = sentences(240, 1), sentences(160, 2)
    (folder / "childes.train").write_text("\n".join(first) + "\n", encoding="utf-8")
    documents = ["\n".join(second[i : i + 8]) for i in range(0, 160, 8)]
    (folder / "gutenberg.train").write_text("\n\n".join(documents), encoding="utf-8")
    for name, seed in (("childes", 3), ("gutenberg", 4)):
        text = "\n".join(sentences(40, seed)) + "\n"
        (folder / f"{name}.dev").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with two training files and two dev files."""
    return write_corpus(tmp_path / "text")


def tiny_run(corpus: Path) -> list[str]:
    """Overrides of a run that takes a second."""
    return [
        "model.model_type=gpt2",
        "model.config_overrides={n_layer:1,n_embd:16,n_head:2,n_positions:32}",
        f"data.train_file={corpus}/*.train",
        f"data.validation_file={corpus}/*.dev",
        "data.block_size=16",
        "tokenizer.vocab_size=300",
        "training.per_device_train_batch_size=8",
        "training.gradient_accumulation_steps=1",
        "training.max_steps=12",
        "training.logging_steps=1",
        "training.bf16=false",
        "evaluation.num_generated_texts=0",
        "wandb.log=false",
    ]


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a run that takes a second; the working directory is `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return tiny_run(corpus)


@pytest.fixture
def run_clm(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """`run_clm(*overrides)` is `python -m src.run_clm …` in this process.

    Returns what the process would exit with: 0, or the message. What it says on the way is
    in `caplog.text`.
    """
    caplog.set_level(logging.INFO)
    from src.run_clm import main

    def call(*overrides: str) -> object:
        monkeypatch.setattr(sys, "argv", ["run_clm", *overrides])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return call


@pytest.fixture
def composed():
    """`composed(*overrides)`: the configuration of a run, as its front door gets it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    import src.configuration.identity  # noqa: F401  (registers what the configuration refers to)
    from src.configuration import schema as configuration

    def call(*overrides: str):
        with initialize_config_dir(str(configuration.CONF_DIR), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            config.pop("hydra")
        return config

    return call


@pytest.fixture
def own_group(tmp_path, monkeypatch):
    """A copy of src/conf to which a test adds files."""
    from src.configuration import schema as configuration

    shutil.copytree(configuration.CONF_DIR, tmp_path / "conf")
    monkeypatch.setattr(configuration, "CONF_DIR", tmp_path / "conf")

    def write(name: str, text: str) -> None:
        file = tmp_path / "conf" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")

    return write
