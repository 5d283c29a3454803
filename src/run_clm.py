"""Train a causal language model on BabyLM text.

    python -m src.run_clm +model=gpt2-tiny +dataset=sample
    python -m src.run_clm +model=gpt2-small +dataset=babylm_10M training.seed=1
    python -m src.run_clm -m +model=gpt2-tiny +dataset=sample training.seed=1,2

`--help` lists the groups and every key; `--cfg job` prints the composed configuration.
"""

import contextlib
import logging
import sys
from pathlib import Path
from typing import Iterator, Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from safetensors import SafetensorError

from src.configuration.command_line import command_line, from_machine, set_up_logging
from src.configuration.run_configuration import run_configuration
from src.configuration.schema import CONF_DIR
from src.foundation import UserError

logger = logging.getLogger("src.run_clm")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run(config: DictConfig) -> Optional[float]:
    """Run one job (see `src/training/run.py`) and return its evaluation loss."""
    set_up_logging()
    with job(Path(config.training.output_dir)):
        configuration = run_configuration(config)
        # This import takes seconds, which --help and --cfg need not wait for.
        from src.training.run import prepare_data, train

        if configuration.args.training.only_preprocess_dataset:
            return prepare_data(configuration.args)
        return train(configuration)


@contextlib.contextmanager
def job(run_dir: Path) -> Iterator[None]:
    """End a refused job with its message, and remove the empty directories it leaves.

    In a sweep, the other jobs continue.
    """
    try:
        yield
    except (UserError, OSError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, UserError) and not from_machine(error):
            raise
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(f"error: {error}")
        logger.error("error: %s", error)
        raise UserError(str(error)) from error
    finally:
        for directory in (run_dir, run_dir.parent):
            with contextlib.suppress(OSError):  # not empty: it holds a run
                directory.rmdir()


def main() -> None:
    """Run the command line."""
    command_line(run, "Interrupted. The same command continues this run.")


if __name__ == "__main__":
    # Import by name, so that launchers can pickle `run`: not as `__main__.run`.
    from src.run_clm import main

    main()
