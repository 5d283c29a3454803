"""A summary of packed text: a table for the screen, and JSON beside the stream."""

import logging
import shutil
from typing import Any, Optional

import numpy as np
import pandas

from src.data.blocks import Blocks
from src.data.packing.stream import Stream
from src.foundation import write_atomically

logger = logging.getLogger(__name__)

# Heading, key and format of each column.
COLUMNS = (
    ("boundary", "boundary", "{}"),
    ("documents", "documents", "{:,}"),
    ("words", "words", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("tokens/word", "tokens_per_word", "{:.2f}"),
    ("bytes/token", "bytes_per_token", "{:.2f}"),
    ("blocks", "blocks", "{:,}"),
    ("held out", "held_out_blocks", "{:,}"),
    ("budget", "budget_used", "{:.1%}"),
    ("MB on disk", "mb_on_disk", "{:.1f}"),
)
SUMS = ("documents", "words", "tokens", "bytes", "blocks", "held_out_blocks")


def summarize(
    stream: Stream, blocks: list[Blocks], word_budget: Optional[int]
) -> dict[str, Any]:
    """Return numbers for each file of the stream, and for all files together.

    Args:
        blocks: The blocks cut from the stream; a second entry holds the held-out blocks.
        word_budget: The words that all files together may have; None leaves the column out.
    """
    rows = [{**file, "tokens": file["end"] - file["start"]} for file in stream.files]
    for name, part in zip(("blocks", "held_out_blocks"), blocks):
        for row, count in zip(rows, np.bincount(part.owners, minlength=len(rows))):
            row[name] = int(count)
    total = {key: sum(row[key] for row in rows) for key in SUMS if key in rows[0]}
    rows.append({"name": "all", "boundary": "", **total})
    for row in rows:
        share = row["tokens"] / total["tokens"]
        row["tokens_per_word"] = row["tokens"] / row["words"]
        row["bytes_per_token"] = row["bytes"] / row["tokens"]
        row["mb_on_disk"] = stream.size_on_disk * share / 1e6
        if word_budget is not None:
            row["budget_used"] = row["words"] / word_budget
    return {
        "files": rows[:-1],
        "all": rows[-1],
        "block_size": blocks[0].block_size,
        "tokens_in_no_block": blocks[0].remainder,
        "word_budget": word_budget,
    }


def describe(
    stream: Stream, blocks: list[Blocks], word_budget: Optional[int] = None
) -> str:
    """Return `summarize` as a table, and write it beside the stream as table.json."""
    summary = summarize(stream, blocks, word_budget)
    rows = [*summary["files"], summary["all"]]
    cells = {
        heading: [shape.format(row[key]) for row in rows]
        for heading, key, shape in COLUMNS
        if key in rows[0]
    }
    width = shutil.get_terminal_size((1000, 24)).columns  # a file gets whole lines
    shown = pandas.DataFrame(cells, [row["name"] for row in rows])
    try:
        table = stream.directory / "table.json"
        write_atomically(table, summary)
    except OSError as error:  # the cache may be read-only
        logger.warning("%s was not written: %s", table, error.strerror)
    return (
        f"{shown.rename_axis(columns='file').to_string(line_width=width)}\n"
        f"blocks of {summary['block_size']} tokens; {summary['tokens_in_no_block']:,} tokens"
        f" do not fill a block; packed in {stream.directory}"
    )
