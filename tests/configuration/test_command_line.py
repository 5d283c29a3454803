"""How arguments are read, and what a terminal and a file show of the messages."""

import logging

import pytest
from tqdm import tqdm

from src.arguments import Arguments, RunEvalArguments
from src.configuration.command_line import set_up_logging
from src.configuration.errors import readable
from src.foundation import UserError
from tests.terminal import shown

LONG = "Step: 1 x 16 sequences on each of 1 device; bfloat16 (the CPU is fast)"
COMMAND = "  python -m src.run_eval checkpoint=exp/run-gpt2/seed-42 tasks=[blimp,ewok]"


def messages_and_a_bar() -> None:
    set_up_logging()
    with tqdm(total=9, mininterval=0) as bar:
        for message in (LONG, COMMAND):
            bar.update()
            logging.info(message)
        line = "step 1/9  640 words  loss 2.5  grad_norm 0.3"
        logging.info(line, extra={"short": "step 1/9  loss\N{NO-BREAK SPACE}2.5"})


def test_a_narrow_terminal_shows_whole_words_above_the_bar(processes):
    assert shown(processes, 40, messages_and_a_bar) == [
        "Step: 1 x 16 sequences on each of 1",
        "    device; bfloat16 (the CPU is fast)",
        # A command that is copied must be in one piece.
        COMMAND[:40],
        "↵" + COMMAND[40:],
        "step 1/9  loss 2.5",
        "",
    ]


def test_a_wide_terminal_shows_the_lines_of_the_log(processes):
    lines = shown(processes, 100, messages_and_a_bar)
    assert lines == [LONG, COMMAND, "step 1/9  640 words  loss 2.5  grad_norm 0.3", ""]


@pytest.mark.parametrize(
    "typed, read",
    [
        ("training.seed=1", "training.seed=1"),
        ("data.train_file=a=b", "data.train_file='a=b'"),
        ("data.train_file=it's.txt", r"data.train_file='it\'s.txt'"),
        # An option that takes any keys gets new ones, besides those of the chosen files.
        ("model.config_overrides.n_inner=8", "++model.config_overrides.n_inner=8"),
        ("data.mix={childes: 2}", "++data.mix={childes: 2}"),
        ("+speed=slow", "+speed=slow"),  # perhaps a group of another folder
    ],
)
def test_an_argument_is_read_as_it_is_meant(typed, read):
    assert readable([typed], Arguments) == ([read], False)


@pytest.mark.parametrize(
    "typed, message",
    [
        (["--training.seed=1"], "`--training.seed=1` is not of the form key=value: write"
         " training.seed=1"),
        (["--model=gpt2"], "write +model=gpt2"),
        (["--learning_rate", "1e-4"], "write training.learning_rate=1e-4"),
        (["training.seed", "1"], "write training.seed=1"),
        (["foo"], "`foo` is not of the form key=value, with quotes"),
        (["training.seed="], "gives no value; for none, write training.seed=null"),
        (["~training.seed"], "gives no value"),
        (["data.train_file=[a"], "text with special characters gets quotes"),
        (["+model=3"], "`+model=3` must name one of these: babylm-base"),
        (["+model=[a,b]"], "`+model=[a,b]` must name one of these"),
        (["training.group_by_length=true"], "leave it out; all blocks have the same"),
        (["lr=1", "epochs=2"], "unknown key `lr`: write training.learning_rate\n"
         "unknown key `epochs`: write training.num_train_epochs"),
        (["training.foo.bar=1", "data.blok_size=8"], "unknown key `training.foo`\n"
         "unknown key `data.blok_size`; did you mean `data.block_size`?"),
    ],
)  # fmt: skip
def test_all_arguments_that_cannot_be_read_are_named_at_once(typed, message):
    with pytest.raises(UserError) as error:
        readable(typed, Arguments)
    assert message in str(error.value)


def test_run_eval_has_keys_without_a_section():
    assert readable(["checkpoint=x", "hydra.verbose=true"], RunEvalArguments)
    with pytest.raises(UserError, match="unknown key `model`"):
        readable(["+model=gpt2"], RunEvalArguments)
    with pytest.raises(UserError, match="write tasks=fast"):
        readable(["--tasks", "fast"], RunEvalArguments)
