"""A small part of a corpus: its words, where they come from, and what is refused."""

import pytest

from tests.benchmarks.subset import cut, main, stretches

LINES = [f"line {n} has some words\n" for n in range(200)]  # five words each


def test_the_words_are_from_ten_stretches_of_the_text():
    taken = [LINES.index(line) for line in stretches(LINES, 100)]
    assert taken == [20 * stretch + n for stretch in range(10) for n in (0, 1)]


@pytest.mark.parametrize("words", [5, 99, 250, 731, 1000, 5000])
def test_there_are_never_more_words_than_wanted(words):
    taken = stretches(LINES, words)
    words_taken = sum(len(line.split()) for line in taken)
    assert min(words, 1000) - 5 < words_taken <= words
    assert taken == sorted(set(taken), key=LINES.index)  # in order, no line twice


def test_every_file_keeps_its_share(tmp_path):
    source, target = tmp_path / "all", tmp_path / "part"
    source.mkdir()
    (source / "long.train").write_text("".join(LINES))
    (source / "short.train").write_text("".join(LINES[:50]))
    (source / "notes.md").write_text("no text of the corpus")
    assert cut(source, target, 250) == {"long.train": 200, "short.train": 50}
    assert sorted(f.name for f in target.iterdir()) == ["long.train", "short.train"]
    assert cut(source, tmp_path / "again", 250)
    for file in target.iterdir():
        assert (tmp_path / "again" / file.name).read_text() == file.read_text()


def test_an_existing_folder_stays_and_wrong_arguments_are_refused(tmp_path, capsys):
    (tmp_path / "a.dev").write_text("".join(LINES))
    arguments = [str(tmp_path), str(tmp_path / "part"), "--words"]
    assert main([*arguments, "2000"]) == 1
    assert "--words must be from 1 to the 1,000" in capsys.readouterr().err
    assert main([*arguments, "100"]) == 0
    before = (tmp_path / "part/a.dev").read_text()
    assert main([*arguments, "200"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "part/a.dev").read_text() == before
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "new")]) == 1
    assert "no file *.train or *.dev" in capsys.readouterr().err
