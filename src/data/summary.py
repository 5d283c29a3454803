"""A table of packed text for the screen."""

import shutil
from typing import Any, Optional, Sequence

import numpy as np
import pandas

from src.data.blocks import Blocks
from src.data.packing.stream import Stream

# The columns and their formats. A column that the table lacks is left out.
FORMATS = {
    "boundary": "{}",
    **dict.fromkeys(("documents", "words", "tokens"), "{:,.0f}"),
    **dict.fromkeys(("tokens/word", "bytes/token"), "{:.2f}"),
    **dict.fromkeys(("blocks", "held out"), "{:,.0f}"),
    "budget": "{:.1%}",
    "MB on disk": "{:.1f}",
    **{"kl": "{:.3f}", "unseen": "{:.2%}", "trigram": "{:.1f}"},
}
LEGEND = """
kl: divergence of the dev text's words from the training text's, in bits; unseen: share of words
not in the training text; trigram: a trigram model's perplexity, which any network must beat"""


def describe(
    stream: Stream,
    blocks: list[Blocks],
    word_budget: Optional[int] = None,
    sanity: Sequence[dict[str, Any]] = (),
) -> str:
    """Return a table with a row for each file of the stream, and one for all of them.

    Args:
        blocks: The blocks cut from the stream; a second entry holds the held-out blocks.
        word_budget: The words that all files together may have; None leaves the column out.
        sanity: How the dev text of each file, and of all, compares with the training text, as
            `sanity.sanity` returns it. Without it, the columns and their legend are left out.
    """
    table = pandas.DataFrame(stream.files).set_index("name")
    table["tokens"] = table["end"] - table["start"]
    for name, part in zip(("blocks", "held out"), blocks):
        table[name] = np.diff(part.edges)
    total = table.sum(numeric_only=True).to_frame("all").T.assign(boundary="")
    table = pandas.concat([table, total])
    table["tokens/word"] = table["tokens"] / table["words"]
    table["bytes/token"] = table["bytes"] / table["tokens"]
    table["MB on disk"] = stream.size_on_disk * table["tokens"] / len(stream) / 1e6
    if word_budget is not None:
        table["budget"] = table["words"] / word_budget
    table = table.assign(**pandas.DataFrame(sanity).to_dict("list"))
    cells = {
        name: table[name].map(FORMATS[name].format) for name in FORMATS if name in table
    }
    width = shutil.get_terminal_size((1000, 24)).columns  # a file gets whole lines
    shown = pandas.DataFrame(cells).rename_axis(columns="file")
    return (
        f"{shown.to_string(line_width=width)}\n"
        f"blocks of {blocks[0].block_size} tokens; {blocks[0].remainder:,} tokens"
        f" do not fill a block; packed in {stream.directory}" + LEGEND * bool(sanity)
    )
