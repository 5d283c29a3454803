"""A simulation of FSDP in two CPU processes, whose losses and weights must be those of DDP.

python -m tests.trials.fsdp             # one minute

accelerate shards a model only on GPUs. Here, CPUs count as GPUs in its list of devices and in
our check. Nothing else is changed.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from tests.trials import RUN, weights

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
TORCHRUN += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
REPOSITORY = Path(__file__).parents[2]


def count_cpus_as_gpus() -> None:
    """Let accelerate shard models on CPUs, and skip our check of the devices."""
    from accelerate import state

    from src.arguments import TrainingArguments

    code = textwrap.dedent(inspect.getsource(state.AcceleratorState.__init__))
    before, listed, after = code.partition("elif self.distributed_type in [\n")
    gpus = "DistributedType.MULTI_GPU,"
    assert listed and gpus in after
    after = after.replace(gpus, f"{gpus} DistributedType.MULTI_CPU,", 1)
    names: dict = {}
    exec(before + listed + after, state.__dict__, names)
    state.AcceleratorState.__init__ = names["__init__"]
    TrainingArguments._check_fsdp = lambda self: None


def losses(folder: Path) -> list[dict]:
    """The rows of the last checkpoint, without times."""
    states = folder.glob("exp/trial-*/*/checkpoint-*/trainer_state.json")
    newest = max(states, key=lambda file: file.stat().st_mtime)
    rows = json.loads(newest.read_text())["log_history"]
    kept = ("loss", "eval_loss", "eval_pairs")
    return [{key: row[key] for key in kept if key in row} for row in rows]


def main() -> int:
    """Print whether both runs end with the same numbers, and return 1 if they do not."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder, "pairs")
        pairs.mkdir()
        row = {"sentence_good": "The dogs bark.", "sentence_bad": "The dogs barks."}
        (pairs / "own.jsonl").write_text(json.dumps(row))
        run = [
            o for o in RUN if not o.startswith(("training.averaging", "evaluation."))
        ]
        run += [f"evaluation.pairs={pairs}", "evaluation.num_generated_texts=2"]
        for program in (["-m", "src.run_clm"], [__file__, "+parallel=fsdp"]):
            directory = Path(folder, program[-1])
            directory.mkdir()
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            command = [*TORCHRUN, *program, *run]
            subprocess.run(command, cwd=directory, env=environment, check=True)
            # The names of the runs differ: sharding is a part of them.
            found.append((losses(directory), [*weights(directory).values()]))
    is_same = found[0] == found[1]
    print("the same losses and weights" if is_same else f"they differ: {found}")
    return not is_same


if __name__ == "__main__":
    if "RANK" in os.environ:
        count_cpus_as_gpus()
        from src import run_clm

        run_clm.main()
    else:
        sys.exit(main())
