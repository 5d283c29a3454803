"""The table that summarizes a packed text."""

from pathlib import Path

from src.data.blocks import Blocks, file_spans, split
from src.data.summary import describe
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
    # 17 tokens of 2 + 4 + 4 bytes, 4 + 4 at the beginning, 3 documents of 8.
    assert stream.size_on_disk == 17 * 10 + 8 + 24


def column(table: str, heading: str) -> list[str]:
    """Return the cells of a column; the headings and cells of these tables have no spaces."""
    header, *rows = [line.split() for line in table.splitlines()[:-1]]
    return [row[header.index(heading)] for row in rows]


def test_what_is_held_out_has_a_column_of_its_own(tmp_path: Path):
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    train, held_out = split(stream, 40)
    cut = [Blocks(stream, train, 2, False), Blocks(stream, held_out, 2, True)]
    table = describe(stream, cut)
    assert "budget" not in table and "held out" in table
    table = table.replace("held out", "held_out").replace("all  ", "all -")
    assert column(table, "blocks") == ["3", "1", "4"]
    assert column(table, "held_out") == ["2", "1", "3"]


def test_rows_are_of_the_stream_s_files(tmp_path: Path):
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    table = describe(stream, [Blocks(stream, file_spans(stream), 4, True)])
    assert column(table, "blocks")[:2] == ["3", "2"]


def test_a_file_may_be_named_all(tmp_path: Path):
    stream = stream_of(tmp_path, all="a b\n", other="c\n")
    table = describe(stream, [Blocks(stream, file_spans(stream), 4, True)])
    assert column(table, "documents")[:2] == ["1", "1"]


def test_the_comparison_with_the_training_text_has_columns_and_a_legend(tmp_path: Path):
    stream = stream_of(tmp_path, first="a b\n\nc\n", second="de f")
    figures = {"kl": 1.23456, "unseen": 0.25, "trigram": 98.76}
    rows = [{"name": name, **figures} for name in ("first", "second", "all")]
    blocks = [Blocks(stream, file_spans(stream), 4, True)]
    table = describe(stream, blocks, sanity=rows)
    for title, cell in zip(figures, ("1.235", "25.00%", "98.8")):
        assert f"{title}: " in table  # the legend
    assert [line.split()[-3:] for line in table.splitlines()[1:4]] == [
        ["1.235", "25.00%", "98.8"]
    ] * 3
    assert "trigram" not in describe(stream, blocks)
