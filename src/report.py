"""Show runs, and compare them.

    python -m src.report runs='exp/run-*'
    python -m src.report runs='exp/run-*' format=html
    python -m src.report runs=exp/run-gpt2-tiny-sample/seed-42 text=my.txt
    python -m src.report compare=['exp/a-*/seed-*','exp/b-*/seed-*']

It reads what is on disk (configurations, logs, scores), offline. `--help` lists every key.
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    print("Loading the libraries …", file=sys.stderr, flush=True)

import hydra
from omegaconf import DictConfig

from src.arguments import ReportArguments
from src.configuration.command_line import command_line, job
from src.configuration.run_configuration import command_arguments
from src.configuration.schema import CONF_DIR

WATCH_SECONDS = 30


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="report")
def run(config: DictConfig) -> None:
    """Write the report, and end with an error if there is no run."""
    with job(config, "output"):
        args = command_arguments(ReportArguments, config)
        report(args)
        while args.watch:
            time.sleep(WATCH_SECONDS)
            report(args)


def report(args: ReportArguments) -> None:
    """Read the runs, compare them, and write what was asked for.

    Raises:
        UserError: there is no run with a name.
    """
    from src.evaluation.models import find_checkpoints  # these imports take seconds
    from src.foundation import UserError, naming, write_atomically
    from src.reporting.runs import find_runs
    from src.reporting.statistics import compare
    from src.reporting.tables import comparison_tables, render, write_items

    if args.text:
        from src.reporting.surprisal import write_surprisals

        with naming("runs"):
            models = find_checkpoints(args.runs)
            if len(models) > 1:
                raise UserError(f"text= needs one model, got {len(models)}")
        output = Path(args.output or "surprisal.csv")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_surprisals(models[0], Path(args.text), output)
        return print(f"Surprisals in bits: {output}", file=sys.stderr)
    results = Path(args.results_dir)
    with naming("compare"):
        sides = [find_runs(pattern, results) for pattern in args.compare or []]
    with naming("runs"):
        runs = find_runs(args.runs, results) if args.runs else []
    comparisons = [compare(*sides, args)] if sides else []
    every = [*{run.directory: run for side in (runs, *sides) for run in side}.values()]
    for file in filter(None, (args.items, args.output)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    if args.format == "csv":  # it has no room for them
        print(
            *(fault for run in every for fault in run.faults), sep="\n", file=sys.stderr
        )
    if args.items:
        notes = write_items(every, Path(args.items), args)
        print(*notes, f"Items: {args.items}", sep="\n", file=sys.stderr)
    if args.format == "html":
        from src.reporting.page import write_page

        tables = [table for x in comparisons for table in comparison_tables(x)]
        if args.texts is not None:
            from src.reporting.texts import texts_table

            texts = [args.texts] if isinstance(args.texts, str) else args.texts
            tables += [texts_table(run, texts, results) for run in every]
        refresh = WATCH_SECONDS if args.watch else None
        write_page(every, output := Path(args.output or "report.html"), tables, refresh)
    elif args.output:
        text = render(runs, comparisons, args.format) + "\n"
        write_atomically(output := Path(args.output), text)
    else:
        return print(render(runs, comparisons, args.format))
    print(f"Report: {output}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    command_line(run, "Interrupted.", ReportArguments)


if __name__ == "__main__":
    main()
