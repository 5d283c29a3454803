"""Turn a finished run into an entry of the BabyLM challenge.

    python -m src.export run=exp/run-gpt2-small-babylm_10M/seed-42 name=me/my-model hub.license=mit
    python -m src.export run=exp/… name=me/my-model hub.license=mit hub.push=true

It checks the run, scores what has no score yet, and writes `entry/` in the run's directory: the
model and its checkpoints, the predictions, the form and the model card. `--help` lists every key.
"""

import sys

if __name__ == "__main__":
    print("Loading the libraries …", file=sys.stderr, flush=True)

import hydra
from omegaconf import DictConfig

from src.arguments import ExportArguments
from src.configuration.command_line import command_line, job
from src.configuration.run_configuration import command_arguments
from src.configuration.schema import CONF_DIR


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="export")
def run(config: DictConfig) -> None:
    """Write the entry, and exit with an error if it is not ready."""
    with job(config, "results_dir"):
        args = command_arguments(ExportArguments, config)
        from src.entry.export import export  # takes seconds

        export(args)


def main() -> None:
    """Run the command line."""
    again = "Interrupted. The same command continues with the missing scores."
    command_line(run, again, ExportArguments)


if __name__ == "__main__":
    main()
