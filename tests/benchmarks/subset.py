"""A fixed small part of a corpus, to try things at a fraction of the cost.

    python -m tests.benchmarks.subset babylm_data/babylm_10M babylm_data/babylm_300k --words 300000
    python -m tests.benchmarks.subset babylm_data/babylm_dev babylm_data/babylm_dev_60k --words 60000

Every file keeps its share of the words. Whole lines are taken from ten stretches that begin at
equal distances, so that every part of a file is represented. The same text always gives the
same subset.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

STRETCHES = 10


def stretches(lines: list[str], num_words: int) -> list[str]:
    """Return lines of at most `num_words` words in all, from ten stretches of the text."""
    ends, total = [], 0
    for line in lines:
        total += len(line.split())
        ends.append(total)
    chosen, left, index = [], min(num_words, total), 0
    for number in range(STRETCHES):
        goal = left // (STRETCHES - number)
        while index < len(lines) and ends[index] <= total * number // STRETCHES:
            index += 1
        while index < len(lines) and (words := len(lines[index].split())) <= goal:
            chosen.append(lines[index])
            goal, left, index = goal - words, left - words, index + 1
    return chosen


def cut(source: Path, target: Path, num_words: int) -> dict[str, int]:
    """Write the subset of a folder's `*.train` and `*.dev`; return the words of each file.

    Raises:
        OSError: There is no such file, the target exists, or the source has fewer words.
    """
    files = sorted(f for f in source.glob("*") if f.suffix in (".train", ".dev"))
    if not files:
        raise OSError(f"{source} has no file *.train or *.dev")
    if target.exists():
        raise OSError(f"{target} exists already: move it away to make it again")
    texts = {f.name: f.read_text(encoding="utf-8").splitlines(True) for f in files}
    sizes = {name: sum(len(x.split()) for x in lines) for name, lines in texts.items()}
    total = sum(sizes.values())
    if not 0 < num_words <= total:
        raise OSError(f"--words must be from 1 to the {total:,} of {source}")
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    staging.mkdir(parents=True)
    for name, lines in texts.items():
        part = stretches(lines, num_words * sizes[name] // total)
        (staging / name).write_text("".join(part), encoding="utf-8")
        sizes[name] = sum(len(line.split()) for line in part)
    staging.rename(target)
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.subset",
        description="A fixed small part of a corpus",
    )
    parser.add_argument("source", type=Path, help="folder of *.train or *.dev")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--words", type=int, default=300_000, help="at most, in all")
    options = parser.parse_args(arguments)
    try:
        sizes = cut(options.source, options.target, options.words)
    except OSError as error:
        print(f"subset: {error}", file=sys.stderr)
        return 1
    for name, words in {**sizes, "total": sum(sizes.values())}.items():
        print(f"{name:32}{words:12,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
