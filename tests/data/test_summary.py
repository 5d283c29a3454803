"""The table that summarizes a packed text."""

import json
from pathlib import Path

from src.data.blocks import Blocks, file_spans, split
from src.data.summary import describe, summarize
from tests.data.test_blocks import stream_of


def test_the_table_has_a_row_a_file_and_their_sum(tmp_path: Path):
    """< a _ b | | > < c | >  and  < d e _ f >: 17 tokens, every byte is one."""
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    table = describe(stream, [Blocks(stream, [(0, 17)], 4, False)], word_budget=10)
    rows = [line.split() for line in table.splitlines()]
    assert rows[:-1] == [
        "file boundary documents words tokens tokens/word bytes/token blocks budget MB on"
        " disk".split(),
        "first blank_line 2 3 11 3.67 0.64 3 30.0% 0.0".split(),
        "second file 1 2 6 3.00 0.67 1 20.0% 0.0".split(),
        "all 3 5 17 3.40 0.65 4 50.0% 0.0".split(),
    ]
    assert table.endswith(
        f"blocks of 4 tokens; 0 tokens do not fill a block; packed in {stream.directory}"
    )
    written = json.loads((stream.directory / "table.json").read_text())
    assert [row["name"] for row in written["files"]] == ["first", "second"]
    assert [row["bytes"] for row in written["files"]] == [7, 4]
    assert written["all"]["budget_used"] == 0.5
    # 17 tokens of 2 + 4 + 4 bytes, 4 + 4 at the beginning, 3 documents of 8.
    assert stream.size_on_disk == 17 * 10 + 8 + 24
    assert written["all"]["mb_on_disk"] * 1e6 == stream.size_on_disk


def test_what_is_held_out_has_a_column_of_its_own(tmp_path: Path):
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    train, held_out = split(stream, 40)
    cut = [Blocks(stream, train, 2, False), Blocks(stream, held_out, 2, True)]
    found = summarize(stream, cut, None)
    assert [row["blocks"] for row in found["files"]] == [3, 1]
    assert [row["held_out_blocks"] for row in found["files"]] == [2, 1]
    assert found["all"]["blocks"] == 4 and found["all"]["held_out_blocks"] == 3
    assert "budget_used" not in found["all"]
    assert "held out" in describe(stream, cut)


def test_rows_are_of_the_stream_s_files(tmp_path: Path):
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    found = summarize(stream, [Blocks(stream, file_spans(stream), 4, True)], None)
    assert [row["blocks"] for row in found["files"]] == [3, 2]
