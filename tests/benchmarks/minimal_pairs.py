"""Minimal pairs per second: ours against the challenge's pipeline, in one run.

    python -m tests.benchmarks.minimal_pairs
    python -m tests.benchmarks.minimal_pairs --pairs-per-task=50 --rounds=2 --skip aoa

The model is GPT2-Small with random weights and a byte-level BPE of 16,384 entries. The
reference works like the official pipeline (sentence_zero_shot, reading and AoA_word in
babylm-org/babylm-eval): pairs in padded batches of 64 in file order, log-softmax over the
vocabulary at every position, and one forward pass per word of the reading times and of AoA. In
each round all contestants take their turn; ratios are medians over rounds. The last line is one
JSON object.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from src.data.packing.tokenizer import load, save, train
from src.evaluation.scoring.scorer import Item, Scorer
from src.evaluation.tasks.aoa import AgeOfAcquisition
from src.evaluation.tasks.reading import ReadingTimes
from src.hardware import keep_freed_memory

DATA = Path("babylm_data")
FULL = DATA / "evaluation_data" / "full_eval"
CACHE = Path(".cache/benchmarks")
VOCAB_SIZE = 16384
BATCH_SIZE = 64  # of the official pipeline
NEIGHBOURS = 50
PARADIGMS = [
    "adjunct_island", "anaphor_gender_agreement", "ellipsis_n_bar_1", "only_npi_scope",
    "wh_island",
]  # fmt: skip
Words = list[tuple[str, str]]  # (context, word)


def bpe() -> PreTrainedTokenizerBase:
    directory = CACHE / f"tokenizer-{VOCAB_SIZE}"
    if not (directory / "tokenizer_config.json").exists():
        files = sorted((DATA / "babylm_10M").glob("*.train"))
        save(train((file.read_text() for file in files), VOCAB_SIZE), directory)
    return load(str(directory))


def gpt2_small() -> GPT2LMHeadModel:
    torch.manual_seed(42)
    ends = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, **ends)).eval()


def blimp(num_pairs: int) -> list[list[tuple[str, str]]]:
    """Return the first pairs (good, bad) of each paradigm."""
    tasks = []
    for name in PARADIGMS:
        lines = (FULL / "blimp_filtered" / f"{name}.jsonl").read_text().splitlines()
        pairs = [json.loads(line) for line in lines[:num_pairs]]
        tasks.append([(p["sentence_good"], p["sentence_bad"]) for p in pairs])
    return tasks


def reading_words(number: int) -> Words:
    """Return the first words, sorted by sentence as in the complete file."""
    with (FULL / "reading" / "reading_data.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows = sorted(rows, key=lambda row: (row["sentence"], int(row["context_length"])))
    return [(row["item"] or "None", row["word"]) for row in rows[:number]]


def aoa_words(number: int) -> Words:
    """Return groups of neighbours, evenly spaced in the sorted file.

    Neighbours share as many tokens as in the complete file, where the tree has 0.76 of the
    tokens. Of single pairs, hardly two share more than BOS (0.92).
    """
    words = json.loads((FULL / "aoa" / "cdi_childes.json").read_text())
    pairs = [(c["context"].strip() + " ", w) for w in words for c in words[w]]
    pairs.sort()
    starts = np.linspace(0, len(pairs) - NEIGHBOURS, -(-number // NEIGHBOURS))
    chosen = [pairs[int(at) : int(at) + NEIGHBOURS] for at in starts]
    return [pair for run in chosen for pair in run][:number]


@torch.no_grad()
def official_pairs(model, tokenizer, tasks: list) -> np.ndarray:
    """Return the sums of the log-probabilities behind BOS [pairs, 2]."""
    scores = []
    for pairs in tasks:
        for start in range(0, len(pairs), BATCH_SIZE):
            batch = pairs[start : start + BATCH_SIZE]
            sides = [_padded(model, tokenizer, texts) for texts in zip(*batch)]
            scores.append(torch.stack(sides, dim=1))
    return torch.cat(scores).double().numpy()


def _padded(model, tokenizer, texts: list[str]) -> torch.Tensor:
    rows = [tokenizer(text, return_offsets_mapping=True) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    mask = pad([torch.tensor(row["attention_mask"]) for row in rows], batch_first=True)
    ends = [[end > 0 for _, end in row["offset_mapping"]] for row in rows]
    scored = pad([torch.tensor(row) for row in ends], batch_first=True)
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
    logs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logs * scored[:, 1:]).sum(1)


def our_pairs(model, tokenizer, tasks: list, dtype=None) -> np.ndarray:
    items = [Item(text) for pairs in tasks for pair in pairs for text in pair]
    scorer = Scorer(model, tokenizer, dtype=dtype)
    return scorer.score(scorer.queries(items)).log_probability.reshape(-1, 2)


def _steps(tokenizer, context: str, word: str) -> list[tuple[str, int]]:
    """Return (text so far, next token) for each token of the word, as the pipeline does."""
    steps = []
    for place, token in enumerate(tokenizer(word, add_special_tokens=False).input_ids):
        piece = tokenizer.decode(token)
        again = tokenizer(piece, add_special_tokens=False).input_ids[0]
        steps.append((context, again if place else token))
        context += piece
    return steps


@torch.no_grad()
def official_reading(model, tokenizer, words: Words) -> np.ndarray:
    """Return the log-probability of each word [words], one forward pass per token."""
    found = []
    for pair in words:
        total = 0.0
        for text, target in _steps(tokenizer, *pair):
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
            total += logits.softmax(-1)[target].log().item()
        found.append(total)
    return np.array(found)


def our_reading(model, tokenizer, words: Words, dtype=None) -> np.ndarray:
    task = ReadingTimes(
        name="reading", folder="reading", data_checksum="",
        contexts=words, previous=[], numbers={},
    )  # fmt: skip
    scorer = Scorer(model, tokenizer, dtype=dtype)
    return task.ask(scorer, task.prepare(scorer)).log_probability


@torch.no_grad()
def official_aoa(model, tokenizer, words: Words) -> np.ndarray:
    """Return the log-probability of each word [words], one forward pass per context."""
    found = []
    for context, word in words:
        row = tokenizer(context + word, return_offsets_mapping=True)
        ids = torch.tensor([row["input_ids"]])
        mask = torch.tensor([row["attention_mask"]])[:, :-1]
        logits = model(input_ids=ids[:, :-1], attention_mask=mask).logits
        logs = logits.log_softmax(-1)
        logs = logs.gather(-1, ids[:, 1:, None])[0, :, 0]
        scored = [end > len(context) for _, end in row["offset_mapping"]]
        found.append((logs * torch.tensor(scored)[1:]).sum().item())
    return np.array(found)


def our_aoa(model, tokenizer, words: Words, dtype=None) -> np.ndarray:
    task = AgeOfAcquisition(
        name="aoa", folder="AoA_word", data_checksum="", known={},
        pairs=[(word, context, 0) for context, word in words],
    )  # fmt: skip
    scorer = Scorer(model, tokenizer, dtype=dtype)
    return -task.ask(scorer, task.prepare(scorer)).nats


def half(function: Callable) -> Callable:
    """Return the function with bfloat16 as its `dtype`."""
    return lambda *args: function(*args, dtype=torch.bfloat16)


def measure(contestants: dict[str, Callable], args: tuple, rounds: int) -> tuple:
    """Return the seconds of each contestant in each round, and its last result."""
    seconds = {name: [] for name in contestants}
    found = {}
    for _ in range(rounds):
        for name, function in contestants.items():
            start = time.perf_counter()
            found[name] = function(*args)
            seconds[name].append(time.perf_counter() - start)
    return seconds, found


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Return the speed relative to the official pipeline, the median over rounds."""
    return float(np.median(np.divide(seconds["official"], seconds[name])))


def changed(found: dict[str, np.ndarray], name: str) -> int:
    """Return the number of pairs whose choice differs from the official pipeline's."""
    good, bad = found["official"].T
    ours_good, ours_bad = found[name].T
    return int(((good > bad) != (ours_good > ours_bad)).sum())


def report(task: str, number: int, seconds: dict, found: dict) -> None:
    for name, times in seconds.items():
        difference = np.abs(found[name] - found["official"]).max()
        print(
            f"{task:8} {name:9} {number / np.median(times):8.1f} /s"
            f" {ratio(seconds, name):6.2f} x   largest difference {difference:.1e} nats",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs-per-task", type=int, default=200)
    parser.add_argument("--reading-words", type=int, default=150)
    parser.add_argument("--aoa-words", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["blimp", "reading", "aoa"]
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as run_eval does; the reference benefits from it, too
    tokenizer, model = bpe(), gpt2_small()
    result: dict[str, Optional[float]] = {}
    tasks = {
        "blimp": (official_pairs, our_pairs, blimp(args.pairs_per_task)),
        "reading": (official_reading, our_reading, reading_words(args.reading_words)),
        "aoa": (official_aoa, our_aoa, aoa_words(args.aoa_words)),
    }
    for task, (official, ours, data) in tasks.items():
        if task in args.skip:
            continue
        contestants = {"official": official, "ours fp32": ours, "ours bf16": half(ours)}
        inputs = (model, tokenizer, data)
        seconds, found = measure(contestants, inputs, args.rounds)
        report(task, len(found["official"]), seconds, found)
        name = {"blimp": ""}.get(task, f"{task}_")
        result[f"{name}fp32_ratio"] = ratio(seconds, "ours fp32")
        result[f"{name}bf16_ratio"] = ratio(seconds, "ours bf16")
        if task == "blimp":
            result["choices_changed_fp32"] = changed(found, "ours fp32")
            result["choices_changed_bf16"] = changed(found, "ours bf16")
        else:
            result[f"{task}_ratio"] = ratio(seconds, "ours fp32")
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
