"""A summary of packed text: a table for the screen, and JSON beside the stream."""

import json
import logging
from typing import Any, Optional

import numpy as np

from src.data.blocks import Blocks
from src.data.packing.stream import Stream
from src.foundation import write_atomically

logger = logging.getLogger(__name__)

# Heading, key and format of each column.
COLUMNS = (
    ("boundary", "boundary", ">12"),
    ("documents", "documents", ">11,"),
    ("words", "words", ">13,"),
    ("tokens", "tokens", ">13,"),
    ("tokens/word", "tokens_per_word", ">13.2f"),
    ("bytes/token", "bytes_per_token", ">13.2f"),
    ("blocks", "blocks", ">10,"),
    ("held out", "held_out_blocks", ">10,"),
    ("budget", "budget_used", ">8.1%"),
    ("MB on disk", "mb_on_disk", ">12.1f"),
)
SUMS = ("documents", "words", "tokens", "bytes", "blocks", "held_out_blocks")


def summarize(
    stream: Stream, blocks: list[Blocks], word_budget: Optional[int]
) -> dict[str, Any]:
    """Return numbers for each file of the stream, and for all files together.

    Args:
        blocks: The blocks cut from the stream; a second entry is what is held out.
        word_budget: The words allowed in all; None: no column for them.
    """
    rows = [{**file, "tokens": file["end"] - file["start"]} for file in stream.files]
    for name, part in zip(("blocks", "held_out_blocks"), blocks):
        counts = np.bincount(part.owners, minlength=len(rows)).tolist()
        for row, count in zip(rows, counts):
            row[name] = count
    total = {key: sum(row[key] for row in rows) for key in SUMS if key in rows[0]}
    rows.append({"name": "all", "boundary": "", **total})
    for row in rows:
        size_on_disk = stream.size_on_disk * row["tokens"] / total["tokens"]
        row["tokens_per_word"] = row["tokens"] / max(1, row["words"])
        row["bytes_per_token"] = row["bytes"] / max(1, row["tokens"])
        row["mb_on_disk"] = size_on_disk / 1e6
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
    columns = [column for column in COLUMNS if column[1] in rows[0]]
    width = max(24, *(len(row["name"]) + 1 for row in rows))
    lines = ["file".ljust(width)]
    for heading, _, shape in columns:
        lines[0] += format(heading, shape.split(".")[0].rstrip(","))
    for row in rows:
        cells = [format(row[key], shape) for _, key, shape in columns]
        lines.append(row["name"].ljust(width) + "".join(cells))
    lines.append(
        f"blocks of {summary['block_size']} tokens; {summary['tokens_in_no_block']:,} tokens"
        f" in shorter ends; packed in {stream.directory}"
    )
    try:
        table = stream.directory / "table.json"
        write_atomically(table, json.dumps(summary, indent=1))
    except OSError as error:  # the cache may be read-only
        logger.warning("%s was not written: %s", table, error.strerror)
    return "\n".join(lines)
