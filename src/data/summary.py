"""What was found in a text: a table on the screen, and as JSON beside the packed text."""

import json
import logging
import os
from typing import Any, Optional

import numpy as np

from src.data.blocks import Blocks
from src.data.packing.stream import Stream

logger = logging.getLogger(__name__)

# Heading, key, format of a column.
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
    """Rows of numbers: one for each of the files, one for all.

    Args:
        blocks: cut from the stream; where there are two, the second is held out.
        word_budget: words that are allowed in all; None: not asked.
    """
    rows = []
    counts = [np.bincount(b.owners, minlength=len(stream.files)) for b in blocks]
    for number, file in enumerate(stream.files):
        row = {**file, "tokens": file["end"] - file["start"]}
        names = ("blocks", "held_out_blocks")
        row.update({name: int(c[number]) for name, c in zip(names, counts)})
        rows.append(row)
    total = {key: sum(row[key] for row in rows) for key in SUMS if key in rows[0]}
    rows.append({"name": "all", "boundary": "", **total})
    for row in rows:
        row["tokens_per_word"] = row["tokens"] / max(1, row["words"])
        row["bytes_per_token"] = row["bytes"] / max(1, row["tokens"])
        row["mb_on_disk"] = (
            stream.size_on_disk * row["tokens"] / rows[-1]["tokens"] / 1e6
        )
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
    """`summarize` as a table; also written beside the packed text, as table.json."""
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
    _write(stream, summary)
    return "\n".join(lines)


def _write(stream: Stream, summary: dict[str, Any]) -> None:
    table = stream.directory / "table.json"
    temporary = table.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(summary, indent=1), encoding="utf-8")
        os.replace(temporary, table)
    except OSError as error:  # what it says is on the screen
        logger.warning("%s was not written: %s", table, error.strerror)
