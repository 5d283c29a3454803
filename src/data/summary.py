"""A table of packed text for the screen."""

import shutil
from typing import Optional

import numpy as np
import pandas

from src.data.blocks import Blocks
from src.data.packing.stream import Stream

# Heading, key and format of each column.
COLUMNS = (
    ("boundary", "boundary", "{}"),
    ("documents", "documents", "{:,.0f}"),
    ("words", "words", "{:,.0f}"),
    ("tokens", "tokens", "{:,.0f}"),
    ("tokens/word", "tokens_per_word", "{:.2f}"),
    ("bytes/token", "bytes_per_token", "{:.2f}"),
    ("blocks", "blocks", "{:,.0f}"),
    ("held out", "held_out_blocks", "{:,.0f}"),
    ("budget", "budget_used", "{:.1%}"),
    ("MB on disk", "mb_on_disk", "{:.1f}"),
)


def describe(
    stream: Stream, blocks: list[Blocks], word_budget: Optional[int] = None
) -> str:
    """Return a table with a row for each file of the stream, and one for all of them.

    Args:
        blocks: The blocks cut from the stream; a second entry holds the held-out blocks.
        word_budget: The words that all files together may have; None leaves the column out.
    """
    table = pandas.DataFrame(stream.files).set_index("name")
    table["tokens"] = table["end"] - table["start"]
    for name, part in zip(("blocks", "held_out_blocks"), blocks):
        table[name] = np.bincount(part.owners, minlength=len(table))
    total = table.sum(numeric_only=True).to_frame("all").T.assign(boundary="")
    table = pandas.concat([table, total])
    table["tokens_per_word"] = table["tokens"] / table["words"]
    table["bytes_per_token"] = table["bytes"] / table["tokens"]
    table["mb_on_disk"] = stream.size_on_disk * table["tokens"] / len(stream) / 1e6
    if word_budget is not None:
        table["budget_used"] = table["words"] / word_budget
    cells = {
        heading: table[key].map(shape.format)
        for heading, key, shape in COLUMNS
        if key in table
    }
    width = shutil.get_terminal_size((1000, 24)).columns  # a file gets whole lines
    shown = pandas.DataFrame(cells).rename_axis(columns="file")
    return (
        f"{shown.to_string(line_width=width)}\n"
        f"blocks of {blocks[0].block_size} tokens; {blocks[0].remainder:,} tokens"
        f" do not fill a block; packed in {stream.directory}"
    )
