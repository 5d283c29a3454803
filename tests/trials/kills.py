"""Kills a short run, again and again. The same command then continues it, bit for bit.

python -m tests.trials.kills                # before every operation on files: about 10 minutes
python -m tests.trials.kills python 10      # before every tenth
python -m tests.trials.kills torchrun 30    # two processes, killed at thirty random moments
python -m tests.trials.kills rank 30        # one of the two; torchrun starts both again
python -m tests.trials.kills sweep 30       # a sweep over two seeds
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.trials import start, weights


def main(kind: str = "python", number: str = "1") -> int:
    """Print the kills after which the final weights differ, and return their number."""
    folder = Path(tempfile.mkdtemp())
    code, output, _ = start(folder, kind=kind)  # it fills the cache
    assert code == 0, output
    shutil.rmtree(folder / "exp")
    began = time.monotonic()
    _, _, operations = start(folder, kind=kind)
    seconds, expected = time.monotonic() - began, weights(folder)
    if kind == "python":
        kills = [{"kill_before": n} for n in range(1, operations + 1, int(number))]
    else:
        random.seed(1)
        kills = [{"kill_after": random.uniform(0, seconds)} for _ in range(int(number))]
    failures = 0
    for kill in kills:
        shutil.rmtree(folder / "exp")
        first, shown, _ = start(folder, kind=kind, **kill)
        # After the kill of one process, torchrun itself starts both again.
        code, output, _ = start(folder, kind=kind)
        half = [p for p in folder.rglob("checkpoint-*") if not is_complete(p)]
        ends = (0,) if kind == "rank" else (-9,) if kind == "python" else (-9, 0)
        if first not in ends or code != 0 or weights(folder) != expected or half:
            failures += 1
            print(f"{kill}: {first}, {code}, {half}\n{shown}\n{output}")
        else:
            # A rank that is killed before it writes its id, or at the end, is not started again.
            again = ", started again" if "exitcode: -9" in shown else ""
            print(f"{kill}: {first}{again}", flush=True)
    shutil.rmtree(folder)
    print(f"{len(kills) - failures} of {len(kills)} kills continued bit for bit")
    return failures


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / "manifest.json").is_file()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
