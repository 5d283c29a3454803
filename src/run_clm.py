"""Train a causal language model on BabyLM text.

    python -m src.run_clm +model=gpt2-tiny +dataset=sample
    python -m src.run_clm +model=gpt2-small +dataset=babylm_10M training.seed=1
    python -m src.run_clm -m +model=gpt2-tiny +dataset=sample training.seed=1,2

`--help` lists the groups and every key; `--cfg job` prints the composed configuration.
"""

import logging
import math
import os
import sys
from statistics import fmean, stdev
from typing import Any, Optional

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    # The libraries below take up to 40 s to load from a slow disk.
    print("Loading the libraries …", file=sys.stderr, flush=True)

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from src.configuration.command_line import command_line, job, set_up_logging
from src.configuration.run_configuration import run_configuration
from src.configuration.schema import CONF_DIR

logger = logging.getLogger("src.run_clm")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run(config: DictConfig) -> Optional[float]:
    """Run one job (see `src/training/run.py`) and return its evaluation loss."""
    with job(config, "training.output_dir"):
        configuration = run_configuration(config)
        if not configuration.args.training.only_preprocess_dataset:
            logger.info("Run: %s", configuration.args.training.output_dir)
        # This import takes seconds, which --help and --cfg need not wait for.
        from src.training.run import prepare_data, train

        if configuration.args.training.only_preprocess_dataset:
            return prepare_data(configuration.args)
        return train(configuration)


class Sweep(Callback):
    """Hydra callback that announces each job of a sweep, and lists their losses at the end."""

    def __init__(self) -> None:
        self.num_jobs, self.rows, self.losses = 0, [], []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        params = dict(config.hydra.sweeper.get("params") or {})  # of +sweep=…
        overrides = [f"{key}={value}" for key, value in params.items()]
        overrides += config.hydra.overrides.task
        parsed = OverridesParser.create().parse_overrides(overrides)
        by_key = {override.key_or_group: override for override in parsed}
        swept = [o for o in by_key.values() if o.is_sweep_override()]
        self.num_jobs = math.prod(len(list(o.sweep_iterator())) for o in swept)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.num_jobs:
            set_up_logging()
            logger.info("\nJob %d of %d", config.hydra.job.num + 1, self.num_jobs)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        has_failed = job_return.status.name == "FAILED"
        loss = "failed" if has_failed else str(job_return.return_value or "-")[:6]
        self.rows.append(f"{loss:<8}{config.training.output_dir}")
        if not has_failed and job_return.return_value is not None:
            self.losses.append(job_return.return_value)
        if len(self.rows) == self.num_jobs:
            logger.info("\nThe evaluation losses:\n%s", "\n".join(self.rows))
            if len(self.losses) > 1:
                mean, deviation = fmean(self.losses), stdev(self.losses)
                logger.info("mean %.4f, standard deviation %.4f", mean, deviation)


def main() -> None:
    """Run the command line."""
    command_line(run, "Interrupted. The same command continues this run.")


if __name__ == "__main__":
    # Import by name, so that launchers can pickle `run`: not as `__main__.run`.
    from src import run_clm

    run_clm.main()
