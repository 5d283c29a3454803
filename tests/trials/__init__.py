"""Slow trials outside the default test run: kills, damage, and FSDP without a GPU.

python -m tests.trials.kills
python -m tests.trials.damage
python -m tests.trials.fsdp
"""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, Optional

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SAMPLE = Path(__file__).parents[2] / "src/data/sample"
# Events of Python's audit hooks that change files.
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
RUN = (
    "+model=gpt2-tiny +dataset=sample tokenizer.vocab_size=300 data.block_size=32"
    " model.config_overrides={n_layer:1,n_embd:16,n_head:2,n_positions:32,resid_pdrop:0.1}"
    " data.max_eval_samples=8 evaluation.pairs=null evaluation.num_generated_texts=0"
    " training.tokens_per_step=256 training.max_steps=4 training.eval_steps=1"
    " training.save_steps=1 training.logging_steps=1 training.averaging=ema"
    " training.use_cpu=true training.bf16=false wandb.tag=trial"
    f" wandb.log=false data.train_file={SAMPLE}/*.train"
    f" data.validation_file={SAMPLE}/*.dev"
).split()


class Operations:
    """Counter of the operations on files of all `runs`, which kills before one of them."""

    def __init__(self, runs: Path, kill_before: Optional[int]):
        self.runs = str(runs.absolute())
        self.kill_before, self.number = kill_before, 0

    def count(self, path: Any) -> None:
        if isinstance(path, (str, os.PathLike)):
            if os.path.abspath(path).startswith(self.runs):
                self.number += 1
                if self.number == self.kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: tuple) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in CHANGES or event == "open" and args[2] & writes:
            self.count(args[0])

    def counting(self, write: Any, position: int) -> Any:
        """Return `write`, which is not written in Python, with its calls counted."""

        def counted(*args, **kwargs):
            self.count(args[position])
            return write(*args, **kwargs)

        return counted


def _train(arguments: list[str]) -> None:
    from src.run_clm import main

    sys.argv = ["run_clm", *arguments]
    Path(f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    main()


def _job(folder: Path, log: Path, kind: str, kill_before: Optional[int], told: Any):
    import safetensors.torch
    import torch

    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    if kind == "sweep":
        return _train(["-m", *RUN, "training.seed=1,2"])
    if kind != "python":
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        config = LaunchConfig(
            1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=1,
            start_method="fork", monitor_interval=0.1,
        )  # fmt: skip
        return elastic_launch(config, _train)(RUN)
    operations = Operations(Path("exp"), kill_before)
    torch.save = operations.counting(torch.save, 1)
    safetensors.torch.serialize_file = operations.counting(
        safetensors.torch.serialize_file, 1
    )
    sys.addaudithook(operations.audit)
    try:
        _train(RUN)
    finally:
        told.put(operations.number)


def start(
    folder: Path,
    kill_before: Optional[int] = None,
    kind: str = "python",
    kill_after: Optional[float] = None,
) -> tuple[Optional[int], str, int]:
    """Run the command in `folder`, in a process that is forked from this one.

    Args:
        kill_before: the operation on files before which it is killed.
        kind: `python`, a `sweep` over two seeds, or two processes: `torchrun`, where all are
            killed, or `rank`, where one of the two is killed.
        kill_after: the time in seconds after which it is killed.

    Returns:
        The exit code (-9 if killed), the output, and the number of operations on files.
    """
    import src.run_clm  # noqa: F401  (once, before the first fork)
    import src.training.run  # noqa: F401

    fork = multiprocessing.get_context("fork")
    log, told = folder / "output.txt", fork.SimpleQueue()
    log.write_text("")
    for file in folder.glob("pid-*"):
        file.unlink()
    process = fork.Process(target=_job, args=(folder, log, kind, kill_before, told))
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        rank = folder / f"pid-{random.randrange(2)}"
        if process.is_alive() and kind == "rank":
            if rank.exists():
                os.kill(int(rank.read_text()), signal.SIGKILL)
        elif process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    number = 0 if told.empty() else told.get()
    return process.exitcode, log.read_text(errors="replace"), number


def weights(folder: Path) -> dict[str, str]:
    """Return the checksum of each run's final model."""
    files = folder.glob("exp/trial-*/*/model.safetensors")
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
