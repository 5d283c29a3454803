"""Every knob of a run: its type, its default, what it means.

Adding an argument is adding one field to one of these dataclasses. It then exists on the
command line (`data.block_size=128`), in every YAML file under `src/conf/` and in `--help`,
and its type is checked (`src/configuration.py` turns the dataclasses into Hydra's schema).
The values a BabyLM run starts from are in `src/conf/config.yaml`.

A field that changes the result of a run (its weights or its reported numbers) is part of
the run's identity: see `src/run_identity.py`. Those that do not say `changes_result=False`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import transformers


def option(default: Any, help: str, changes_result: bool = True) -> Any:
    """A dataclass field with its explanation, and whether it changes a run's result."""
    return field(
        default=default, metadata={"help": help, "changes_result": changes_result}
    )


@dataclass
class ModelArguments:
    """Which network is trained, and from what."""

    model_type: Optional[str] = option(
        None, "Architecture of transformers to build from scratch: gpt2, opt, llama, …"
    )
    # `Any`: OmegaConf cannot hold an optional dict without crashing on its overrides.
    config_overrides: Any = option(
        None, "Values of the architecture's configuration, as {n_layer: 12, n_head: 12}"
    )
    model_name_or_path: Optional[str] = option(
        None, "Continue from these weights (directory or hub name), not from scratch"
    )
    revision: Optional[str] = option(
        None, "Branch, tag or commit of model_name_or_path on the hub"
    )
    token: Optional[str] = option(
        None, "Access token of the hub (better: HF_TOKEN)", changes_result=False
    )
    attn_implementation: Optional[
        Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
    ] = option(None, "Attention kernel; null: what transformers finds best")
    cache_dir: str = option(
        ".cache",
        "Where tokenizers, packed text and hub downloads are kept; may be a symlink",
        changes_result=False,
    )


@dataclass
class TokenizerArguments:
    """Which tokenizer; without a name, one is trained on the training text."""

    name_or_path: Optional[str] = option(
        None,
        "Pretrained tokenizer (directory or hub name); null: train a byte-level BPE",
    )
    revision: Optional[str] = option(
        None, "Branch, tag or commit of name_or_path on the hub"
    )
    vocab_size: int = option(
        16384, "Entries of a trained tokenizer, its three special tokens included"
    )
    lossy: bool = option(
        False, "Allow a tokenizer that does not give the text back when decoded", False
    )


@dataclass
class DataTrainingArguments:
    """Which text, and how it is cut into blocks."""

    train_file: Any = option(
        None, "Training text: a path, a glob such as data/*.train, or a list of either"
    )
    validation_file: Any = option(
        None, "Validation text, likewise; null: a split of the training text"
    )
    dataset_name: Optional[str] = option(None, "Dataset of the hub, instead of files")
    dataset_config_name: Optional[str] = option(None, "Configuration of that dataset")
    dataset_revision: Optional[str] = option(
        None, "Branch, tag or commit of that dataset"
    )
    text_column: str = option(
        "text",
        "Column that holds the text in .csv, .json, .jsonl, .parquet and the hub",
    )
    document_boundary: Literal["auto", "blank_line", "heading", "line", "file"] = (
        option(
            "auto",
            "What separates documents: auto takes `= = = Title = = =` headings, else blank"
            " lines, where a file has them, else the file is one document",
        )
    )
    attend_across_documents: bool = option(
        True,
        "Whether a token sees the documents before its own in a block; false: attention"
        " and positions begin anew with each document",
    )
    block_size: int = option(512, "Length of a training sequence, in tokens")
    block_size_schedule: Any = option(
        None,
        "Shorter sequences first: {128: 0.5, 256: 0.25, 512: 0.25} is length: share of the"
        " run; a step has as many tokens throughout",
    )
    order: Literal["shuffled", "sequential", "by_file"] = option(
        "shuffled",
        "Order of an epoch's blocks: shuffled; as in the text; or one file after the other,"
        " each shuffled",
    )
    file_order: Any = option(
        None, "Names of the files in the order of by_file; null: as in train_file"
    )
    mix: Any = option(
        None,
        "How often an epoch draws each file's text: {childes: 2, switchboard: 0.5}; 1 for"
        " those that are not named",
    )
    word_budget: Optional[int] = option(
        None,
        "Unique words the training text may have; ten times as many may be seen",
        changes_result=False,
    )
    recipe_budget: Optional[int] = option(
        None,
        "The word_budget that a recipe was made for: beside data with another it is refused;"
        " null: any",
        changes_result=False,
    )
    strict_rules: bool = option(
        True, "Refuse a run beyond data.word_budget", changes_result=False
    )
    max_train_samples: Optional[int] = option(
        None, "Train on this many blocks only (a fixed subset, the same for every seed)"
    )
    max_eval_samples: Optional[int] = option(
        None, "Evaluate on this many blocks only (likewise a fixed subset)"
    )
    validation_split_percentage: float = option(
        5.0, "Share of each training file held out where there is no validation text, %"
    )
    preprocessing_num_workers: Optional[int] = option(
        None, "Threads for tokenizing; null: one a core", changes_result=False
    )
    overwrite_cache: bool = option(
        False, "Train the tokenizer and pack the text anew", changes_result=False
    )


@dataclass
class ScoringArguments:
    """Which of the challenge's scores, and how they are computed."""

    tasks: Any = option(
        None, "The challenge's tasks: fast, full, or names such as [blimp,ewok]"
    )
    pairs: Any = option(
        None,
        "Folder of minimal pairs in BLiMP's format (*.jsonl), or a list of folders",
    )
    data: str = option(
        "babylm_data/evaluation_data", "Folder that holds full_eval and fast_eval"
    )
    protocol: Literal[2025, 2026] = option(
        2026, "Year whose rules count, where they differ"
    )
    backend: Literal["auto", "causal", "mlm", "mntp"] = option(
        "auto",
        "How a model is asked: causal, or masked (pseudo-log-likelihood); auto: by its"
        " architecture",
    )
    batch_tokens: int = option(
        16384, "Positions a pass, to bound memory; a longer text goes alone", False
    )
    # Not where the hardware is fast at it, as in training: some choices of a thousand
    # would differ from the protocol's, and from those on another machine.
    bf16: Optional[bool] = option(
        None,
        "bfloat16 matrix products; null: float32, but for fine-tuning on a GPU that has them",
    )

    def __post_init__(self) -> None:
        self.protocol = int(self.protocol)  # OmegaConf gives a choice's name, a text

    @classmethod
    def key(cls, name: str) -> str:
        """Return what a user types for the field: the keys of `run_eval` have no section."""
        return name if cls is RunEvalArguments else f"evaluation.{name}"


@dataclass
class EvaluationArguments(ScoringArguments):
    """What is measured besides the loss."""

    items_while_training: Optional[int] = option(
        None,
        "Choices of each task scored at every evaluation during training, the same each"
        " time; null: all, 0: none. At the end all are",
    )
    num_generated_texts: int = option(
        3, "Texts the final model writes at the end of a run", changes_result=False
    )


@dataclass
class RunEvalArguments(ScoringArguments):
    """All keys of `python -m src.run_eval`."""

    checkpoint: Any = option(
        None,
        "What is scored: a run, a model's directory, a glob, a hub name, or a list",
    )
    revision: Any = option(
        None, "Branch, tag or commit of a hub name, or a list of them; null: main"
    )
    token: Optional[str] = option(None, "Access token of the hub (better: HF_TOKEN)")
    trust_remote_code: bool = option(
        False, "Run the Python code that a model brings with it (as GPT-BERT does)"
    )
    cache_dir: str = option(".cache", "Where hub downloads are kept; may be a symlink")
    results_dir: str = option(
        "results", "Where scores and predictions go, as the official pipeline has them"
    )
    overwrite: bool = option(False, "Score again what is scored already")
    by_phenomenon: bool = option(False, "Show BLiMP by phenomenon")
    seed: int = option(42, "Of fine-tuning (tasks=glue)")


def without_section(message: str) -> str:
    """`evaluation.data` → `data`: the keys of `run_eval` have no section."""
    return re.sub(r"(?<![\w./])evaluation\.(?=[a-z])", "", message)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Every field of Hugging Face's `TrainingArguments`, and ours."""

    # Hugging Face types it `bool`; null lets the hardware decide.
    bf16: Optional[bool] = option(
        None, "bfloat16 mixed precision; null: where the hardware is fast at it"
    )
    use_cpu: Optional[bool] = option(
        None, "Train on the processor; null: where there is no GPU", False
    )
    # Its own way of compiling would compile evaluation too, and whatever the run's length.
    torch_compile: Optional[bool] = option(
        None,
        "Compile the training step; null: where the run is long enough to gain by it",
    )
    tokens_per_step: Optional[int] = option(
        None,
        "Tokens of the optimizer's batch, over all devices; how it is divided follows from the"
        " memory. Or give per_device_train_batch_size and gradient_accumulation_steps",
    )
    per_device_train_batch_size: Optional[int] = option(
        None, "Sequences of a micro-batch, per device; null: see tokens_per_step"
    )
    gradient_accumulation_steps: Optional[int] = option(
        None, "Micro-batches of a step; null: see tokens_per_step"
    )
    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "muon: for the matrices inside the layers, at AdamW's learning rate and weight decay,"
        " and AdamW for the rest; adamw: for all, or what training.optim names",
    )
    cooldown_steps: float = option(
        0.2,
        "Last steps, in which lr_scheduler_type=warmup_stable_decay falls linearly to 0;"
        " below 1: a share of the run",
    )
    averaging: Optional[Literal["ema", "tail"]] = option(
        None,
        "Average the weights: tail, evenly over the last averaging_steps; ema, exponentially"
        " over the run. The average is the final model where it scores better, or where nothing"
        " is evaluated",
    )
    averaging_steps: float = option(
        0.2,
        "Steps of the tail, or the span N of the ema (decay 1 - 2 / (N + 1)); below 1: a"
        " share of the run",
    )
    logit_chunk: Optional[int] = option(
        None,
        "Tokens whose logits exist at once in training; null: what suits the device, 0: all",
    )
    max_words: Optional[int] = option(
        None,
        "Train until the last step that does not exceed this many words seen, or until the"
        " epochs end",
    )
    overwrite_output_dir: bool = option(
        False, "Move a run that is already there aside and start anew", False
    )
    only_preprocess_dataset: bool = option(
        False, "Train the tokenizer, pack the text, print what was found, stop", False
    )

    def __post_init__(self) -> None:
        compiles, self.torch_compile = self.torch_compile, False
        super().__post_init__()
        self.torch_compile = compiles


@dataclass
class WandbArguments:
    """Where the run is logged: Weights & Biases."""

    log: bool = option(True, "Log to Weights & Biases", changes_result=False)
    mode: Literal["auto", "online", "offline"] = option(
        "auto", "auto: online with a key and a network, else offline", False
    )
    project: str = option("stanford-babylm", "Project", changes_result=False)
    entity: Optional[str] = option(None, "Team or user; null: the key's own", False)
    tag: str = option("run", "First part of the group: tells experiments apart", False)
    group: str = option("", "Group: <tag>-<model>-<dataset>", changes_result=False)
    name: str = option("", "Name: the seed and what was overridden", False)


@dataclass
class Arguments:
    """All sections of a run's configuration."""

    model: ModelArguments = field(default_factory=ModelArguments)
    tokenizer: TokenizerArguments = field(default_factory=TokenizerArguments)
    data: DataTrainingArguments = field(default_factory=DataTrainingArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    wandb: WandbArguments = field(default_factory=WandbArguments)


# What an evaluation reports of the text, of every dev file and over all.
FIGURES = ("loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity")
