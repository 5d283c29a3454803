import dataclasses
import pickle
import subprocess
import sys

import transformers

from src.arguments import Arguments, TrainingArguments
from src.configuration import schema as configuration
from tests.conftest import REPOSITORY

SAMPLE = ("+model=gpt2-tiny", "+dataset=sample")


def test_every_field_of_hugging_faces_training_arguments_is_a_key(composed):
    config = composed(*SAMPLE)
    for field in dataclasses.fields(transformers.TrainingArguments):
        assert not field.init or field.name in config.training


def test_a_file_dropped_into_a_group_works(composed, own_group):
    own_group(
        "model/mine.yaml",
        "# @package _global_\nmodel:\n  model_type: opt\ntraining:\n  seed: 5\n",
    )
    config = composed("+model=mine", "+dataset=sample")
    assert (config.model.model_type, config.training.seed) == ("opt", 5)
    assert config.wandb.group == "run-mine-sample"


def test_a_new_group_works(composed, own_group):
    own_group(
        "speed/slow.yaml", "# @package _global_\ntraining:\n  learning_rate: 1e-5\n"
    )
    config = composed(*SAMPLE, "+speed=slow")
    assert config.training.learning_rate == 1e-5
    assert config.wandb.name == "seed-42_speed-slow"


def test_the_configuration_can_be_pickled_for_launchers(composed):
    config = composed(*SAMPLE)
    assert pickle.loads(pickle.dumps(config)) == config


def test_adding_an_argument_is_adding_a_field():
    @dataclasses.dataclass
    class MyArguments(TrainingArguments):
        patience: int = 3

    mirror = configuration.schema(MyArguments)
    assert {f.name: f.type for f in dataclasses.fields(mirror)}["patience"] is int


def test_option_names_are_told_apart():
    """Run names leave out `training.` and `data.`: no field may be in both."""
    sections = configuration.sections()
    names = [
        f.name for s in ("training", "data") for f in dataclasses.fields(sections[s])
    ]
    assert len(names) == len(set(names))
    assert set(sections) == {f.name for f in dataclasses.fields(Arguments)}


def test_cfg_and_help_load_nothing_but_the_schema():
    """One after the other in a process of their own."""
    commands = {
        "--cfg job": "learning_rate: 0.003",
        "--cfg job --resolve": "output_dir: exp/run-gpt2-tiny-sample/seed-42",
        "--help": "data.block_size=128",
    }
    code = (
        "import sys; from src.run_clm import main\n"
        "for flags in %r:\n"
        "    sys.argv = ['run_clm', *%r, *flags.split()]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code\n"
        "    print('LOADED', [m for m in ('datasets', 'evaluate', 'wandb',"
        " 'transformers.trainer') if m in sys.modules])"
    ) % ([*commands], SAMPLE)
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    *found, rest = out.stdout.split("LOADED []\n")
    assert len(found) == len(commands) and not rest, out.stderr
    for shown, expected in zip(found, commands.values()):
        assert expected in shown
