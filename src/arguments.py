"""The options of a run: their types, defaults, bounds and meanings.

To add an option, add one field to one of these dataclasses. Then users can set it on the
command line (`data.block_size=128`) and in every YAML file under `src/conf/`, `--help` shows
it, and its value is checked: `src/configuration/schema.py` turns the dataclasses into Hydra's
schema. The values that every run starts from are in `src/conf/config.yaml`.

An `option` that changes the weights or the reported numbers of a run is part of the run's
identity (`src/configuration/identity.py`). A `neutral` option changes neither.
"""

import functools
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, Mapping

import transformers

from src.foundation import UserError

# Bounds that several options share.
SEED = {"minimum": 0, "maximum": 2**32 - 1}
SEQUENCES = {"above": 0, "maximum": 1_000_000}
SHARE = {"minimum": 0, "below": 1}
# The figures that an evaluation reports, for each dev file and over all of them.
FIGURES = ("loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity")
# The kinds of parameters that can have their own learning rate and weight decay.
PARAMETER_KINDS = ("matrices", "embedding", "head", "vectors")


def is_text_figure(metric: str) -> bool:
    """Return whether a metric is one of `FIGURES`, for all files or one, and not a score.

    The user's own pairs may have a part that is called `loss`.
    """
    is_own_pair = metric.removeprefix("eval_").startswith("pairs/")
    return metric.endswith(FIGURES) and not is_own_pair


def option(
    default: Any,
    help: str,
    changes_result: bool = True,
    secret: bool = False,
    **bounds: Any,
) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: The value of the option if nobody sets it.
        help: The meaning of the option, with its unit, as `--help` shows it.
        changes_result: True if two runs that differ in it may end with different numbers.
        secret: True if the value must not be printed.
        bounds: `minimum`, `above`, `maximum` or `below` of a number, and perhaps the `reason`.
            `unset` is a value outside of the bounds that stands for null.
    """
    metadata = {"help": help, "changes_result": changes_result, "bounds": bounds}
    return field(default=default, repr=not secret, metadata=metadata)


neutral = functools.partial(option, changes_result=False)


class Section:
    """A group of options, which a user types as `section.option`."""

    section: ClassVar[str]

    @classmethod
    def key(cls, name: str) -> str:
        """Return the key that a user types for an option, such as `data.block_size`."""
        return f"{cls.section}.{name}" if cls.section else name

    def check(self) -> None:
        """Raise `UserError` for options of this section that exclude each other."""

    def check_names(self, *options: str) -> None:
        """Raise `UserError` for an option that is neither null, a text nor a list of texts."""
        for option in options:
            value = getattr(self, option)
            names = value if isinstance(value, list) else [value]
            are_names = names and all(isinstance(name, str) for name in names)
            if value is not None and not are_names:
                raise UserError(
                    f"{self.key(option)} must be a text or a list of texts, got {value!r}"
                )

    def check_numbers(self, option: str, key: str, meaning: str) -> None:
        """Raise `UserError` for an option that is neither null nor {key: finite number}."""
        value, name = getattr(self, option), self.key(option)
        if not isinstance(value or {}, dict):
            raise UserError(f"{name}={value!r} must be {{{key}: {meaning}, …}}")
        for key, number in (value or {}).items():
            if not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
                raise UserError(
                    f"{name}: {key} must be a finite number of at least 0, got {number!r}"
                )

    def check_needed(self, needed: str, *options: str) -> None:
        """Raise `UserError` for an option that has no effect without another, `needed`."""
        for option in options:
            value = getattr(self, option)
            if value is not None and not getattr(self, needed):
                raise UserError(
                    f"{self.key(option)}={value} has no effect without {self.key(needed)}"
                )


@dataclass(frozen=True)
class LoadingArguments(Section):
    """Options of loading models and tokenizers."""

    token: str | None = neutral(
        None, "Hub access token (better: variable HF_TOKEN)", secret=True
    )
    trust_remote_code: bool = option(
        False, "Run Python code that comes with a model or tokenizer, as GPT-BERT needs"
    )
    cache_dir: str = neutral(".cache", "Folder for tokenizers, packed text, downloads")


@dataclass(frozen=True)
class ModelArguments(LoadingArguments):
    """Options of the network: its architecture and its initial weights."""

    section: ClassVar[str] = "model"

    model_type: str | None = option(
        None, "Architecture of transformers to train from scratch: gpt2, opt, llama, …"
    )
    # `Any`: OmegaConf crashes on the overrides of an optional dict.
    config_overrides: Any = option(
        None, "Values of the architecture's configuration: {n_layer: 12, n_head: 12}"
    )
    model_name_or_path: str | None = option(
        None, "Model to start from, instead of random weights: a directory or hub name"
    )
    revision: str | None = option(None, "Branch, tag or commit of model_name_or_path")
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None
    ) = option(None, "Attention implementation; null: the fastest for the architecture")

    def check(self) -> None:
        self.check_needed("model_name_or_path", "revision")


@dataclass(frozen=True)
class TokenizerArguments(Section):
    """Options of the tokenizer."""

    section: ClassVar[str] = "tokenizer"

    name_or_path: str | None = option(
        None,
        "Pretrained tokenizer: a directory or hub name; null: train a byte-level BPE on"
        " the training text",
    )
    revision: str | None = option(None, "Branch, tag or commit of name_or_path")
    vocab_size: int = option(
        16384,
        "Entries of a trained tokenizer, including its three special tokens",
        minimum=259,
        maximum=1_000_000,
        reason="256 bytes and 3 special tokens",
    )
    lossy: bool = neutral(False, "Allow a tokenizer that changes or loses text")

    def check(self) -> None:
        self.check_needed("name_or_path", "revision")


@dataclass(frozen=True)
class DataTrainingArguments(Section):
    """Options of the text and of how it is cut into blocks."""

    section: ClassVar[str] = "data"

    train_file: Any = option(
        None, "Training text: a path, a glob such as data/*.train, or a list of them"
    )
    validation_file: Any = option(
        None, "Validation text, in the same forms; null: a part of the training text"
    )
    dataset_name: str | None = option(None, "Hub dataset, instead of files")
    dataset_config_name: str | None = option(None, "Configuration of the hub dataset")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the dataset")
    text_column: str = option(
        "text", "Text column of .csv, .json, .jsonl, .parquet files and hub datasets"
    )
    document_boundary: str = option(
        "auto",
        "Boundary between documents: blank_line, heading (`= = = Title = = =`), line,"
        " file, or a separator such as '<|endoftext|>', which is no text; auto: a file's"
        " headings, else its blank lines, else its end",
    )
    attend_across_documents: bool = option(
        True,
        "Let tokens attend to earlier documents of their block; false: attention and"
        " positions start anew in each document",
    )
    block_size: int = option(
        512, "Tokens of a training sequence", minimum=2, maximum=1_000_000
    )
    block_size_schedule: Any = option(
        None,
        "Shorter sequences first: {128: 0.5, 256: 0.25, 512: 0.25} maps lengths to shares"
        " of the run; each step has the same number of tokens",
    )
    order: Literal["shuffled", "sequential", "by_file"] = option(
        "shuffled",
        "Order of an epoch's blocks; by_file: one file after the other, each shuffled",
    )
    file_order: Any = option(
        None, "All file names, in order, for order=by_file; null: as in train_file"
    )
    mix: Any = option(
        None, "Passes over files per epoch: {childes: 2, switchboard: 0.5}; others: 1"
    )
    reshuffle_documents: bool = option(
        False,
        "Shuffle the documents of each file before each epoch and cut new blocks, so that"
        " no epoch repeats a block; false: the blocks stay, and data.order orders them",
    )
    word_budget: int | None = neutral(
        None,
        "Most words that the training text may have; the run may see ten times as many",
        minimum=1,
    )
    recipe_budget: int | None = neutral(
        None, "The word_budget that the recipe was made for; null: any", minimum=1
    )
    strict_rules: bool = neutral(True, "Refuse a run that exceeds word_budget")
    max_train_samples: int | None = option(
        None, "Train on this many blocks only, the same for every seed", minimum=1
    )
    max_eval_samples: int | None = option(
        None, "Evaluate on this many blocks only, the same each time", minimum=1
    )
    validation_split_percentage: float = option(
        5.0,
        "Percentage of each training file to hold out if there is no validation text",
        above=0,
        below=100,
    )
    preprocessing_num_workers: int | None = neutral(
        None, "Threads for tokenizing; null: one per core", minimum=1, maximum=1024
    )
    overwrite_cache: bool = neutral(False, "Train the tokenizer and pack the text anew")

    def check(self) -> None:
        self.check_names("train_file", "validation_file", "file_order")
        self.check_needed("dataset_name", "dataset_config_name", "dataset_revision")
        if self.reshuffle_documents and self.max_train_samples:
            raise UserError(
                "data.reshuffle_documents=true cannot be combined with"
                " data.max_train_samples: no block stays the same"
            )
        self._check_schedule()
        self._check_files()
        if not self.document_boundary:
            raise UserError("data.document_boundary must not be empty")
        if self.dataset_name and (self.train_file or self.validation_file):
            raise UserError(
                f"data.dataset_name={self.dataset_name} cannot be combined with"
                " data.train_file or data.validation_file"
            )
        recipe, data = self.recipe_budget, self.word_budget
        if None not in (recipe, data) and recipe != data:
            raise UserError(
                f"the recipe is for {recipe:,} words (data.recipe_budget), but the data's"
                f" budget is {data:,} words (data.word_budget): choose another recipe, or"
                " use this one anyway with data.recipe_budget=null"
            )

    def _check_schedule(self) -> None:
        schedule, block_size = self.block_size_schedule, self.block_size
        if schedule is None:
            return
        key = f"data.block_size_schedule={schedule}"
        sizes = list(schedule) if isinstance(schedule, dict) else []
        divisors = [size for size in range(2, block_size + 1) if block_size % size == 0]
        if sizes[-1:] != [block_size] or sizes != [x for x in divisors if x in sizes]:
            raise UserError(
                f"{key} must be {{length: share of the run, …}}; the lengths must grow and"
                f" end with data.block_size={block_size}, and each must be a whole number of"
                " at least 2 that divides it"
            )
        shares = list(schedule.values())
        are_numbers = all(isinstance(x, (int, float)) and x > 0 for x in shares)
        if not are_numbers or abs(sum(shares) - 1) > 1e-6:
            raise UserError(f"{key}: the shares must be above 0 and add up to 1")

    def _check_files(self) -> None:
        self.check_numbers("mix", "file", "passes")
        order = self.file_order
        if order and len(set(order)) != len(order):
            raise UserError(f"data.file_order={order} names a file twice")
        if order and self.order != "by_file":
            raise UserError(
                f"data.file_order needs data.order=by_file, got {self.order}"
            )


@dataclass(frozen=True)
class ScoringArguments(Section):
    """Options of the challenge's scores: the tasks and how they are scored."""

    section: ClassVar[str] = "evaluation"

    tasks: Any = option(None, "Tasks: fast, full, or names such as [blimp,ewok]")
    pairs: Any = option(
        None, "Folder, or list of folders, of minimal pairs in BLiMP's format (*.jsonl)"
    )
    data: str = option(
        "babylm_data/evaluation_data", "Folder that holds full_eval and fast_eval"
    )
    protocol: Literal[2025, 2026] = option(2026, "Year of the challenge's rules")
    backend: Literal["auto", "causal", "mlm", "mntp"] = option(
        "auto",
        "Kind of model: causal, or masked (mlm, mntp), which is scored by"
        " pseudo-log-likelihood; auto: as the architecture says",
    )
    batch_tokens: int = neutral(
        16384, "Most tokens in a forward pass; a longer text is scored alone", minimum=1
    )
    # Unlike in training, null means float32 even if the hardware is fast at bfloat16. With
    # bfloat16, a few choices in a thousand would differ from the protocol's, and they would
    # differ between machines.
    bf16: bool | None = option(
        None, "bfloat16 matrix products; null: only in fine-tuning, if the GPU has them"
    )
    exact_positions: bool = neutral(
        False,
        "In fine-tuning, number the tokens of a padded text from its first one; the"
        " challenge's script numbers them from the padding, in models with absolute"
        " positions such as GPT-2",
    )

    def check(self) -> None:
        self.check_names("tasks", "pairs")


@dataclass(frozen=True)
class EvaluationArguments(ScoringArguments):
    """Options of a run's evaluation, besides its loss."""

    items_while_training: int | None = option(
        None,
        "Items of each task that are scored at evaluations during training, the same ones"
        " each time; null: all, 0: none; the final evaluation scores all",
        minimum=0,
    )
    num_generated_texts: int = neutral(
        3, "Texts that the final model writes after training", minimum=0, maximum=10_000
    )


@dataclass(frozen=True)
class RunEvalArguments(LoadingArguments, ScoringArguments):
    """Options of `python -m src.run_eval`, whose keys have no section."""

    section: ClassVar[str] = ""

    checkpoint: Any = option(
        None, "Models to score: a run, directory, glob or hub name, or a list of these"
    )
    revision: Any = option(
        None, "Branch, tag or commit of a hub name, or a list of them; null: main"
    )
    use_cpu: bool = option(False, "Score on the CPU, even if there is a GPU")
    results_dir: str = option(
        "results", "Directory for scores and predictions, as in the official pipeline"
    )
    overwrite: bool = option(False, "Score tasks again that already have scores")
    by_phenomenon: bool = option(False, "Show the scores of BLiMP by phenomenon")
    seed: int = option(42, "Random seed of fine-tuning (tasks=glue)", **SEED)


@dataclass(frozen=True)
class HubArguments(Section):
    """Options of an upload to the hub."""

    section: ClassVar[str] = "hub"

    license: str | None = option(
        None,
        "Licence of the model, by its name on the hub: mit, apache-2.0, cc-by-4.0, …",
    )
    push: bool = option(False, "Upload the entry to the hub")
    private: bool = option(True, "Create the repository as a private one")
    token: str | None = option(
        None, "Hub access token (better: variable HF_TOKEN)", secret=True
    )


@dataclass(frozen=True)
class ExportArguments(Section):
    """Options of `python -m src.export`."""

    section: ClassVar[str] = ""

    run: str | None = option(None, "Directory of a finished run")
    name: str | None = option(None, "Name of the entry on the hub: <owner>/<model>")
    track: Literal["strict-small", "strict"] | None = option(
        None, "Track of the challenge; null: by data.word_budget of the run"
    )
    data: str = option(
        "babylm_data/evaluation_data", "Folder that holds full_eval and fast_eval"
    )
    results_dir: str = option("results", "Directory of scores and predictions")
    batch_tokens: int = option(
        16384, "Most tokens in a forward pass; a longer text is scored alone", minimum=1
    )
    use_cpu: bool = option(False, "Score on the CPU, even if there is a GPU")
    python_4_51: str | None = option(
        None, "Python of an environment with transformers 4.51.3, to compare logits"
    )
    hub: HubArguments = field(default_factory=HubArguments)


@dataclass(frozen=True)
class ReportArguments(Section):
    """Options of `python -m src.report`."""

    section: ClassVar[str] = ""

    runs: Any = option(None, "Run, folder of runs or glob, or a list of these")
    compare: Any = option(
        None, "Two runs, or two globs of runs that differ in the seed"
    )
    results_dir: str = option("results", "Directory of scores and predictions")
    data: str = option(
        "babylm_data/evaluation_data",
        "Folder of full_eval and fast_eval: right answers",
    )
    pairs: Any = option(None, "Folder, or list of folders, of your own minimal pairs")
    format: Literal["table", "csv", "json", "latex", "html"] = option(
        "table", "Form of the output; latex needs the packages booktabs and graphicx"
    )
    output: str | None = option(None, "File to write; null: the screen, or report.html")
    items: str | None = option(None, "CSV file to write, with a row per model and item")
    text: str | None = option(
        None,
        "Text file: write the surprisal of each word, by the model of runs, as CSV",
    )
    watch: bool = option(
        False, "With format=html, write the page again every 30 seconds"
    )
    texts: Any = option(
        None,
        "With format=html, the beginning of a text, or a list of beginnings, that each run's"
        " models continue: \"['','One day']\"; '' lets them begin. Loads the models once",
    )

    def check(self) -> None:
        self.check_names("runs", "compare", "pairs", "texts")
        if self.compare and (isinstance(self.compare, str) or len(self.compare) != 2):
            raise UserError(f"compare must be two names or globs, got {self.compare}")
        if not (self.runs or self.compare):
            raise UserError("no run: name some with runs=… or two with compare=[…,…]")
        if self.text and not self.runs:
            raise UserError(f"text={self.text} needs runs=<the run of one model>")
        if self.watch and self.format != "html":
            raise UserError(f"watch=true needs format=html, got {self.format}")
        if self.texts is not None and self.format != "html":
            raise UserError(f"texts needs format=html, got {self.format}")


# Bounds of options that Hugging Face's TrainingArguments declares, some with a reason.
HUGGING_FACE_BOUNDS: dict[str, dict[str, Any]] = {
    "training.learning_rate": {"above": 0},
    "training.num_train_epochs": {"above": 0},
    "training.max_steps": {"minimum": 1, "unset": -1},
    "training.warmup_steps": {"minimum": 0},
    "training.weight_decay": {"minimum": 0},
    "training.adam_beta1": {"minimum": 0, "below": 1},
    "training.adam_beta2": {"minimum": 0, "below": 1},
    "training.adam_epsilon": {"minimum": 0},
    "training.max_grad_norm": {"minimum": 0},
    "training.label_smoothing_factor": {"minimum": 0, "maximum": 1},
    "training.neftune_noise_alpha": {"minimum": 0, "maximum": 1000},
    "training.torch_empty_cache_steps": {"minimum": 1},
    "training.logging_steps": {"above": 0},
    "training.eval_steps": {"above": 0},
    "training.eval_delay": {"minimum": 0},
    "training.eval_accumulation_steps": {"minimum": 1},
    "training.save_steps": {"above": 0},
    "training.seed": SEED,
    "training.data_seed": SEED,
    "training.dataloader_num_workers": {"minimum": 0, "maximum": 1024},
    "training.dataloader_prefetch_factor": {"minimum": 1, "maximum": 1024},
    "training.ddp_bucket_cap_mb": {"minimum": 1},
    "training.ddp_timeout": {"minimum": 1, "maximum": 10**9},
    "training.per_device_eval_batch_size": SEQUENCES,
    "training.save_total_limit": {
        "minimum": 2,
        "reason": "a run that is killed while it saves needs the previous checkpoint",
    },
}

# Options of Hugging Face's TrainingArguments that must keep their default, with the reason: any
# other value would break a promise of this package.
FIXED_TRAINING_VALUES = {
    "deepspeed": "it is not supported, and its file would override other options",
    "parallelism_config": "it is not supported; each process has the whole model",
    "resume_from_checkpoint": "the same command continues its run; other weights:"
    " model.model_name_or_path=",
    "save_only_model": "a stopped run could not be continued",
    "ignore_data_skip": "a continued run would see other data",
    "auto_find_batch_size": "the batch would depend on the memory",
    "train_sampling_strategy": "data.order and the seed set the order",
    "dataloader_in_order": "data.order and the seed set the order",
    "dataloader_drop_last": "text would be left out",
    "eval_do_concat_batches": "evaluations keep three numbers per block",
    "do_predict": "there is no test text; src.run_eval scores a model",
    "batch_eval_metrics": "evaluations keep three numbers per block anyway",
    "average_tokens_across_devices": "the loss is the mean over all tokens",
    "torch_compile_mode": "training.torch_compile compiles the training step",
    "torch_compile_backend": "training.torch_compile compiles the training step",
    "prediction_loss_only": "an evaluation reports more than the loss",
    "bf16_full_eval": "it would cast the final model; training.bf16 does not",
    "fp16_full_eval": "it would cast the final model; training.bf16 does not",
    "save_on_each_node": "all nodes share the folder of the run",
}
# Keys of `training.fsdp_config`. Others save no model that loads (state_dict_type), or have not
# been tried.
FSDP_KEYS = "transformer_layer_cls_to_wrap min_num_params reshard_after_forward".split()


# Options of `training` that have no effect unless another one has one of these values.
EFFECTIVE_WITH = {
    "averaging_steps": ("averaging", ("ema", "tail")),
    "cooldown_steps": ("lr_scheduler_type", ("warmup_stable_decay",)),
    "normuon": ("optimizer", ("muon",)),
    "cautious_weight_decay": ("optimizer", ("muon",)),
    "eval_steps": ("eval_strategy", ("steps",)),
    "eval_delay": ("eval_strategy", ("steps", "epoch")),
    "load_best_model_at_end": ("eval_strategy", ("steps", "epoch")),
    "save_steps": ("save_strategy", ("steps",)),
    "logging_steps": ("logging_strategy", ("steps",)),
    "liger_kernel_config": ("use_liger_kernel", (True,)),
    "hub_model_id": ("push_to_hub", (True,)),
}
# Options of `training` that have no effect without a weight decay.
OF_WEIGHT_DECAY = (
    "weight_decay_scales",
    "weight_decay_schedule",
    "cautious_weight_decay",
)


# Not frozen: the constructor of Hugging Face's class writes into its fields.
@dataclass(repr=False)  # the one of Hugging Face hides tokens
class TrainingArguments(Section, transformers.TrainingArguments):
    """Options of training: those of Hugging Face's `TrainingArguments`, and ours."""

    section: ClassVar[str] = "training"

    # In Hugging Face's class, null is allowed.
    output_dir: str = neutral("trainer_output", "Directory of the run")
    # In Hugging Face's class, its type is `bool`. Here null is allowed, too.
    bf16: bool | None = option(
        None, "bfloat16 mixed precision; null: if the hardware is fast at it"
    )
    use_cpu: bool | None = neutral(None, "Train on the CPU; null: if there is no GPU")
    torch_compile: bool | None = option(
        None, "Compile the training step; null: if the run is long enough to benefit"
    )
    # In Hugging Face's class, its type is `str`, for an older form.
    fsdp: bool | None = option(
        None,
        "Shard weights, gradients and the optimizer's moments over several GPUs (FSDP2),"
        " for models that do not fit on one; +parallel=fsdp sets it",
    )
    tokens_per_step: int | None = option(
        None,
        "Tokens of the optimizer's batch, over all devices; they are divided into"
        " micro-batches that fit in memory. Instead, you can give"
        " per_device_train_batch_size and gradient_accumulation_steps",
        above=0,
    )
    per_device_train_batch_size: int | None = option(
        None,
        "Sequences of a device's micro-batch; null: see tokens_per_step",
        **SEQUENCES,
    )
    gradient_accumulation_steps: int | None = option(
        None, "Micro-batches of a step; null: see tokens_per_step", **SEQUENCES
    )
    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "muon: Muon for the matrices inside the layers, AdamW for the rest, at the same"
        " learning rate and weight decay; adamw: AdamW, or training.optim, for all",
    )
    normuon: bool = option(
        False,
        "NorMuon, for optimizer=muon: scale updates so that those of all rows (outputs) of"
        " a matrix are equally large",
    )
    cautious_weight_decay: bool = option(
        False,
        "For optimizer=muon: decay a weight only in steps whose update also shrinks it",
    )
    lr_scales: Any = option(
        None,
        "Multiples of learning_rate by kind of parameter, as in {embedding: 0.3}; others:"
        " 1; the kinds are matrices, embedding, head (if not tied) and vectors",
    )
    weight_decay_scales: Any = option(
        None,
        "Multiples of weight_decay by the same kinds, as in {embedding: 0}; others: 1, but"
        " 0 for norms and biases",
    )
    weight_decay_schedule: Literal["constant", "linear", "dip"] = option(
        "constant",
        "Weight decay over the run; linear: falls to 0; dip: is constant for 1/8 of the"
        " run, falls to 1/8 of its value until the middle, and rises to 1.16 times its value",
    )
    cooldown_steps: float = option(
        0.2,
        "Last steps, in which lr_scheduler_type=warmup_stable_decay lowers the learning"
        " rate linearly to 0; below 1: a share of the run",
        above=0,
    )
    averaging: Literal["ema", "tail"] | None = option(
        None,
        "Average the weights: tail, evenly over the last averaging_steps; ema,"
        " exponentially over the run; the average becomes the final model if it scores"
        " better, or if nothing is evaluated",
    )
    averaging_steps: float = option(
        0.2,
        "Steps that the tail averages, or the span N of the ema, whose decay is"
        " 1 - 2 / (N + 1); below 1: a share of the run",
        above=0,
    )
    z_loss: float = option(
        0.0,
        "Weight of the z-loss, the mean squared log-sum-exp of the logits, which keeps"
        " logits small; 1e-4 is usual",
        minimum=0,
    )
    stochastic_depth: float = option(
        0.0,
        "Probability that a sequence skips the last layer in training, against overfitting;"
        " it grows linearly with depth",
        **SHARE,
    )
    input_masking: float = option(
        0.0,
        "Share of the input tokens that training replaces by random ones, against"
        " overfitting; the targets stay",
        **SHARE,
    )
    logit_chunk: int | None = option(
        None, "Tokens with logits in memory at once; null: by device, 0: all", minimum=0
    )
    max_words: int | None = option(
        None,
        "Most words that training may see; it ends before the step that would exceed"
        " this number, or after its epochs",
        minimum=1,
    )
    milestones: Any = neutral(
        None,
        "Words seen at which a model is saved for good, as chck_1M and so on: [1M, 2M];"
        " +milestones=strict_small and strict have those of the challenge",
    )
    overwrite_output_dir: bool = neutral(False, "Start anew and move the old run aside")
    only_preprocess_dataset: bool = neutral(
        False, "Only train the tokenizer, pack the text and print a table of it"
    )

    def __post_init__(self) -> None:
        # Before Hugging Face's class looks for the libraries that some of these need.
        for name, reason in FIXED_TRAINING_VALUES.items():
            value, fixed = getattr(self, name), getattr(TrainingArguments, name)
            if value != fixed:
                raise UserError(
                    f"training.{name} must be {fixed}, got {value}: {reason}"
                )
        # Hugging Face's class would also compile evaluations and compute them in TF32.
        compiles, tf32 = self.torch_compile, self.tf32
        self.torch_compile, self.tf32 = False, None
        super().__post_init__()
        self.torch_compile, self.tf32 = compiles, tf32

    def __getstate__(self) -> dict[str, Any]:
        """Return the values for `training_args.bin`, without the token."""
        return {**self.__dict__, "hub_token": None}

    def check(self) -> None:
        tokens, size = self.tokens_per_step, self.per_device_train_batch_size
        if tokens is None and size is None:
            raise UserError(
                "training.per_device_train_batch_size must be given if"
                " training.tokens_per_step is not, got null"
            )
        batch = {
            "training.per_device_train_batch_size": size,
            "training.gradient_accumulation_steps": self.gradient_accumulation_steps,
        }
        given = [f"{key}={value}" for key, value in batch.items() if value is not None]
        if tokens is not None and given:
            raise UserError(
                f"training.tokens_per_step={tokens} and {', '.join(given)} both set the"
                " size of a step: give one (the other as null)"
            )
        for name in ("lr_scales", "weight_decay_scales"):
            self.check_numbers(name, "kind", "multiple")
        if self.optimizer == "muon" and not self.optim.startswith("adamw_torch"):
            raise UserError(
                "training.optimizer=muon uses AdamW for the other weights and cannot be"
                f" combined with training.optim={self.optim.value}: give one of them"
            )
        if self.fsdp:
            self._check_fsdp()
        if {"wandb", "all"} & set(self.report_to):
            raise UserError(
                f"training.report_to={self.report_to}: wandb.log turns W&B on and off; name"
                " only other loggers, as in training.report_to=[tensorboard]"
            )

    def _check_fsdp(self) -> None:
        """Raise `UserError` for devices and options that do not work with sharded weights."""
        config, is_adamw = self.fsdp_config or {}, self.optim.startswith("adamw_torch")
        obstacles = {
            f"averaging={self.averaging}": self.averaging,
            "optimizer=muon": self.optimizer == "muon",
            f"optim={self.optim.value}": not is_adamw or self.optim.endswith("bit"),
            "torch_compile=true": self.torch_compile,
            "fp16=true": self.fp16,
            "do_train=false": not self.do_train,
            **{
                f"fsdp_config.{k}={v}": v
                for k, v in config.items()
                if k not in FSDP_KEYS
            },
        }
        if names := [f"training.{name}" for name, given in obstacles.items() if given]:
            raise UserError(f"training.fsdp=true does not work with {', '.join(names)}")
        if self.world_size == 1 or self.device.type == "cpu":
            raise UserError(
                "training.fsdp=true needs several GPUs and a process for each, as torchrun"
                f" --nproc_per_node=2 starts them; got {self.world_size}"
                f" process{'es' * (self.world_size > 1)} on a {self.device.type.upper()}"
            )


@dataclass(frozen=True)
class WandbArguments(Section):
    """Options of logging to Weights & Biases."""

    section: ClassVar[str] = "wandb"

    log: bool = neutral(True, "Log to Weights & Biases")
    mode: Literal["auto", "online", "offline"] = neutral(
        "auto", "auto: online with an API key and a network, else offline"
    )
    project: str = neutral("stanford-babylm", "Project of the run")
    entity: str | None = neutral(
        None, "Team or user that owns the project; null: the owner of the key"
    )
    tag: str = neutral("run", "First part of the group's name, to label experiments")
    group: str = neutral("", "Group: <tag>-<model>-<dataset>")
    name: str = neutral("", "Name: the seed and the overrides that change the result")


@dataclass(frozen=True)
class SweepArguments(Section):
    """Options of sweeps over settings."""

    section: ClassVar[str] = "sweep"

    metric: str = neutral(
        "loss",
        "Result of a job that a search optimizes: a figure of the dev text (loss, accuracy,"
        " …), or the score of a task in evaluation.tasks on all items (blimp, …)",
    )


@dataclass(frozen=True)
class Arguments:
    """All sections of a run's configuration."""

    model: ModelArguments = field(default_factory=ModelArguments)
    tokenizer: TokenizerArguments = field(default_factory=TokenizerArguments)
    data: DataTrainingArguments = field(default_factory=DataTrainingArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    wandb: WandbArguments = field(default_factory=WandbArguments)
    sweep: SweepArguments = field(default_factory=SweepArguments)

    def check(self) -> None:
        """Raise `UserError` for options of two sections that exclude each other."""
        data = self.data
        if self.training.do_train and not (data.train_file or data.dataset_name):
            raise UserError(
                "training.do_train=true needs data.train_file or data.dataset_name;"
                " to evaluate only, give training.do_train=false"
            )


def defaults() -> dict[str, Any]:
    """Return the default of each option by key. Runs older than an option have its default."""
    sections = [section.default_factory for section in fields(Arguments)]
    options = {
        s.key(option.name): option.default for s in sections for option in fields(s)
    }
    return {key: value for key, value in options.items() if value is not MISSING}


@dataclass(frozen=True)
class RunConfiguration:
    """The arguments of a run, and the values that its record keeps.

    Attributes:
        args: the typed and checked arguments, which nothing changes afterwards.
        reasons: for each option that was null and has been resolved, the reason of its value:
            {"training.bf16": "the CPU is fast at it"}.
        recorded: the values of all sections, nested and plain, without secrets.
        identity: the settings that change the run's result, as plain values by key.
        overrides: the overrides of the command line, without secrets.
    """

    args: Arguments
    reasons: Mapping[str, str]
    recorded: Mapping[str, Any]
    identity: Mapping[str, Any]
    overrides: list[str]
