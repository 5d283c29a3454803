"""What a terminal and a file show of the messages."""

import logging

from tqdm import tqdm

from src.configuration.command_line import set_up_logging
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
