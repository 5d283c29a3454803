"""Kills before every operation on files of a short run. The same command then continues it.

python -m tests.trials.kills            # every operation: about 10 minutes
python -m tests.trials.kills 10         # every tenth
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.trials import start, weights


def main(every: int = 1) -> int:
    """Print the kills after which the final weights differ, and return their number."""
    folder = Path(tempfile.mkdtemp())
    code, output, number = start(folder)
    assert code == 0, output
    expected, failures, kills = weights(folder), 0, range(1, number + 1, every)
    for operation in kills:
        shutil.rmtree(folder / "exp")
        killed, _, _ = start(folder, kill_before=operation)
        code, output, _ = start(folder)
        half = [p for p in folder.rglob("checkpoint-*") if not is_complete(p)]
        if killed != -9 or code != 0 or weights(folder) != expected or half:
            failures += 1
            print(
                f"kill before operation {operation}: {killed}, {code}, {half}\n{output}"
            )
    shutil.rmtree(folder)
    print(f"{len(kills) - failures} of {len(kills)} kills continued bit for bit")
    return failures


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / "manifest.json").is_file()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
