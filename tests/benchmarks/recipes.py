"""A comparison of recipes on the same 300,000 words.

    python -m tests.benchmarks.recipes                       the table of the rows there are
    python -m tests.benchmarks.recipes floor gpt2 --seeds 42,1,2

A named row is trained for each seed over ten epochs, and scored on the dev text and the fast subsets
of BLiMP and its supplement. Finished runs are not trained again, and stopped ones continue. Then the
row replaces its own row in `tests/benchmarks/recipe_results/results.json`, the table is printed
as Markdown, and `curves.svg` beside it shows the floor and the best recipe over the words seen.
Seconds are those of the whole command, including start-up and scoring.

Recipes are chosen by the dev loss, in bits per byte. A row is compared with its `base`; a difference
within two standard errors over seeds is called noise. The standard deviations are those of both rows,
but at least the field's (`../shared/BABYLM.md`, section 3), since two or three seeds may agree by chance.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from src.foundation import write_atomically

RESULTS = Path(__file__).with_name("recipe_results")
DATASET = "babylm_300k"
COMMON = [
    f"+dataset={DATASET}",
    "evaluation.tasks=[blimp_fast,supplement_fast]",
    "evaluation.items_while_training=1000",
    "evaluation.num_generated_texts=0",
    "training.torch_compile=true",
    "training.logging_steps=100",
    "wandb.log=false",
]
# The field's standard deviation of the dev loss over seeds, as a share of the loss: 0.0015 nats of
# about 3 nats a token.
FIELD_SD = 0.0015 / 3
# Row -> its overrides. In rows of `+model=`, the schedule is config.yaml's.
SHORT = ["training.tokens_per_step=4096", "data.block_size=128"]
MUON = ["training.optimizer=muon", "training.learning_rate=5e-3"]
ADAMW = ["training.learning_rate=3e-3"]
REGULARISED = ["training.weight_decay=0.5"]
ROWS = {
    "floor": ["+recipe=mini_gpt2_2025"],
    "gpt2_adamw": [
        "+model=gpt2-tiny", "training.tokens_per_step=4096", *ADAMW,
        "training.warmup_steps=0.1",
    ],
    "gpt2_muon": ["+model=gpt2-tiny", *SHORT, *MUON, "training.warmup_steps=0.1"],
    "gpt2": ["+recipe=mini_gpt2"],
    "adamw": ["+model=babylm-mini", *SHORT, *ADAMW, *REGULARISED],
    "cosine": ["+model=babylm-mini", *SHORT, *MUON, *REGULARISED],
    "documents": [
        "+model=babylm-mini", *SHORT, *MUON, *REGULARISED,
        "data.attend_across_documents=false",
    ],
    "weight_decay_05": ["+recipe=mini_babylm", *REGULARISED],
    "batch_2048": [
        "+recipe=mini_babylm", *REGULARISED, "training.tokens_per_step=2048",
    ],
    "gpt2_weight_decay_05": ["+recipe=mini_gpt2", *REGULARISED],
    "babylm": ["+recipe=mini_babylm"],
    "reshuffled": ["+recipe=mini_babylm", "data.reshuffle_documents=true"],
    "z_loss": ["+recipe=mini_babylm", "training.z_loss=1e-4"],
    "stochastic_depth": ["+recipe=mini_babylm", "training.stochastic_depth=0.1"],
    "input_masking": ["+recipe=mini_babylm", "training.input_masking=0.1"],
}  # fmt: skip
# Row -> the row that it is compared with: the floor, unless it changes one value of another.
BASES = {
    "weight_decay_05": "babylm", "batch_2048": "weight_decay_05", "documents": "cosine",
    "gpt2_weight_decay_05": "gpt2", "cosine": "adamw",
    **dict.fromkeys(
        ("reshuffled", "z_loss", "stochastic_depth", "input_masking"), "babylm"
    ),
}  # fmt: skip
CURVES = {"floor": "mini_gpt2_2025, the floor", "babylm": "mini_babylm"}


def train(row: str, seed: int) -> None:
    """Train one run in its own process. Its messages go to the screen."""
    command = [sys.executable, "-m", "src.run_clm", *ROWS[row], *COMMON]
    subprocess.run([*command, f"wandb.tag={row}", f"training.seed={seed}"], check=True)


def finished(row: str) -> list[Path]:
    """Return the directories of the row's finished runs, one for each seed."""
    return sorted(
        file.parent for file in Path("exp").glob(f"{row}-*-{DATASET}/*/results.json")
    )


def seconds(run: Path) -> float:
    """Return the sum of the phases in the run's last line."""
    line = re.findall(r"Time: (.*?)\.(?: |$)", (run / "train.log").read_text(), re.M)
    return sum(
        float(x.replace(",", "")) for x in re.findall(r"(\d[\d,.]*) s\b", line[-1])
    )


def summary(row: str) -> dict[str, Any]:
    """Return a row of the table: means over its seeds."""
    runs = finished(row)
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    records = [json.loads((run / "run.json").read_text()) for run in runs]

    def by_seed(key: str, digits: int, factor: float = 1.0) -> list[float]:
        return [round(factor * r[key], digits) for r in results]

    blimp = by_seed("eval_blimp_fast", 1, 100)
    supplement = by_seed("eval_supplement_fast", 1, 100)
    perplexity = statistics.fmean(by_seed("eval_word_perplexity", 0))
    return {
        "name": row,
        "recipe": " ".join(ROWS[row]),
        "data": DATASET,
        "words": results[0]["words_seen"],
        "seeds": [int(re.match(r"seed-(\d+)", run.name).group(1)) for run in runs],
        "bits_per_byte_by_seed": by_seed("eval_bits_per_byte", 5),
        "blimp": round(statistics.fmean(blimp), 1),
        "blimp_by_seed": blimp,
        "supplement": round(statistics.fmean(supplement), 1),
        "supplement_by_seed": supplement,
        "perplexity_per_word": round(perplexity),
        "seconds": round(statistics.median(map(seconds, runs))),
        "hardware": hardware(),
        "commit": ", ".join(sorted({str(record["code"])[:8] for record in records})),
        "command": f"python -m tests.benchmarks.recipes {row} --seeds "
        + ",".join(re.match(r"seed-(\d+)", run.name).group(1) for run in runs),
    }


def with_rows(file: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the file, in which those that were trained replace their own.

    Without `names` the file is only read.
    """
    rows = {row["name"]: row for row in json.loads(file.read_text(encoding="utf-8"))}
    if names:
        rows |= {name: summary(name) for name in names}
        ordered = [rows[name] for name in ROWS if name in rows]
        write_atomically(file, json.dumps(ordered, indent=1) + "\n")
    return [rows[name] for name in ROWS if name in rows]


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    number = torch.get_num_threads()
    return f"{number} CPU thread" + "s" * (number > 1)


def spread(values: list[float], digits: int) -> str:
    """Return the mean, and the standard deviation over seeds if there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    more = len(values) > 1
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if more else mean


def verdict(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Return the gain in bits per byte over another row, and whether it is more than noise."""
    groups = [x.get("bits_per_byte_by_seed") for x in (base, row)]
    if not all(groups):
        return "–"  # measured before bits per byte were kept
    means = [statistics.fmean(values) for values in groups]
    own = [statistics.variance(values) for values in groups if len(values) > 1]
    # One deviation for both rows: that of a row with one seed is not known.
    deviation = max(math.sqrt(statistics.fmean(own or [0])), FIELD_SD * means[0])
    error = deviation * math.sqrt(sum(1 / len(values) for values in groups))
    gain = means[0] - means[1]
    word = "noise" if abs(gain) <= 2 * error else "better" if gain > 0 else "worse"
    return f"{gain:+.4f} than {base['name']}: {word} (2 se {2 * error:.4f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown: dev loss first, then BLiMP and supplement."""
    head = "| | recipe | seeds | bits per byte | gain | BLiMP | supplement | perplexity per word | minutes |"
    lines = [head, "|" + "---|" * 9]
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        name = row["name"]
        bits = row.get("bits_per_byte_by_seed")
        base = by_name.get(BASES.get(name, "floor"), row)
        cells = [
            *(name, f"`{row['recipe']}`", len(row["seeds"])),
            spread(bits, 4) if bits else "–",
            verdict(row, base) if base is not row else "–",
            spread(row["blimp_by_seed"], 1),
            spread(row.get("supplement_by_seed", [row["supplement"]]), 1),
            f"{row['perplexity_per_word']:,.0f}",
            f"{row['seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def points(run: Path, key: str) -> list[tuple[float, float]]:
    """Return (million words seen, score) of every evaluation during training."""
    newest = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [(row["words"] / 1e6, row[key]) for row in log if key in row]


def draw(file: Path) -> None:
    """Draw BLiMP and perplexity over words seen: the mean, and each seed as a thin line."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    pyplot.rcParams["svg.hashsalt"] = "recipes"  # the same file from the same runs
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for axes, key in ((left, "eval_blimp_fast"), (right, "eval_word_perplexity")):
        for number, (row, label) in enumerate(CURVES.items()):
            curves = [points(run, key) for run in finished(row)]
            for curve in curves:
                axes.plot(*zip(*curve), color=f"C{number}", alpha=0.25)
            words = [x for x, _ in curves[0]]
            means = [statistics.fmean(y for _, y in column) for column in zip(*curves)]
            axes.plot(words, means, color=f"C{number}", marker="o", label=label)
        axes.set_xlabel("million words seen")
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_title("BLiMP (a sample of the fast subset; chance is 50 %)")
    right.legend()
    right.set_yscale("log")
    right.set_title("dev text, perplexity per word")
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="what to train")
    parser.add_argument("--seeds", default="42", help="such as 42,1,2")
    options = parser.parse_args()
    for row in options.rows:
        for seed in map(int, options.seeds.split(",")):
            train(row, seed)
    rows = with_rows(RESULTS / "results.json", options.rows)
    print(table(rows))
    if options.rows and all(finished(row) for row in CURVES):
        draw(RESULTS / "curves.svg")


if __name__ == "__main__":
    main()
