"""The speed of packing, compared with the Hugging Face example script.

    python -m tests.benchmarks.packing [--words=N] [--rounds=N] [--data=DIR] [--temp=DIR]

The reference reads lines with `datasets`, tokenizes them with `map` and the same tokenizer,
and groups them with another `map`. Each measurement runs in its own process, starts after the
imports and uses a new cache folder (except for the warm start). The measurements of a round
follow each other, and the medians of the rounds' ratios count. The output is a table and, as
the last line, one JSON object. It runs on Linux only: memory peaks are read from /proc.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Optional

REPOSITORY = Path(__file__).parents[2]
LAPS = ("load", "tokenize", "group")  # of the reference: from files to blocks
BLOCK_SIZE, BATCH_SIZE, VOCAB_SIZE = 512, 8, 16_384
NUM_THREADS = 2
TIMES = 10  # how much longer the longer text is, of the two whose peaks are compared

# The marks; the peak of the longer text is compared with the other's too.
MARKS: dict[str, tuple[str, Callable[[float, dict], bool]]] = {
    "packing_ratio": (">= 6", lambda value, _: value >= 6),
    "packing_with_tokenizer_ratio": ("> 1", lambda value, _: value > 1),
    "peak_mb_10M": ("< 1000", lambda value, _: value < 1000),
    "peak_mb_100M": (
        "< 1000 and within 10 % of peak_mb_10M",
        lambda value, all: value < 1000 and abs(value / all["peak_mb_10M"] - 1) <= 0.1,
    ),
    "warm_start_s": ("< 0.3", lambda value, _: value < 0.3),
    "read_share_of_step": ("< 0.01", lambda value, _: value < 0.01),
}


# The measurements. Each runs in its own process and imports what it needs, so that the
# process that starts them stays small.


def train_tokenizer(text: str, cache: str, tokenizers: str) -> dict:
    """Train the tokenizer of all sides and save it twice.

    The reference uses a copy that adds no BOS and no space before a line, so that the ids of
    both sides can be compared.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from src.data.cache import Cache
    from src.data.packing.encoding import plain_json
    from src.data.packing.tokenizer import load_or_train, save

    trained = load_or_train(_sources(text, cache), VOCAB_SIZE, Cache(Path(cache)))
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(plain_json(trained)),
        eos_token=trained.eos_token,
    )
    for name, tokenizer in (("ours", trained), ("reference", bare)):
        directory = Path(tokenizers) / name
        directory.mkdir(parents=True)
        save(tokenizer, directory)
    return {}


def reference(text: str, cache: str, tokenizers: str, num_proc: Optional[int]) -> dict:
    """Measure the example script: read lines, `map(tokenize)`, `map(group)`."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(Path(tokenizers) / "reference"))

    def tokenize(examples: dict) -> dict:
        return tokenizer(examples["text"])

    def group(examples: dict) -> dict:
        joined = {key: list(itertools.chain(*examples[key])) for key in examples}
        length = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        starts = range(0, length, BLOCK_SIZE)
        result = {
            key: [values[i : i + BLOCK_SIZE] for i in starts]
            for key, values in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    clock = Clock()
    lines = datasets.load_dataset(
        "text",
        data_files={"train": [str(path) for path in _files(text)]},
        keep_linebreaks=True,
        cache_dir=cache,
    )["train"]
    clock.lap("load")
    tokens = lines.map(
        tokenize, batched=True, remove_columns=["text"], num_proc=num_proc
    )
    clock.lap("tokenize")
    tokens.map(group, batched=True, num_proc=num_proc)
    clock.lap("group")
    return {
        **clock.laps,
        "lines": [file["filename"] for file in lines.cache_files],
        "tokens": [file["filename"] for file in tokens.cache_files],
    }


def pack_text(text: str, cache: str, tokenizers: str) -> dict:
    """Measure ours, from files to a finished cache, with an existing tokenizer."""
    from src.data.packing.tokenizer import load
    from src.data.prepare import find_corpora  # noqa: F401: `_sources` does

    imported = _memory("VmRSS")
    _forget_peak()
    tokenizer = load(str(Path(tokenizers) / "ours"))
    clock = Clock()
    stream = _pack(_sources(text, cache), tokenizer, cache)
    clock.lap("pack")
    return {
        **clock.laps,
        "peak_mb": _memory("VmHWM") - imported,
        "stream": str(stream.directory),
    }


def train_and_pack(text: str, cache: str) -> dict:
    """Measure ours, from files to a finished cache, with the tokenizer's training."""
    from src.data.cache import Cache
    from src.data.packing.tokenizer import load_or_train
    from src.data.prepare import find_corpora  # noqa: F401: `_sources` does

    clock = Clock()
    sources = _sources(text, cache)
    tokenizer = load_or_train(sources, VOCAB_SIZE, Cache(Path(cache)))
    clock.lap("train")
    _pack(sources, tokenizer, cache)
    clock.lap("pack")
    return clock.laps


def compare_ids(stream: str, lines: list[str], tokens: list[str]) -> dict:
    """Assert that both sides have the same tokens, line by line; return their number."""
    import numpy as np
    import pyarrow.compute as pc
    from datasets import Dataset, concatenate_datasets

    from src.data.packing.stream import Stream

    def column(files: list[str], name: str) -> Any:
        return concatenate_datasets(list(map(Dataset.from_file, files))).data[name]

    theirs = column(tokens, "input_ids")
    line_ends = np.cumsum(pc.list_value_length(theirs).to_numpy())
    line_bytes = np.cumsum(pc.binary_length(column(lines, "text")).to_numpy())
    theirs = pc.list_flatten(theirs).to_numpy()

    packed = Stream(Path(stream), [])
    begins = packed.documents.astype(np.int64)  # of BOS; an EOS is before each and last
    text = np.ones(len(packed), bool)
    text[begins] = text[begins - 1] = False
    assert len(set(packed.tokens[begins])) == len(set(packed.tokens[begins - 1])) == 1
    ours, ends = packed.tokens[text], packed.bytes[1:][text]
    assert np.array_equal(ours, theirs), "the ids differ"
    # Each line's last token ends where the line does.
    assert np.array_equal(ends[line_ends - 1], line_bytes), "the lines differ"
    return {"num_tokens": len(ours), "num_lines": len(line_ends)}


def start(text: str, cache: str) -> dict:
    """Measure how long a run takes to find the text and load the data."""
    import src.data.prepare  # noqa: F401: `_load_data` does

    clock = Clock()
    _load_data(text, cache)
    clock.lap("start")
    return clock.laps


def read_and_step(text: str, cache: str) -> dict:
    """Measure reading a batch in shuffled order, and a training step on it on the CPU."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    torch.set_num_threads(NUM_THREADS)
    tokenizer, data = _load_data(text, cache)
    # No dropout: the shorter a step is, the larger is the share of reading.
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        n_positions=BLOCK_SIZE,
        n_embd=256,
        n_layer=4,
        n_head=4,
        **dropout,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    options = dict(shuffle=True, drop_last=True, collate_fn=dict)  # whole batches
    batches = iter(DataLoader(data.train, BATCH_SIZE, **options))
    reads, steps = [], []
    for number in range(200):
        clock = Clock()
        batch = next(batches, None)
        clock.lap("read")
        if batch is None:
            break
        reads.append(clock.laps["read"])
        if number % 25 == 0:  # reading is not measured in a loop of nothing else
            logits = model(input_ids=batch["input_ids"]).logits
            cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.lap("step")
            steps.append(clock.laps["step"])
    # The first of each is slower: it allocates what the others use.
    return {"read": statistics.median(reads[1:]), "step": statistics.median(steps[1:])}


SIDES = {
    side.__name__: side
    for side in (train_tokenizer, reference, pack_text, train_and_pack, compare_ids)
    + (start, read_and_step)
}


# What the measurements share.


class Clock:
    """A stopwatch for the seconds between one lap and the next."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _files(text: str) -> list[Path]:
    return sorted(Path(text).glob("*.train"))


def _arguments(text: str, cache: str) -> tuple[Any, Any]:
    """Return the sections `data` and `model` of a run on `text`."""
    from src.arguments import DataTrainingArguments, ModelArguments

    data = DataTrainingArguments(
        train_file=f"{text}/*.train",
        block_size=BLOCK_SIZE,
        preprocessing_num_workers=NUM_THREADS,
    )
    return data, ModelArguments(cache_dir=cache)


def _sources(text: str, cache: str) -> list:
    from src.data.prepare import find_corpora

    return find_corpora(*_arguments(text, cache)).train


def _pack(sources: list, tokenizer: Any, cache: str) -> Any:
    """Return the packed stream of the sources."""
    from src.data.cache import Cache
    from src.data.packing.pack import Packer

    packer = Packer(tokenizer, "auto", Cache(Path(cache)), num_workers=NUM_THREADS)
    return packer.pack(sources)


def _load_data(text: str, cache: str) -> tuple[Any, Any]:
    """Return the tokenizer and the data of a run on `text`."""
    from src.arguments import TokenizerArguments
    from src.data.prepare import find_corpora, load_data

    data, model = _arguments(text, cache)
    tokenizer = TokenizerArguments(vocab_size=VOCAB_SIZE)
    return load_data(find_corpora(data, model), tokenizer, data, model)


def _memory(field: str) -> float:
    """Return `VmRSS` or `VmHWM` (its peak) of this process in MB.

    The peak from `getrusage` would include the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e6


def _forget_peak() -> None:
    """Reset `VmHWM`, because imports need more memory for a moment than they keep."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


# The process that starts the measurements.


class Bench:
    """A runner of measurements, on texts and caches in a temporary folder."""

    def __init__(self, folder: Path, text: Path):
        self.folder, self.text = folder, str(text)
        self.tokenizers = str(folder / "tokenizers")
        self._caches = itertools.count()

    def run(self, side: Callable, **arguments: Any) -> dict:
        """Return what `side(**arguments)` returns in a new process after its imports."""
        os.sync()  # this measurement must not wait for what others have written
        command = [sys.executable, "-m", "tests.benchmarks.packing"]
        command += [f"--side={side.__name__}", json.dumps(arguments)]
        offline = dict(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **offline},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    def new_cache(self) -> str:
        return str(self.folder / f"cache-{next(self._caches)}")

    def packed(self, text: str) -> dict:
        cache = self.new_cache()
        return self.run(pack_text, text=text, cache=cache, tokenizers=self.tokenizers)

    def referred(self, num_proc: Optional[int] = None) -> dict:
        return self.run(
            reference,
            text=self.text,
            cache=self.new_cache(),
            tokenizers=self.tokenizers,
            num_proc=num_proc,
        )

    def clear(self) -> None:
        """Remove all caches."""
        for cache in self.folder.glob("cache-*"):
            shutil.rmtree(cache)


def measure(bench: Bench, num_rounds: int) -> tuple[list[dict], dict]:
    """Return the seconds of every round, and what is measured only once."""
    bench.run(
        train_tokenizer,
        text=bench.text,
        cache=bench.new_cache(),
        tokenizers=bench.tokenizers,
    )
    rounds = []
    for number in range(num_rounds):
        _say(f"round {number + 1} of {num_rounds}")
        ours, theirs = bench.packed(bench.text), bench.referred()
        both = bench.run(train_and_pack, text=bench.text, cache=bench.new_cache())
        files = dict(stream=ours["stream"], lines=theirs["lines"])
        equal = bench.run(compare_ids, tokens=theirs["tokens"], **files)
        bench.clear()
        rounds.append({"ours": ours, "theirs": theirs, "both": both, "equal": equal})
    _say("the reference with two processes")
    once = {"two_processes": bench.referred(num_proc=2)}
    bench.clear()
    _say("warm starts, and reading in training")
    cache = bench.new_cache()
    bench.run(start, text=bench.text, cache=cache)
    starts = [bench.run(start, text=bench.text, cache=cache) for _ in range(5)]
    once["warm_start_s"] = statistics.median(s["start"] for s in starts)
    once["training"] = bench.run(read_and_step, text=bench.text, cache=cache)
    bench.clear()
    _say(f"the text {TIMES} times over")
    longer = bench.folder / "longer"
    write_longer(Path(bench.text), longer)
    once["longer"] = bench.packed(str(longer))
    return rounds, once


def results(rounds: list[dict], once: dict) -> dict[str, float]:
    """Return the last line: medians of ratios, megabytes, seconds and a share."""
    ratios = [sum(r["theirs"][lap] for lap in LAPS) / r["ours"]["pack"] for r in rounds]
    with_tokenizer = [r["theirs"]["tokenize"] / sum(r["both"].values()) for r in rounds]
    return {
        "packing_ratio": statistics.median(ratios),
        "packing_with_tokenizer_ratio": statistics.median(with_tokenizer),
        "peak_mb_10M": statistics.median(r["ours"]["peak_mb"] for r in rounds),
        "peak_mb_100M": once["longer"]["peak_mb"],
        "warm_start_s": once["warm_start_s"],
        "read_share_of_step": once["training"]["read"] / once["training"]["step"],
    }


def table(rounds: list[dict], once: dict, size: tuple[int, int]) -> str:
    """Return a table of seconds and throughput; `size` is (words, bytes) of the text."""

    def median(side: str, *laps: str) -> float:
        return statistics.median(sum(r[side][lap] for lap in laps) for r in rounds)

    words, num_bytes = size
    two, longer = once["two_processes"], once["longer"]
    base = median("theirs", *LAPS)
    rows = {
        "reference: reading lines": median("theirs", "load"),
        "reference: tokenizing": median("theirs", "tokenize"),
        "reference: grouping": median("theirs", "group"),
        "reference: all of that": base,
        "same, two processes (once)": two["tokenize"] + two["group"],
        "ours: files to cache": median("ours", "pack"),
        "ours: training the tokenizer": median("both", "train"),
        "ours: training and packing": median("both", "train", "pack"),
        # Of as much text as the others, to be compared with them.
        f"ours: {TIMES} times the text / {TIMES}": longer["pack"] / TIMES,
    }
    lines = [
        f"{words:,} words, {num_bytes / 1e6:,.1f} MB, {len(rounds)} rounds, medians",
        f"{'':<34}{'s':>8}{'MB/s':>8}{'words/s':>12}{'ratio':>7}",
    ]
    for name, seconds in rows.items():
        lines.append(
            f"{name:<34}{seconds:>8.2f}{num_bytes / seconds / 1e6:>8.2f}"
            f"{words / seconds:>12,.0f}{base / seconds:>7.2f}"
        )
    equal, training = rounds[-1]["equal"], once["training"]
    lines += [
        f"equal ids in every round: {equal['num_tokens']:,} of {equal['num_tokens']:,},"
        f" in {equal['num_lines']:,} lines",
        f"a batch of {BATCH_SIZE} x {BLOCK_SIZE} is read in"
        f" {training['read'] * 1e3:.2f} ms, a step takes {training['step'] * 1e3:,.0f} ms",
    ]
    return "\n".join(lines)


def write_text(data: Path, words: Optional[int], to: Path) -> tuple[int, int]:
    """Copy whole lines from the beginning of every file, in proportion to its words.

    Return the words and bytes of the copy. All lines are copied if `words` is None.
    """
    to.mkdir()
    found = {p: p.read_bytes().splitlines(keepends=True) for p in _files(str(data))}
    if not found:
        raise SystemExit(f"--data={data}: no file *.train there")
    counts = {
        path: [len(line.decode().split()) for line in lines]
        for path, lines in found.items()
    }
    total = sum(map(sum, counts.values()))
    share = 1 if words is None else words / total
    taken_words = taken_bytes = 0
    for path, lines in found.items():
        limit = share * sum(counts[path])
        before = itertools.accumulate(counts[path], initial=0)
        taken = [
            line for line, seen in zip(lines, before) if seen < limit or share == 1
        ]
        (to / path.name).write_bytes(b"".join(taken))
        taken_words += sum(counts[path][: len(taken)])
        taken_bytes += sum(map(len, taken))
    return taken_words, taken_bytes


def write_longer(text: Path, to: Path) -> None:
    """Write every file `TIMES` over, each time with its lines in another order."""
    to.mkdir()
    rng = random.Random(0)
    for path in _files(str(text)):
        lines = path.read_bytes().splitlines()
        with (to / path.name).open("wb") as file:
            for _ in range(TIMES):
                rng.shuffle(lines)
                file.write(b"\n".join(lines) + b"\n")


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, help="shorten the text to these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--data", default="babylm_data/babylm_10M", help="*.train files"
    )
    parser.add_argument(
        "--temp", help="folder for texts and caches, removed afterwards"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](**json.loads(args.arguments))))
        return
    with tempfile.TemporaryDirectory(dir=args.temp, prefix="packing-") as temporary:
        folder = Path(temporary).resolve()
        size = write_text(Path(args.data), args.words, folder / "text")
        rounds, once = measure(Bench(folder, folder / "text"), args.rounds)
    found = results(rounds, once)
    print(table(rounds, once, size))
    for key, (mark, reached) in MARKS.items():
        verdict = "reached" if reached(found[key], found) else "MISSED"
        print(f"{key:<32}{found[key]:>10.4g}  {verdict}: {mark}")
    print(json.dumps({key: round(value, 6) for key, value in found.items()}))


if __name__ == "__main__":
    main()
