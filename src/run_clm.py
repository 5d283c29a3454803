"""Train a causal language model on BabyLM text.

    python -m src.run_clm +model=gpt2-tiny +dataset=sample
    python -m src.run_clm +model=gpt2-small +dataset=babylm_10M training.seed=1
    python -m src.run_clm -m +model=gpt2-tiny +dataset=sample training.seed=1,2

`--help` lists the groups and every key; `--cfg job` prints the composed configuration.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Optional

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    # The libraries below take up to 40 s to load from a slow disk.
    print("Loading the libraries …", file=sys.stderr, flush=True)

import hydra
from omegaconf import DictConfig

from src.configuration.command_line import command_line, job
from src.configuration.run_configuration import run_configuration
from src.configuration.schema import CONF_DIR
from src.configuration.sweep import reporting

logger = logging.getLogger("src.run_clm")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run(config: DictConfig) -> Optional[float]:
    """Run one job (see `src/training/run.py`) and return its `sweep.metric`."""
    with job(config, "training.output_dir"):
        configuration = run_configuration(config)
        if not configuration.args.training.only_preprocess_dataset:
            logger.info("Run: %s", configuration.args.training.output_dir)
        # This import takes seconds, which --help and --cfg need not wait for.
        from src.training.run import prepare_data, train

        if configuration.args.training.only_preprocess_dataset:
            return prepare_data(configuration.args)
        return train(configuration)


def show_sweep(folder: Path, num_jobs: int) -> None:
    """Log the table of a sweep that has ended or was stopped."""
    from src.reporting import sweeps  # takes seconds

    sweeps.show_sweep(folder, num_jobs)


def main() -> None:
    """Run the command line."""
    with reporting(show_sweep):
        command_line(run, "Interrupted. The same command continues this run.")


if __name__ == "__main__":
    # Import by name, so that launchers can pickle `run`: not as `__main__.run`.
    from src import run_clm

    run_clm.main()
