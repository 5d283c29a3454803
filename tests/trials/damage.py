"""Damage to every file of a run, one at a time. The same command then continues the run, bit
for bit, or names the file in one line.

    python -m tests.trials.damage                # every file: about 30 minutes
    python -m tests.trials.damage '*.json'       # the files with such names
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.trials import start, weights


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = {
    "deleted": Path.unlink,
    "cut in half": halve,
    "emptied": lambda file: file.write_bytes(b""),
    "with a flipped bit": flip,
    "replaced by a directory": make_directory,
}


def verdict(folder: Path, file: str, expected: str) -> str:
    """Start the run again, and return what it did."""
    code, output, _ = start(folder)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if "Traceback" in output:
        return "TRACEBACK"
    if code != 0:
        is_named = errors and Path(file).name in errors[-1]
        return "refused with its name" if is_named else f"REFUSED: {errors}"
    return "same weights" if weights(folder) == expected else "OTHER WEIGHTS"


def main(pattern: str = "*") -> int:
    """Print every outcome, and return the number of the wrong ones; 1 if no file matches."""
    whole = Path(tempfile.mkdtemp())
    code, output, number = start(whole)
    assert code == 0, output
    expected = weights(whole)
    killed = Path(tempfile.mkdtemp())
    shutil.copytree(whole / ".cache", killed / ".cache")
    start(killed, kill_before=round(0.7 * number))
    outcomes: list[str] = []
    for state, base in (("killed", killed), ("finished", whole)):
        [run] = (file.parent for file in base.glob("exp/trial-*/*/run.json"))
        for file in sorted(
            str(p.relative_to(run)) for p in run.rglob(pattern) if p.is_file()
        ):
            for name, damage in DAMAGES.items():
                folder = Path(tempfile.mkdtemp())
                shutil.copytree(base, folder, dirs_exist_ok=True)
                damage(folder / run.relative_to(base) / file)
                is_weights = (state, file) == ("finished", "model.safetensors")
                now = weights(folder) if is_weights else expected
                outcomes.append(verdict(folder, file, now))
                print(f"{state}: {file} {name}: {outcomes[-1]}", flush=True)
                shutil.rmtree(folder)
    for folder in (whole, killed):
        shutil.rmtree(folder)
    wrong = sum(not outcome.islower() for outcome in outcomes)
    print(f"{len(outcomes) - wrong} of {len(outcomes)} damages had a right outcome")
    return wrong if outcomes else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
