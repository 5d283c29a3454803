"""Sweeps: the folder of a sweep, the states of its jobs, and the GPU of a parallel job.

Hydra's launchers run the jobs in this process, in other processes or on other machines, and
some of them return nothing if one job fails. So each job writes its state to a file in the
sweep's folder, `exp/.sweeps/<hash of the sweep>/jobs/`, and the table at the end is made of
these files.
"""

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from packaging.requirements import Requirement

from src.configuration.command_line import Screen, set_up_logging
from src.configuration.errors import EXTRAS
from src.configuration.identity import short_hash
from src.configuration.run_configuration import lower_is_better
from src.foundation import write_atomically

logger = logging.getLogger(__name__)
_begun: list["Sweep"] = []


class Sweep(Callback):
    """Hydra callback that names a sweep's folder, and announces and records its jobs.

    Launchers pickle it with the jobs.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prepare the sweep, in the process of the command."""
        set_up_logging()
        launcher, sweeper = config.hydra.launcher, config.hydra.sweeper
        # Hydra only warns of other exceptions than `SystemExit` in callbacks.
        if sweeper.get("storage"):
            _refuse_storage()
        typed = OmegaConf.to_container(config.hydra.overrides.task)
        params = dict(sweeper.get("params") or {})  # of +sweep=…
        overrides = [f"{key}={value}" for key, value in params.items()] + typed
        parsed = OverridesParser.create().parse_overrides(overrides)
        by_key = {override.key_or_group: override for override in parsed}
        swept = [o for o in by_key.values() if o.is_sweep_override()]
        self.num_jobs = sweeper.get("n_trials") or math.prod(
            len(list(o.sweep_iterator())) for o in swept
        )
        plan = OmegaConf.to_container(sweeper, resolve=True, enum_to_str=True)
        plan["overrides"] = sorted(o for o in typed if not o.startswith("+launcher="))
        name = short_hash(json.dumps(plan, sort_keys=True))
        self.folder = Path(config.hydra.sweep.dir, name)
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(self.folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={self.folder}")
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        self.is_parallel = "basic" not in launcher._target_
        self.gpus = visible_gpus() if "joblib" in launcher._target_ else []
        if self.is_parallel:
            os.environ["TQDM_DISABLE"] = "1"  # the bars of several jobs would mix
        if "submitit_folder" in launcher:
            logs = launcher.submitit_folder.replace("%j", "*")
            logger.info("Messages of the jobs: %s/*_log.out", logs)
        if "direction" in sweeper:
            logger.info("Search: %s %s", sweeper.direction, config.sweep.metric)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        _begun.append(self)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Announce a job, in its own process."""
        if not hasattr(self, "folder"):
            return  # a run outside of a sweep
        number = config.hydra.job.num + 1
        set_up_logging()
        if self.is_parallel:
            Screen.prefix = f"[job {number}] "
        if len(self.gpus) > 1:
            gpu, _ = claimed_gpu(self.folder, tuple(self.gpus))
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        self._record(config, "unfinished")
        logger.info("\nJob %d of %d", number, self.num_jobs)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Record whether a job is done or has failed. A stopped job ends without this."""
        if hasattr(self, "folder"):
            has_failed = job_return.status.name == "FAILED"
            self._record(config, "failed" if has_failed else "done")

    def _record(self, config: DictConfig, state: str) -> None:
        number = config.hydra.job.num + 1
        overrides = OmegaConf.to_container(config.hydra.overrides.task)
        row = {"job": number, "state": state, "overrides": overrides}
        row |= {"metric": config.sweep.metric, "directory": config.training.output_dir}
        write_atomically(self.folder / "jobs" / f"{number}.json", row)


@contextlib.contextmanager
def reporting(show: Callable[[Path, int], None]) -> Iterator[None]:
    """Call `show` with a sweep's folder and number of jobs, however the block ends.

    It is not called if no sweep has begun.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        if _begun:
            sweep = _begun.pop()
            show(sweep.folder, sweep.num_jobs)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


@functools.cache
def claimed_gpu(folder: Path, gpus: Sequence[str]) -> tuple[str, FileLock]:
    """Return a GPU for this process, and the lock that keeps it from other processes.

    A GPU gets a second process only if each has one. A process keeps its GPU for all of its
    jobs, since CUDA reads CUDA_VISIBLE_DEVICES only once; the lock ends with the process.
    """
    for slot in itertools.count():
        for gpu in gpus:
            lock = FileLock(folder / f".gpu-{gpu}-{slot}.lock", timeout=0)
            with contextlib.suppress(Timeout):
                return gpu, lock.acquire().lock


def _refuse_storage() -> None:
    """Exit with advice if Optuna's storage does not work with the installed packages."""
    packages = EXTRAS["optuna"]
    needs = map(Requirement, shlex.split(packages)[1:])
    if any(version(needed.name) not in needed.specifier for needed in needs):
        advice = f"pip install {packages}"
        sys.exit(f"error: hydra.sweeper.storage needs older packages: {advice}")


def direction(metric: str) -> str:
    """Return whether a search minimizes or maximizes a metric, in Optuna's words."""
    return "minimize" if lower_is_better(metric) else "maximize"


OmegaConf.register_new_resolver("direction", direction, replace=True)
