"""Minimal pairs a second: ours against the challenge's pipeline, in one run.

    python -m tests.benchmarks.minimal_pairs
    python -m tests.benchmarks.minimal_pairs --pairs-per-task=50 --rounds=2 --skip aoa

GPT2-Small with random weights and a byte-level BPE of 16,384 entries. The reference does what
the official pipeline does (sentence_zero_shot, reading, AoA_word in babylm-org/babylm-eval):
pairs in batches of 64 in file order, padded, log-softmax over the vocabulary at every position;
words of the reading times and of AoA one forward pass at a time. In every round all contestants
take their turn; ratios are medians over rounds. The last line is one JSON object.
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
from src.evaluation.scoring.texts import Item, queries, score
from src.evaluation.tasks import aoa, reading
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
    """Of each paradigm its first pairs (good, bad)."""
    tasks = []
    for name in PARADIGMS:
        lines = (FULL / "blimp_filtered" / f"{name}.jsonl").read_text().splitlines()
        pairs = [json.loads(line) for line in lines[:num_pairs]]
        tasks.append([(p["sentence_good"], p["sentence_bad"]) for p in pairs])
    return tasks


def reading_words(number: int) -> Words:
    """The first words in the order of their sentences, as a whole file has them."""
    with (FULL / "reading" / "reading_data.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows = sorted(rows, key=lambda row: (row["sentence"], int(row["context_length"])))
    return [(row["item"] or "None", row["word"]) for row in rows[:number]]


def aoa_words(number: int) -> Words:
    """Runs of neighbours, evenly over the sorted file: they share what they share in the whole.

    Of single pairs from everywhere, hardly two share more than BOS (the tree has 0.92 of the
    tokens); in the whole file it has 0.76.
    """
    words = json.loads((FULL / "aoa" / "cdi_childes.json").read_text())
    pairs = [(c["context"].strip() + " ", w) for w in words for c in words[w]]
    pairs.sort()
    starts = np.linspace(0, len(pairs) - NEIGHBOURS, -(-number // NEIGHBOURS))
    chosen = [pairs[int(at) : int(at) + NEIGHBOURS] for at in starts]
    return [pair for run in chosen for pair in run][:number]


@torch.no_grad()
def official_pairs(model, tokenizer, tasks: list) -> np.ndarray:
    """Sums of the log-probabilities behind BOS [pairs, 2]."""
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
    asked = queries(tokenizer, items, "causal")
    return score(model, asked, dtype=dtype).log_probability.reshape(-1, 2)


def _steps(tokenizer, context: str, word: str) -> list[tuple[str, int]]:
    """(text so far, next token) for each token of the word, as the pipeline's reading."""
    steps = []
    for place, token in enumerate(tokenizer(word, add_special_tokens=False).input_ids):
        piece = tokenizer.decode(token)
        again = tokenizer(piece, add_special_tokens=False).input_ids[0]
        steps.append((context, again if place else token))
        context += piece
    return steps


@torch.no_grad()
def official_reading(model, tokenizer, words: Words) -> np.ndarray:
    """Log-probability of each word [words], one forward pass a token of it."""
    found = []
    for pair in words:
        total = 0.0
        for text, target in _steps(tokenizer, *pair):
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
            total += logits.softmax(-1)[target].log().item()
        found.append(total)
    return np.array(found)


def our_reading(model, tokenizer, words: Words, dtype=None) -> np.ndarray:
    data = reading.Reading(words, [None] * len(words), {}, "")
    prepared = reading.prepare(data, tokenizer)
    surprisals = reading.surprisals(model, prepared, dtype=dtype)
    return -np.array([surprisals[tokens].sum() for tokens in prepared.words])


@torch.no_grad()
def official_aoa(model, tokenizer, words: Words) -> np.ndarray:
    """Log-probability of each word behind its context [words], one forward pass each."""
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
    pairs = [(word, context, 0) for context, word in words]
    items = aoa.items(aoa.WordContexts(pairs, {}, ""))
    return score(
        model, queries(tokenizer, items, "causal"), dtype=dtype
    ).log_probability


def half(function: Callable) -> Callable:
    """The same in bfloat16."""
    return lambda *args: function(*args, dtype=torch.bfloat16)


def measure(contestants: dict[str, Callable], args: tuple, rounds: int) -> tuple:
    """Seconds of each contestant in each round, and what each found last."""
    seconds = {name: [] for name in contestants}
    found = {}
    for _ in range(rounds):
        for name, function in contestants.items():
            start = time.perf_counter()
            found[name] = function(*args)
            seconds[name].append(time.perf_counter() - start)
    return seconds, found


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as fast as the official pipeline: median over rounds."""
    return float(np.median(np.divide(seconds["official"], seconds[name])))


def changed(found: dict[str, np.ndarray], name: str) -> int:
    """Pairs of which another sentence is chosen than by the official pipeline."""
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
    keep_freed_memory()  # as run_eval does; the reference has the good of it too
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
