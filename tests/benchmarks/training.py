"""Tokens per second in training, and peak memory: ours and two references, in one run.

    python -m tests.benchmarks.training
    python -m tests.benchmarks.training --models=tiny --rounds=5 --steps=10

GPT-2 of two sizes, no dropout, on strict-small's text: 8 blocks of 512 tokens a step, of a
byte-level BPE of 16,384 entries, the same AdamW. *As it comes* is a plain Hugging Face Trainer
with the library's defaults, set up as its language-modelling example (run_clm.py) does;
*minimal* a loop in plain PyTorch as nanoGPT's, around the same GPT2LMHeadModel, which is
compiled with its loss, in bfloat16 where the hardware is fast at it; *ours* what
`python -m src.run_clm` runs, compiled, without evaluation and saving.

Each is a process that waits while the others take their turns. Its first steps, which compile,
are not timed. A turn lasts from the end of a step to the end of a step, so reading and logging
count. `ratio_…` is our tokens per second over theirs, the median over rounds. `memory_ratio` is
our peak over that of *as it comes*: of the process on a CPU, of allocations on a GPU, which is
used if there is one. The last line is one JSON object. With `--profile` one
step of each is profiled instead. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

BLOCK_SIZE, BATCH_SIZE, VOCAB_SIZE = 512, 8, 16_384
NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
SIZES = {
    "tiny": dict(n_layer=4, n_embd=256, n_head=4, n_positions=512, **NO_DROPOUT),
    "small": dict(n_layer=12, n_embd=768, n_head=12, n_positions=1024, **NO_DROPOUT),
}
RATE, DECAY, BETA2, MAX_NORM = 7e-4, 0.1, 0.95, 1.0
OPTIMIZER = dict(
    learning_rate=RATE, weight_decay=DECAY, adam_beta2=BETA2, max_grad_norm=MAX_NORM
)
TOKENIZER = f".cache/benchmarks/tokenizer-{VOCAB_SIZE}"  # of `minimal_pairs.bpe`
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of a turn. One of GPT2-Small as it comes takes half a minute on two cores.
STEPS = {"cpu": {"tiny": 5, "small": 1}, "cuda": {"tiny": 100, "small": 30}}[DEVICE]


class Turns(transformers.TrainerCallback):
    """Callback of a contestant: it takes as many steps as requested, then waits."""

    def __init__(self, pipe: Any, warm_up: int):
        self.pipe, self.left, self.profiler = pipe, warm_up, None
        self.start = time.perf_counter()

    def on_step_end(self, *_, model=None, **__):
        """Answer after the last requested step. At the end, EOFError ends the process."""
        self.left -= 1
        if self.left > 0:
            return
        # On Linux, a process begins with the peak of its parent, which is lower here.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        answer = {"seconds": time.perf_counter() - self.start, "peak": peak}
        answer["parameters"] = model.num_parameters()
        if self.profiler is not None:
            self.profiler.stop()
            events = self.profiler.key_averages()
            answer["profile"] = events.table(f"self_{DEVICE}_time_total", 15)
        self.pipe.send(answer)
        self.left, profiled = self.pipe.recv()
        if profiled:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        self.start = time.perf_counter()


def _gpt2(size: str, **options: Any) -> GPT2LMHeadModel:
    ends = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = GPT2Config(vocab_size=VOCAB_SIZE, **SIZES[size], **ends, **options)
    return GPT2LMHeadModel(config)


def as_it_comes(size: str, num_steps: int, folder: Path, turns: Turns) -> None:
    """The example's Trainer: three columns a row, the model's own loss, float32, eager."""
    from datasets import load_from_disk

    places = dict(output_dir=str(folder / "its"), save_strategy="no", report_to="none")
    amount = dict(per_device_train_batch_size=BATCH_SIZE, max_steps=num_steps)
    args = transformers.TrainingArguments(**places, **amount, **OPTIMIZER)
    transformers.set_seed(args.seed)
    transformers.Trainer(
        _gpt2(size),
        args,
        transformers.default_data_collator,
        load_from_disk(str(folder / "blocks")),
        processing_class=transformers.AutoTokenizer.from_pretrained(TOKENIZER),
        callbacks=[turns],
    ).train()


def minimal(size: str, num_steps: int, folder: Path, turns: Turns) -> None:
    """nanoGPT's loop: get a batch, forward, backward, clip, step."""
    from src.hardware import fast_bfloat16

    if DEVICE == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(42)
    model = _gpt2(size, use_cache=False, attn_implementation="sdpa").to(DEVICE)
    groups = [  # as the Trainer has them
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, RATE, (0.9, BETA2), weight_decay=DECAY, fused=True
    )
    tokens = np.memmap(folder / "tokens.bin", np.uint16, mode="r")

    @torch.compile
    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=inputs).logits
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    low = torch.autocast(DEVICE, torch.bfloat16, fast_bfloat16(DEVICE == "cpu"))
    while True:
        inputs, targets = _random_batch(tokens)
        with low:
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.on_step_end(model=model)


def _random_batch(tokens: np.ndarray) -> list[torch.Tensor]:
    """Return inputs and targets [BATCH_SIZE, BLOCK_SIZE] from anywhere in the text."""
    starts = torch.randint(len(tokens) - BLOCK_SIZE, (BATCH_SIZE,)).tolist()
    rows = np.stack([tokens[s : s + BLOCK_SIZE + 1] for s in starts]).astype(np.int64)
    batch = [torch.from_numpy(rows[:, at : at + BLOCK_SIZE].copy()) for at in (0, 1)]
    if DEVICE == "cuda":
        return [part.pin_memory().to(DEVICE, non_blocking=True) for part in batch]
    return batch


def ours(size: str, num_steps: int, folder: Path, turns: Turns) -> None:
    """Train as `src/training/run.py` does, from the configuration to the training."""
    from src.configuration.command_line import set_up_logging
    from src.evaluation.suite import Suite
    from src.hardware import keep_freed_memory
    from src.training.model import build_model, model_config
    from src.training.record.throughput import Clock
    from src.training.setup import decide, plan_run, report
    from src.training.step.micro_batching import sequences_per_step
    from src.training.task_scores import TaskScores
    from src.training.trainer import LanguageModelTrainer

    set_up_logging()
    run_dir = folder / "ours"
    run_dir.mkdir(exist_ok=True)
    args, tokenizer, data = _our_data(
        *(f"++model.config_overrides.{k}={v}" for k, v in SIZES[size].items()),
        *(f"training.{key}={value}" for key, value in OPTIMIZER.items()),
        f"training.per_device_train_batch_size={BATCH_SIZE}",
        "training.gradient_accumulation_steps=1",
        "training.torch_compile=true",
        f"training.max_steps={num_steps}",
        f"training.output_dir={run_dir}",
    )
    if DEVICE == "cpu":
        keep_freed_memory()
    plan = plan_run(args, data, sequences_per_step(args.training, args.data.block_size))
    model = build_model(args, model_config(args), tokenizer)
    setup = decide(args, {}, plan, model)
    report(setup, args, model, None)
    tasks = TaskScores(Suite([]))
    LanguageModelTrainer(
        args, setup, model, tokenizer, data, tasks, [turns], Clock()
    ).fit()


def _our_data(*overrides: str) -> tuple[Any, Any, Any]:
    """Return arguments, tokenizer and data of `python -m src.run_clm … overrides`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from src.configuration.run_configuration import run_configuration
    from src.configuration.schema import CONF_DIR
    from src.data.prepare import find_corpora, load_data

    own = ["+model=gpt2-small", "+dataset=babylm_10M", "wandb.log=false"]
    own += [f"data.block_size={BLOCK_SIZE}", f"tokenizer.name_or_path={TOKENIZER}"]
    own += ["training.do_eval=false", "training.save_strategy='no'"]
    own += ["training.optimizer=adamw", "training.averaging=null"]  # as the references
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("config", [*own, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.pop("hydra")
    args = run_configuration(config).args
    corpora = find_corpora(args.data, args.model)
    return args, *load_data(corpora, args.tokenizer, args.data, args.model)


CONTESTANTS = {"as it comes": as_it_comes, "minimal": minimal, "ours": ours}


def prepare(folder: Path) -> None:
    """Pack the text as a run does; write the same tokens as the references have them."""
    from datasets import Dataset

    from tests.benchmarks.minimal_pairs import bpe

    assert len(bpe()) == VOCAB_SIZE
    tokens = np.asarray(_our_data()[2].train_stream.tokens)
    tokens.astype(np.uint16).tofile(folder / "tokens.bin")
    rows = tokens[: len(tokens) // BLOCK_SIZE * BLOCK_SIZE].reshape(-1, BLOCK_SIZE)
    # In the types that `map` gives them.
    columns = dict(input_ids=rows.astype(np.int32), labels=rows.astype(np.int64))
    columns["attention_mask"] = np.ones(rows.shape, np.int8)
    Dataset.from_dict(columns).save_to_disk(str(folder / "blocks"))


def enter(name: str, log: Path, pipe: Any, warm_up: int, *job: Any) -> None:
    """Run a contestant in its process, with its output in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    CONTESTANTS[name](*job, Turns(pipe, warm_up))


class Contestant:
    """The process of a contestant, as the main process sees it."""

    def __init__(self, name: str, log: Path, *job: Any):
        context = multiprocessing.get_context("spawn")
        self.name, self.log, (self.pipe, end) = name, log, context.Pipe()
        self.process = context.Process(target=enter, args=(name, log, end, *job))
        self.process.start()
        end.close()

    def answer(self, *question: int) -> dict[str, Any]:
        """Return its answer after the requested steps, or after its first steps."""
        try:
            if question:
                self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, OSError):
            print(self.log.read_text()[-4000:], file=sys.stderr)
            raise SystemExit(f"error: `{self.name}` ended, see above") from None

    def end(self) -> None:
        self.pipe.close()
        self.process.join(timeout=30)
        self.process.kill()


def contest(size: str, rounds: int, steps: int, profile: bool, folder: Path) -> dict:
    """Return name -> answers of each round [rounds], after a warm-up of each alone."""
    contestants: list[Contestant] = []
    warm_up = max(2, steps)
    answers: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    try:
        for name in CONTESTANTS:
            job = (warm_up, size, warm_up + rounds * steps, folder)
            contestants.append(Contestant(name, folder / f"{name}.log", *job))
            seconds = contestants[-1].answer()["seconds"]
            print(f"{size}, {name}: first steps {seconds:.0f} s", flush=True)
        for _ in range(rounds):
            for contestant in contestants:
                answers[contestant.name].append(contestant.answer(steps, profile))
    finally:
        for contestant in contestants:
            contestant.end()
    sizes = {name: rows[-1]["parameters"] for name, rows in answers.items()}
    assert len(set(sizes.values())) == 1, f"not the same model: {sizes}"
    return answers


def summary(answers: dict[str, list[dict]], steps: int) -> dict[str, float]:
    """Print tokens per second (median and range over rounds) and peaks; return our ratios."""
    print(f"{'':<14}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'peak MB':>10}")
    ratios, peaks = {}, {name: rows[-1]["peak"] for name, rows in answers.items()}
    for name, rows in answers.items():
        speeds = [steps * BATCH_SIZE * BLOCK_SIZE / row["seconds"] for row in rows]
        figures = statistics.median(speeds), min(speeds), max(speeds), peaks[name] / 1e6
        print(f"{name:<14}" + "".join(f"{figure:>10,.0f}" for figure in figures))
        pairs = zip(rows, answers["ours"])
        times = statistics.median(row["seconds"] / own["seconds"] for row, own in pairs)
        ratios[f"ratio_{name.replace(' ', '_')}"] = round(times, 3)
    del ratios["ratio_ours"]
    return {**ratios, "memory_ratio": round(peaks["ours"] / peaks["as it comes"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of a turn; default: by size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="one step of each")
    args = parser.parse_args()
    # Libraries read these when imported. With several GPUs, the Trainer uses DataParallel.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    found = {}
    with tempfile.TemporaryDirectory(prefix="training-") as temporary:
        folder = Path(temporary)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(prepare, folder).result()
        for size in args.models:
            if args.profile:
                for name, rows in contest(size, 1, 1, True, folder).items():
                    print(f"\n{size}, {name}\n{rows[0]['profile']}", flush=True)
                continue
            steps = args.steps or STEPS[size]
            answers = contest(size, args.rounds, steps, False, folder)
            print(f"\n{size} on {DEVICE}, {args.rounds} rounds of {steps} steps")
            found[size] = summary(answers, steps)
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
